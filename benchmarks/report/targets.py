"""What was to be reached, what was found, and where a target is missed: by how much and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ldp_calibration.stats import front

from benchmarks.report.chart import UNPRUNED, is_control

Candidate = dict[str, Any]
#: For a pruned candidate on a CPU: times faster than eager PyTorch at a PSNR of so much.
SPEED, PSNR_DB = 2.35, 27.4
#: Largest share of an image that the loop around the engine calls may take.
LOOP_SHARE = 0.03


@dataclass(frozen=True)
class Verdict:
    """One target; `reason` says by how much it is missed and why, and is empty where it is reached."""

    target: str
    found: str
    reached: bool
    reason: str


def cpu_verdicts(result: dict[str, Any]) -> list[Verdict]:
    """The targets that the result can speak of; without an eager candidate or pruned ones those are fewer."""
    batch = result["candidates"][0]["batch"]
    candidates = [c for c in result["candidates"] if c["batch"] == batch]
    found = [
        verdict
        for measure, where in (("psnr_db", "whole picture"), ("psnr_objects_db", "objects alone"))
        for verdict in (_speed(candidates, measure, where), _front(candidates, measure, where))
    ]
    found += [_loop(c) for c in candidates if c["name"] in (UNPRUNED, f"{UNPRUNED} + ld")]
    return [verdict for verdict in found if verdict is not None]


def _speed(candidates: list[Candidate], measure: str, where: str) -> Verdict | None:
    """Is any pruned candidate of ours, on any engines, fast and close enough at once?"""
    ours = [c for c in candidates if c["policy"] != "none" and not is_control(c) and c[measure] is not None]
    if not ours or any(c["speedup_vs_eager"] is None for c in ours):
        return None
    best = max(ours, key=lambda c: min(c["speedup_vs_eager"] / SPEED, c[measure] / PSNR_DB))
    speed, quality = best["speedup_vs_eager"], best[measure]
    short = [] if speed >= SPEED else [f"{SPEED - speed:.2f}x too slow"]
    short += [] if quality >= PSNR_DB else [f"{PSNR_DB - quality:.2f} dB too far"]
    return Verdict(
        f"pruned: {SPEED}x over eager at {PSNR_DB} dB, {where}",
        f"{best['name']}: {speed:.2f}x, {quality:.2f} dB{_precision(best)}",
        not short,
        f"{' and '.join(short)}; {_where_the_time_goes(best)}" if short else "",
    )


def _front(candidates: list[Candidate], measure: str, where: str) -> Verdict | None:
    """Does `ld`, or `ld-fast`, lie above the front of the measured controls, read off at its own speed?"""
    pruned = _pruned(candidates, measure)
    ld = next((c for name in ("ld", "ld-fast") for c in pruned if c["policy"] == name), None)
    points = [(c["speedup_vs_unpruned"], c[measure]) for c in pruned if is_control(c)]
    if ld is None or not points:
        return None
    speeds, qualities = zip(*(points[i] for i in front(points)), strict=True)
    speed, target = (
        ld["speedup_vs_unpruned"],
        f"`{ld['policy']}` above the front of these controls at its speed, {where}",
    )
    if speed > speeds[-1]:
        return Verdict(target, "no control is as fast", True, "")
    margin = ld[measure] - float(np.interp(speed, speeds, qualities))
    return Verdict(
        target,
        f"{margin:+.1f} dB",
        margin > 0,
        "" if margin > 0 else "which tokens count: see docs/results/ablation.md",
    )


def _loop(c: Candidate) -> Verdict:
    phases = c["phases_ms"]
    total = sum(phases.values())
    share, in_scales = phases["loop"] / total, sum(scale["loop_ms"] for scale in c["scales"])
    reached = share < LOOP_SHARE
    return Verdict(
        f"the loop takes less than {LOOP_SHARE:.0%}: {c['name']}",
        f"{phases['loop']:.1f} of {total:.0f} ms ({share:.1%})",
        reached,
        ""
        if reached
        else f"{phases['loop'] - LOOP_SHARE * total:.1f} ms too much; {in_scales:.1f} ms within scales, "
        f"{phases['loop'] - in_scales:.1f} ms around them",
    )


def _precision(c: Candidate) -> str:
    """What other engines lose to their precision, which their PSNR (against their own unpruned picture) leaves out."""
    loss = c["precision_psnr_db"]
    return "" if loss is None else f" (their precision alone: {loss:.1f} dB)"


def _pruned(candidates: list[Candidate], measure: str) -> list[Candidate]:
    """Pruned candidates of the bundle itself, whose speed and quality are relative to the same unpruned engines."""
    return [c for c in candidates if c["name"].startswith(f"{UNPRUNED} + ") and c[measure] is not None]


def _where_the_time_goes(c: Candidate) -> str:
    total = sum(c["phases_ms"].values())
    shares = ", ".join(f"{name} {ms / total:.0%}" for name, ms in c["phases_ms"].items())
    return f"{shares}; blocks at {c['peak_share']:.0%} of the measured peak"
