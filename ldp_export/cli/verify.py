"""Verb `ldp-export verify`: verifies a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, bundle_argument, device_option, print_json, threads_option

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import Bundle

    from ldp_export.verification.verify import Report


@click.command(
    "verify",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export verify bundles/infinity-shapes
  ldp-export verify bundles/infinity-shapes --device cuda --json
""",
)
@bundle_argument
@device_option
@threads_option
@as_json
def command(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Check a bundle on this machine: every file's hash, and every graph and scale against the reference model.

    Needs neither the checkpoint nor the exporter. Ends with a non-zero exit status when anything differs; a bundle
    that fails no longer loads. Where nothing can be written, it says that the result was not kept.
    """
    from ldp_runtime.bundle.files import open_bundle

    from ldp_export.verification.verify import require_verified, verify_bundle

    opened = open_bundle(bundle)
    report = verify_bundle(opened, device, threads)
    lost = _keep(opened, report)
    if as_json:
        print_json(report.to_json() | {"kept": lost is None})
    else:
        _print_table(report)
    if lost is not None:
        click.echo(f"nothing was kept of this verification: {lost}", err=True)
    require_verified(report, opened)


def _keep(bundle: Bundle, report: Report) -> str | None:
    """Saves the report beside the bundle, with the calls that fail; the reason in words if that cannot be done."""
    from ldp_runtime.bundle.files import REPORTS

    from ldp_export.building.publish import write_report
    from ldp_export.verification.replay import save_replay

    if bundle.root is None:
        return f"{bundle.folder} was copied without the folder that its reports are in"
    folder = bundle.root / REPORTS
    try:
        write_report(bundle.root, bundle.manifest, report.to_json())
        line = None
        if report.state != "verified":
            line = save_replay(bundle, report, folder / f"{bundle.manifest.version}-replay")
    except OSError as error:  # read-only, full, of another user, or a file where the folder should be
        return f"{folder}: {error.strerror}"
    if line is not None:
        click.echo(f"the first call that differs, again:\n  {line}", err=True)
    return None


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(report.checks)} checks on {report.machine}: {report.state}")
    for title, justify in (("check", "left"), ("largest difference", "right"), ("allowed", "right"), ("", "left")):
        table.add_column(title, justify=justify)  # pyright: ignore[reportArgumentType]
    for check in report.checks:
        word = "[green]ok" if check.passed else "[red]FAILED"
        table.add_row(check.name, f"{check.measured:.2e}", f"{check.limit:.2e}", word)
    Console().print(table)
