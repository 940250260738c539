"""`ldp-export bench`."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.options import as_json, print_json, weights_options

if TYPE_CHECKING:
    from ldp_export.progress import Progress, ProgressEvent


@click.command(
    "bench",
    epilog="""\b
Examples:
  ldp-export bench bundles/infinity-shapes
  ldp-export bench bundles/infinity-shapes --policy ld --policy skip:count=1 --repeats 30 --output bench.json
  ldp-export bench bundles/mine --weights t.safetensors --vae v.safetensors --batch 1 --batch 4
  ldp-export bench bundles/infinity-shapes --also bundles/shapes-torch --also bundles/shapes-int8
  ldp-export bench --compare before.json after.json
  ldp-export bench bundles/infinity-shapes --no-eager --prompt "a red circle" --json
""",
)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
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
@click.option("--threads", type=int, help="Of every candidate.  [default: one per physical core]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first prompt; the others count up.")
@weights_options
@click.option("--no-eager", is_flag=True, help="Leave eager PyTorch out: needs no checkpoint.")
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
    prompts_file: Path | None,
    repeats: int,
    warmup: int,
    batch: tuple[int, ...],
    device: str,
    scope: str,
    threads: int | None,
    seed: int,
    weights: Path | None,
    vae: Path | None,
    text_encoder: Path | None,
    no_eager: bool,
    compared: tuple[Path, Path] | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Compare latency: eager PyTorch, the engines, and the engines with pruning.

    All candidates draw the same prompts with the same seeds and the same number of threads, each in a process of its
    own; while one is measured the others are stopped. Rounds are interleaved, and speed-ups are ratios of times of the
    same round, so that a machine that slows down slows all of them. PSNR against the unpruned image stands beside.

    Eager PyTorch reads the checkpoint the bundle was built from: found by the model's name, or given by
    --weights, --vae and --text-encoder.
    """
    from ldp_runtime.errors import ConfigError

    if compared:
        _compare(*compared, as_json)
        return
    if bundle is None:
        raise ConfigError("no bundle is named", hint="ldp-export bench BUNDLE, or --compare A.json B.json")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise ConfigError(f"cannot write {output}: not a file in an existing folder")
    texts = _texts(prompts, prompts_file)

    from ldp_export.bench.plan import DEFAULT_POLICIES
    from ldp_export.bench.run import run_bench
    from ldp_export.bench.table import print_result

    with _progress() as progress:
        result = run_bench(
            bundle,
            prompts=texts,
            policies=policies or DEFAULT_POLICIES,
            repeats=repeats,
            warmup=warmup,
            batch=batch or (1,),
            threads=threads,
            seed=seed,
            eager=not no_eager,
            weights=weights,
            vae=vae,
            text_encoder=text_encoder,
            others=others,
            device=device,
            scope=scope,  # pyright: ignore[reportArgumentType]  the plan refuses others
            progress=progress,
        )
    if output is not None:
        output.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)


def _compare(before: Path, after: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from ldp_runtime.errors import ConfigError

    from ldp_export.bench.compare import compare
    from ldp_export.bench.table import print_changes

    results = []
    for path in (before, after):
        try:
            results.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the result {path}: {error}") from error
    changes = compare(*results)
    if as_json:
        print_json([asdict(change) | {"verdict": change.verdict} for change in changes])
    else:
        print_changes(changes)


def _texts(prompts: tuple[str, ...], file: Path | None) -> list[str] | None:
    """All prompts, or None where none are given."""
    from ldp_runtime.errors import ConfigError

    if file is None:
        return list(prompts) or None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts file {file}: {error}") from error
    found = [*prompts, *filter(None, lines)]
    if not found:
        raise ConfigError(f"{file} holds no prompt", hint="write one prompt per line")
    return found


@contextmanager
def _progress() -> Generator[Progress]:
    """A bar on stderr that is drawn between calls only: a refreshing thread would take time from the measured one."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
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
