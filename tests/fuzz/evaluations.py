"""Kills of an evaluation: a step that dies at some point goes on, and ends with what an undisturbed one ends with."""

from __future__ import annotations

import json
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from helpers.evaluation import tree

from fuzz import Outcome
from fuzz.kills import Counter, in_a_child
from fuzz.samples import bundle, folder
from ldp_export.cli import main

#: Steps, and the folders of a run that each of them writes.
STEPS = {"generate": ("images",), "score": ("scores",), "compare": ("compare",)}
_PROMPTS = [(colour, kind) for colour in ("red", "blue") for kind in ("circle", "star")]


@dataclass(frozen=True)
class Case:
    step: str
    share: float


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        for step in STEPS:
            yield Case(step, rng.random())


def run(case: Case) -> Outcome:
    place = Path(tempfile.mkdtemp(prefix="evaluation-", dir=folder()))
    try:
        shutil.copytree(_before(case.step), place / "run", dirs_exist_ok=True)
        victim = 1 + int(case.share * _calls(case.step))
        died = in_a_child(lambda: _counted(case.step, place / "run", victim))
        if died not in (-signal.SIGKILL, 0):
            return "untyped"
        if in_a_child(lambda: _step(case.step, place / "run")) != 0:
            return "right refused"
        return "right" if _written(case.step, place / "run") == _written(case.step, _whole()) else "wrong accepted"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _written(step: str, run: Path) -> dict[str, bytes]:
    return tree(run, *STEPS[step])


def _step(step: str, run: Path) -> None:
    """Takes one step of an evaluation, as its command does."""
    given: dict[str, list[Any]] = {
        "generate": [bundle("infinity").folder, "--benchmark", _prompts(), "--policy", "ld", "--threads", "1"],
        "score": [run, "--scorer", "shapes", "--scorer", "psnr"],
        "compare": [run, "--resamples", "1000"],
    }
    output = ["--output", run] if step == "generate" else []
    made = CliRunner().invoke(main, ["evaluate", step, *map(str, given[step] + output)])
    assert made.exit_code == 0, made.output


def _counted(step: str, run: Path, victim: int, note: Callable[[int], object] = lambda count: None) -> None:
    """Takes a step that dies before the call of that number; scores are counted too, which open no file."""
    from ldp_calibration.evaluation import score

    counter = Counter(run)
    counter.victim = victim
    plain = score.score_pictures

    def ticking(*given: Any) -> Any:
        counter.tick()
        return plain(*given)

    score.score_pictures = ticking
    _step(step, run)
    note(counter.count)


def _prompts() -> Path:
    path = folder() / "evaluated.jsonl"
    if not path.exists():
        lines = [{"prompt": f"a {c} {k}", "tag": k, "claims": [[k, c]]} for c, k in _PROMPTS]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@lru_cache
def _whole() -> Path:
    """An undisturbed run."""
    place = folder() / "evaluations" / "whole"
    if not (place / "compare" / "changed.html").exists():
        shutil.rmtree(place, ignore_errors=True)
        for step in STEPS:
            assert in_a_child(lambda step=step: _step(step, place)) == 0
    return place


@lru_cache
def _before(step: str) -> Path:
    """The undisturbed run as it was before a step."""
    place = folder() / "evaluations" / f"before-{step}"
    if not place.exists():
        later = list(STEPS)[list(STEPS).index(step) :]
        gone = {name for each in later for name in STEPS[each]}
        place.mkdir(parents=True)
        if step != "generate":
            shutil.copytree(_whole(), place, dirs_exist_ok=True, ignore=lambda *_: gone)
    return place


@lru_cache
def _calls(step: str) -> int:
    """Number of calls of a whole step."""
    note = folder() / "evaluations" / f"calls-{step}"
    if not note.exists():
        counted = folder() / "evaluations" / f"counted-{step}"
        shutil.copytree(_before(step), counted)
        assert in_a_child(lambda: _counted(step, counted, 0, lambda count: note.write_text(str(count)))) == 0
        shutil.rmtree(counted)
    return int(note.read_text())
