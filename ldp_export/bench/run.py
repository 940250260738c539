"""Eager PyTorch against engines, pruned and not: plan, measure, and put together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from ldp_calibration.fidelity import PSNR_CAP

from ldp_export.bench import stats
from ldp_export.bench.hardware import hardware, software
from ldp_export.bench.measure import Measured, measure, settling_calls, steps
from ldp_export.bench.plan import DEFAULT_POLICIES, EAGER, UNPRUNED, BenchPlan, Options, plan_bench
from ldp_export.bench.result import BenchResult, CandidateResult, ModelInfo, Phases, PrecisionLoss, Settings
from ldp_export.progress import Progress, ProgressEvent, silent

#: Share of the cores in use before the run above which the report warns.
_BUSY = 0.25


def run_bench(
    bundle: Path,
    *,
    prompts: Sequence[str] | None = None,
    policies: Sequence[str] = DEFAULT_POLICIES,
    repeats: int = 10,
    warmup: int = 3,
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    seed: int = 0,
    eager: bool = True,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    random_weights: bool = False,
    progress: Progress = silent,
) -> BenchResult:
    """Compares latency on the CPU, with the quality of the images beside it.

    Every candidate runs in a process of its own; while one is measured, the others are stopped.

    Args:
        prompts: drawn once each per repetition, prompt i with seed + i. Default: a few; seeded random text features
            for a bundle without text encoder.
        policies: of the pruned candidates; the unpruned engines are always measured.
        repeats: measured calls per prompt (batch); warmup: calls per candidate before that.
        batch: images per call; each size is a comparison of its own.
        threads: of every candidate; default: one per physical core.
        weights, vae, text_encoder: the eager candidate's checkpoint; default: found by the model's name.
        eager: False leaves eager PyTorch out.
        random_weights: only reported: the model draws nothing meaningful.

    Raises:
        ConfigError: the comparison makes no sense; no work was done.
        BenchWorkerError: a candidate's process died. LdpError: a candidate failed.
    """
    options = Options(prompts, policies, repeats, warmup, batch, threads, seed, eager, weights, vae, text_encoder)
    return run_plan(plan_bench(bundle, options), random_weights, progress)


def run_plan(plan: BenchPlan, random_weights: bool = False, progress: Progress = silent) -> BenchResult:
    """Measures a plan; see `run_bench`."""
    machine = hardware()
    count, done = steps(plan), 0

    def on_step(step: str, name: str) -> None:
        nonlocal done
        progress(ProgressEvent(step, done, count, "advanced", name))
        done += 1

    candidates: list[CandidateResult] = []
    loss = None
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as folder:
        for size in plan.batch:
            measured = {m.name: m for m in measure(plan, size, Path(folder), on_step)}
            candidates += [_candidate(m, size, measured, plan) for m in measured.values()]
            if size == 1 and EAGER in measured:  # in larger batches the original loop shares one noise stream
                loss = _precision_loss(measured[UNPRUNED], measured[EAGER])
    progress(ProgressEvent("measure", count - 1, count, "finished"))
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=machine,
        software=software(),
        settings=_settings(plan),
        model=_model(plan, random_weights),
        statistics={
            "speedup": stats.RATIO,
            "ci95": stats.INTERVAL.format(resamples=stats.RESAMPLES),
            "times": "milliseconds of a whole call that draws `batch` images, from texts to pixels; PNG not included",
            "rounds": "every repetition visits every candidate in rotating order, the others stopped; unmeasured calls "
            f"at the beginning of a visit: {settling_calls(plan)}",
            "psnr_db": f"mean over images, at most {PSNR_CAP:g} dB, against the unpruned engines' image",
        },
        candidates=tuple(candidates),
        precision_loss=loss,
        notes=tuple(_notes(plan, machine, random_weights)),
    )


def _candidate(m: Measured, batch: int, measured: dict[str, Measured], plan: BenchPlan) -> CandidateResult:
    walls = [sample.wall_ms for sample in m.samples]
    prunes = m.name not in (EAGER, UNPRUNED)
    drawn = list(m.drawn.values())
    return CandidateResult(
        name=m.name,
        policy=m.policy,
        batch=batch,
        p50_ms=stats.percentile(walls, 50),
        p95_ms=stats.percentile(walls, 95),
        cpu_p50_ms=stats.percentile([sample.cpu_ms for sample in m.samples], 50),
        speedup_vs_eager=_speedup(measured.get(EAGER), m, plan.seed),
        speedup_vs_unpruned=_speedup(measured[UNPRUNED], m, plan.seed),
        psnr_db=stats.mean_psnr_db(m.load_images(), measured[UNPRUNED].load_images()) if prunes else None,
        tokens_computed=float(np.mean([t for d in drawn for t in d.tokens])),
        row_tokens=float(np.mean([t for d in drawn for t in d.row_tokens])),
        tokens_full=drawn[0].tokens_full,
        phases_ms=Phases(
            **{
                phase: float(np.mean([getattr(sample, f"{phase}_ms") for sample in m.samples]))
                for phase in ("text", "blocks", "loop", "decode")
            }
        ),
        load_s=m.load_s,
        first_ms=m.first_ms or 0.0,
        peak_rss_mb=m.peak_rss_mb,
        samples=tuple(m.samples),
    )


def _speedup(base: Measured | None, m: Measured, seed: int) -> stats.Ratio | None:
    if base is None:
        return None
    return stats.Ratio(1.0, None, None) if base is m else stats.paired_ratio(base.times(), m.times(), seed)


def _precision_loss(engines: Measured, eager: Measured) -> PrecisionLoss:
    ours, originals = engines.load_images(), eager.load_images()
    largest = max(float(np.abs(a - b).max()) for a, b in zip(ours, originals, strict=True))
    return PrecisionLoss(stats.mean_psnr_db(ours, originals), largest, len(ours))


def _settings(plan: BenchPlan) -> Settings:
    defaults = plan.bundle.manifest.defaults
    return Settings(
        prompts=plan.prompts,
        prompt_embeds=plan.embeds,
        seed=plan.seed,
        policies=plan.policies,
        repeats=plan.repeats,
        warmup=plan.warmup,
        batch=plan.batch,
        threads=plan.threads,
        device="cpu",
        guidance=defaults.guidance,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
    )


def _model(plan: BenchPlan, random_weights: bool) -> ModelInfo:
    manifest = plan.bundle.manifest
    h, w = manifest.schedule().final_grid
    side = manifest.model.pixels_per_token
    return ModelInfo(
        name=manifest.model.name,
        size=manifest.model.size,
        image=(h * side, w * side),
        bundle=str(plan.bundle.root or plan.bundle.folder),
        version=manifest.version,
        state=plan.bundle.state,
        precision=manifest.precision,
        backend=manifest.backend,
        random_weights=random_weights,
    )


def _notes(plan: BenchPlan, machine: dict[str, object], random_weights: bool) -> list[str]:
    notes = []
    if random_weights:
        notes.append("the weights are random: times are real, images and token counts mean nothing")
    if plan.embeds is not None:
        notes.append(
            f"the bundle has no text encoder: {plan.embeds['count']} seeded random text features of "
            f"{plan.embeds['tokens']} tokens stood in for prompts, and no text encoding is in the times"
        )
    if plan.sources is None:
        notes.append("eager PyTorch was left out")
    if plan.warmup == 0:
        notes.append("no warm-up: the first repetition is cold")
    load, cores = machine["load_average"], machine["cores_usable"]
    if isinstance(load, float) and isinstance(cores, int) and load > _BUSY * cores:
        notes.append(
            f"the machine was busy (load {load:g} on {cores} cores): trust the paired ratios and CPU times rather than "
            "the wall times, and leave busy cores out with --threads"
        )
    return notes
