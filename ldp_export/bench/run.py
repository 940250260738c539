"""Runs a comparison of eager PyTorch and engines, pruned and not: plans, measures, and puts the result together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from ldp_calibration import stats
from ldp_calibration.fidelity import PSNR_CAP

from ldp_export.bench import quality
from ldp_export.bench.hardware import hardware, software
from ldp_export.bench.measure import Measured, measure, measure_peak, settling_calls, steps
from ldp_export.bench.plan import EAGER, EAGER_GRAPHS, UNPRUNED, BenchPlan, plan_bench
from ldp_export.bench.result import (
    INTERVAL,
    RATIO,
    BenchResult,
    CandidateResult,
    ModelInfo,
    Phases,
    PrecisionLoss,
    ScaleResult,
    ScopeResult,
    milliseconds,
)
from ldp_export.bench.worker.options import BenchOptions, Scope
from ldp_export.models.registry import DEFAULT_MODEL
from ldp_export.progress import Progress, ProgressEvent, silent

#: Share of the cores in use before the run, above which the report warns.
_BUSY = 0.25
_SCOPES: dict[Scope, str] = {
    "blocks": "in the transformer blocks alone",
    "image": "from encoded text to pixels",
    "prompt-to-image": "from texts to pixels",
}


def run_bench(bundles: Sequence[Path], options: BenchOptions | None = None, progress: Progress = silent) -> BenchResult:
    """Compares latency, with the quality of the images beside it.

    Every candidate runs in a process of its own (with `share_engines`, all policies of the same engines share one).
    While one is measured, the others are stopped.

    Args:
        bundles: bundles of one checkpoint with different engines; all candidates of all of them are measured.

    Raises:
        ConfigError: the comparison makes no sense; no work was done.
        BenchWorkerError: a candidate's process died.
        LdpError: a candidate failed.
    """
    return run_plan(plan_bench(bundles, options or BenchOptions()), progress)


def run_plan(plan: BenchPlan, progress: Progress = silent) -> BenchResult:
    """Measures a plan; see `run_bench`."""
    machine = hardware()
    count, done = steps(plan), 0

    def on_step(step: str, name: str) -> None:
        nonlocal done
        progress(ProgressEvent(step, done, count, "advanced", name))
        done += 1

    def on_part(part: str, size: int) -> None:
        progress(ProgressEvent(part, done, count, "started", f"batch {size}"))

    def on_round(size: int, repetition: int) -> None:
        on_part(f"round {repetition + 1} of {plan.options.repeats}", size)

    candidates: list[CandidateResult] = []
    loss, peak = None, measure_peak(plan)
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as folder:
        for size in plan.options.batch:
            on_part("load and warm up", size)
            found = measure(plan, size, Path(folder), on_step, partial(on_round, size))
            measured = {m.name: m for m in found}
            candidates += [_candidate(m, size, measured, plan, peak) for m in measured.values()]
            if size == 1 and EAGER in measured:  # in larger batches the original loop shares one noise stream
                loss = _precision_loss(measured[UNPRUNED], measured[EAGER])
    progress(ProgressEvent("measure", count - 1, count, "finished"))
    return BenchResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=machine,
        software=software(),
        settings=_settings(plan),
        policies=dict(plan.policy_fields),
        model=_model(plan),
        statistics={
            "speedup": RATIO,
            "ci95": INTERVAL.format(resamples=stats.RESAMPLES, prompts=stats.LEAST_PROMPTS),
            "times": f"milliseconds of a call that draws `batch` images, {_SCOPES[plan.options.scope]}; "
            "PNG not included",
            "rounds": "every repetition visits every candidate in rotating order, the others stopped; unmeasured calls "
            f"at the beginning of a visit: {settling_calls(plan)}",
            "psnr_db": f"mean over images, at most {PSNR_CAP:g} dB, against the image of the same engines, unpruned",
            "flops": "of the blocks: projections, feed-forward, self-attention over past and own tokens, as computed",
        },
        candidates=tuple(candidates),
        precision_loss=loss,
        peak_gflops=peak / 1e9,
        notes=tuple(_notes(plan, machine)),
    )


def _candidate(m: Measured, batch: int, measured: dict[str, Measured], plan: BenchPlan, peak: float) -> CandidateResult:
    base = plan.unpruned(m.name)
    prunes = m.name not in (EAGER, EAGER_GRAPHS, base) and plan.random is None
    drawn, calls = list(m.drawn.values()), m.samples
    scopes = {scope: _scope(m, measured, plan, scope) for scope in get_args(Scope)}
    reported = scopes[plan.options.scope]
    flops = float(np.mean([d.flops for d in drawn]))
    blocks_s = float(np.mean([sample.blocks_ms for sample in calls])) / 1e3
    loss = quality.NO_LOSS
    if prunes:
        world = plan.bundle.manifest.model.name == DEFAULT_MODEL
        loss = quality.loss(m.load_images(), measured[base].load_images(), world)
    return CandidateResult(
        name=m.name,
        policy=m.policy,
        batch=batch,
        p50_ms=reported.p50_ms,
        p90_ms=reported.p90_ms,
        p95_ms=reported.p95_ms,
        p99_ms=reported.p99_ms,
        cpu_p50_ms=stats.percentile([sample.cpu_ms for sample in calls], 50),
        speedup_vs_eager=reported.speedup_vs_eager,
        speedup_vs_unpruned=reported.speedup_vs_unpruned,
        psnr_db=loss.psnr_db,
        ssim=loss.ssim,
        psnr_objects_db=loss.psnr_objects_db,
        precision_psnr_db=None if plan.random is not None else _precision_psnr(m, measured, plan),
        tokens_computed=float(np.mean([t for d in drawn for t in d.tokens])),
        row_tokens=float(np.mean([t for d in drawn for t in d.row_tokens])),
        tokens_full=drawn[0].tokens_full,
        phases_ms=Phases(
            **{
                phase: float(np.mean([getattr(sample, f"{phase}_ms") for sample in calls]))
                for phase in ("text", "blocks", "loop", "decode")
            }
        ),
        load_s=m.load_s,
        first_ms=m.first_ms or 0.0,
        peak_rss_mb=m.peak_rss_mb,
        peak_device_mb=m.peak_device_mb,
        scopes=dict(scopes),
        scales=_scales(m),
        flops=flops,
        peak_share=flops / blocks_s / peak,
        samples=tuple(calls),
    )


def _scope(m: Measured, measured: dict[str, Measured], plan: BenchPlan, scope: Scope) -> ScopeResult:
    times = [milliseconds(sample, scope) for sample in m.samples]
    return ScopeResult(
        *(stats.percentile(times, q) for q in (50, 90, 95, 99)),
        speedup_vs_eager=_speedup(measured.get(EAGER), m, plan, scope),
        speedup_vs_unpruned=_speedup(measured[plan.unpruned(m.name)], m, plan, scope),
    )


def _scales(m: Measured) -> tuple[ScaleResult, ...]:
    drawn = list(m.drawn.values())
    results = []
    for k in range(max(len(sample.scales_ms) for sample in m.samples)):
        calls = [sample for sample in m.samples if k < len(sample.scales_ms)]
        ran = [d for d in drawn if k < len(d.scale_tokens)]
        results.append(
            ScaleResult(
                scale=k,
                blocks_ms=float(np.median([sample.scales_ms[k] for sample in calls])),
                loop_ms=float(np.median([sample.loop_scales_ms[k] for sample in calls])),
                tokens=float(np.mean([d.scale_tokens[k] for d in ran])),
                rows=float(np.mean([d.scale_rows[k] for d in ran])),
            )
        )
    return tuple(results)


def _precision_psnr(m: Measured, measured: dict[str, Measured], plan: BenchPlan) -> float | None:
    """PSNR of another bundle's images against the first bundle's under the same policy; None for the first bundle."""
    kind = plan.unpruned(m.name)
    if kind == UNPRUNED:
        return None
    twin = measured[m.name.replace(kind, UNPRUNED, 1)]
    return quality.mean_psnr_db(m.load_images(), twin.load_images())


def _speedup(base: Measured | None, m: Measured, plan: BenchPlan, scope: Scope) -> stats.Ratio | None:
    if base is None:
        return None
    if base is m:
        return stats.Ratio(1.0, None, None)
    return stats.paired_ratio(base.times(scope), m.times(scope), plan.options.seed)


def _precision_loss(engines: Measured, eager: Measured) -> PrecisionLoss:
    ours, originals = engines.load_images(), eager.load_images()
    largest = max(float(np.abs(a - b).max()) for a, b in zip(ours, originals, strict=True))
    return PrecisionLoss(quality.mean_psnr_db(ours, originals), largest, len(ours))


def _settings(plan: BenchPlan) -> dict[str, Any]:
    embeds = None if plan.embeds is None else asdict(plan.embeds)
    return plan.options.settings() | {"prompt_embeds": embeds} | plan.bundle.manifest.defaults.model_dump()


def _model(plan: BenchPlan) -> ModelInfo:
    manifest = plan.bundle.manifest
    h, w = manifest.schedule(plan.options.aspect_ratio).final_grid
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
        random_weights=plan.random is not None,
    )


def _notes(plan: BenchPlan, machine: dict[str, object]) -> list[str]:
    notes = []
    if plan.random is not None:
        notes.append("the weights are random: times are real, images and token counts mean nothing")
        if plan.has_given_policies:
            notes.append(f"keep shares and the scale where the unconditional branch stops: {plan.random.origin}")
    if plan.embeds is not None:
        notes.append(
            f"the bundle has no text encoder: {plan.embeds.count} seeded random text features of "
            f"{plan.embeds.tokens} tokens stood in for prompts, and no text encoding is in the times"
        )
    if plan.options.share_engines:
        notes.append(
            "policies of the same engines shared a process: its loading and peak memory stand with each of them, and "
            "only the first of them met it cold"
        )
    if plan.sources is None:
        notes.append("eager PyTorch was left out")
    if plan.options.warmup == 0:
        notes.append("no warm-up: the first repetition is cold")
    load, cores = machine["load_average"], machine["cores_usable"]
    if isinstance(load, float) and isinstance(cores, int) and load > _BUSY * cores:
        notes.append(
            f"the machine was busy (load {load:g} on {cores} cores): eager PyTorch suffers most, so ratios to it are "
            "too large; measure again on an idle machine, or leave busy cores out with --threads"
        )
    return notes
