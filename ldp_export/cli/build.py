"""Verb `ldp-export build`: builds a bundle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.arguments.command import Command, Renamed, grouped
from ldp_export.cli.arguments.options import (
    as_json,
    backend_options,
    compiled_options,
    local_dir_option,
    print_json,
    prompt_lines,
    shown_progress,
    weights_options,
)
from ldp_export.cli.arguments.settings import settings_options
from ldp_export.cli.fetch import show_fetch

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import Bundle

    from ldp_export.builders.base import Builder
    from ldp_export.building.plan import BuildOptions, BuildPlan
    from ldp_export.hub.fetch import FetchPlan
    from ldp_export.models.registry import AnySpec
    from ldp_export.verification.verify import Report


#: Options that only --random-weights has.
_RANDOM = ("depth", "width", "keep_from")
_TEXT = ("text_encoder", "text_encoder_2")


@click.command(
    "build",
    cls=Command,
    renamed={
        "--pn": Renamed("--size"),
        "--late-precision": Renamed("--quantize"),
        "--late-share": Renamed("--quantize-share"),
        "--kv-form": Renamed("--kv-cache", {"concat": "dynamic", "in-place": "static"}),
    },
    epilog="""\b
Examples:
  ldp-export build                       the embedded model, into bundles/
  ldp-export build --model infinity-2b --dry-run   what it fetches and needs
  ldp-export build --model infinity-8b --local-dir 8b       without network
  ldp-export build --int8-decoder --quantize int8 --output bundles/int8
  ldp-export build --backend tensorrt-rtx --compute-capability 8.6,8.9
  ldp-export build --backend torch --precision bfloat16 --int8-decoder
  ldp-export build --weights t.safetensors --vae v.safetensors --size 0.06M
  ldp-export build --random-weights --model infinity-2b --depth 2 --width 256
""",
)
@click.option("--model", help="A registry name; see `ldp-export models`.  [default: infinity-shapes]")
@click.option("--output", type=click.Path(path_type=Path), help="Path of the bundle.  [default: bundles/MODEL]")
@click.option("--size", help="About how many pixels: 0.06M, 0.25M, 0.6M or 1M, all shapes.  [default: the model's]")
@click.option("--chunk", type=int, help="Blocks per engine; a large model is split so that each part stays small.")
@click.option("--guidance", type=float, help="Default guidance of the bundle.  [default: the model's]")
@click.option("--temperature", type=float, help="Default temperature of the bundle.  [default: the model's]")
@click.option("--policy", help="Default policy of the bundle, such as ld.  [default: none]")
@click.option(
    "--noise",
    type=click.Choice(["generator", "counter"]),
    default="generator",
    show_default=True,
    help="Sampling noise: the originals' CPU generator, or numbers by seed, scale and position, drawn on the device.",
)
@click.option("--force", is_flag=True, help="Redo stages that are already done.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and needed, and stop.")
@as_json
@backend_options
@compiled_options
@weights_options
@grouped("Checkpoint files", local_dir_option)
@grouped(
    "Random weights",
    click.option("--random-weights", is_flag=True, help="--model's shape without a checkpoint: for `bench`."),
    click.option("--depth", type=int, help="Fewer blocks."),
    click.option("--width", type=int, help="Fewer channels."),
    click.option(
        "--keep-from",
        type=click.Path(path_type=Path),
        help="Shares of tokens that `bench` keeps: those of a calibrated policy (a JSON file in a bundle's profiles/)."
        "  [default: 0.45, 0.4 and 0.35 of the last scales]",
    ),
)
@settings_options
def command(
    model: str | None,
    output: Path | None,
    dry_run: bool,
    as_json: bool,
    random_weights: bool,
    **options: Any,
) -> None:
    """Build a bundle: export graphs, make engines, verify them against the reference model, publish.

    Files of --model that are not here yet are fetched first, as by `ldp-export fetch`; the embedded model needs no
    network. A build that fails or is killed leaves the previous bundle serving, and running the command again resumes
    it.
    """
    chosen = _Chosen(model, output, options)
    chosen.check_names(random_weights)
    plan = _random_plan(chosen, dry_run) if random_weights else _plan(chosen, dry_run, as_json)
    if plan is None:
        return
    if dry_run:
        _show_plan(plan, as_json)
        return
    from ldp_export.building.build import build

    with shown_progress(as_json) as progress:
        bundle, report = build(plan, progress)
    _show_result(plan.options.output, bundle, report, as_json)


@dataclass(frozen=True)
class _Chosen:
    """Options of the command line."""

    model: str | None
    output: Path | None
    options: dict[str, Any]

    @property
    def files(self) -> dict[str, Any]:
        return {name: self.options[name] for name in ("weights", "vae", *_TEXT, "local_dir")}

    def check_names(self, random_weights: bool) -> None:
        """Raises ConfigError for options that belong to another kind of build."""
        from ldp_runtime.errors import ConfigError

        if not random_weights and any(self.options[name] is not None for name in _RANDOM):
            raise ConfigError(
                f"{', '.join(map(_flag, _RANDOM))} belong to --random-weights", hint="add --random-weights"
            )
        given = [_flag(name) for name, path in self.files.items() if path is not None]
        if random_weights and (given or self.model is None):
            raise ConfigError(
                "--random-weights takes the shape of a --model"
                + (f", and reads no {' or '.join(given)}" if given else ""),
                hint="ldp-export build --random-weights --model infinity-2b --depth 2 --width 256",
            )

    def build_options(self, spec: AnySpec) -> BuildOptions:
        """Options of the build of a model; raises ConfigError for what its backend or this machine does not offer."""
        from ldp_export.building.choose_builder import BackendOptions, choose_builder, default_precision
        from ldp_export.building.plan import BuildOptions

        chosen = self.options
        backend = BackendOptions(**{field.name: chosen[field.name] for field in fields(BackendOptions)})
        precision = chosen["precision"] or default_precision(backend.backend)
        builder = choose_builder(backend, spec, chosen["size"] or spec.size, precision)
        return BuildOptions(
            quantize_prompts=_prompts(chosen["quantize_prompts"], builder),
            output=self.output or Path("bundles") / spec.name,
            builder=builder,
            precision=precision,
            **{name: chosen[name] for name in ("size", "chunk", "force", "discard_graphs", "kv_cache", "noise")},
        )


def _prompts(file: Path | None, builder: Builder) -> tuple[str, ...]:
    """Prompts of `--quantize-prompts`; raises ConfigError if there are none, or no ranges to measure on them."""
    from ldp_runtime.errors import ConfigError

    from ldp_export.builders.base import quantized_scales

    if file is None:
        return ()
    quantized = quantized_scales(builder)
    if quantized is None or quantized.ranges != "static":
        raise ConfigError(
            "--quantize-prompts are for static ranges", hint="add --quantize-ranges static, or leave it out"
        )
    return tuple(prompt_lines(file))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _plan(chosen: _Chosen, dry_run: bool, as_json: bool) -> BuildPlan | None:
    """Plan of a build from a checkpoint, whose files are fetched first; None if all is said."""
    from ldp_export.building.plan import BuildPlan, check_options, plan_build
    from ldp_export.checkpoints.sources import Sources
    from ldp_export.hub.resolve import find_sources, pending_fetch, resolve_model, with_defaults
    from ldp_export.models.registry import DEFAULT_MODEL, find_model

    files = chosen.files
    defaults = {name: chosen.options[name] for name in ("guidance", "temperature", "policy")}
    pending = pending_fetch(chosen.model, **files, registry=dry_run)
    if pending is not None:
        # Options that would be refused after hours of downloading are refused before it.
        named = with_defaults(find_model(pending.spec.name), **defaults)
        names: dict[str, Path] = {part.name: Path(part.path or part.repository) for part in pending.hub.parts}
        given = {name: files[name] for name in _TEXT if files[name] is not None}
        unfetched = BuildPlan(named, Sources.of_parts(names | given, here=False), chosen.build_options(named))
        check_options(unfetched)
        if given:
            unfetched.family.check_text()
        if dry_run:
            _show_pending(pending, unfetched, as_json)
            return None
        from ldp_export.hub.fetch import fetch

        with shown_progress(as_json) as progress:
            fetch(pending, progress)
    if dry_run and files["weights"] is None and files["vae"] is None:  # answered from the registry, without PyTorch
        named = with_defaults(find_model(chosen.model or DEFAULT_MODEL), **defaults)
        plan = BuildPlan(named, find_sources(named, **files), chosen.build_options(named))
        check_options(plan)
        return plan
    spec, sources = resolve_model(chosen.model, **defaults, **files)
    return plan_build(spec, sources, chosen.build_options(spec))


def _show_pending(pending: FetchPlan, plan: BuildPlan, as_json: bool) -> None:
    """Prints what a build would fetch first, and then do and need."""
    from ldp_export.building.estimate import estimate_build

    if plan.spec.counts is None:  # sizes of its graphs are read from its files
        print_json({"model": plan.spec.name, "fetch": pending.to_json()}) if as_json else show_fetch(pending)
        return
    if as_json:
        estimate = {"estimate": estimate_build(plan).to_json()}
        print_json({"model": plan.spec.name, "fetch": pending.to_json(), "plan": plan.to_json() | estimate})
        return
    show_fetch(pending)
    _show_plan(plan, as_json)


def _random_plan(chosen: _Chosen, dry_run: bool) -> BuildPlan:
    """Plan of a build of random weights, whose checkpoint is written first."""
    from ldp_runtime.schedule import ScaleSchedule

    from ldp_export.bench.given_shares import calibrated, told
    from ldp_export.bench.random_weights import random_spec, write_random
    from ldp_export.building.plan import BuildPlan, check_options, plan_build
    from ldp_export.checkpoints.sources import Sources
    from ldp_export.hub.resolve import with_defaults
    from ldp_export.models.registry import find_model

    given, named = chosen.options, find_model(str(chosen.model))
    spec = random_spec(named, given["depth"], given["width"])
    spec = with_defaults(spec, given["guidance"], given["temperature"], given["policy"])
    options = chosen.build_options(spec)
    unwritten = BuildPlan(spec, Sources(Path("transformer"), Path("vae"), here=False), options)
    check_options(unwritten)
    schedule = ScaleSchedule.of_size(options.size) if options.size else spec.schedules[0]
    shares = told(None, None) if given["keep_from"] is None else calibrated(given["keep_from"], schedule)
    if dry_run:
        return unwritten
    return plan_build(spec, write_random(spec, shares, options.output), options)


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
