"""Verb `ldp-export build`: builds a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.fetch import show_fetch
from ldp_export.cli.options import (
    as_json,
    backend_options,
    local_dir_option,
    print_json,
    shown_progress,
    weights_options,
)

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import Bundle
    from ldp_runtime.bundle.manifest import Backend, KvCacheKind, NoiseMode, Precision, QuantizedPrecision

    from ldp_export.building.plan import BuildOptions, BuildPlan
    from ldp_export.models.registry import InfinitySpec, VarSpec
    from ldp_export.verification.verify import Report


#: Kinds of KV caches, by their names in the option --kv-form.
_KV_CACHES: dict[str, KvCacheKind] = {"concat": "dynamic", "in-place": "static"}


@click.command(
    epilog="""\b
Examples:
  ldp-export build                                      the embedded model, into bundles/infinity-shapes
  ldp-export build --model infinity-2b --dry-run        what it would fetch, do and need
  ldp-export build --model infinity-8b --local-dir 8b   files fetched elsewhere, no network
  ldp-export build --backend tensorrt-rtx --compute-capability 8.6,8.9,12.0 --profiles 3 --output bundles/rtx
  ldp-export build --backend tensorrt-rtx --compute-capability 8.9 --kv-form in-place --output bundles/rtx-in-place
  ldp-export build --int8-decoder --late-precision int8 --output bundles/int8
  ldp-export build --backend torch --precision bfloat16 --int8-decoder --output bundles/fast   a CPU with bfloat16
  ldp-export build --weights t.safetensors --vae v.safetensors --pn 0.06M --output bundles/mine
"""
)
@click.option("--model", help="A registry name; see `ldp-export models`.  [default: infinity-shapes]")
@local_dir_option
@weights_options
@click.option("--output", type=click.Path(path_type=Path), help="Path of the bundle.  [default: bundles/MODEL]")
@click.option(
    "--pn",
    "--size",
    "size",
    help="About how many pixels: 0.06M, 0.25M, 0.6M or 1M, all aspect ratios.  [default: the model's]",
)
@click.option("--chunk", type=int, help="Blocks per engine; a large model is split so that each part stays small.")
@backend_options
@click.option("--guidance", type=float, help="Default guidance of the bundle.  [default: the model's]")
@click.option("--temperature", type=float, help="Default temperature of the bundle.  [default: the model's]")
@click.option("--policy", help="Default policy of the bundle, such as ld.  [default: none]")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the graphs' matrix products.  [default: bfloat16 with TensorRT, and with torch on a GPU; else float32]",
)
@click.option(
    "--kv-form",
    type=click.Choice(["concat", "in-place"]),
    default="concat",
    show_default=True,
    help="How engines remember keys and values: joined to a past of any length, or written into a cache of a fixed "
    "size (Infinity; not with --backend torch; docs/tensorrt.md).",
)
@click.option(
    "--noise",
    type=click.Choice(["generator", "counter"]),
    default="generator",
    show_default=True,
    help="Sampling noise: the originals' CPU generator, or numbers by seed, scale and position, drawn on the device.",
)
@click.option("--discard-graphs", is_flag=True, help="Delete each exported graph once its engine is built.")
@click.option("--force", is_flag=True, help="Redo stages that are already done.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and needed, and stop.")
@as_json
def command(
    model: str | None,
    local_dir: Path | None,
    weights: Path | None,
    vae: Path | None,
    text_encoder: Path | None,
    output: Path | None,
    size: str | None,
    chunk: int | None,
    backend: Backend,
    capabilities: str | None,
    profiles: int | None,
    max_batch: int | None,
    int8_decoder: bool,
    quantize: QuantizedPrecision | None,
    quantize_share: float | None,
    guidance: float | None,
    temperature: float | None,
    policy: str | None,
    precision: Precision | None,
    kv_form: str,
    noise: NoiseMode,
    discard_graphs: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build a bundle: export graphs, make engines, verify them against the reference model, publish.

    Files of --model that are not here yet are fetched first, as by `ldp-export fetch`; the embedded model needs no
    network. A build that fails or is killed leaves the previous bundle serving, and running the command again resumes
    it.
    """
    from ldp_export.building.build import build
    from ldp_export.building.choose_builder import BackendOptions, choose_builder, default_precision
    from ldp_export.building.plan import BuildOptions, BuildPlan, check_options, plan_build
    from ldp_export.checkpoints.sources import Sources
    from ldp_export.checkpoints.t5 import check_folder
    from ldp_export.hub.fetch import fetch
    from ldp_export.hub.resolve import pending_fetch, resolve_model, with_defaults
    from ldp_export.models.registry import find_model

    backend_choice = BackendOptions(backend, capabilities, profiles, max_batch, int8_decoder, quantize, quantize_share)
    precision = precision or default_precision(backend)

    def options_for(spec: InfinitySpec | VarSpec) -> BuildOptions:
        builder, place = choose_builder(backend_choice, spec, size or spec.size, precision), Path("bundles") / spec.name
        return BuildOptions(
            output or place, size, chunk, force, builder, precision, discard_graphs, _KV_CACHES[kv_form], noise
        )

    if pending := pending_fetch(model, weights, vae, text_encoder, local_dir):
        # Options that would be refused after hours of downloading are refused before it.
        named = with_defaults(find_model(pending.spec.name), guidance, temperature, policy)
        check_options(BuildPlan(named, Sources(Path(), Path(), text_encoder), options_for(named)))
        if text_encoder is not None:
            check_folder(text_encoder)
        if dry_run:
            print_json({"model": named.name, "fetch": pending.to_json()}) if as_json else show_fetch(pending)
            return
        with shown_progress(as_json) as progress:
            fetch(pending, progress)
    spec, sources = resolve_model(model, weights, vae, text_encoder, guidance, temperature, local_dir, policy)
    plan = plan_build(spec, sources, options_for(spec))
    if dry_run:
        _show_plan(plan, as_json)
        return
    with shown_progress(as_json) as progress:
        bundle, report = build(plan, progress)
    _show_result(plan.options.output, bundle, report, as_json)


def _show_result(output: Path, bundle: Bundle, report: Report | None, as_json: bool) -> None:
    summary: dict[str, Any] = {
        "bundle": str(output),
        "version": bundle.manifest.version,
        "state": bundle.state,
        "checks": 0 if report is None else len(report.checks),
        "bytes": sum(entry.size for entry in bundle.manifest.files.values()),
    }
    if as_json:
        print_json(summary)
        return
    click.echo(f"{output}: version {summary['version']}, {summary['bytes'] / 2**20:.1f} MiB")
    if report is None:
        click.echo(f"unverified: on the machine that it was built for, run: ldp-export verify {output} --device cuda")
    else:
        click.echo(f"verified: {len(report.checks)} checks against the reference model on {report.machine}")


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{part} {path}" for part, path in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _show_plan(plan: BuildPlan, as_json: bool) -> None:
    """Prints the plan of a build, and its predicted needs."""
    from ldp_export.building.estimate import estimate_build

    estimate = estimate_build(plan)
    if as_json:
        print_json(plan.to_json() | {"estimate": estimate.to_json()})
        return
    for name, value in plan.to_json().items():
        click.echo(f"{name:<10} {_words(value)}")
    click.echo(f"{'needs':<10} {estimate}")
