"""Seconds of pictures, apart from their records: they differ each time, and on each machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldp_calibration.evaluation.run import TIMES, Run
from ldp_calibration.resumable import read_entries
from ldp_calibration.stats import Interval, geometric_mean


@dataclass(frozen=True)
class Timed:
    """Seconds that one process took for the pictures of a prompt."""

    process: str
    policy: str
    prompt: int
    seconds: float


def new_times_file(run: Run) -> Path:
    """Path of the times of one process."""
    return run.folder / TIMES / f"{uuid.uuid4().hex}.jsonl"


def read_times(run: Run) -> list[Timed]:
    """Times of all processes that drew for the run; what cannot be read counts as not measured."""
    return [timed for path in sorted((run.folder / TIMES).glob("*.jsonl")) for timed in _of_process(path)]


def _of_process(path: Path) -> Iterator[Timed]:
    for entry in read_entries(path):
        try:
            timed = Timed(path.stem, str(entry["policy"]), int(entry["prompt"]), float(entry["seconds"]))
        except (KeyError, TypeError, ValueError):
            continue
        if timed.seconds > 0:
            yield timed


def seconds_by_policy(times: Sequence[Timed]) -> dict[str, float]:
    """Median seconds for the pictures of a prompt, by policy."""
    found: dict[str, list[float]] = {}
    for timed in times:
        found.setdefault(timed.policy, []).append(timed.seconds)
    return {policy: float(np.median(seconds)) for policy, seconds in found.items()}


def speedup(times: Sequence[Timed], reference: str, policy: str, seed: int) -> Interval | None:
    """Times faster than the reference, paired by prompt within a process, with the 95 % interval of the prompts.

    None with fewer than two pairs.
    """
    pairs: dict[tuple[str, int], dict[str, float]] = {}
    for timed in times:
        pairs.setdefault((timed.process, timed.prompt), {})[timed.policy] = timed.seconds
    ratios = [pair[reference] / pair[policy] for pair in pairs.values() if {reference, policy} <= pair.keys()]
    return geometric_mean(ratios, seed) if len(ratios) > 1 else None


def entry(policy: str, prompt: int, seconds: float) -> dict[str, Any]:
    return {"policy": policy, "prompt": prompt, "seconds": round(seconds, 6)}
