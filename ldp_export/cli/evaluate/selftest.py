"""Step `ldp-export evaluate selftest`: scores pictures whose scores are published."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json
from ldp_export.cli.evaluate.networks import network_options, wish_of


@click.command(
    "selftest",
    cls=Command,
    short_help="Check scorers by published scores.",
    epilog="""\b
Examples:
  ldp-export evaluate fetch --weights weights hpsv2.0 imagereward selftest
  ldp-export evaluate selftest --weights weights
""",
)
@network_options
@as_json
def command(weights: Path | None, device: str, precision: str, batch: int, as_json: bool) -> None:
    """Score the pictures whose scores HPSv2's and ImageReward's authors published, on a machine that has the weights.

    Exits with status 1 if a score is another one. What lacks weights or pictures is said, and not checked.
    """
    from ldp_calibration.evaluation.selftest import selftest

    found = selftest(wish_of(weights, device, precision, batch))
    if as_json:
        print_json(
            {
                "checked": [
                    {
                        "scorer": one.example.scorer,
                        "picture": one.example.picture,
                        "published": one.example.score,
                        "tolerance": one.example.tolerance,
                        "score": one.score,
                        "right": one.is_right,
                        "why": one.why or None,
                    }
                    for one in found
                ]
            }
        )
    else:
        for one in found:
            words = {None: f"does not count: {one.why}", True: "right", False: "WRONG"}[one.is_right]
            score = "" if one.score is None else f", here {one.score:.4f}"
            click.echo(
                f"{one.example.scorer}, {one.example.picture}: published {one.example.score:.4f}{score}: {words}"
            )
    if any(one.is_right is False for one in found):
        raise SystemExit(1)
