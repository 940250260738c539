"""Can a model larger than memory be built here? Builds one from a synthetic checkpoint in the released layout.

    python -m benchmarks.study.large_build --model infinity-8b --chunk 8 --backend tensorrt-rtx --precision bfloat16

Writes the checkpoint (random weights, float32, sharded), builds a bundle of it as `ldp-export build` does, and samples,
every tenth of a second, the anonymous memory of this process and its children and the disk used under the scratch
folder. The result (JSON) says for each stage how long it took and what it needed, beside the prediction of
`ldp-export build --dry-run`. Anonymous memory is what counts against a machine: mapped files are read through the page
cache, which the system empties when it needs the room.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import psutil

from benchmarks.paths import RESULTS


def anonymous_bytes(process: psutil.Process) -> int:
    """Anonymous memory of a process and its children (RssAnon of /proc/PID/status)."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return total


def disk_bytes(folder: Path) -> int:
    """What the files under a folder take; hard links count once."""
    blocks = {}
    for path in folder.rglob("*"):
        try:
            entry = path.stat()
        except OSError:
            continue
        blocks[entry.st_ino] = entry.st_size
    return sum(blocks.values())


class Sampler(threading.Thread):
    """Notes the largest memory and disk seen, in all and since `mark`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.process = folder, psutil.Process()
        self.memory = self.disk = self.since = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            self.sample()

    def sample(self) -> None:
        memory = anonymous_bytes(self.process)
        self.memory, self.since = max(self.memory, memory), max(self.since, memory)
        self.disk = max(self.disk, disk_bytes(self.folder))

    def mark(self) -> int:
        """The largest memory since the last mark."""
        self.sample()
        most, self.since = self.since, 0
        return most


@contextmanager
def sampled(folder: Path) -> Iterator[Sampler]:
    sampler = Sampler(folder)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.done.set()
        sampler.join()


@click.command()
@click.option("--model", default="infinity-8b", show_default=True)
@click.option("--blocks", type=int, help="Fewer blocks than the model has, to begin with.")
@click.option("--chunk", type=int, default=8, show_default=True, help="Blocks per graph.")
@click.option("--backend", default="tensorrt-rtx", show_default=True)
@click.option("--compute-capability", "capabilities", default="8.9", show_default=True)
@click.option("--profiles", type=int, default=1, show_default=True)
@click.option("--precision", default="bfloat16", show_default=True)
@click.option(
    "--scratch", type=click.Path(path_type=Path), required=True, help="A folder with room; emptied at the end."
)
@click.option("--keep", is_flag=True, help="Leave the checkpoint and the bundle.")
def main(
    model: str,
    blocks: int | None,
    chunk: int,
    backend: str,
    capabilities: str,
    profiles: int,
    precision: str,
    scratch: Path,
    keep: bool,
) -> None:
    """Build a model from a synthetic checkpoint; measure memory, disk and time."""
    from ldp_export.bench.hardware import hardware, software
    from ldp_export.building.build import build
    from ldp_export.building.choose_builder import BackendOptions, choose_builder
    from ldp_export.building.estimate import estimate_build
    from ldp_export.building.plan import BuildOptions, plan_build
    from ldp_export.checkpoints.sources import Sources
    from ldp_export.checkpoints.synthetic import write_checkpoint
    from ldp_export.models.registry import find_model
    from ldp_export.progress import ProgressEvent

    spec = find_model(model)
    if blocks is not None:
        spec = replace(spec, transformer=replace(spec.transformer, depth=blocks, chunks=1))
    started = time.perf_counter()
    place, output = scratch / "checkpoint", scratch / "bundle"
    with sampled(scratch / "checkpoint") as sampler:
        if place.exists():
            folder = place / "transformer"
            whole = folder if folder.exists() else place / "transformer.safetensors"
            sources = Sources(whole, place / "vae.safetensors")
        else:
            sources = write_checkpoint(spec, place)
    checkpoint = {
        "bytes": sources.size(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_anonymous_bytes": sampler.memory,
    }
    click.echo(f"checkpoint: {checkpoint}")

    compiled = backend.startswith("tensorrt")
    chosen = BackendOptions(backend, capabilities, profiles, 1) if compiled else BackendOptions(backend)  # pyright: ignore
    builder = choose_builder(chosen, spec, spec.size, precision)
    options = BuildOptions(output, None, chunk, False, builder, precision, discard_graphs=compiled)  # pyright: ignore
    stages: list[dict[str, float | str]] = []
    started = time.perf_counter()
    with sampled(output) as sampler:
        plan = plan_build(spec, sources, options)
        estimate = estimate_build(plan)
        click.echo(f"predicted: {estimate}")
        hashing = time.perf_counter()

        def note(event: ProgressEvent) -> None:
            nonlocal hashing
            if event.state == "started" and not stages:
                stages.append({"stage": "hash the sources", "seconds": round(time.perf_counter() - hashing, 1)})
            if event.state in ("started", "finished"):
                peak = sampler.mark()
                if event.state == "finished":
                    seconds = round(event.seconds, 1)
                    stages.append({"stage": event.stage, "seconds": seconds, "peak_anonymous_bytes": peak})
                    click.echo(f"  {event.stage}: {seconds} s, {peak / 1e9:.2f} GB")

        bundle, report = build(plan, note)
    result = {
        "model": f"{model}, {spec.transformer.depth} blocks, random weights",
        "backend": backend,
        "precision": precision,
        "chunk": chunk,
        "compute_capabilities": capabilities if compiled else None,
        "profiles": profiles if compiled else None,
        "checkpoint": checkpoint,
        "predicted": estimate.to_json(),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_anonymous_bytes": sampler.memory,
        "peak_disk_bytes": sampler.disk,
        "bundle_bytes": sum(entry.size for entry in bundle.manifest.files.values()),
        "state": bundle.state,
        "checks": 0 if report is None else len(report.checks),
        "stages": stages,
        "hardware": hardware(),
        "versions": bundle.manifest.toolchain
        | ({} if bundle.manifest.target is None else {backend: bundle.manifest.target.library}),
        "software": software(),
    }
    name = model if blocks is None else f"{model}-{blocks}-blocks"
    path = RESULTS / f"large-build-{name}-{backend}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(
        f"{path}: {result['seconds']} s, {sampler.memory / 1e9:.2f} GB anonymous, {sampler.disk / 1e9:.2f} GB disk"
    )
    if not keep:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
