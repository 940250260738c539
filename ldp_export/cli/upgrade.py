"""Verb `ldp-export upgrade`: rewrites a bundle's manifest in the schema of today."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, bundle_argument, print_json


@click.command(
    "upgrade",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export upgrade bundles/infinity-shapes
  ldp-export upgrade bundles/infinity-shapes --json
""",
)
@bundle_argument
@as_json
def command(bundle: Path, as_json: bool) -> None:
    """Rewrite a bundle's manifest in today's schema, without a rebuild.

    Bundles of the schema before are read as they are; the upgrade writes out what newer tools look for. Engines stay
    byte for byte, and reports and saved policies are carried over. The version before stays on the disk.
    """
    from ldp_runtime.bundle.files import open_bundle

    from ldp_export.building.upgrade import upgrade

    before = open_bundle(bundle, integrity="sizes").manifest
    after = upgrade(bundle)
    if as_json:
        schemas = {"from_schema": before.schema_version, "to_schema": after.manifest.schema_version}
        print_json({"bundle": str(bundle), **schemas, "version": after.manifest.version, "state": after.state})
    elif after.manifest.digest == before.digest:
        click.echo(f"{bundle}: schema {before.schema_version} already, version {before.version}")
    else:
        click.echo(
            f"{bundle}: schema {before.schema_version} -> {after.manifest.schema_version}, "
            f"version {before.version} -> {after.manifest.version}, {after.state}"
        )
