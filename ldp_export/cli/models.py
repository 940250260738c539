"""`ldp-export models`."""

from __future__ import annotations

from typing import Any

import click

from ldp_export.cli.options import as_json, print_json


@click.command(epilog="\b\nExamples:\n  ldp-export models\n  ldp-export models --json\n")
@as_json
def command(as_json: bool) -> None:
    """List the models that `build --model` knows."""
    from ldp_export.models.registry import MODELS

    rows: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "title": spec.title,
            "parameters": spec.parameters,
            "depth": spec.transformer.depth,
            "width": spec.transformer.width,
            "family": spec.family,
            "size": spec.size,
            "guidance": spec.guidance,
            "temperature": spec.temperature,
            "licence": spec.licence,
            "weights": "embedded" if spec.embedded else spec.hub.repository if spec.hub else "none released",
        }
        for spec in MODELS.values()
    ]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="parameters: transformer and VAE; the text encoder is not counted")
    for title in ("name", "parameters", "blocks x width", "family", "size", "weights"):
        table.add_column(title, no_wrap=title == "name")
    for row in rows:
        parameters = f"{row['parameters'] / 1e6:,.0f} M"
        shape = f"{row['depth']} x {row['width']}"
        table.add_row(row["name"], parameters, shape, row["family"], row["size"], row["weights"])
    Console().print(table)
