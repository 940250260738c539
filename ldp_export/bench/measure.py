"""Interleaved rounds: every repetition visits every candidate, in rotating order, and only one of them runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
from ldp_runtime.errors import CapacityError

from ldp_export.bench.plan import BenchPlan
from ldp_export.bench.process import Turns, WorkerProcess
from ldp_export.bench.result import Sample, milliseconds
from ldp_export.bench.worker.messages import Drawn, DrawRequest, Job
from ldp_export.bench.worker.options import Scope

Item = TypeVar("Item")
#: Prompt indices and seeds of a call.
Images = tuple[tuple[int, ...], tuple[int, ...]]
#: Called before each step with what comes next: "load", "warm up", "settle" or "measure", and the candidate's name.
OnStep = Callable[[str, str], None]
#: Called where a round begins, with its number from 0.
OnRound = Callable[[int], None]


@dataclass
class Measured:
    """Reports of one candidate's worker. Only `measure` writes to it.

    Attributes:
        samples: one per prompt group and repetition.
        worker: process of the candidate, which candidates of the same engines may share.
        load_s: seconds that loading took.
        drawn: reply of each group's first measured call.
        images: files of those calls' images.
    """

    name: str
    policy: str
    worker: WorkerProcess
    load_s: float
    first_ms: float | None = None
    peak_rss_mb: float = 0.0
    peak_device_mb: float | None = None
    samples: list[Sample] = field(default_factory=list)
    drawn: dict[int, Drawn] = field(default_factory=dict)
    images: dict[int, Path] = field(default_factory=dict)

    def times(self, scope: Scope) -> np.ndarray:
        """Times [groups, repetitions] in milliseconds."""
        ordered = sorted(self.samples, key=lambda sample: (sample.group, sample.repetition))
        return np.array([milliseconds(sample, scope) for sample in ordered]).reshape(len(self.drawn), -1)

    def load_images(self) -> list[np.ndarray]:
        """Images [3, H, W] in [0, 1], in the order of the plan."""
        return [image for group in sorted(self.images) for image in np.load(self.images[group])]


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    by %= len(items)
    return [*items[by:], *items[:by]]


def settling_calls(plan: BenchPlan) -> int:
    """Number of unmeasured calls at the beginning of each visit.

    A resumed process finds its neighbour's data in the caches, which costs the first call about a tenth. Without
    warm-up there are none, since cold calls are then asked for.
    """
    return min(1, plan.options.warmup)


def steps(plan: BenchPlan) -> int:
    """Number of calls of `on_step` over all batch sizes."""
    visits = {b: plan.options.repeats * (len(plan.groups(b)) + settling_calls(plan)) for b in plan.options.batch}
    return sum(len(plan.jobs(b)) * (1 + plan.options.warmup + visits[b]) for b in plan.options.batch)


def measure_peak(plan: BenchPlan) -> float:
    """Floating-point operations per second of the machine, measured in a process of its own."""
    with Turns() as turns:
        return turns.start("probe").ask({"probe": {"threads": plan.options.threads, "device": plan.options.device}})[
            "flops_per_s"
        ]


def measure(plan: BenchPlan, batch: int, folder: Path, on_step: OnStep, on_round: OnRound) -> list[Measured]:
    """Measures all candidates of one batch size.

    Args:
        folder: folder for the images.
    """
    groups = plan.groups(batch)
    with Turns() as turns:
        candidates, loaded = [], {}
        for name, job in plan.jobs(batch).items():
            on_step("load", name)
            if job not in loaded or not plan.options.share_engines:
                loaded[job] = _load(turns.start(name), job, plan)
            candidate = Measured(name, plan.policy(name), *loaded[job])
            candidates.append(candidate)
            turns.yield_to(candidate.worker)
            for i in range(plan.options.warmup):
                on_step("warm up", name)
                _draw(candidate, groups[i % len(groups)])
        for repetition in range(plan.options.repeats):
            on_round(repetition)
            for candidate in rotated(candidates, repetition):
                turns.yield_to(candidate.worker)
                for _ in range(settling_calls(plan)):
                    on_step("settle", candidate.name)
                    _draw(candidate, groups[(repetition - 1) % len(groups)])
                for group in rotated(range(len(groups)), repetition):
                    on_step("measure", candidate.name)
                    _sample(candidate, group, repetition, groups[group], folder)
    return candidates


def _load(worker: WorkerProcess, job: Job, plan: BenchPlan) -> tuple[WorkerProcess, float]:
    """Loads a job; returns the worker and the seconds it took. Raises CapacityError if there is no room for it too."""
    try:
        return worker, worker.ask({"load": job.to_json()})["load_s"]
    except CapacityError as error:
        if plan.options.share_engines:
            raise
        hint = "all candidates are held at once: --share-engines loads engines once for all their policies"
        raise CapacityError(error.message, hint=hint) from error


def _sample(candidate: Measured, group: int, repetition: int, images: Images, folder: Path) -> None:
    save = None
    if repetition == 0:  # seeds are the same in every repetition, and so are the images
        name = quote(f"{candidate.worker.pid} {candidate.policy} {group}", safe="")
        save = candidate.images[group] = folder / f"{name}.npy"
    drawn = _draw(candidate, images, save)
    candidate.drawn.setdefault(group, drawn)
    phases = (drawn.text_ms, drawn.blocks_ms, drawn.loop_ms, drawn.decode_ms)
    scales = (drawn.scales_ms, drawn.loop_scales_ms, drawn.device_ms)
    candidate.samples.append(Sample(group, repetition, drawn.wall_ms, drawn.cpu_ms, *phases, *scales))


def _draw(candidate: Measured, images: Images, save: Path | None = None) -> Drawn:
    request = DrawRequest(*images, candidate.policy, None if save is None else str(save))
    drawn = Drawn(**candidate.worker.ask({"draw": asdict(request)})["drawn"])
    if candidate.first_ms is None:
        candidate.first_ms = drawn.wall_ms
    candidate.peak_rss_mb = drawn.peak_rss_mb
    if drawn.peak_device_mb is not None:
        candidate.peak_device_mb = max(candidate.peak_device_mb or 0.0, drawn.peak_device_mb)
    return drawn
