"""Verb `ldp-export models`: lists the known models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json

if TYPE_CHECKING:
    from ldp_export.models.hub_files import HubFiles
    from ldp_export.models.registry import NamedModel


@click.command(
    "models",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export models
  ldp-export models --all
  ldp-export models --json
""",
)
@click.option("--all", "every", is_flag=True, help="Also configurations whose weights were never released.")
@as_json
def command(every: bool, as_json: bool) -> None:
    """List the models that `build --model` and `fetch` know, and what of them is on this machine.

    Sizes on disk are those of the published float32 files. Memory is the least that drawing one guided image takes in
    bfloat16. It counts all weights, and the keys and values of both branches at the most elongated image of the size.
    """
    from ldp_export.models.registry import MODELS

    rows = [_row(spec) for spec in MODELS.values() if every or spec.embedded or spec.hub is not None]
    if as_json:
        print_json(rows)
    else:
        _print(rows)


def _row(spec: NamedModel) -> dict[str, Any]:
    from ldp_export.checkpoints.released import released_bytes
    from ldp_export.hub.local import local_files

    hub, here = spec.hub, local_files(spec)
    return {
        "name": spec.name,
        "title": spec.title,
        "family": spec.family,
        "parameters": spec.parameters,
        "depth": spec.transformer.depth,
        "width": spec.transformer.width,
        "size": spec.size,
        "guidance": spec.guidance,
        "temperature": spec.temperature,
        "licence": spec.licence,
        "weights": "embedded" if spec.embedded else hub.main.repository if hub else "none released",
        "revision": hub.main.revision if hub else None,
        "parts": _parts(hub),
        "disk_bytes": sum(released_bytes(spec).values()),
        "memory_bytes": spec.run_bytes(),
        "local": "complete" if spec.embedded else here.state if hub else None,
        "local_bytes": here.bytes,
    }


def _parts(hub: HubFiles | None) -> dict[str, dict[str, str]]:
    """Location of each part on the hub."""
    return {
        part.name: {"repository": part.repository, "revision": part.revision, "path": part.path}
        for part in (hub.parts if hub else ())
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption="disk, memory: GB; more with --json")
    for title in ("name", "params", "size", "disk", "memory", "licence", "here"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("params", "disk", "memory") else "left")
    for row in rows:
        parameters, disk, memory = row["parameters"] / 1e6, row["disk_bytes"] / 1e9, row["memory_bytes"] / 1e9
        table.add_row(
            row["name"], f"{parameters:,.0f} M", row["size"], f"{disk:.1f}", f"{memory:.1f}", row["licence"], _here(row)
        )
    Console().print(table)


def _here(row: dict[str, Any]) -> str:
    if row["local"] is None:
        return "never released"
    if row["weights"] == "embedded":
        return "in this package"
    return f"{row['local']}, {row['local_bytes'] / 1e9:.1f} GB" if row["local_bytes"] else row["local"]
