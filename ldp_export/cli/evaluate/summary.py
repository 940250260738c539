"""Step `ldp-export evaluate summary`: figures as the benchmarks' own scripts report them."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json


@click.command(
    "summary",
    cls=Command,
    short_help="Show a run's figures as the originals report them.",
    epilog="""\b
Examples:
  ldp-export evaluate summary runs/geneval
  ldp-export evaluate summary runs/dpg --policy ld --json
""",
)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--scorer", "names", multiple=True, help="geneval, hpsv2.1, imagereward, clip or dpg; repeatable.")
@click.option("--policy", "labels", multiple=True, help="Of these only; repeatable.  [default: all]")
@as_json
def command(run_folder: Path, names: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> None:
    """Show a run's scores as the benchmarks' own scripts do, for a look at published tables.

    Such figures have no intervals, and drift with the environment: `evaluate compare` tells what pruning costs.
    """
    from ldp_calibration.evaluation.run import open_run
    from ldp_calibration.evaluation.summary import summarised

    found = summarised(open_run(run_folder), names, labels)
    if as_json:
        figures = [{"policy": one.policy, "scorer": one.scorer, **one.numbers} for one in found]
        print_json({"run": str(run_folder), "figures": figures})
        return
    for one in found:
        click.echo(f"{one.scorer}, {one.policy}\n")
        click.echo("\n".join(f"  {line}".rstrip() for line in one.text.splitlines()) + "\n")
