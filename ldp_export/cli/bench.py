"""Verb `ldp-export bench`: measures latency."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.bench.worker.options import BenchOptions
from ldp_export.cli.arguments.command import Command, Renamed, grouped
from ldp_export.cli.arguments.options import (
    as_json,
    aspect_ratio_option,
    bundle_argument,
    classes_option,
    overwrite_option,
    print_json,
    prompt_lines,
    weights_options,
)
from ldp_export.cli.arguments.outputs import check_new
from ldp_export.cli.arguments.settings import settings_options

if TYPE_CHECKING:
    from ldp_export.progress import Progress, ProgressEvent

#: Defaults of the options.
_DEFAULT = BenchOptions()


class _Bench(Command):
    """Command that still takes two older forms: --compare, a verb of its own, and --random-weights, a bundle's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--compare" in args:
            _run_older_compare(ctx, [arg for arg in args if arg != "--compare"])
        if "--random-weights" in args:
            _run_older_random_weights(ctx, [arg for arg in args if arg != "--random-weights"])
        return super().parse_args(ctx, args)


@click.command(
    "bench",
    cls=_Bench,
    renamed={"--also": Renamed("")},
    epilog="""\b
Examples:
  ldp-export bench bundles/infinity-shapes
  ldp-export bench bundles/infinity-shapes bundles/int8 --output bench.json
  ldp-export bench bundles/shapes --policy ld --policy none:skip_last=1
  ldp-export bench bundles/shapes --aspect-ratio 16:9 --batch 1 --batch 4
  ldp-export bench bundles/shapes --no-eager --prompt "a red circle" --json
  ldp-export bench bundles/8b --device cuda --share-engines
  ldp-export bench bundles/mine --weights t.safetensors --vae v.safetensors
  ldp-export bench bundles/var-d16 --class 207 --class 88 --policy ld

A bundle of random weights (`ldp-export build --random-weights`) needs no
options: its checkpoint and the shares that stand in for policies lie beside it.
""",
)
@partial(bundle_argument, several=True)
@click.option(
    "--policy", "policies", multiple=True, help="Of a pruned candidate; repeatable.  [default: ld, ld-fast, ld-skip-2]"
)
@click.option("--device", default=_DEFAULT.device, show_default=True, help="Of every candidate: cpu or cuda.")
@click.option("--threads", type=int, help="Of every candidate.  [default: one per physical core]")
@click.option("--share-engines", is_flag=True, help="Load engines once for all their policies: for large models.")
@grouped(
    "Pictures",
    click.option("--prompt", "prompts", multiple=True, help="Repeatable; prompt i is drawn with seed + i."),
    click.option("--prompts-file", type=click.Path(path_type=Path), help="Text file, a prompt per line."),
    classes_option,
    aspect_ratio_option(_DEFAULT.aspect_ratio),
    click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Of the first; others count up."),
)
@grouped(
    "Measurement",
    click.option("--repeats", type=int, default=_DEFAULT.repeats, show_default=True, help="Measured calls per prompt."),
    click.option("--warmup", type=int, default=_DEFAULT.warmup, show_default=True, help="Calls before that."),
    click.option("--batch", multiple=True, type=int, help="Images per call; repeatable.  [default: 1]"),
    click.option(
        "--scope",
        default=_DEFAULT.scope,
        show_default=True,
        help="What the table's times are of: blocks, image (+ loop and decoder), prompt-to-image (+ text encoder).",
    ),
)
@grouped(
    "Eager PyTorch",
    click.option("--no-eager", is_flag=True, help="Leave it out: needs no checkpoint."),
    weights_options,
)
@grouped(
    "Result",
    as_json,
    click.option("--output", type=click.Path(path_type=Path), help="Write it, raw samples included, as JSON."),
    overwrite_option,
)
@settings_options
def command(
    bundles: tuple[Path, ...],
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    no_eager: bool,
    as_json: bool,
    output: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Compare latency: eager PyTorch, the engines, and the engines with pruning.

    Several BUNDLEs are of one checkpoint with other engines. All candidates draw the same prompts with the same seeds
    and the same number of threads. Each has a process of its own (with --share-engines, policies of the same engines
    share one); while one is measured the others are stopped. Rounds are interleaved, and speed-ups are ratios of times
    of the same round, so that a machine that slows down slows all of them. PSNR against the unpruned image stands
    beside.

    Eager PyTorch reads the checkpoint that the bundle was built from: found by the model's name, or given by
    --weights, --vae and --text-encoder.
    """
    texts = [*prompts, *(prompt_lines(prompts_file) if prompts_file else [])]
    chosen = {name: value for name, value in options.items() if value != ()}  # nothing given: the plan chooses
    asked = BenchOptions(prompts=tuple(texts) or None, eager=not no_eager, **chosen)
    asked.check()
    if output is not None:
        check_new(output, overwrite)

    from ldp_runtime.system.disk import written_result

    from ldp_export.bench.run import run_bench
    from ldp_export.bench.table import print_result

    with _progress() as progress:
        result = run_bench(bundles, asked, progress)
    if output is not None:
        with written_result(output) as scratch:
            scratch.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if as_json:
        print_json(result.to_json())
        return
    print_result(result)
    if output is not None:
        click.echo(f"{output}: the result with raw samples")


def _run_older_compare(ctx: click.Context, args: list[str]) -> None:
    """Runs `bench --compare A B` as `bench-compare A B`."""
    from ldp_export.cli import bench_compare

    click.echo(
        "warning: bench --compare is an old form that the next version drops: bench-compare A.json B.json", err=True
    )
    bench_compare.command.main(args, standalone_mode=False)
    ctx.exit()


def _run_older_random_weights(ctx: click.Context, args: list[str]) -> None:
    """Runs `bench --random-weights` as `build --random-weights` and `bench`, in a folder that is then removed."""
    from ldp_export.bench.given_shares import told
    from ldp_export.bench.random_weights import given_policies
    from ldp_export.cli import build

    click.echo(
        "warning: bench --random-weights is an old form that the next version drops: "
        "build --random-weights makes a bundle, and bench BUNDLE measures it",
        err=True,
    )
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in ("--model", "--depth", "--width", "--size", "--keep-from", "--keep", "--stop-scale"):
        parser.add_argument(name, *(["--pn"] if name == "--size" else []))
    parser.add_argument("--int8", action="store_true")
    known, rest = parser.parse_known_args(args)
    shape = [
        word
        for name in ("model", "depth", "width", "size", "keep_from")
        if (value := getattr(known, name)) is not None
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    if known.keep is not None or known.stop_scale is not None:
        shares = told(known.keep, None if known.stop_scale is None else int(known.stop_scale))
        rest += [word for policy in given_policies(shares.keep, shares.stop_scale) for word in ("--policy", policy)]
    with tempfile.TemporaryDirectory(prefix="ldp-random-") as folder:
        made: list[str] = []
        for kind in ([], ["--quantize", "int8"])[: 1 + known.int8]:
            made.append(str(Path(folder, "-".join(["random", *kind]).replace("--", ""))))
            with contextlib.redirect_stdout(sys.stderr):
                build.command.main(["--random-weights", *shape, *kind, "--output", made[-1]], standalone_mode=False)
        command.main([*made, *rest], standalone_mode=False)
    ctx.exit()


@contextmanager
def _progress() -> Generator[Progress]:
    """Progress on stderr, drawn between calls only: a refreshing thread would take time from the measured one.

    A terminal gets a bar and an estimate of what is left; a file or a pipe gets a line a round.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
    with Bars(*columns, console=console, auto_refresh=False, transient=True) as bars:
        task = bars.add_task("reading the bundles", total=None, left="")
        bars.refresh()
        clock = _Clock()

        def show(event: ProgressEvent) -> None:
            if event.state == "started":
                return
            title = f"{event.stage} {event.detail}".strip()
            left = f"{event.index}/{event.count} calls, {clock.left(event)}"
            bars.update(task, description=title, total=event.count, completed=event.index, left=left, refresh=True)

        yield show


class _Clock:
    """Estimate of the time that is left, from the calls so far."""

    def __init__(self) -> None:
        self.started: float | None = None

    def left(self, event: ProgressEvent) -> str:
        """Words for the time that the remaining calls will take."""
        now = time.monotonic()
        if self.started is None:
            self.started = now
        if event.index == 0:
            return "time left unknown yet"
        seconds = (now - self.started) / event.index * (event.count - event.index)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def _lines() -> Progress:
    """Callback that prints a line on stderr where a round of the measurement begins."""
    clock = _Clock()

    def show(event: ProgressEvent) -> None:
        left = clock.left(event)
        if event.state == "started":
            click.echo(f"{event.stage}, {event.detail}: {left}", err=True)

    return show
