"""Searches thresholds that meet a budget on some prompts, and proves them on others.

Candidates are ranked by exact operation counts, so a search is reproducible. Measurements are kept line by line, so a
search resumes. A budget of quality holds when the 95 % bound of the mean on *held-out* prompts meets it. A budget of
speed holds when the operations on these prompts, summed up, are so many times fewer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ldp_runtime.bundle.saved_policies import with_fits
from ldp_runtime.errors import BudgetError, ConfigError, IntegrityError
from ldp_runtime.pipeline.pipeline import Condition, Pipeline
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.system.disk import write_durably

from ldp_calibration.budget import LOWER_IS_BETTER, Budget
from ldp_calibration.candidates import candidates, is_control
from ldp_calibration.fidelity import lpips, ssim
from ldp_calibration.fits import fit
from ldp_calibration.measure import Bench, Point, measurement_key, point, prompts_hash
from ldp_calibration.stats import front, geometric_mean

logger = logging.getLogger(__name__)

#: Called with the progress of the work: done, total, in words.
Report = Callable[[int, int, str], None]
#: Most candidates that are put to the held-out prompts; more would be choosing on the held-out set.
_MOST_TRIES = 4
#: Number of prompts on which every candidate is tried first. Candidates that another one clearly beats there (by so
#: many dB, with no more operations) are not pursued.
_FIRST_LOOK, _CLEARLY_DB = 4, 1.5
#: Most prompts that are fitted to: a few thousand tokens of each scale settle the weights.
_FITTED_PROMPTS = 64


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration: the choice, its evidence, and everything that was tried.

    Attributes:
        chosen: the chosen policy, measured on held-out prompts.
        timed: wall-clock speed-up over the full engines (mean ratio, low, high).
        searched: candidates that the first look left, measured on the search prompts.
        tries: number of candidates that were put to the held-out prompts.
        fitted: numbers fitted on the search prompts.
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
    fitted: Fitted

    @property
    def front(self) -> list[Point]:
        return pareto(self.searched, self.budget.measure)


def calibrate(
    pipe: Pipeline,
    prompts: Sequence[Condition],
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
        ConfigError: too few prompts, or a measure's library or weights are not here.
        BudgetError: no candidate meets the budget; the message names the closest one.
    """
    if len(prompts) < 8:
        raise ConfigError(f"{len(prompts)} prompts are too few to search and to hold some out", hint="give at least 8")
    tried = list(policies if policies is not None else candidates(pipe))
    for text in tried:
        parse_policy(text)
    blank = np.zeros((64, 64, 3))
    for measure in (ssim, lpips) if budget.measure == "lpips" else (ssim,):
        measure(blank, blank)  # fails before the search if its library or weights are missing
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(prompts))]
    held = max(4, round(held_out_share * len(prompts)))
    search_set, held_out = order[held:], order[:held]
    fitted = remembered_fit(pipe, prompts, search_set[:_FITTED_PROMPTS], seed, work.with_suffix(".fits"), report)
    for policy in (with_fits(parse_policy(text), fitted) for text in tried):
        if policy is not None:
            policy.check(pipe.manifest.schedule())
    bench = Bench(pipe, prompts, work, seed, fitted, with_lpips=budget.measure == "lpips")
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
        time_against_full(pipe, chosen.policy, fitted, [prompts[p] for p in held_out], seed),
        tuple(searched),
        tries,
        prompts_hash(prompts),
        len(search_set),
        len(held_out),
        seed,
        fitted,
    )


def remembered_fit(
    pipe: Pipeline, prompts: Sequence[Condition], chosen: Sequence[int], seed: int, work: Path, report: Report
) -> Fitted:
    """Numbers fitted on the chosen prompts, read from `work` if an earlier search of the same left them there."""
    which = hashlib.sha256(json.dumps(list(chosen)).encode()).hexdigest()[:16]
    key = f"{measurement_key(pipe.manifest, prompts, seed)}:{which}"
    if work.exists():
        try:
            entry = json.loads(work.read_text())
            if entry["key"] == key:
                return Fitted.from_json(entry["fitted"])
        except (ValueError, KeyError, TypeError, IntegrityError):
            logger.warning("%s is damaged: what it held is fitted again", work)
    fitted = fit(pipe, [prompts[p] for p in chosen], [seed + p for p in chosen], report)
    work.parent.mkdir(parents=True, exist_ok=True)
    write_durably(work, json.dumps({"key": key, "fitted": fitted.to_json()}).encode())
    return Fitted.from_json(fitted.to_json())


def _clearly_beaten(candidate: Point, others: Sequence[Point]) -> bool:
    return any(
        other.speedup >= candidate.speedup and other.psnr.mean >= candidate.psnr.mean + _CLEARLY_DB for other in others
    )


def _prove(
    bench: Bench, searched: Sequence[Point], held_out: Sequence[int], budget: Budget, report: Report
) -> tuple[Point, int]:
    """Best candidate of the search that also meets the budget on the held-out prompts, and the number of tries."""
    able = [p for p in searched if p.meets(budget) and not is_control(p.policy)]
    if budget.measure == "speedup":
        ranked = sorted(able, key=lambda p: -p.quality("psnr"))
    else:
        ranked = sorted(able, key=lambda p: -p.speedup)
    failed = []
    for tries, candidate in enumerate(ranked[:_MOST_TRIES], start=1):
        report(tries, _MOST_TRIES, f"held out: {candidate.policy}")
        proven = point([bench.measure(candidate.policy, p) for p in held_out])
        if proven.meets(budget):
            return proven, tries
        failed.append(proven)
    if failed:
        raise BudgetError(
            f"{len(able)} policies meet {budget} on the {bench.prompts - len(held_out)} search prompts, but the best "
            f"{len(failed)} of them miss it on the {len(held_out)} held-out ones; closest there: "
            + _in_words(_nearest(failed, budget)),
            hint="give more prompts (bounds are wide with few), or ask for more: safer policies are then tried",
        )
    raise BudgetError(
        f"no policy meets {budget}; closest on the search prompts: {_in_words(_nearest(searched, budget))}",
        hint="accept more loss, ask for less speed, or give more prompts (bounds are wide with few)",
    )


def _in_words(found: Point) -> str:
    distance = "" if found.lpips is None else f"LPIPS {found.lpips.mean:.3f}, "
    return (
        f"{found.policy} with {found.psnr.mean:.1f} dB (lower bound {found.psnr.limit:.1f}), SSIM "
        f"{found.ssim.mean:.3f}, {distance}{found.speedup:.2f}x fewer operations"
    )


def _nearest(searched: Sequence[Point], budget: Budget) -> Point:
    pruning = [p for p in searched if not is_control(p.policy)] or searched
    if budget.measure == "speedup":
        return max(pruning, key=lambda p: p.speedup)
    sign = -1 if LOWER_IS_BETTER[budget.measure] else 1
    return max(pruning, key=lambda p: sign * p.bound_of(budget.measure).limit)


def pareto(points: Iterable[Point], measure: str = "psnr") -> list[Point]:
    """Points that no other one beats in both speed-up and mean quality, fastest last."""
    points = list(points)
    return [points[i] for i in front([(p.speedup, p.quality(measure)) for p in points])]


def time_against_full(
    pipe: Pipeline, policy: str, fitted: Fitted, prompts: Sequence[Condition], seed: int
) -> tuple[float, float, float]:
    """Wall-clock speed-up over the same engines unpruned: (geometric mean of paired ratios, 95 % interval).

    Both are run on each prompt, in alternating order, after one warm-up each.
    """
    pruning = with_fits(parse_policy(policy), fitted)
    for warm in (None, pruning):
        pipe.draw(prompts[0], seed=seed, policy=warm)
    ratios = []
    for i, prompt in enumerate(prompts):
        seconds = []
        for candidate in (None, pruning) if i % 2 else (pruning, None):
            started = time.perf_counter()
            pipe.draw(prompt, seed=seed + i, policy=candidate)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1] if i % 2 else seconds[1] / seconds[0])
    return geometric_mean(ratios, seed)
