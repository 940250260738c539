"""Verb `ldp-export explain`: draws what a policy did."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import (
    as_json,
    bundle_argument,
    check_order,
    check_policy,
    classes_option,
    conditions,
    device_option,
    overwrite_option,
    print_json,
    threads_option,
)
from ldp_export.cli.arguments.outputs import check_new


@click.command(
    "explain",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export explain bundles/shapes "a red circle" --output why.png
  ldp-export explain bundles/shapes "a red circle" "two blue stars"
  ldp-export explain bundles/shapes "a red circle" --policy ld:fill=zero
""",
)
@bundle_argument
@click.argument("prompts", nargs=-1)
@classes_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("explained.png"), show_default=True)
@click.option("--policy", default="ld", show_default=True, help="What to explain; see `generate --policy`.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--guidance", type=float, help="[default: the bundle's]")
@overwrite_option
@device_option
@threads_option
@as_json
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    classes: tuple[int, ...],
    output: Path,
    policy: str,
    seed: int,
    guidance: float | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Draw what a policy did.

    One prompt or class: a row per scale with the image so far, the energy map, what was computed, the guidance gap and
    the time. Several: a row each, the full model beside the pruned one, and the tokens of every scale.
    """
    from ldp_calibration.drawing import pyplot
    from ldp_runtime.pipeline.pipeline import Pipeline

    from ldp_export.inspection.explain import draw, draw_comparison, explain

    drawn = conditions(prompts, classes)
    check_order("explain", bundle, prompts)
    check_new(output, overwrite, ".png", ".pdf", ".svg")
    pyplot()  # refuses here if Matplotlib is missing, before anything is drawn
    chosen = check_policy(bundle, policy)
    with Pipeline.load(bundle, device=device, threads=threads) as pipe:
        rows = [explain(pipe, prompt, chosen, seed + i, guidance) for i, prompt in enumerate(drawn)]
    if len(rows) == 1:
        draw(rows[0], output)
    else:
        draw_comparison(rows, output)
    if as_json:
        print_json({"file": str(output), "traces": [row.trace.to_json() for row in rows]})
    else:
        click.echo(f"{output}: {len(rows)} prompt{'s' if len(rows) > 1 else ''}, policy {policy}")
