"""Verb `ldp-export doctor`: examines this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ldp_export.gpu_report.report import Row
    from ldp_export.gpu_report.steps import Step
    from ldp_export.inspection.doctor import Diagnosis, Verdict


@click.command(
    "doctor",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export doctor
  ldp-export doctor --json
  ldp-export doctor --gpu-report report
""",
)
@click.option(
    "--gpu-report",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Build, verify, draw and time with every backend on this GPU, in ten minutes; see docs/guide/gpu-report.md.",
)
@as_json
def command(gpu_report: Path | None, as_json: bool) -> None:
    """Say what this machine has, which bundles can be built and run on it, and the fix for what cannot."""
    from ldp_export.inspection.doctor import examine

    if gpu_report is not None:
        _write_report(gpu_report, as_json)
        return

    diagnosis = examine()
    if as_json:
        print_json(diagnosis.to_json())
        return
    _print(diagnosis)


def _write_report(folder: Path, as_json: bool) -> None:
    """Writes a GPU's report, and says of each step how it ended."""
    from ldp_export.cli.arguments.outputs import check_folder
    from ldp_export.gpu_report.report import JSON, PAGE
    from ldp_export.gpu_report.run import MINUTES, check_new_report, write_report

    check_new_report(folder)
    check_folder(folder)

    def show(number: int, count: int, step: Step, row: Row | None) -> None:
        if row is None:
            click.echo(f"[{number + 1}/{count}] {step.title} ...", err=True)
        else:
            reason = f": {row.error.splitlines()[0]}" if row.error else ""
            click.echo(f"[{number + 1}/{count}] {step.title}: {row.state}, {row.seconds:.0f} s{reason}", err=True)

    click.echo(f"at most {MINUTES:g} minutes; nothing leaves this machine", err=True)
    report = write_report(folder, show)
    if as_json:
        print_json({"report": str(folder), "rows": {row.title: row.state for row in report.rows}})
        return
    click.echo(
        f"{folder / JSON} and {folder / PAGE}: look at the page, then send the first; see docs/guide/gpu-report.md"
    )


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    for fact in diagnosis.machine:
        console.print(f"{'[green]+' if fact.found else '[yellow]-'}[/] {fact.name}: {escape(fact.value)}")
    console.print("packages: " + escape(", ".join(f"{name} {version}" for name, version in diagnosis.packages.items())))
    _print_verdicts(console, "can be built here", diagnosis.build)
    _print_verdicts(console, "can be run here", diagnosis.run)


def _print_verdicts(console: Console, title: str, verdicts: tuple[Verdict, ...]) -> None:
    from rich.markup import escape

    console.print(f"[bold]{title}[/bold]")
    for verdict in verdicts:
        if verdict.works:
            console.print(f"  [green]yes[/] {verdict.what}")
            continue
        console.print(f"  [red]no[/]  {verdict.what}: {escape(verdict.reason)}")
        if verdict.fix:
            console.print(f"        fix: {escape(verdict.fix)}")
