"""The 2B and 8B architectures at 1024x1024 on a GPU, with random weights: speed alone, no pictures.

    python -m benchmarks.gpu                          # bfloat16, batch 1, then 2 and 4 while time is left
    python -m benchmarks.gpu --models infinity-2b --batch 1
    python -m benchmarks.gpu --profile                # also the kernels of an eager and a compiled image
    python -m benchmarks.gpu --device cpu --tiny      # proves that the code runs; its times mean nothing

Needs PyTorch with CUDA and this package, no engine library. Eager is the original loop in bfloat16 with the fastest of
PyTorch's own attention kernels, noise drawn on the device. Compiled is this toolkit's loop over the same weights: text
keys and values once an image, each block's keys and values written in place, its pieces compiled by torch.compile for
any number of rows and tokens, CUDA graphs for small calls (of pruned scales too, whose counts never change here; where
they differ from prompt to prompt, such calls would be launched kernel by kernel). Random weights cannot choose tokens:
keep shares and the scale after which the unconditional branch stops are what calibration found (`--keep-from`: a
profile, or the committed study of the embedded model, which is the default), or given by hand (`--keep`,
`--stop-scale`). Neither was measured on a model of these sizes; the result says which it was.

Times are between CUDA events around a whole image: noise, all scales, decoder; no text encoder. What is worth most is
measured first, and each result is saved when it is there.
"""

from __future__ import annotations

import argparse
import gc
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.schedule import ScaleSchedule

from benchmarks.gpu.attention import attention_times, fastest
from benchmarks.gpu.candidates import Bench, Candidate, candidates, late_candidates
from benchmarks.gpu.models import random_model
from benchmarks.gpu.options import parse, policies, shares, specs
from benchmarks.gpu.profile import profile
from benchmarks.gpu.record import Record
from ldp_export.bench.worker.roofline import measured_peak
from ldp_export.bench.worker.timing import Clock
from ldp_export.models.registry import InfinitySpec


def timed(draw: Any, device: torch.device, warmup: int, repeats: int) -> dict[str, Any]:
    """Samples of one candidate; the first call, which compiles and captures, apart."""
    started = time.perf_counter()
    work = draw()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - started
    for _ in range(warmup):
        draw()
    samples, peak = [], None
    for _ in range(repeats):
        clock = Clock(device.type)
        draw()
        wall, cpu, events = clock.stop()
        samples.append({"wall_ms": wall, "cpu_ms": cpu, "device_ms": events})
        peak = clock.peak_device_mb()
    return {**work, "first_s": first, "samples": samples, "peak_device_mb": peak}


def measure(bench: Bench, candidate: Candidate, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """One entry of the result; a failure is one too, with its words."""
    repeats = options.repeats if candidate.headline else min(2, options.repeats)
    entry: dict[str, Any] = {"model": bench.model.spec.name, "batch": batch, "candidate": candidate.name}
    with _noted(entry, "error"):
        entry |= timed(lambda: bench.draw(candidate, batch), bench.model.device, options.warmup, repeats)
        entry |= bench.counts(candidate)
    if "error" not in entry and batch == 1 and candidate.headline and candidate.policy == Policy():
        with _noted(entry, "disagreement_error"):  # which takes no times away
            entry["disagreement"] = bench.disagreement(candidate)
    return entry


@contextmanager
def _noted(entry: dict[str, Any], name: str) -> Iterator[None]:
    """Whatever fails is written down: it must not take the other candidates with it."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        words = str(error).strip().splitlines() or [""]
        entry[name] = f"{type(error).__name__}: {words[0]}"


def hardware(device: torch.device) -> dict[str, Any]:
    """Names, versions, and on a GPU its clocks and whether it is being throttled."""
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "clocks": _clocks()}
    found["peak_bfloat16_tflops"] = measured_peak(torch.get_num_threads(), device.type, torch.bfloat16) / 1e12
    return found


def _clocks() -> str | None:
    """One line of nvidia-smi; None where it is not installed."""
    fields = "clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def run(bench: Bench, chosen: Sequence[Candidate], batch: int, options: argparse.Namespace, record: Record) -> None:
    """These candidates of one architecture and batch, while there is time."""
    for candidate in chosen:
        label = f"{bench.model.spec.name} batch {batch} {candidate.name}"
        if record.time_is_up:
            print(f"{label}: left out, the time is up", flush=True)
            continue
        with record.phase(label):
            entry = measure(bench, candidate, batch, options)
        record.save(entry)
        print(_line(entry, record.result["hardware"]["peak_bfloat16_tflops"]), flush=True)
        if "error" in entry:
            bench.clear()  # it may have run out of memory
    bench.clear()


def _line(entry: dict[str, Any], peak: float) -> str:
    if "error" in entry:
        return f"    failed: {entry['error']}"
    times = sorted(s["device_ms"] or s["wall_ms"] for s in entry["samples"])
    middle = times[len(times) // 2]
    reached = entry["blocks_tflop"] / middle * 1e3
    apart = f", logits at most {max(entry['disagreement']):.1e} off" if "disagreement" in entry else ""
    return (
        f"    {middle:.1f} ms ({times[0]:.1f} to {times[-1]:.1f}), first {entry['first_s']:.1f} s, "
        f"{entry['blocks_tflop']:.1f} TFLOP, {reached:.0f} TFLOP/s ({reached / peak:.0%} of a matrix product), "
        f"graphs {entry.get('graphs')}, compilations {entry.get('compilations')}, "
        f"{entry['peak_device_mb'] or 0:.0f} MiB{apart}"
    )


def _loaded(spec: InfinitySpec, device: torch.device, record: Record) -> Bench:
    with record.phase(f"{spec.name}: weights"):
        bench = Bench(random_model(spec, device))
    times = attention_times(spec.transformer, bench.model.schedule, device)
    record.result.setdefault("attention_ms", {})[spec.name] = times
    print(f"    attention {times}", flush=True)
    return bench


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(arguments, __doc__)
    device, models = torch.device(options.device), specs(options)
    given = shares(options, models[0])
    record = Record(
        options.output,
        options.minutes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        weights="random: speed only, no quality",
        keep=given.keep,
        keep_from=given.origin,
        stop_scale=given.stop_scale,
    )
    torch.backends.cudnn.benchmark = True
    with record.phase("hardware, peak"):
        record.result["hardware"] = hardware(device)
    benches: dict[str, Bench] = {}
    for batch in options.batch:
        last = batch == options.batch[-1]
        # The largest batch of the larger model needs the memory of the smaller one.
        for spec in reversed(models) if last and batch >= 4 else models:
            if record.time_is_up:
                continue
            if spec.name not in benches:
                benches[spec.name] = _loaded(spec, device, record)
            bench, named = benches[spec.name], policies(shares(options, spec), ScaleSchedule.of_size(spec.size))
            with fastest(record.result["attention_ms"][spec.name]):
                run(bench, candidates(named, batch), batch, options, record)
                if options.profile and batch == options.batch[0] and not record.time_is_up:
                    with record.phase(f"{spec.name}: profile"):
                        profile(bench, batch, options.output)
                for precision in options.late if batch == options.batch[0] else ():
                    run(bench, late_candidates(named, precision), batch, options, record)
            if last:
                del benches[spec.name], bench
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    record.result["clocks_after"] = _clocks() if device.type == "cuda" else None
    record.save()
    return record.result


if __name__ == "__main__":
    main()
