"""Verb `ldp-export fetch`: downloads a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, precision_option, print_json, shown_progress
from ldp_export.cli.arguments.outputs import check_folder

if TYPE_CHECKING:
    from ldp_export.hub.fetch import FetchPlan


@click.command(
    "fetch",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export fetch infinity-2b --dry-run     what is downloaded, and where to
  ldp-export fetch infinity-2b               into the hub's cache, for `build`
  ldp-export fetch infinity-8b --local-dir /mnt/usb/8b    to be carried
  ldp-export build --model infinity-8b --local-dir /mnt/usb/8b
  ldp-export fetch infinity-8b --local-dir 8b --precision bfloat16
""",
)
@click.argument("model")
@click.option(
    "--revision",
    help="Branch, tag or commit of the model's repository; with --local-dir, from which `build` takes it: in the cache "
    "it looks for the registry's.  [default: the registry's]",
)
@click.option("--local-dir", type=click.Path(path_type=Path), help="A folder of its own instead of the hub's cache.")
@precision_option("Convert into --local-dir: bfloat16, float16 or float32.  [default: the files as published]")
@click.option("--no-text-encoder", is_flag=True, help="Leave text encoders out.")
@click.option("--dry-run", is_flag=True, help="Say what would be downloaded, and stop.")
@as_json
def command(
    model: str,
    revision: str | None,
    local_dir: Path | None,
    precision: str | None,
    no_text_encoder: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Download a model's files and check the hash of each.

    Interrupted at any point, it goes on where it stopped when it is run again. Files that are here already are
    checked against the hub's hashes. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE and HF_TOKEN are those of the hub's own tools.
    """
    from ldp_runtime.errors import ConfigError

    if precision is not None and local_dir is None:
        raise ConfigError("--precision writes converted files", hint="say where with --local-dir")

    from ldp_runtime.system.disk import same_disk

    from ldp_export.hub.client import UnreachableHubError
    from ldp_export.hub.fetch import fetch, plan_fetch, registry_plan
    from ldp_export.models.registry import find_model

    if local_dir is not None:
        check_folder(local_dir)
    if precision is not None:
        from ldp_export.checkpoints.convert import check_precision

        check_precision(precision)
    spec = find_model(model)
    place = None if precision else local_dir
    try:
        plan = plan_fetch(spec, revision, place, not no_text_encoder)
    except UnreachableHubError as error:
        if not dry_run:
            raise
        plan = registry_plan(spec, error.message, place, not no_text_encoder)
    if local_dir is not None and precision is not None:
        from ldp_export.hub.converted import check_converted, check_room

        check_converted(local_dir, precision, plan.revisions)
        to_fetch = plan.bytes_to_fetch if same_disk(local_dir, plan.folder) else 0
        check_room(spec, local_dir, precision, not no_text_encoder, to_fetch)
    if dry_run:
        print_json(plan.to_json()) if as_json else show_fetch(plan)
        return
    with shown_progress(as_json) as progress:
        sources = fetch(plan, progress)
        if precision is not None and local_dir is not None:
            from ldp_export.hub.converted import convert_model

            sources = convert_model(sources, local_dir, precision, progress, plan.revisions)
    if as_json:
        print_json(plan.to_json() | {"sources": {part: str(path) for part, path in sources.items()}})
        return
    click.echo(f"{spec.name}: {len(plan.files)} files, {plan.bytes / 1e9:.2f} GB, every hash checked")
    for part, path in sources.items():
        click.echo(f"  {part.replace('_', ' ')}: {path}")


def show_fetch(plan: FetchPlan) -> None:
    """Prints the files that would be downloaded, and the part of them that is here already."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{plan.spec.name} ({plan.spec.licence}) into {plan.folder}")
    for title in ("repository", "file", "MB", "here"):
        table.add_column(title, justify="right" if title == "MB" else "left", overflow="fold")
    for planned in plan.files:
        here = planned.state if planned.state != "partial" else f"{planned.have / 1e6:.0f} MB"
        table.add_row(planned.file.repository, planned.file.path, f"{planned.file.size / 1e6:,.1f}", here)
    Console().print(table)
    if plan.registry_only:
        click.echo(f"sizes are the registry's, since the hub was not asked: {plan.registry_only}", err=True)
    for repository, commit in plan.to_json()["revisions"].items():
        click.echo(f"{repository} at {commit}")
    click.echo(f"{plan.bytes_to_fetch / 1e9:.2f} of {plan.bytes / 1e9:.2f} GB are to be downloaded")
