"""A like-for-like study of policies: the same engines, prompts and noise for every one of them.

Each prompt is drawn once unpruned and once by each policy. Fidelity is taken over the whole picture and over the drawn
objects alone (plain backgrounds flatter it), beside the evaluator's verdict. Times come from a second, interleaved pass
on a quiet machine. The harness of `evaluate` draws, so an interrupted study goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.shapes import with_claims
from ldp_calibration.evaluation.draw import draw
from ldp_calibration.evaluation.pictures import Picture, all_pictures, content, pixels
from ldp_calibration.evaluation.policies import run_policies
from ldp_calibration.evaluation.run import UNPRUNED, Run, begin, new_settings
from ldp_calibration.fidelity import psnr_db, ssim_map
from ldp_calibration.shapes import CATEGORIES, Prompt, sample_prompt
from ldp_calibration.shapes.evaluator import judge, object_mask
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.schedule import ScaleSchedule

from benchmarks.study.losers import studied

#: Says how far the work is: done, total, in words.
Report = Callable[[int, int, str], None]


def silent(done: int, total: int, detail: str) -> None:
    """Report that says nothing."""


def say(done: int, total: int, detail: str) -> None:
    """Report on a line of its own, which the next one replaces."""
    print(f"\r{detail}: {done}/{total}   ", end="\n" if done == total else "", flush=True)


#: Pictures with fewer pixels of objects have no figure for objects.
_LEAST_OBJECT_PIXELS = 100


@dataclass(frozen=True)
class Row:
    """One policy on one prompt, against the unpruned picture of the same seed.

    Attributes:
        psnr, ssim: over all pixels; psnr_objects, ssim_objects: over the objects of the unpruned picture, or None.
        accepted: the evaluator finds the prompt true; accepted_full: of the unpruned picture.
        operations: of the full model's blocks over this run's.
        kept: share of tokens computed at each scale that was run; stopped: after which scale, if at all.
    """

    policy: str
    prompt: int
    psnr: float
    ssim: float
    psnr_objects: float | None
    ssim_objects: float | None
    accepted: bool
    accepted_full: bool
    operations: float
    kept: tuple[float, ...]
    stopped: int | None


@dataclass(frozen=True)
class Setting:
    """Prompts and seeds of a study, and what it is made with.

    Attributes:
        digest: of the bundle; fits: of what was fitted to it.
        prompts: how many held-out prompts, drawn from `prompt_seed`; prompt i is drawn with seed `first_seed` + i.
        first: number of the first of them.
    """

    digest: str
    fits: str
    prompts: int = 200
    prompt_seed: int = 2027
    first_seed: int = 100_000
    first: int = 0

    def texts(self) -> list[Prompt]:
        """Prompts of all categories in turn."""
        rng, categories = np.random.default_rng((self.prompt_seed, 11)), list(CATEGORIES)
        drawn = [sample_prompt(categories[i % len(categories)], rng) for i in range(self.first + self.prompts)]
        return drawn[self.first :]


def drawn_run(
    bundle: Path, setting: Setting, policies: Sequence[str], folder: Path, workers: int = 2, report: Report = silent
) -> Run:
    """Run of the evaluation harness: the pictures of every policy, and unpruned. A run that was stopped goes on.

    Args:
        workers: processes, one engine thread each: small models keep two cores busier this way.
    """
    opened = open_bundle(bundle)
    prompts = [with_claims(prompt) for prompt in setting.texts()]
    benchmark = Benchmark("shapes-held-out", tuple(prompts), scorers=("shapes", "psnr"))
    chosen = run_policies(policies, opened.root, opened.manifest, with_null=False, named=studied)
    settings = new_settings(opened.manifest, benchmark, chosen, seed=setting.first_seed + setting.first)
    run = begin(folder, settings, prompts)
    labels = [policy.label for policy in chosen]
    draw(run, opened, labels, workers=workers, threads=1, named=studied, report=report)
    return run


def study(
    bundle: Path, setting: Setting, policies: Sequence[str], folder: Path, workers: int = 2, report: Report = silent
) -> dict[str, list[Row]]:
    """Rows of every policy on every prompt, in the prompts' order, from the pictures of a run in `folder`."""
    run = drawn_run(bundle, setting, policies, folder, workers, report)
    schedule = open_bundle(bundle, "sizes").manifest.schedule()
    full = all_pictures(run, [run.settings.policy(UNPRUNED)])
    masks = [(pixels(content(picture)), setting.texts()[i]) for i, picture in enumerate(full)]
    references = [Reference(image, prompt, judge(image, prompt), object_mask(image)) for image, prompt in masks]
    found = dict[str, list[Row]]()
    for done, policy in enumerate(policies):
        report(done, len(policies), policy)
        drawn = zip(all_pictures(run, [run.settings.policy(policy)]), full, references, strict=True)
        found[policy] = [_row(policy, picture, base, reference, schedule) for picture, base, reference in drawn]
    return found


@dataclass(frozen=True)
class Reference:
    """An unpruned picture [H, W, 3] uint8, the evaluator's verdict on it, and the pixels of its objects [H, W]."""

    image: np.ndarray
    prompt: Prompt
    accepted: bool
    mask: np.ndarray


def _row(policy: str, picture: Picture, base: Picture, reference: Reference, schedule: ScaleSchedule) -> Row:
    drawn, record, mask = pixels(content(picture)), picture.record, reference.mask
    image, twin = drawn / np.float32(255), reference.image / np.float32(255)
    similar, seen = ssim_map(image, twin), int(mask.sum()) >= _LEAST_OBJECT_PIXELS
    return Row(
        policy,
        record.prompt,
        round(psnr_db(image, twin), 3),
        round(float(similar.mean()), 5),
        round(psnr_db(image, twin, mask), 3) if seen else None,
        round(float(similar[mask].mean()), 5) if seen else None,
        judge(drawn, reference.prompt),
        reference.accepted,
        round(base.record.operations / max(1, record.operations), 4),
        tuple(round(n / full, 4) for n, full in zip(record.kept, schedule.tokens, strict=False)),
        record.stopped_after,
    )


def time_policies(
    pipe: Pipeline,
    setting: Setting,
    policies: Sequence[str],
    prompts: int = 10,
    repeats: int = 3,
    report: Report = silent,
) -> dict[str, np.ndarray]:
    """Seconds of whole calls, prompt to pixels: policy (and "none") -> [prompts, repeats].

    Every repetition of a prompt visits all policies, in an order that rotates.
    """
    texts = setting.texts()[:prompts]
    ready = {policy: resolve_policy(policy, pipe.root, pipe.manifest) for policy in ("none", *policies)}
    for policy in ready.values():
        pipe(texts[0].text, seed=0, policy=policy)
    seconds = {policy: np.zeros((prompts, repeats)) for policy in ready}
    names = list(ready)
    for turn in range(prompts * repeats):
        i, repeat = divmod(turn, repeats)
        report(turn, prompts * repeats, "timing")
        for policy in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            pipe(texts[i].text, seed=setting.first_seed + i, policy=ready[policy])
            seconds[policy][i, repeat] = time.perf_counter() - started
    return seconds
