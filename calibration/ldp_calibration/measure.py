"""Measures policies on prompts against the unpruned images of the same seeds, line by line: a search resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import with_fits
from ldp_runtime.pipeline.pipeline import Condition, Pipeline
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.parse import parse_policy

from ldp_calibration.budget import LOWER_IS_BETTER, Budget
from ldp_calibration.cost import full_flops, trace_flops
from ldp_calibration.fidelity import lpips, psnr_db, ssim
from ldp_calibration.resumable import appended, read_entries
from ldp_calibration.stats import Bound, bound


@dataclass(frozen=True)
class Measured:
    """Measurement of one candidate on one prompt.

    Attributes:
        lpips: None unless asked for.
        speedup: operations of the full model over those of this run.
        kept: share of tokens computed at each scale that was run.
        stopped: scale after which the branch stopped, if it did.
    """

    policy: str
    prompt: int
    psnr: float
    ssim: float
    lpips: float | None
    speedup: float
    kept: tuple[float, ...]
    stopped: int | None


@dataclass(frozen=True)
class Point:
    """Summary of a candidate over many prompts. The bound of `lpips` is an upper one."""

    policy: str
    psnr: Bound
    ssim: Bound
    lpips: Bound | None
    speedup: float
    kept: tuple[float, ...]
    stop_rate: float

    def bound_of(self, measure: str) -> Bound:
        found = {"ssim": self.ssim, "lpips": self.lpips}.get(measure, self.psnr)
        assert found is not None
        return found

    def quality(self, measure: str) -> float:
        """Mean of a measure, its sign turned so that more is better."""
        mean = self.bound_of(measure).mean
        return -mean if LOWER_IS_BETTER.get(measure) else mean

    def meets(self, budget: Budget) -> bool:
        if budget.measure == "speedup":
            return self.speedup >= budget.limit
        worst = self.bound_of(budget.measure).limit
        return worst <= budget.limit if LOWER_IS_BETTER[budget.measure] else worst >= budget.limit


class Bench:
    """Measures candidates; reads and appends the file of measurements.

    Args:
        fitted: fitted numbers, for policies that need them.
        with_lpips: measure LPIPS too, which needs a network's weights.
    """

    def __init__(
        self,
        pipe: Pipeline,
        prompts: Sequence[Condition],
        work: Path,
        seed: int,
        fitted: Fitted | None = None,
        with_lpips: bool = False,
    ) -> None:
        self._pipe, self._prompts, self._work, self._seed = pipe, prompts, work, seed
        self._fitted, self._with_lpips = fitted, with_lpips
        fits = "" if fitted is None else json.dumps(fitted.to_json(), sort_keys=True)
        self._key = f"{measurement_key(pipe.manifest, prompts, seed)}:{hashlib.sha256(fits.encode()).hexdigest()[:16]}"
        self._known = {(m.policy, m.prompt): m for m in _read(work, self._key)}
        self._full: dict[int, np.ndarray] = {}

    @property
    def prompts(self) -> int:
        """Number of prompts, including the held-out ones."""
        return len(self._prompts)

    def measure(self, policy: str, prompt: int) -> Measured:
        known = self._known.get((policy, prompt))
        if known is not None and (known.lpips is not None or not self._with_lpips):
            return known
        image, trace = self._draw(policy, prompt)
        if prompt not in self._full:
            self._full[prompt] = self._draw("none", prompt)[0]
        full = self._full[prompt]
        model, schedule = self._pipe.manifest.model, self._pipe.manifest.schedule()
        guided = any(scale.rows == 2 for scale in trace.scales)
        measured = Measured(
            policy,
            prompt,
            psnr_db(image, full),
            ssim(image, full),
            lpips(image, full) if self._with_lpips else None,
            full_flops(model, schedule, guided) / max(1, trace_flops(model, trace)),
            tuple(round(scale.kept_share, 4) for scale in trace.scales),
            trace.stopped_after,
        )
        self._known[policy, prompt] = measured
        with appended(self._work) as add:
            add({"key": self._key, **measured.__dict__})
        return measured

    def _draw(self, policy: str, prompt: int) -> tuple[np.ndarray, Trace]:
        parsed = with_fits(parse_policy(policy), self._fitted)
        result = self._pipe.draw(self._prompts[prompt], seed=self._seed + prompt, policy=parsed, output_type="numpy")
        return result.images[0], result.traces[0]


def measurement_key(manifest: Manifest, prompts: Sequence[Condition], seed: int) -> str:
    """Key of the bundle, prompts and seed that a measurement belongs to."""
    return hashlib.sha256(f"{manifest.digest}:{prompts_hash(prompts)}:{seed}".encode()).hexdigest()[:16]


def prompts_hash(prompts: Sequence[Condition]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _read(work: Path, key: str) -> Iterable[Measured]:
    """Measurements of an earlier, perhaps interrupted search."""
    for entry in read_entries(work):
        if entry.pop("key", None) == key:
            entry["kept"] = tuple(entry["kept"])
            yield Measured(**entry)


def point(measured: Sequence[Measured]) -> Point:
    """Summary of one candidate's measurements. The speed-up is of summed operations, not a mean of ratios."""
    lengths = {len(m.kept) for m in measured}
    kept = np.mean([m.kept for m in measured], axis=0).round(4).tolist() if len(lengths) == 1 else []
    distances = [m.lpips for m in measured if m.lpips is not None]
    return Point(
        measured[0].policy,
        bound([m.psnr for m in measured]),
        bound([m.ssim for m in measured]),
        bound(distances, upper=True) if len(distances) == len(measured) else None,
        len(measured) / sum(1 / m.speedup for m in measured),
        tuple(kept),
        sum(m.stopped is not None for m in measured) / len(measured),
    )
