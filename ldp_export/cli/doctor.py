"""Verb `ldp-export doctor`: examines this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from ldp_export.inspection.doctor import Diagnosis, Verdict


@click.command(
    "doctor",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export doctor
  ldp-export doctor --json
""",
)
@as_json
def command(as_json: bool) -> None:
    """Say what this machine has, which bundles can be built and run on it, and the fix for what cannot."""
    from ldp_export.inspection.doctor import examine

    diagnosis = examine()
    if as_json:
        print_json(diagnosis.to_json())
        return
    _print(diagnosis)


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
