"""Step `ldp-export evaluate generate`: draws the pictures of a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import (
    POLICY_HELP,
    as_json,
    bundle_argument,
    device_option,
    print_json,
    threads_option,
)
from ldp_export.cli.arguments.outputs import check_folder
from ldp_export.cli.evaluate.progress import duration, shown_count

if TYPE_CHECKING:
    from ldp_calibration.evaluation.draw import Plan
    from ldp_calibration.evaluation.run import Run


@click.command(
    "generate",
    cls=Command,
    short_help="Draw the pictures of a benchmark.",
    epilog="""\b
Examples:
  ldp-export evaluate generate bundles/shapes --benchmark shapes \\
      --policy ld --policy ld-fast --output runs/shapes
  ldp-export evaluate generate bundles/mine --benchmark prompts.txt \\
      --images 4 --policy ld --output runs/mine --dry-run
  ldp-export evaluate generate bundles/mine --benchmark prompts.txt \\
      --images 4 --policy ld --output runs/mine --shard 0/2

"""
    + POLICY_HELP,
)
@bundle_argument
@click.option(
    "--benchmark",
    required=True,
    metavar="NAME|FILE",
    help="shapes (500 prompts, for the embedded model); geneval, geneval-rewritten, dpg, hpsv2 or imagereward, once "
    "`evaluate fetch` got it; or a file: a prompt (or class) a line, or .jsonl.",
)
@click.option("--local-dir", type=click.Path(path_type=Path), help="Folder that `evaluate fetch --local-dir` wrote to.")
@click.option("--policy", "labels", multiple=True, help="What to compare with unpruned pictures; repeatable.")
@click.option("--no-null", is_flag=True, help="Leave out the null run: unpruned with other seeds.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--images", type=int, help="Pictures of each prompt.  [default: the benchmark's]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first picture; the others count up.")
@click.option("--limit", type=int, help="Draw the first prompts only; more can follow later.")
@click.option("--shard", "shard_text", default="0/1", show_default=True, help="Part of the prompts, as 0/4 to 3/4.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes with engines of their own.")
@click.option("--dry-run", is_flag=True, help="Say what would be drawn and how long it takes, and stop.")
@device_option
@threads_option
@as_json
def command(
    bundle: Path,
    benchmark: str,
    local_dir: Path | None,
    labels: tuple[str, ...],
    no_null: bool,
    output: Path,
    images: int | None,
    seed: int,
    limit: int | None,
    shard_text: str,
    workers: int,
    dry_run: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Draw a benchmark's pictures by several policies, with the same seeds; unpruned ones are always among them.

    Stopped at any moment it goes on where it was. Shards may be drawn in one folder, or elsewhere and copied together.
    A run takes further policies and prompts later, but no other bundle, seeds, or prompts.
    """
    from ldp_calibration.evaluation.benchmarks.choose import find_benchmark
    from ldp_calibration.evaluation.draw import Shard, draw, plan
    from ldp_calibration.evaluation.policies import run_policies
    from ldp_calibration.evaluation.run import begin, check_settings, new_settings, run_of
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.engines.hardware import usable_cpus
    from ldp_runtime.errors import ConfigError

    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}", hint="--workers 2 on two or four cores")
    shard = Shard.parse(shard_text)
    opened = open_bundle(bundle, "sizes" if dry_run else "full")
    chosen = find_benchmark(benchmark, opened.manifest, local_dir)
    policies = run_policies(labels, opened.root, opened.manifest, with_null=not no_null)
    drawn = [policy.label for policy in policies]
    settings = new_settings(opened.manifest, chosen, policies, seed=seed, images=images, limit=limit, device=device)
    settings = check_settings(output, settings)
    check_folder(output)
    if dry_run:
        run = run_of(output, settings, chosen.prompts)
        found = plan(run, drawn, opened.manifest, shard)
        print_json(_planned(run, found, workers)) if as_json else _say_plan(run, drawn, found, workers)
        return
    run = begin(output, settings, chosen.prompts)
    if threads is None and workers > 1:
        threads = max(1, usable_cpus() // workers)
    with shown_count("drawing", as_json) as report:
        found = draw(run, opened, drawn, shard=shard, workers=workers, threads=threads, device=device, report=report)
    if as_json:
        print_json({"run": str(output), "drawn": found.pictures, "were_there": found.there})
    else:
        click.echo(f"{output}: {found.pictures} pictures drawn, {found.there} were there")


def _planned(run: Run, found: Plan, workers: int) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "policies": [policy.model_dump() for policy in run.settings.policies],
        "prompts": len(run.prompts),
        "pictures": found.pictures,
        "there": found.there,
        "seconds": None if found.seconds is None else round(found.seconds / workers, 1),
        "most_bytes": found.most_bytes,
    }


def _say_plan(run: Run, drawn: list[str], found: Plan, workers: int) -> None:
    settings = run.settings
    click.echo(f"{settings.benchmark}: {len(run.prompts)} of {settings.prompts} prompts, {settings.images} each")
    click.echo(f"  policies: {', '.join(drawn)}")
    click.echo(f"  {found.pictures} pictures to draw, {found.there} are there; at most {found.most_bytes / 1e6:.0f} MB")
    if found.seconds is None:
        click.echo("  how long: not known before some of this run's pictures are drawn and timed (--limit 10)")
    else:
        click.echo(f"  about {duration(found.seconds / workers)}, by the times of this run's own pictures")
