"""Pictures of a run and their records: written whole or not at all, and never read without a look at their hash."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import IntegrityError
from ldp_runtime.system.disk import full_disk_is_typed, remove_leftovers, written_whole
from ldp_runtime.system.small_files import is_plain_file, parse_json, read_small, text_lines
from pydantic import BaseModel, ConfigDict, Field

from ldp_calibration.evaluation.run import Run, RunPolicy

INDEX = "index.jsonl"
#: Most problems that a message names.
_NAMED = 10


class PictureRecord(BaseModel):
    """Record of a picture: everything that is the same whenever and wherever it is drawn.

    Attributes:
        prompt, image: numbers of the prompt, and of the picture among those of the prompt; text: the prompt.
        policy: with every field written out; fits: hash of its fitted numbers, or None.
        tokens, tokens_full: tokens computed, and of the whole schedule; kept: computed at each scale that was run.
        stopped_after: scale after which the unconditional branch stopped, or None.
        operations: floating-point operations of the blocks.
        sha256: of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: int = Field(ge=0)
    image: int = Field(ge=0)
    text: str
    seed: int
    policy: str
    fits: str | None = None
    tokens: int
    tokens_full: int
    kept: tuple[int, ...]
    stopped_after: int | None = None
    operations: int
    file: str
    sha256: str


@dataclass(frozen=True)
class Picture:
    """A picture of a run: its place and its record."""

    policy: RunPolicy
    path: Path
    record: PictureRecord


def file_name(image: int) -> str:
    return f"{image:05d}.png"


def png(image: Any) -> bytes:
    """A PIL image as a PNG that depends on its pixels alone."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, pictures: Sequence[tuple[bytes, PictureRecord]]) -> None:
    """Writes the pictures of a prompt, then their index: what is listed is there.

    Raises:
        CapacityError: the disk is full; nothing is listed.
    """
    with full_disk_is_typed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        for content, record in pictures:
            with written_whole(folder / record.file) as scratch:
                scratch.write_bytes(content)
        with written_whole(folder / INDEX) as scratch:
            scratch.write_bytes("".join(f"{record.model_dump_json()}\n" for _, record in pictures).encode())


def prompt_pictures(run: Run, policy: RunPolicy, prompt: int) -> list[Picture]:
    """Pictures of a prompt as its index lists them; their files are not looked at.

    Raises:
        ValueError: there is no index, or it is damaged or another prompt's.
    """
    folder = run.prompt_folder(policy, prompt)
    try:
        lines = text_lines(read_small(folder / INDEX))
    except FileNotFoundError:
        raise ValueError("it is not drawn") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"its {INDEX} cannot be read: {error}") from error
    try:
        records = [PictureRecord.model_validate(parse_json(line)) for line in lines]
    except ValueError:
        raise ValueError(f"its {INDEX} is damaged") from None
    settings, text = run.settings, run.prompts[prompt].text
    wanted = [
        (prompt, j, text, settings.seed_of(policy, prompt, j), policy.policy, policy.fits, file_name(j))
        for j in range(settings.images)
    ]
    if [(r.prompt, r.image, r.text, r.seed, r.policy, r.fits, r.file) for r in records] != wanted:
        raise ValueError(f"its {INDEX} is of other pictures")
    return [Picture(policy, folder / record.file, record) for record in records]


def content(picture: Picture) -> bytes:
    """Bytes of a picture's file.

    Raises:
        ValueError: it is missing, or not the one that was drawn.
    """
    if not is_plain_file(picture.path):
        raise ValueError(f"{picture.path.name} is missing")
    found = picture.path.read_bytes()
    if hashlib.sha256(found).hexdigest() != picture.record.sha256:
        raise ValueError(f"{picture.path.name} is not the one that was drawn: truncated, or replaced")
    return found


def is_drawn(run: Run, policy: RunPolicy, prompt: int) -> bool:
    """True if all pictures of a prompt are there, as they were drawn."""
    try:
        return all(content(picture) for picture in prompt_pictures(run, policy, prompt))
    except ValueError:
        return False


def all_pictures(run: Run, policies: Iterable[RunPolicy], prompts: Sequence[int] | None = None) -> list[Picture]:
    """Pictures of policies, by policy and prompt, each looked at.

    Args:
        prompts: numbers of prompts, in order; None: all of the run.

    Raises:
        IntegrityError: some are missing or damaged; the message lists them.
    """
    found, problems = list[Picture](), list[str]()
    for policy in policies:
        for prompt in range(len(run.prompts)) if prompts is None else prompts:
            try:
                pictures = prompt_pictures(run, policy, prompt)
                for picture in pictures:
                    content(picture)
                found += pictures
            except ValueError as error:
                problems.append(f"{policy.label}, prompt {prompt}: {error}")
    if problems:
        more = f"\n  and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise IntegrityError(
            f"pictures of {len(problems)} prompts are missing or damaged in {run.folder}:\n  "
            + "\n  ".join(problems[:_NAMED])
            + more,
            hint="run `ldp-export evaluate generate` again, which draws them; none is left out of a score",
        )
    return found


def pixels(encoded: bytes, jpeg: int | None = None) -> np.ndarray:
    """Pixels [H, W, 3] uint8 of a file; grey is repeated.

    Args:
        jpeg: quality of a JPEG file (4:2:0) that the picture is written to and read from first; None: none.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    if jpeg is not None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=jpeg, subsampling="4:2:0")
        image = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    return np.asarray(image)
