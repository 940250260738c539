"""Verb `ldp-export inspect`: shows a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, bundle_argument, print_json

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import Bundle
    from ldp_runtime.bundle.manifest import Manifest, QuantizedScales
    from rich.console import Console


#: Kinds of sampling noise, in words.
_NOISE = {"generator": "the originals' CPU generator", "counter": "counter-based, by seed, scale and position"}


@click.command(
    "inspect",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export inspect bundles/infinity-shapes
  ldp-export inspect bundles/infinity-shapes --json
""",
)
@bundle_argument
@as_json
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds: model, graphs, scales, sizes it draws, memory it needs, and whether it is verified."""
    from ldp_runtime.bundle.files import open_bundle

    opened = open_bundle(bundle, integrity="sizes")
    if as_json:
        from ldp_export.verification.coverage import coverage

        print_json(
            {
                "state": opened.state,
                "digest": opened.manifest.digest,
                "folder": str(opened.folder),
                "coverage": asdict(coverage(opened)),
                "manifest": opened.manifest.model_dump(mode="json"),
            }
        )
        return
    _print(opened)


def _print(bundle: Bundle) -> None:
    from ldp_runtime.bundle.sizes import sizes
    from ldp_runtime.pipeline.memory import estimate_memory
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ldp_export.verification.coverage import coverage

    manifest, console = bundle.manifest, Console()
    model, schedule = manifest.model, manifest.schedule()
    console.print(
        f"[bold]{model.name}[/bold] ({model.family}), version {manifest.version}, [bold]{bundle.state}[/bold]"
    )
    console.print(f"digest {manifest.digest}", highlight=False, soft_wrap=True)
    console.print(
        f"{model.depth} blocks, width {model.width}, {model.heads} heads, {model.token}; "
        f"{manifest.precision}{_stored(manifest)} on {manifest.backend}"
    )
    console.print(f"{'verified' if bundle.state == 'verified' else 'to verify'}: {coverage(bundle)}")
    console.print(f"keys and values: {_cache(manifest)}")
    console.print(f"noise: {_NOISE[manifest.noise]}")
    console.print("draws (height x width): " + ", ".join(f"{h}x{w}" for h, w in sizes(manifest)))
    console.print(f"memory, batch 1: up to {estimate_memory(manifest, 1)}")
    graphs = Table(title="graphs")
    for title in ("graph", "inputs", "outputs", "MiB"):
        graphs.add_column(title)
    for name, graph in manifest.graphs.items():
        folder = graph.file.split("/")[0]
        size = sum(entry.size for path, entry in manifest.files.items() if path.startswith(folder + "/"))
        graphs.add_row(name, escape(_listed(graph.inputs)), escape(_listed(graph.outputs)), f"{size / 2**20:.1f}")
    console.print(graphs)
    _print_target(console, manifest)
    scales = Table(title=f"scales at 1:1 ({schedule.total_tokens} tokens); * where LD-Pruning thins out by default")
    quantized = manifest.quantized_scales(schedule)
    for title in ("scale", "grid", "tokens", "past", *(["blocks"] if quantized else [])):
        scales.add_column(title, justify="right")
    pruned = schedule.detail_scales()
    for k, (h, w) in enumerate(schedule.grids):
        scales.add_row(
            f"{k}{'*' if k in pruned else ' '}",
            f"{h}x{w}",
            str(h * w),
            str(schedule.offsets[k] if manifest.model.cached_layers else 0),
            *_bits(manifest, quantized, k),
        )
    console.print(scales)


def _bits(manifest: Manifest, quantized: dict[int, QuantizedScales], scale: int) -> list[str]:
    """Cell with the precision of a scale's blocks; none if all scales have the same."""
    if not manifest.quantized:
        return []
    if scale not in quantized:
        return [manifest.precision]
    return [f"{quantized[scale].precision}{', static' if quantized[scale].ranges == 'static' else ''}"]


def _stored(manifest: Manifest) -> str:
    """Words for the blocks' weights if they are stored in another type than that of their products."""
    return "" if manifest.weight_precision is None else f" (weights of the blocks in {manifest.weight_precision})"


def _cache(manifest: Manifest) -> str:
    if manifest.kv_cache == "none":
        return "none: a scale sees itself alone"
    if manifest.cache_tokens is None:
        return "dynamic, a past of any length"
    return f"static, a cache of {manifest.cache_tokens} positions"


def _print_target(console: Console, manifest: Manifest) -> None:
    """Prints the library and GPUs that compiled engines are built for, and the sizes of each optimization profile."""
    if manifest.target is not None and manifest.target.compute_capabilities:
        gpus = ", ".join(manifest.target.compute_capabilities)
        console.print(f"built by {manifest.backend} {manifest.target.library} for compute capabilities {gpus}")
    for name, graph in manifest.graphs.items():
        for index, profile in enumerate(graph.profiles):
            console.print(f"{name}, profile {index}: {profile}", highlight=False)


def _listed(tensors: tuple) -> str:
    """Names and shapes of the tensors in words; those of the layers are only counted."""
    plain = [t for t in tensors if not t.name[-1].isdigit()]
    text = ", ".join(f"{t.name} {list(t.shape)}".replace("'", "") for t in plain)
    layers = len(tensors) - len(plain)
    return f"{text}{f' + {layers} of the layers' if layers else ''}"
