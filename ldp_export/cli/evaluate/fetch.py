"""Step `ldp-export evaluate fetch`: gets the prompts of benchmarks that others publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json, shown_progress
from ldp_export.cli.arguments.outputs import check_folder

if TYPE_CHECKING:
    from ldp_export.hub.benchmarks import BenchmarkPlan


@click.command(
    "fetch",
    cls=Command,
    short_help="Get prompts, or weights of scorers, of others.",
    epilog="""\b
Examples:
  ldp-export evaluate fetch --dry-run             what there is, its licences and hashes
  ldp-export evaluate fetch geneval dpg
  ldp-export evaluate fetch hpsv2 --accept-license hpsv2
  ldp-export evaluate fetch imagereward --local-dir /mnt/usb/benchmarks
  ldp-export evaluate fetch --weights weights geneval hpsv2.1
""",
)
@click.argument("names", nargs=-1, metavar="[BENCHMARK|SCORER]...")
@click.option(
    "--accept-license",
    "accepted",
    multiple=True,
    metavar="BENCHMARK",
    help="Fetch this one though it has no licence, or terms that limit its use; repeatable.",
)
@click.option("--local-dir", type=click.Path(path_type=Path), help="A folder of its own instead of the user's cache.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Get weights into this folder: of geneval, hpsv2.1, hpsv2.0, imagereward, clip, lpips; selftest's pictures.",
)
@click.option("--github-mirror", metavar="URL", help="Server instead of https://raw.githubusercontent.com.")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, and stop; needs no network.")
@as_json
def command(
    names: tuple[str, ...],
    accepted: tuple[str, ...],
    local_dir: Path | None,
    weights: Path | None,
    github_mirror: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Get prompts and questions of geneval, geneval-rewritten, dpg, hpsv2 and imagereward, for `evaluate generate`.

    Without names: all whose licence permits any use. Commits are pinned and hashes checked; stopped at any moment it
    goes on where it was. HF_ENDPOINT and HF_TOKEN are those of the hub's own tools.
    """
    from ldp_export.hub.benchmarks import chosen_benchmarks, fetch_benchmark, plan_benchmark
    from ldp_export.hub.raw import GITHUB, check_server

    mirror = GITHUB if github_mirror is None else check_server(github_mirror)
    if weights is not None:
        _get_weights(names, weights, mirror, dry_run, as_json)
        return
    if local_dir is not None:
        check_folder(local_dir)
    chosen = chosen_benchmarks(names, accepted, with_terms=dry_run)
    plans = [
        plan_benchmark(one, local_dir, accepted=one.name in accepted, mirror=mirror, ask=not dry_run) for one in chosen
    ]
    if not dry_run:
        with shown_progress(as_json) as progress:
            for plan in plans:
                fetch_benchmark(plan, progress)
    if as_json:
        print_json({"dry_run": dry_run, "benchmarks": [plan.to_json() for plan in plans]})
    elif dry_run:
        _show(plans)
    else:
        for plan in plans:
            done = "was here" if plan.is_here else "every hash checked"
            click.echo(f"{plan.published.name} ({plan.published.licence}): {done}, {plan.folder}")


def _get_weights(names: tuple[str, ...], folder: Path, mirror: str, dry_run: bool, as_json: bool) -> None:
    from ldp_export.hub.weights import fetch_weights, plan_weights

    check_folder(folder)
    plan = plan_weights(names, folder)
    if not dry_run:
        with shown_progress(as_json) as progress:
            fetch_weights(plan, progress, github=mirror)
    if as_json:
        print_json({"dry_run": dry_run, "weights": plan.to_json()})
        return
    for file in plan.files:
        there = "is here" if file.name in plan.here else ("is to be fetched" if dry_run else "was fetched")
        source = file.repository or file.host
        click.echo(f"{file.name}: {file.size:g} MB from {source}, licence {file.licence}; {there}")


def _show(plans: Sequence[BenchmarkPlan]) -> None:
    for plan in plans:
        one = plan.published
        click.echo(f"{one.name}: {one.prompts} prompts, licence {one.licence}; into {plan.folder}")
        if one.terms:
            given = "accepted" if plan.accepted else f"needs --accept-license {one.name}"
            click.echo(f"  {one.terms}: {given}")
        for file in plan.files:
            known = file.hash or "no hash is known before the first fetch, which pins it"
            click.echo(f"  {file.published.repository} at {file.commit[:12]}: {file.published.path}, {known}")
        if plan.unasked:
            click.echo(f"  the hub was not asked: {plan.unasked}", err=True)
        click.echo("  is here" if plan.is_here else "  is to be fetched")
