"""Verb `ldp-export bench`: measures latency."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.options import (
    as_json,
    bundle_argument,
    classes_option,
    print_json,
    prompt_lines,
    weights_options,
)
from ldp_export.cli.outputs import check_file

if TYPE_CHECKING:
    from ldp_export.progress import Progress, ProgressEvent


@click.command(
    "bench",
    epilog="""\b
Examples:
  ldp-export bench bundles/infinity-shapes
  ldp-export bench bundles/infinity-shapes --policy ld --policy none:skip_last=1 --repeats 30 --output bench.json
  ldp-export bench bundles/mine --weights t.safetensors --vae v.safetensors --batch 1 --batch 4
  ldp-export bench bundles/infinity-shapes --aspect-ratio 0.5 --batch 1 --batch 4 --scope image
  ldp-export bench bundles/infinity-shapes --also bundles/shapes-torch --also bundles/shapes-int8
  ldp-export bench --random-weights --model infinity-2b --depth 4 --width 512 --pn 0.25M --keep 0.45,0.4 --stop-scale 6
  ldp-export bench bundles/8b --device cuda --share-engines
  ldp-export bench --compare before.json after.json
  ldp-export bench bundles/infinity-shapes --no-eager --prompt "a red circle" --json
  ldp-export bench bundles/var-d16 --class 207 --class 88 --policy ld
""",
)
@partial(bundle_argument, required=False)
@click.option(
    "--also",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A bundle of the same checkpoint with other engines; repeatable.",
)
@click.option(
    "--policy", "policies", multiple=True, help="Of a pruned candidate; repeatable.  [default: ld, ld-skip-2]"
)
@click.option("--prompt", "prompts", multiple=True, help="Repeatable; prompt i is drawn with seed + i.")
@classes_option
@click.option("--prompts-file", type=click.Path(path_type=Path), help="Text file, a prompt per line.")
@click.option("--repeats", type=int, default=10, show_default=True, help="Measured calls per prompt and candidate.")
@click.option("--warmup", type=int, default=3, show_default=True, help="Calls per candidate before that.")
@click.option("--batch", multiple=True, type=int, help="Images per call; repeatable.  [default: 1]")
@click.option("--device", default="cpu", show_default=True, help="Of every candidate: cpu or cuda.")
@click.option(
    "--scope",
    default="prompt-to-image",
    show_default=True,
    help="What the table's times are of: blocks, image (+ loop and decoder), prompt-to-image (+ text encoder).",
)
@click.option(
    "--aspect-ratio",
    type=float,
    default=1.0,
    show_default=True,
    help="Height / width of every image; the nearest that the model draws.",
)
@click.option("--share-engines", is_flag=True, help="Load engines once for all their policies: for large models.")
@click.option("--threads", type=int, help="Of every candidate.  [default: one per physical core]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first prompt; the others count up.")
@weights_options
@click.option("--no-eager", is_flag=True, help="Leave eager PyTorch out: needs no checkpoint.")
@click.option("--random-weights", is_flag=True, help="Measure --model's shape without a checkpoint: speed only.")
@click.option("--model", help="With --random-weights: infinity-2b, infinity-8b or another of the registry.")
@click.option("--depth", type=int, help="With --random-weights: fewer blocks.")
@click.option("--width", type=int, help="With --random-weights: fewer channels.")
@click.option("--pn", "size", help="With --random-weights: scale schedule.  [default: the model's]")
@click.option(
    "--int8",
    is_flag=True,
    help="With --random-weights: also engines whose late scales multiply 8-bit integers.",
)
@click.option("--keep", help="With --random-weights: shares that the last scales keep.  [default: 0.45,0.4,0.35]")
@click.option("--stop-scale", type=int, help="With --random-weights: scale after which the unconditional branch stops.")
@click.option(
    "--keep-from",
    type=click.Path(path_type=Path),
    help="With --random-weights: shares and stop scale of a calibrated profile (a JSON file in a bundle's profiles/).",
)
@click.option(
    "--compare",
    "compared",
    nargs=2,
    type=click.Path(path_type=Path),
    help="Measure nothing: say of two results what became slower or faster, and what is noise.",
)
@as_json
@click.option("--output", type=click.Path(path_type=Path), help="Write the result, raw samples included, as JSON.")
def command(
    bundle: Path | None,
    others: tuple[Path, ...],
    policies: tuple[str, ...],
    prompts: tuple[str, ...],
    classes: tuple[int, ...],
    prompts_file: Path | None,
    repeats: int,
    warmup: int,
    batch: tuple[int, ...],
    device: str,
    scope: str,
    aspect_ratio: float,
    share_engines: bool,
    threads: int | None,
    seed: int,
    weights: Path | None,
    vae: Path | None,
    text_encoder: Path | None,
    no_eager: bool,
    random_weights: bool,
    model: str | None,
    depth: int | None,
    width: int | None,
    size: str | None,
    int8: bool,
    keep: str | None,
    stop_scale: int | None,
    keep_from: Path | None,
    compared: tuple[Path, Path] | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Compare latency: eager PyTorch, the engines, and the engines with pruning.

    All candidates draw the same prompts with the same seeds and the same number of threads. Each has a process of its
    own (with --share-engines, policies of the same engines share one); while one is measured the others are stopped.
    Rounds are interleaved, and speed-ups are ratios of times of the same round, so that a machine that slows down slows
    all of them. PSNR against the unpruned image stands beside.

    Eager PyTorch reads the checkpoint that the bundle was built from: found by the model's name, or given by
    --weights, --vae and --text-encoder.
    """
    from ldp_runtime.errors import ConfigError

    if compared:
        if bundle is not None or random_weights or output is not None:
            raise ConfigError("--compare measures nothing", hint="ldp-export bench --compare A.json B.json")
        _compare(*compared, as_json)
        return
    texts = [*prompts, *(prompt_lines(prompts_file) if prompts_file else [])]
    if random_weights:
        if model is None or no_eager or texts or any((bundle, weights, vae, text_encoder, others)):
            raise ConfigError(
                "--random-weights takes --model, and neither bundles, a checkpoint, prompts, nor --no-eager",
                hint="ldp-export bench --random-weights --model infinity-2b --depth 2 --width 256",
            )
        if keep_from is not None and (keep is not None or stop_scale is not None):
            raise ConfigError("--keep-from brings shares and stop scale: leave --keep and --stop-scale out")
        if policies and any(value is not None for value in (keep, stop_scale, keep_from)):
            raise ConfigError("--policy says what is kept: leave --keep, --stop-scale and --keep-from out")
    elif int8 or any(value is not None for value in (model, depth, width, size, keep, stop_scale, keep_from)):
        raise ConfigError(
            "--model, --depth, --width, --pn, --int8, --keep, --keep-from and --stop-scale belong to --random-weights"
        )
    elif bundle is None:
        raise ConfigError("no bundle is named", hint="ldp-export bench BUNDLE, or --compare A.json B.json")
    if output is not None:
        check_file(output)

    from ldp_runtime.disk import written_result

    from ldp_export.bench.plan import DEFAULT_POLICIES, Options, check_options
    from ldp_export.bench.run import run_bench
    from ldp_export.bench.table import print_result

    options: dict[str, Any] = {
        "policies": policies or DEFAULT_POLICIES,
        "prompts": texts or None,
        "classes": classes or None,
        "repeats": repeats,
        "warmup": warmup,
        "batch": batch or (1,),
        "threads": threads,
        "seed": seed,
        "eager": not no_eager,
        "weights": weights,
        "vae": vae,
        "text_encoder": text_encoder,
        "others": others,
        "device": device,
        "scope": scope,
        "aspect_ratio": aspect_ratio,
        "share_engines": share_engines,
    }
    check_options(Options(**options))
    if model is not None:
        from ldp_export.bench.random_weights import check_servable

        check_servable(model, batch or (1,), device, classes)
        options |= _given_shares(model, size, policies, keep, stop_scale, keep_from)
    with _progress() as progress, tempfile.TemporaryDirectory(prefix="ldp-random-") as folder:
        if model is not None:
            from ldp_export.bench.random_weights import random_bundles

            shape: dict[str, Any] = {"size": size, "depth": depth, "width": width, "int8": int8}
            (made, *further), sources = random_bundles(model, Path(folder), **shape, progress=progress)
            bundle = made.folder
            options |= {"weights": sources.transformer, "vae": sources.vae, "others": [b.folder for b in further]}
        assert bundle is not None
        result = run_bench(bundle, progress=progress, **options)
    if output is not None:
        with written_result(output) as scratch:
            scratch.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)


def _given_shares(
    model: str,
    size: str | None,
    policies: tuple[str, ...],
    keep: str | None,
    stop_scale: int | None,
    keep_from: Path | None,
) -> dict[str, Any]:
    """Options of a bench on random weights: the named policies, or else those of the given shares."""
    from ldp_runtime.schedule import ScaleSchedule

    from ldp_export.bench.given_shares import calibrated, told
    from ldp_export.bench.random_weights import check_policies, given_policies
    from ldp_export.models.registry import find_model

    schedule = ScaleSchedule.of_size(size) if size else find_model(model).schedules[0]
    shares = told(keep, stop_scale) if keep_from is None else calibrated(keep_from, schedule)
    chosen = policies or given_policies(shares.keep, shares.stop_scale)
    check_policies(chosen, schedule)
    return {"policies": chosen, "random_weights": True, "shares_from": None if policies else shares.origin}


def _compare(before: Path, after: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from ldp_export.bench.compare import compare
    from ldp_export.bench.read_result import read_result
    from ldp_export.bench.table import print_changes

    changes = compare(read_result(before), read_result(after))
    if as_json:
        print_json([asdict(change) | {"verdict": change.verdict} for change in changes])
    else:
        print_changes(changes)


@contextmanager
def _progress() -> Generator[Progress]:
    """Progress bar on stderr, drawn between calls only: a refreshing thread would take time from the measured one."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    bars = Bars(
        *columns,
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        task = bars.add_task("hashing files", total=None)
        bars.refresh()

        def show(event: ProgressEvent) -> None:
            title = f"{event.stage} {event.detail}".strip()
            bars.update(task, description=title, total=event.count, completed=event.index, refresh=True)

        yield show
