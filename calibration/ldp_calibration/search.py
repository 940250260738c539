"""From a budget to thresholds: search on some prompts, prove on others.

Candidates are ranked by exact operation counts, so a search is reproducible; what was measured is kept line by line, so
it resumes. A budget holds when the lower 95 % bound of the mean on *held-out* prompts meets it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.bundle import Manifest
from ldp_runtime.errors import BudgetError, ConfigError
from ldp_runtime.pipeline import Pipeline
from ldp_runtime.pruning.names import parse_policy
from ldp_runtime.trace import Trace

from ldp_calibration.cost import full_flops, trace_flops
from ldp_calibration.fidelity import Bound, bound, psnr_db, ssim

#: Says how far the work is: done, total, in words.
Report = Callable[[int, int, str], None]
#: Faster candidates than the winner that failed on held-out prompts; more would be choosing on the held-out set.
_MOST_TRIES = 4
#: Prompts on which every candidate is tried; those that another one clearly beats there (by so many dB, with no more
#: operations) are not pursued.
_FIRST_LOOK, _CLEARLY_DB = 4, 1.5


@dataclass(frozen=True)
class Budget:
    """What the user accepts: a least quality ("psnr", "ssim"), or a least reduction of operations ("speedup")."""

    measure: str
    least: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "psnr>=30", "ssim>=0.9" or "speedup>=1.8". Raises ConfigError for anything else."""
        match = re.fullmatch(r"\s*(psnr|ssim|speedup)\s*>=\s*([0-9]+(?:\.[0-9]+)?)\s*", text)
        if match is None:
            raise ConfigError(f"cannot read the budget {text!r}", hint="such as psnr>=30, ssim>=0.9 or speedup>=1.8")
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.measure}>={self.least:g}"


@dataclass(frozen=True)
class Measured:
    """One candidate on one prompt.

    Attributes:
        speedup: operations of the full model over those of this run.
        kept: share of tokens computed at each scale that was run; stopped: scale after which the branch stopped.
    """

    policy: str
    prompt: int
    psnr: float
    ssim: float
    speedup: float
    kept: tuple[float, ...]
    stopped: int | None


@dataclass(frozen=True)
class Point:
    """A candidate over many prompts."""

    policy: str
    psnr: Bound
    ssim: Bound
    speedup: float
    kept: tuple[float, ...]
    stop_rate: float

    def quality(self, measure: str) -> Bound:
        return self.ssim if measure == "ssim" else self.psnr

    def meets(self, budget: Budget) -> bool:
        if budget.measure == "speedup":
            return self.speedup >= budget.least
        return self.quality(budget.measure).lower >= budget.least


@dataclass(frozen=True)
class Calibration:
    """The result: what was chosen, on which evidence, and everything that was tried.

    Attributes:
        chosen: on held-out prompts; timed: wall-clock speed-up over the full engines (mean ratio, low, high).
        searched: candidates that a first look left, on the search prompts.
        tries: candidates that were put to the held-out prompts.
    """

    budget: Budget
    chosen: Point
    timed: tuple[float, float, float]
    searched: tuple[Point, ...]
    tries: int
    prompts_sha256: str
    search_prompts: int
    held_out_prompts: int
    seed: int

    @property
    def front(self) -> list[Point]:
        return pareto(self.searched, self.budget.measure)


def candidates() -> list[str]:
    """Policies that a search tries.

    LHEP alone (two scores, several fills), SATS alone, both, both with the last scale skipped, and the controls.
    """
    rhos, deltas = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), (0.05, 0.1, 0.15, 0.25, 0.4)
    energies = ("", ",border=ignored", ",border=ignored,energy_from=computed")
    distance = [
        f"ld:rho={rho},stop_threshold=none,score=distance,fill={fill}"
        for fill in ("zero", "scaled,fill_scale=-0.3")
        for rho in rhos
    ]
    lhep = [
        f"ld:rho={rho},stop_threshold=none,fill={fill}{energy}"
        for fill in ("zero", "repeat", "scaled,fill_scale=-0.3")
        for energy in energies
        for rho in rhos
    ]
    sats = [f"ld:prune_scales=,stop_threshold={delta}" for delta in deltas]
    both = [f"ld:rho={rho},stop_threshold={d},fill=zero,border=ignored" for rho in rhos for d in deltas[1:]]
    skipped = [f"ld:rho={rho},fill=zero,border=ignored,skip_last=1" for rho in rhos[::2]]
    controls = [f"skip:count={n}" for n in (1, 2)]
    controls += [
        f"fixed:keep={keep},score={score},fill=zero" for score in ("distance", "random") for keep in (0.6, 0.4)
    ]
    return lhep + distance + sats + both + skipped + controls


def is_control(policy: str) -> bool:
    """Controls mark what pruning must beat; a search does not choose them."""
    return not policy.startswith("ld")


def calibrate(
    pipe: Pipeline,
    prompts: Sequence[str],
    budget: Budget,
    work: Path,
    *,
    seed: int = 0,
    held_out_share: float = 0.5,
    policies: Sequence[str] | None = None,
    report: Report = lambda done, total, detail: None,
) -> Calibration:
    """Finds the cheapest policy whose held-out quality meets the budget (or the best one that is fast enough).

    Args:
        work: file of measurements, appended line by line; a search of the same bundle, prompts and seed resumes.

    Raises:
        ConfigError: too few prompts. BudgetError: no candidate meets the budget; the message says what came closest.
    """
    if len(prompts) < 8:
        raise ConfigError(f"{len(prompts)} prompts are too few to search and to hold some out", hint="give at least 8")
    tried = list(policies if policies is not None else candidates())
    for text in tried:
        parse_policy(text)
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(prompts))]
    held = max(4, round(held_out_share * len(prompts)))
    search_set, held_out = order[held:], order[:held]
    bench = _Bench(pipe, prompts, work, seed)
    looked = []
    for i, policy in enumerate(tried):
        report(i, len(tried), f"first look: {policy}")
        looked.append(point([bench.measure(policy, p) for p in search_set[:_FIRST_LOOK]]))
    worth = [p.policy for p in looked if is_control(p.policy) or not _clearly_beaten(p, looked)]
    searched = []
    for i, policy in enumerate(worth):
        report(i, len(worth), policy)
        searched.append(point([bench.measure(policy, p) for p in search_set]))
    chosen, tries = _prove(bench, searched, held_out, budget, report)
    report(1, 1, "timing")
    return Calibration(
        budget,
        chosen,
        time_against_full(pipe, chosen.policy, [str(prompts[p]) for p in held_out], seed),
        tuple(searched),
        tries,
        prompts_hash(prompts),
        len(search_set),
        len(held_out),
        seed,
    )


def _clearly_beaten(candidate: Point, others: Sequence[Point]) -> bool:
    return any(
        other.speedup >= candidate.speedup and other.psnr.mean >= candidate.psnr.mean + _CLEARLY_DB for other in others
    )


def _prove(
    bench: _Bench, searched: Sequence[Point], held_out: Sequence[int], budget: Budget, report: Report
) -> tuple[Point, int]:
    """The best candidate of the search that also meets the budget on the held-out prompts."""
    able = [p for p in searched if p.meets(budget) and not is_control(p.policy)]
    if budget.measure == "speedup":
        ranked = sorted(able, key=lambda p: -p.psnr.mean)
    else:
        ranked = sorted(able, key=lambda p: -p.speedup)
    for tries, candidate in enumerate(ranked[:_MOST_TRIES], start=1):
        report(tries, _MOST_TRIES, f"held out: {candidate.policy}")
        proven = point([bench.measure(candidate.policy, p) for p in held_out])
        if proven.meets(budget):
            return proven, tries
    nearest = _nearest(searched, budget)
    raise BudgetError(
        f"no policy meets {budget}; closest on the search prompts: {nearest.policy} with "
        f"{nearest.psnr.mean:.1f} dB (lower bound {nearest.psnr.lower:.1f}), SSIM {nearest.ssim.mean:.3f}, "
        f"{nearest.speedup:.2f}x fewer operations",
        hint="accept more loss, ask for less speed, or give more prompts (bounds are wide with few)",
    )


def _nearest(searched: Sequence[Point], budget: Budget) -> Point:
    pruning = [p for p in searched if not is_control(p.policy)]
    if budget.measure == "speedup":
        return max(pruning, key=lambda p: p.speedup)
    return max(pruning, key=lambda p: p.quality(budget.measure).lower)


class _Bench:
    """Measures candidates; reads and appends the file of measurements."""

    def __init__(self, pipe: Pipeline, prompts: Sequence[str], work: Path, seed: int) -> None:
        self._pipe, self._prompts, self._work, self._seed = pipe, prompts, work, seed
        self._key = measurement_key(pipe.manifest, prompts, seed)
        self._known = {(m.policy, m.prompt): m for m in _read(work, self._key)}
        self._full: dict[int, np.ndarray] = {}

    def measure(self, policy: str, prompt: int) -> Measured:
        known = self._known.get((policy, prompt))
        if known is not None:
            return known
        image, trace = self._draw(policy, prompt)
        if prompt not in self._full:
            self._full[prompt] = self._draw("none", prompt)[0]
        model, schedule = self._pipe.manifest.model, self._pipe.manifest.schedule()
        guided = any(scale.rows == 2 for scale in trace.scales)
        measured = Measured(
            policy,
            prompt,
            psnr_db(image, self._full[prompt]),
            ssim(image, self._full[prompt]),
            full_flops(model, schedule, guided) / max(1, trace_flops(model, trace)),
            tuple(round(scale.kept_share, 4) for scale in trace.scales),
            trace.stopped_after,
        )
        self._known[policy, prompt] = measured
        self._work.parent.mkdir(parents=True, exist_ok=True)
        with self._work.open("a") as file:
            file.write(json.dumps({"key": self._key, **measured.__dict__}) + "\n")
        return measured

    def _draw(self, policy: str, prompt: int) -> tuple[np.ndarray, Trace]:
        result = self._pipe(
            self._prompts[prompt], seed=self._seed + prompt, policy=parse_policy(policy), output_type="numpy"
        )
        return result.images[0], result.traces[0]


def measurement_key(manifest: Manifest, prompts: Sequence[str], seed: int) -> str:
    """What a measurement belongs to: bundle, prompts, seed."""
    return hashlib.sha256(f"{manifest.digest}:{prompts_hash(prompts)}:{seed}".encode()).hexdigest()[:16]


def prompts_hash(prompts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _read(work: Path, key: str) -> Iterable[Measured]:
    """Measurements of an earlier, perhaps interrupted search; a half-written last line is passed over."""
    if not work.exists():
        return
    for line in work.read_text().splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if entry.pop("key", None) == key:
            entry["kept"] = tuple(entry["kept"])
            yield Measured(**entry)


def point(measured: Sequence[Measured]) -> Point:
    """One candidate's measurements, summed up. The speed-up is of summed operations, not a mean of ratios."""
    lengths = {len(m.kept) for m in measured}
    kept = np.mean([m.kept for m in measured], axis=0).round(4).tolist() if len(lengths) == 1 else []
    return Point(
        measured[0].policy,
        bound([m.psnr for m in measured]),
        bound([m.ssim for m in measured]),
        len(measured) / sum(1 / m.speedup for m in measured),
        tuple(kept),
        sum(m.stopped is not None for m in measured) / len(measured),
    )


def pareto(points: Iterable[Point], measure: str = "psnr") -> list[Point]:
    """Points that no other one beats in both speed-up and mean quality, fastest last."""
    front: list[Point] = []
    for candidate in sorted(points, key=lambda p: (-p.speedup, -p.quality(measure).mean)):
        if not front or candidate.quality(measure).mean > front[-1].quality(measure).mean:
            front.append(candidate)
    return front[::-1]


def time_against_full(pipe: Pipeline, policy: str, prompts: Sequence[str], seed: int) -> tuple[float, float, float]:
    """Wall-clock speed-up over the same engines unpruned: (geometric mean of paired ratios, 95 % interval).

    Both are run on each prompt in turn, after one warm-up each.
    """
    chosen = parse_policy(policy)
    for warm in (None, chosen):
        pipe(prompts[0], seed=seed, policy=warm)
    ratios = []
    for i, prompt in enumerate(prompts):
        seconds = []
        for each in (None, chosen) if i % 2 else (chosen, None):
            started = time.perf_counter()
            pipe(prompt, seed=seed + i, policy=each)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1] if i % 2 else seconds[1] / seconds[0])
    logs = np.log(ratios)
    draws = np.random.default_rng(seed).integers(len(logs), size=(2000, len(logs)))
    low, high = np.percentile(logs[draws].mean(axis=1), [2.5, 97.5])
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))
