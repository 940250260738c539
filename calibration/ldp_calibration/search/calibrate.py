"""Searches thresholds that meet a budget on some prompts, and proves them on others.

Candidates are ranked by exact operation counts, so a search is reproducible. It draws and scores in a run of the
evaluation harness, so it resumes. A budget of quality holds when the 95 % bound of the mean on *held-out* prompts meets
it. A budget of speed holds when the operations on these prompts, summed up, are so many times fewer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import with_fits
from ldp_runtime.errors import BudgetError, ConfigError, IntegrityError
from ldp_runtime.pipeline.pipeline import Condition, Pipeline
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.system.disk import exclusive, remove_leftovers, write_durably

from ldp_calibration.candidates import candidates, is_control
from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.draw import Painter, most_bytes
from ldp_calibration.evaluation.policies import Named, distinct, run_policies
from ldp_calibration.evaluation.run import UNPRUNED, Run, begin, new_settings
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.scorers.scorer import Sample, Scorer
from ldp_calibration.search.budget import LOWER_IS_BETTER, Budget
from ldp_calibration.search.fits import fit
from ldp_calibration.search.trials import Point, Report, Trials, prompts_hash
from ldp_calibration.stats import front, geometric_mean

logger = logging.getLogger(__name__)

#: Most candidates that are put to the held-out prompts; more would be choosing on the held-out set.
_MOST_TRIES = 4
#: Number of prompts on which every candidate is tried first. Candidates that another one clearly beats there (by so
#: many dB, with no more operations) are not pursued.
_FIRST_LOOK, _CLEARLY_DB = 4, 1.5
#: Most prompts that are fitted to: a few thousand tokens of each scale settle the weights.
_FITTED_PROMPTS = 64
#: Measures what a search asks: summaries of policies over some prompts.
Measure = Callable[[Sequence[str], Sequence[int], Report], list[Point]]


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
    device: str = "cpu",
    report: Report = lambda done, total, detail: None,
) -> Calibration:
    """Finds the cheapest policy whose held-out quality meets the budget (or the best one that is fast enough).

    Args:
        work: folder of the fits, pictures and scores; a search of the same bundle, prompts, seed and device resumes.
        device: device of the pipeline.

    Raises:
        ConfigError: too few prompts, or a measure's library or weights are not here, or another search works there.
        BudgetError: no candidate meets the budget; the message names the closest one.
        CapacityError: the disk has no room for the pictures; what is drawn is kept.
    """
    if len(prompts) < 8:
        raise ConfigError(f"{len(prompts)} prompts are too few to search and to hold some out", hint="give at least 8")
    tried = list(policies if policies is not None else candidates(pipe.manifest))
    for text in tried:
        parse_policy(text)
    scorers = _scorers(budget)
    search_set, held_out = _split(len(prompts), seed, held_out_share)
    with exclusive(work / "lock", f"search is going on in {work}"):
        remove_leftovers(work)
        fitted = remembered_fit(pipe, prompts, search_set[:_FITTED_PROMPTS], seed, work / "fits.json", report)
        with _trials(pipe, prompts, tried, fitted, scorers, work, seed, device) as (measure, known):
            searched = _searched(measure, known, search_set, report)
            chosen, tries = _prove(measure, searched, len(search_set), held_out, budget, report)
        report(1, 1, "timing")
        timed = time_against_full(pipe, chosen.policy, fitted, [prompts[p] for p in held_out], seed)
    return Calibration(
        budget,
        chosen,
        timed,
        tuple(searched),
        tries,
        prompts_hash(prompts),
        len(search_set),
        len(held_out),
        seed,
        fitted,
    )


def search_folder(folder: Path, manifest: Manifest, prompts: Sequence[Condition], seed: int, device: str) -> Path:
    """Folder, below another one, of the searches of a bundle with these prompts, this seed and this device."""
    key = hashlib.sha256(f"{search_key(manifest, prompts, seed)}:{device.partition(':')[0]}".encode())
    return folder / f"search-{key.hexdigest()[:16]}"


def most_room(manifest: Manifest, prompts: int, held_out_share: float = 0.5) -> int:
    """Most bytes that the pictures of a search take."""
    held = _held(prompts, held_out_share)
    pictures = (len(candidates(manifest)) + 1) * (prompts - held) + (_MOST_TRIES + 1) * held
    return pictures * most_bytes(manifest)


def _scorers(budget: Budget) -> list[Scorer]:
    """Scorers of a search, each tried: it fails here, before the search, if a library or weights are missing."""
    import torch

    weights = Path(torch.hub.get_dir()) / "checkpoints"  # where torchvision itself puts them
    names = ("psnr", "ssim", *(["lpips"] if budget.measure == "lpips" else []))
    scorers = [open_scorer(name, wish=Wish(weights)) for name in names]
    blank = np.zeros((64, 64, 3), dtype=np.uint8)
    for scorer in scorers:
        scorer.score([Sample(blank, blank, EvaluationPrompt("blank"))])
    return scorers


def _held(prompts: int, share: float) -> int:
    """Number of prompts that are held out."""
    return max(4, round(share * prompts))


def _split(prompts: int, seed: int, held_out_share: float) -> tuple[list[int], list[int]]:
    """Numbers of the prompts to search on, and of those that are held out."""
    order = [int(i) for i in np.random.default_rng(seed).permutation(prompts)]
    held = _held(prompts, held_out_share)
    return order[held:], order[:held]


@contextmanager
def _trials(
    pipe: Pipeline,
    prompts: Sequence[Condition],
    tried: Sequence[str],
    fitted: Fitted,
    scorers: Sequence[Scorer],
    work: Path,
    seed: int,
    device: str,
) -> Generator[tuple[Measure, list[str]]]:
    """Measures the candidates in a run of their own; of several texts of one policy the first stands."""

    def named(label: str, root: Path | None, manifest: Manifest) -> Policy:
        return with_fits(parse_policy(label), fitted) or Policy()

    run = _run(pipe.manifest, prompts, tried, named, work, seed, device)
    with Painter(run, pipe, named) as painter:
        labels = [policy.label for policy in run.settings.policies if policy.label != UNPRUNED]
        yield Trials(painter, pipe.manifest.schedule(), scorers).points, labels


def _run(
    manifest: Manifest,
    prompts: Sequence[Condition],
    tried: Sequence[str],
    named: Named,
    work: Path,
    seed: int,
    device: str,
) -> Run:
    """Run of the evaluation harness with all candidates; others, or other fits, have a run of their own."""
    policies = run_policies(distinct(tried, None, manifest, named), None, manifest, with_null=False, named=named)
    meaning = "".join(policy.model_dump_json() for policy in policies)
    folder = work / f"run-{hashlib.sha256(meaning.encode()).hexdigest()[:16]}"
    benchmark = Benchmark("calibrate", tuple(EvaluationPrompt(str(p)) for p in prompts), scorers=("psnr", "ssim"))
    return begin(folder, new_settings(manifest, benchmark, policies, seed=seed, device=device), benchmark.prompts)


def _searched(measure: Measure, tried: Sequence[str], search_set: Sequence[int], report: Report) -> list[Point]:
    """Candidates that a first look at few prompts leaves, measured on all search prompts."""
    looked = measure(tried, search_set[:_FIRST_LOOK], report)
    worth = [p.policy for p in looked if is_control(p.policy) or not _clearly_beaten(p, looked)]
    return measure(worth, search_set, report)


def remembered_fit(
    pipe: Pipeline, prompts: Sequence[Condition], chosen: Sequence[int], seed: int, work: Path, report: Report
) -> Fitted:
    """Numbers fitted on the chosen prompts, read from `work` if an earlier search of the same left them there."""
    which = hashlib.sha256(json.dumps(list(chosen)).encode()).hexdigest()[:16]
    key = f"{search_key(pipe.manifest, prompts, seed)}:{which}"
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


def search_key(manifest: Manifest, prompts: Sequence[Condition], seed: int) -> str:
    """Key of a bundle, prompts and seed."""
    return hashlib.sha256(f"{manifest.digest}:{prompts_hash(prompts)}:{seed}".encode()).hexdigest()[:16]


def _clearly_beaten(candidate: Point, others: Sequence[Point]) -> bool:
    return any(
        other.speedup >= candidate.speedup and other.psnr.mean >= candidate.psnr.mean + _CLEARLY_DB for other in others
    )


def _prove(
    measure: Measure,
    searched: Sequence[Point],
    search_prompts: int,
    held_out: Sequence[int],
    budget: Budget,
    report: Report,
) -> tuple[Point, int]:
    """Best candidate of the search that also meets the budget on the held-out prompts, and the number of tries."""
    able = [p for p in searched if p.meets(budget) and not is_control(p.policy)]
    if budget.measure == "speedup":
        ranked = sorted(able, key=lambda p: -p.quality("psnr"))
    else:
        ranked = sorted(able, key=lambda p: -p.speedup)
    failed = []
    for tries, candidate in enumerate(ranked[:_MOST_TRIES], start=1):
        (proven,) = measure([candidate.policy], held_out, report)
        if proven.meets(budget):
            return proven, tries
        failed.append(proven)
    if failed:
        raise BudgetError(
            f"{len(able)} policies meet {budget} on the {search_prompts} search prompts, but the best "
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
