"""A study's rows and times summed up: means, intervals, and who lies above the controls' front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ldp_calibration.stats import Interval, mean_interval, paired_ratio

from benchmarks.study.rows import Row


@dataclass(frozen=True)
class Summary:
    """One policy over all prompts.

    Attributes:
        speedup: over the unpruned engines, measured; operations: counted in the blocks.
        psnr, ssim, ..._objects: means over prompts; psnr_fifth: fifth percentile over prompts.
        accepted: share that the evaluator accepts; kept: mean share of tokens per scale (0 where a scale was not run).
        stop_rate: share of pictures whose branch stopped before the last scale.
    """

    policy: str
    speedup: Interval
    milliseconds: float
    operations: float
    psnr: Interval
    psnr_fifth: float
    psnr_objects: Interval
    ssim: Interval
    ssim_objects: Interval
    accepted: float
    kept: tuple[float, ...]
    stop_rate: float


def summarise(policy: str, rows: Sequence[Row], times: Mapping[str, np.ndarray], scales: int) -> Summary:
    """Rows of one policy and its paired times."""
    kept = np.array([row.kept + (0.0,) * (scales - len(row.kept)) for row in rows]).mean(axis=0)
    return Summary(
        policy,
        _speedup(times["none"], times[policy]),
        float(np.median(times[policy])) * 1e3,
        len(rows) / sum(1 / row.operations for row in rows),
        mean_interval([row.psnr for row in rows]),
        float(np.percentile([row.psnr for row in rows], 5)),
        mean_interval([row.psnr_objects for row in rows if row.psnr_objects is not None]),
        mean_interval([row.ssim for row in rows]),
        mean_interval([row.ssim_objects for row in rows if row.ssim_objects is not None]),
        float(np.mean([row.accepted for row in rows])),
        tuple(kept.round(4).tolist()),
        float(np.mean([row.stopped is not None for row in rows])),
    )


def margin_over_front(
    speed: float, quality: np.ndarray, front_speeds: Sequence[float], front_qualities: np.ndarray, seed: int = 0
) -> Interval | None:
    """How far a policy lies above the controls' front at its own speed, paired by prompt, with a 95 % interval.

    The front is read off by interpolating between its neighbours prompt by prompt; a control that is faster than the
    policy and just as good counts through the front itself. Beyond the fastest control there is nothing to compare
    with, and None is returned.

    Args:
        quality: of the policy [prompts]; front_qualities: of the controls on the front [controls, prompts], slowest
            first, with their speeds (1 and a perfect picture may stand in for "nothing pruned").
    """
    speeds = np.asarray(front_speeds)
    if speed > speeds[-1]:
        return None
    after = int(np.searchsorted(speeds, speed))
    before = max(0, after - 1)
    step = speeds[after] - speeds[before]
    share = 0.0 if step == 0 else (speed - speeds[before]) / step
    between = (1 - share) * front_qualities[before] + share * front_qualities[after]
    return mean_interval((quality - between).tolist(), seed)


def _speedup(base: np.ndarray, other: np.ndarray) -> Interval:
    """Speed-up with its interval; without one where a single pair was timed."""
    found = paired_ratio(base, other)
    return (
        found.value,
        found.value if found.low is None else found.low,
        found.value if found.high is None else found.high,
    )
