"""Options of a served model, whatever front it is behind; `ldp_serving.front.loading.ModelOptions` takes them."""

from __future__ import annotations

from typing import Any

import click

from ldp_export.cli.arguments.options import device_option, threads_option

_OPTIONS = (
    device_option,
    threads_option,
    click.option("--max-batch", type=int, default=4, show_default=True, help="Most pictures that start together."),
    click.option(
        "--max-in-flight", type=int, help="Most pictures drawn at a time.  [default: two batches, if they fit]"
    ),
    click.option("--max-queue", type=int, default=64, show_default=True, help="Most pictures that wait."),
    click.option("--max-images", type=int, default=10, show_default=True, help="Most pictures of a request."),
    click.option("--policy", default="ld", show_default=True, help="Policy of requests that name none."),
    click.option(
        "--allow-policy", multiple=True, help="Another policy that clients may name; repeatable.  [default: none]"
    ),
    click.option(
        "--timeout", type=float, default=120.0, show_default=True, help="Seconds after which a request is given up."
    ),
    click.option(
        "--interleave",
        type=click.Choice(["never", "previews", "early"]),
        default="previews",
        show_default=True,
        help="Whose early scales go between others' late ones: nobody's, those of clients that asked for partial "
        "images, or everybody's; see docs/guide/operating.md.",
    ),
    click.option("--hooks", help="module:object that checks prompts and pictures; see docs/guide/operating.md."),
    click.option(
        "--previews", type=int, default=40, show_default=True, help="Pictures that previews are fitted to; 0: none."
    ),
)


def model_options(function: Any) -> Any:
    """Adds the options of a served model; their values have the names of `ModelOptions`, but for `timeout`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
