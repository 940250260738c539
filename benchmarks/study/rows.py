"""A like-for-like study of policies: the same engines, prompts and noise for every one of them.

Each prompt is drawn once unpruned and once by each policy. Fidelity is taken over the whole picture and over the drawn
objects alone (plain backgrounds flatter it), beside the evaluator's verdict. Times come from a second, interleaved pass
on a quiet machine. Rows are kept line by line, so an interrupted study goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ldp_calibration.cost import full_flops, trace_flops
from ldp_calibration.fidelity import psnr_db, ssim_map
from ldp_calibration.processes import in_processes
from ldp_calibration.resumable import appended, read_entries
from ldp_calibration.shapes import CATEGORIES, Prompt, sample_prompt
from ldp_calibration.shapes.evaluator import judge, object_mask
from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.pipeline.pipeline import GenerationResult, Pipeline

from benchmarks.study.losers import studied

#: Says how far the work is: done, total, in words.
Report = Callable[[int, int, str], None]
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
    """What a study is made of; rows of another setting are not reused.

    Attributes:
        digest: of the bundle; fits: of what was fitted to it.
        prompts: how many held-out prompts, drawn from `prompt_seed`; prompt i is drawn with seed `first_seed` + i.
    """

    digest: str
    fits: str
    prompts: int = 200
    prompt_seed: int = 2027
    first_seed: int = 100_000

    def texts(self) -> list[Prompt]:
        """Prompts of all categories in turn."""
        rng, categories = np.random.default_rng((self.prompt_seed, 11)), list(CATEGORIES)
        return [sample_prompt(categories[i % len(categories)], rng) for i in range(self.prompts)]

    @property
    def key(self) -> str:
        return f"{self.digest[:16]}:{self.fits[:16]}:{self.prompt_seed}:{self.first_seed}"


def study(
    bundle: Path,
    setting: Setting,
    policies: Sequence[str],
    work: Path,
    workers: int = 2,
    report: Report = lambda done, total, detail: None,
) -> dict[str, list[Row]]:
    """Rows of every policy on every prompt, in the prompts' order.

    Args:
        work: file of rows, appended line by line.
        workers: processes, one engine thread each: small models keep two cores busier this way.
    """
    known = {(row.policy, row.prompt): row for row in read_rows(work, setting)}
    missing = {i: [p for p in policies if (p, i) not in known] for i in range(setting.prompts)}
    tasks = [(i, wanted) for i, wanted in missing.items() if wanted]
    with appended(work) as add:
        done = setting.prompts - len(tasks)
        for rows in in_processes(workers, _open, (bundle, setting), _rows, tasks):
            for row in rows:
                known[row.policy, row.prompt] = row
                add({"key": setting.key, **asdict(row)})
            done += 1
            report(done, setting.prompts, "prompts drawn by every policy")
    return {policy: [known[policy, i] for i in range(setting.prompts)] for policy in policies}


def read_rows(work: Path, setting: Setting) -> Iterator[Row]:
    """Rows of an earlier run of the same setting."""
    for entry in read_entries(work):
        if entry.pop("key", None) == setting.key:
            yield Row(**entry | {"kept": tuple(entry["kept"])})


_worker: dict[str, tuple[Pipeline, Setting, list[Prompt]]] = {}


def _open(bundle: Path, setting: Setting) -> None:
    """Opens the bundle in a worker process."""
    _worker["here"] = (Pipeline.load(bundle, threads=1, integrity="sizes"), setting, setting.texts())


def _rows(index: int, policies: Sequence[str]) -> list[Row]:
    pipe, setting, prompts = _worker["here"]
    return compare(pipe, prompts[index], index, setting.first_seed + index, policies)


def compare(pipe: Pipeline, prompt: Prompt, index: int, seed: int, policies: Sequence[str]) -> list[Row]:
    """One prompt, drawn unpruned and by each policy."""
    full = pipe(prompt.text, seed=seed, output_type="numpy")
    accepted, mask = judge(_bytes(full), prompt), object_mask(_bytes(full))
    return [_row(pipe, prompt, index, seed, policy, full, accepted, mask) for policy in policies]


def _row(
    pipe: Pipeline,
    prompt: Prompt,
    index: int,
    seed: int,
    policy: str,
    full: GenerationResult,
    accepted_full: bool,
    mask: np.ndarray,
) -> Row:
    result = pipe(prompt.text, seed=seed, policy=studied(policy), output_type="numpy")
    image, reference, trace = result.images[0], full.images[0], result.traces[0]
    similar, seen = ssim_map(image, reference), int(mask.sum()) >= _LEAST_OBJECT_PIXELS
    model, schedule = pipe.manifest.model, pipe.manifest.schedule()
    return Row(
        policy,
        index,
        round(psnr_db(image, reference), 3),
        round(float(similar.mean()), 5),
        round(psnr_db(image, reference, mask), 3) if seen else None,
        round(float(similar[mask].mean()), 5) if seen else None,
        judge(_bytes(result), prompt),
        accepted_full,
        round(full_flops(model, schedule, guided=True) / max(1, trace_flops(model, trace)), 4),
        tuple(round(scale.kept_share, 4) for scale in trace.scales),
        trace.stopped_after,
    )


def _bytes(result: GenerationResult) -> np.ndarray:
    return (result.images[0].clip(0, 1) * 255).astype(np.uint8)


def time_policies(
    pipe: Pipeline,
    setting: Setting,
    policies: Sequence[str],
    prompts: int = 10,
    repeats: int = 3,
    report: Report = lambda done, total, detail: None,
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
