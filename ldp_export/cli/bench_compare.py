"""Verb `ldp-export bench-compare`: compares two results of `bench`."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json


@click.command(
    "bench-compare",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export bench bundles/shapes --output before.json
  ldp-export bench-compare before.json after.json
  ldp-export bench-compare before.json after.json --json
""",
)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@as_json
def command(before: Path, after: Path, as_json: bool) -> None:
    """Say of two results of `bench` what became slower or faster, and what is noise.

    Both were measured on one machine with the same options. Ratios are divided by eager PyTorch's own, where both
    have it: the machine's drift is taken out.
    """
    from dataclasses import asdict

    from ldp_export.bench.compare import compare
    from ldp_export.bench.read_result import read_result
    from ldp_export.bench.table import print_changes

    changes = compare(read_result(before), read_result(after))
    if as_json:
        print_json([asdict(change) | {"verdict": change.verdict} for change in changes])
    else:
        print_changes(changes)
