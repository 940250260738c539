"""Step `ldp-export evaluate export`: a run's pictures as an official script reads them."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json
from ldp_export.cli.evaluate.progress import shown_count


@click.command(
    "export",
    cls=Command,
    short_help="Lay out a run's pictures for an official script.",
    epilog="""\b
Examples:
  ldp-export evaluate export runs/geneval --layout geneval --output out
  ldp-export evaluate export runs/dpg --layout dpg --policy ld --output out
  ldp-export evaluate export runs/hpsv2 --layout hpsv2 --jpeg 100 --output out
""",
)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--layout", required=True, metavar="NAME", help="geneval, hpsv2, imagereward or dpg.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder that gets one for each policy.")
@click.option("--policy", "labels", multiple=True, help="Of these only; repeatable.  [default: all]")
@click.option(
    "--jpeg",
    type=click.IntRange(1, 100),
    help="Write JPEG files of this quality (4:2:0); the script of hpsv2 reads no others.  [default there: 95]",
)
@as_json
def command(
    run_folder: Path, layout: str, output: Path, labels: tuple[str, ...], jpeg: int | None, as_json: bool
) -> None:
    """Write a run's pictures below a folder as the official script of a benchmark reads them.

    dpg puts the four pictures of a prompt into one file; what its VQA answers comes back by `score --answers`.
    """
    from ldp_calibration.evaluation.layouts.export import export
    from ldp_calibration.evaluation.run import open_run

    run = open_run(run_folder)
    with shown_count("exporting", as_json) as report:
        written = export(run, layout, output, labels, jpeg, report)
    if as_json:
        print_json({"run": str(run_folder), "layout": layout, "output": str(output), "files": written})
        return
    for label, count in written.items():
        click.echo(f"{output / run.settings.policy(label).folder}: {count} files of {label}")
