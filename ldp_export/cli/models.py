"""`ldp-export models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.options import as_json, print_json

if TYPE_CHECKING:
    from ldp_export.models.registry import NamedModel


@click.command(epilog="\b\nExamples:\n  ldp-export models\n  ldp-export models --json\n")
@as_json
def command(as_json: bool) -> None:
    """List the models that `build --model` and `fetch` know, and what of them is on this machine.

    Sizes on disk are those of the published float32 files. Memory is what drawing one guided image takes at least in
    bfloat16: all weights, and the keys and values of both branches at the most elongated image of the size.
    """
    from ldp_export.models.registry import MODELS

    rows = [_row(spec) for spec in MODELS.values()]
    if as_json:
        print_json(rows)
    else:
        _print(rows)


def _row(spec: NamedModel) -> dict[str, Any]:
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
        "weights": "embedded" if spec.embedded else hub.repository if hub else "none released",
        "revision": hub.revision if hub else None,
        "files": [hub.transformer, hub.vae] if hub else [],
        "text_encoder": hub.text_encoder if hub else None,
        "disk_bytes": sum(spec.file_bytes.values()),
        "memory_bytes": spec.run_bytes(),
        "local": "complete" if spec.embedded else here.state if hub else None,
        "local_bytes": here.bytes,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="parameters: transformer and VAE; disk: published files; memory: at least, in bfloat16")
    for title in ("name", "parameters", "blocks x width", "size", "weights", "licence", "disk", "memory", "here"):
        table.add_column(title, no_wrap=title in ("name", "here"))
    for row in rows:
        parameters, shape = f"{row['parameters'] / 1e6:,.0f} M", f"{row['depth']} x {row['width']}"
        disk, memory = f"{row['disk_bytes'] / 1e9:.1f} GB", f"{row['memory_bytes'] / 1e9:.1f} GB"
        here = f"{row['local']}, {row['local_bytes'] / 1e9:.1f} GB" if row["local_bytes"] else row["local"] or ""
        table.add_row(row["name"], parameters, shape, row["size"], row["weights"], row["licence"], disk, memory, here)
    Console().print(table)
