"""Files of each layout: which picture lies where, and what stands beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.small_files import stays_inside

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.dpg.questions import asking_all
from ldp_calibration.evaluation.geneval.summary import metadata
from ldp_calibration.evaluation.pictures import Picture
from ldp_calibration.evaluation.run import Run

#: Pictures of a prompt in DPG-Bench's tiled file.
TILES = 4
#: DPG-Bench's file of questions, beside the policies' folders.
QUESTIONS = "questions.csv"


@dataclass(frozen=True)
class LayoutFile:
    """A file: the pictures that it holds, or a text."""

    path: str
    pictures: tuple[Picture, ...] = ()
    text: bytes | None = None


def geneval(run: Run, pictures: Sequence[Picture]) -> Iterator[LayoutFile]:
    """Folder of each prompt by its number, with its line of the benchmark and its samples."""
    for number, prompt in enumerate(run.prompts):
        if "include" not in prompt.facts:
            raise _not_for("geneval", prompt)
        yield LayoutFile(f"{number:05d}/metadata.jsonl", text=f"{json.dumps(metadata(prompt))}\n".encode())
    for picture in pictures:
        yield LayoutFile(f"{picture.record.prompt:05d}/samples/{picture.record.image:05d}.png", (picture,))


def hpsv2(run: Run, pictures: Sequence[Picture]) -> Iterator[LayoutFile]:
    """Folder of each style, with a file for each of its prompts."""
    _require_images("hpsv2", run, 1)
    for picture in pictures:
        prompt = run.prompts[picture.record.prompt]
        index = prompt.facts.get("index")
        if not isinstance(index, int) or prompt.tag is None:
            raise _not_for("hpsv2", prompt)
        yield LayoutFile(f"{_name(prompt.tag)}/{index:05d}.png", (picture,))


def imagereward(run: Run, pictures: Sequence[Picture]) -> Iterator[LayoutFile]:
    """Files by the prompt's id and the picture's number."""
    for picture in pictures:
        prompt = run.prompts[picture.record.prompt]
        if "id" not in prompt.facts:
            raise _not_for("imagereward", prompt)
        yield LayoutFile(f"{_name(prompt.facts['id'])}_{picture.record.image}.png", (picture,))


def dpg(run: Run, pictures: Sequence[Picture]) -> Iterator[LayoutFile]:
    """File of each item, with its four pictures in two rows."""
    _require_images("dpg", run, TILES)
    by_prompt = dict[int, list[Picture]]()
    for picture in pictures:
        by_prompt.setdefault(picture.record.prompt, []).append(picture)
    for number, found in by_prompt.items():
        prompt = run.prompts[number]
        if "item_id" not in prompt.facts:
            raise _not_for("dpg", prompt)
        _check_square(found[0])
        yield LayoutFile(f"{_name(prompt.facts['item_id'])}.png", tuple(found))


def dpg_questions(run: Run) -> dict[str, bytes]:
    """File of questions that makes the script ask all of them."""
    try:
        return {QUESTIONS: asking_all(run.prompts)}
    except ValueError as error:
        raise ConfigError(str(error), hint="fetch the benchmark dpg anew, and draw its prompts") from error


def _check_square(picture: Picture) -> None:
    from PIL import Image

    with Image.open(picture.path) as image:
        width, height = image.size
    if width != height:
        raise ConfigError(
            f"pictures of {width}x{height} are no squares, which dpg's script cuts out", hint="draw squares"
        )


def _require_images(layout: str, run: Run, count: int) -> None:
    if run.settings.images != count:
        raise ConfigError(
            f"the layout {layout} holds {count} pictures of a prompt, and the run has {run.settings.images}",
            hint=f"draw the run with --images {count}",
        )


def _name(text: object) -> str:
    """Name of a file as a benchmark gives it. Raises ConfigError for one that leads elsewhere."""
    name = str(text)
    if not stays_inside(name) or "/" in name:
        raise ConfigError(f"{name[:80]!r} is no name of a file", hint="fetch the benchmark anew")
    return name


def _not_for(layout: str, prompt: EvaluationPrompt) -> ConfigError:
    return ConfigError(
        f"the layout {layout} is not for the prompt {prompt.text[:80]!r}",
        hint=f"it is for runs of --benchmark {layout}, or of a .jsonl with the same facts",
    )
