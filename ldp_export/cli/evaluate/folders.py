"""Step `ldp-export evaluate folders`: fidelity of two plain folders of pictures."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json


@click.command(
    "folders",
    cls=Command,
    short_help="Compare two folders of pictures.",
    epilog="""\b
Examples:
  ldp-export evaluate folders pruned unpruned
  ldp-export evaluate folders pruned unpruned --jpeg 95 --json
  ldp-export evaluate folders pruned unpruned --weights weights
""",
)
@click.argument("candidate", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of LPIPS's network; without it, no LPIPS.")
@click.option("--jpeg", type=click.IntRange(1, 100), help="Compare JPEG files of this quality (4:2:0) instead.")
@as_json
def command(candidate: Path, reference: Path, weights: Path | None, jpeg: int | None, as_json: bool) -> None:
    """Compare pictures of any origin with those of the same paths in another folder: PSNR, SSIM, LPIPS.

    The figures are those of papers on pruning, without a run: no prompts, no intervals.
    """
    from ldp_calibration.evaluation.folders import folder_fidelity
    from ldp_calibration.perceptual import VGG_WEIGHTS, load_distance

    distance = None if weights is None else load_distance(weights / VGG_WEIGHTS)
    found = folder_fidelity(candidate, reference, distance, jpeg)
    if as_json:
        finite = None if math.isinf(found.psnr) else found.psnr
        print_json(
            {
                "pictures": len(found.pictures),
                "equal": found.equal,
                "psnr": finite,
                "dataset_psnr": None if math.isinf(found.dataset_psnr) else found.dataset_psnr,
                "ssim": found.ssim,
                "lpips": found.lpips,
                "jpeg": jpeg,
            }
        )
        return
    files = "" if jpeg is None else f", as JPEG files of quality {jpeg}"
    click.echo(f"{len(found.pictures)} pictures, {found.equal} of them equal{files}")
    click.echo(f"  PSNR {found.psnr:.3f} dB (mean over pictures), {found.dataset_psnr:.3f} dB (all pixels together)")
    click.echo(f"  SSIM {found.ssim:.4f}")
    click.echo("  LPIPS: left out, no --weights" if found.lpips is None else f"  LPIPS {found.lpips:.4f} (VGG)")
