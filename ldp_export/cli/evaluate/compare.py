"""Step `ldp-export evaluate compare`: compares the policies of a run in pairs by prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json

if TYPE_CHECKING:
    from ldp_calibration.evaluation.comparison.compare import Comparison

#: Columns of what is printed where no terminal says how wide it is.
_WIDTH = 160


@click.command(
    "compare",
    cls=Command,
    short_help="Compare the policies of a run in pairs.",
    epilog="""\b
Examples:
  ldp-export evaluate compare runs/shapes
  ldp-export evaluate compare runs/shapes --reference ld --scorer shapes
  ldp-export evaluate compare runs/shapes --margin shapes=1
""",
)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--reference", default="none", show_default=True, help="Policy that the others are compared with.")
@click.option("--scorer", "names", multiple=True, help="Compare by these; repeatable.  [default: all that scored]")
@click.option("--policy", "labels", multiple=True, help="Compare these; repeatable.  [default: all]")
@click.option(
    "--margin",
    "margins",
    multiple=True,
    metavar="SCORER=LOSS",
    help="Loss that counts as none, in points of verdicts, else as scored; repeatable.  [default: shapes=2]",
)
@click.option("--resamples", type=click.IntRange(1000, 1_000_000), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
@click.option("--dry-run", is_flag=True, help="Say what would be compared, and stop.")
@as_json
def command(
    run_folder: Path,
    reference: str,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    margins: tuple[str, ...],
    resamples: int,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Compare the policies of a run with one of them, prompt by prompt, speed beside quality.

    Writes into RUN/compare: compare.md, compare.json, chart.png, and changed.html with the pictures whose verdict
    changed. Equal runs give equal verdicts.
    """
    from ldp_calibration.drawing import pyplot
    from ldp_calibration.evaluation.comparison.changed import sheet_path, write_sheet
    from ldp_calibration.evaluation.comparison.chart import draw_chart
    from ldp_calibration.evaluation.comparison.compare import compare, scored_by
    from ldp_calibration.evaluation.comparison.words import as_json as plain
    from ldp_calibration.evaluation.comparison.words import as_markdown
    from ldp_calibration.evaluation.run import COMPARE, open_run
    from ldp_runtime.system.disk import full_disk_is_typed, remove_leftovers, write_durably

    run = open_run(run_folder)
    chosen = scored_by(run, names)
    limits = _margins(margins, chosen)
    run.settings.policy(reference)
    if dry_run:
        compared = [label for label in labels or [p.label for p in run.settings.policies] if label != reference]
        found = {"reference": reference, "policies": compared, "scorers": chosen, "prompts": len(run.prompts)}
        print_json(found) if as_json else click.echo(
            f"{', '.join(compared)} against {reference}, by {', '.join(chosen)}, on {len(run.prompts)} prompts: seconds"
        )
        return
    pyplot()  # refuses here if Matplotlib is missing
    comparison = compare(run, reference, chosen, labels, margins=limits, resamples=resamples, seed=seed)
    folder = run_folder / COMPARE
    with run.exclusive("compare", "comparison"), full_disk_is_typed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        write_durably(folder / "compare.json", f"{json.dumps(plain(comparison), indent=1)}\n".encode())
        write_durably(folder / "compare.md", as_markdown(comparison).encode())
        draw_chart(comparison, folder / "chart.png")
        has_sheet = write_sheet(comparison, sheet_path(comparison))
    if as_json:
        print_json(plain(comparison))
        return
    _print(comparison)
    sheet = ", changed.html" if has_sheet else "; no scorer gives verdicts, so there is no sheet of changed ones"
    click.echo(f"{folder}: compare.md, compare.json, chart.png{sheet}")


def _margins(texts: tuple[str, ...], scorers: list[str]) -> dict[str, float]:
    """Margins by scorer, in the scores' own unit. Raises ConfigError for texts that are none."""
    from ldp_calibration.evaluation.scorers.choose import kind_of
    from ldp_runtime.errors import ConfigError

    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            margin = float(value)
        except ValueError:
            margin = 0.0
        if name not in scorers or not 0 < margin < float("inf"):
            raise ConfigError(
                f"cannot read the margin {text!r}",
                hint=f"such as {scorers[0]}=1: a loss above 0, by one of {', '.join(scorers)}",
            )
        found[name] = margin / kind_of(name).scale
    return found


def _print(comparison: Comparison) -> None:
    from ldp_calibration.evaluation.comparison.words import notes, sentences, tables
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for table in tables(comparison):
        shown = Table(box=box.SIMPLE_HEAD, title=Text(table.title), title_justify="left")
        for i, title in enumerate(table.columns):
            shown.add_column(Text(title), justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    for sentence in sentences(comparison):
        console.print(Text(sentence))
    for note in notes(comparison):
        console.print(Text(note, style="dim"))
