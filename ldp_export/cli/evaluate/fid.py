"""Step `ldp-export evaluate fid`: Fréchet distance of two folders of pictures."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json


@click.command(
    "fid",
    cls=Command,
    short_help="Measure the Fréchet distance of two folders.",
    epilog="""\b
Examples:
  ldp-export evaluate fid pruned unpruned --network inception.onnx
""",
)
@click.argument("candidate", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    required=True,
    help="ONNX file: one tensor [1, 3, H, W] of bytes in, features out; resizing is part of it.",
)
@as_json
def command(candidate: Path, reference: Path, network: Path, as_json: bool) -> None:
    """Measure the Fréchet distance (FID) of two folders of pictures, by a network of yours; none is brought along.

    It grows with fewer pictures: compare only figures of equal numbers, and prefer paired ones.
    """
    from ldp_calibration.evaluation.fid import folder_features, frechet_distance, onnx_features

    features = onnx_features(network)
    found, other = (folder_features(folder, features) for folder in (candidate, reference))
    distance = frechet_distance(found, other)
    if as_json:
        print_json({"fid": distance, "pictures": len(found), "reference_pictures": len(other)})
        return
    click.echo(f"{distance:.4f} between {len(found)} and {len(other)} pictures")
    if len(found) != len(other):
        click.echo("numbers of pictures differ: this figure compares with no other", err=True)
