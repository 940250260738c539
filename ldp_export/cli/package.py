"""Verb `ldp-export package`: writes a bundle in the form in which another server takes it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import (
    as_json,
    bundle_argument,
    device_option,
    overwrite_option,
    print_json,
    threads_option,
)
from ldp_export.cli.arguments.outputs import check_folder


@click.command(
    "package",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export package triton bundles/infinity-shapes --output models
  ldp-export package triton bundles/2b --device cuda --output models
  tritonserver --model-repository models
""",
)
@click.argument("server", type=click.Choice(["triton"]))
@bundle_argument
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Model repository; may hold others.")
@click.option("--name", help="Of the model in the server.  [default: the bundle's model]")
@device_option
@threads_option
@click.option("--max-batch", type=int, default=4, show_default=True, help="Most pictures that start together.")
@click.option("--max-in-flight", type=int, help="Most pictures drawn at a time.  [default: two batches, if they fit]")
@click.option("--max-queue", type=int, default=64, show_default=True, help="Most pictures that wait.")
@click.option("--max-images", type=int, default=10, show_default=True, help="Most pictures of a request.")
@click.option("--policy", default="ld", show_default=True, help="Policy of requests that name none.")
@click.option("--allow-policy", multiple=True, help="Another policy that clients may name; repeatable.")
@click.option(
    "--timeout", "timeout_s", type=float, default=120.0, show_default=True,
    help="Seconds after which a request is given up.",
)  # fmt: skip
@click.option("--hooks", help="module:object that checks prompts and pictures; see docs/guide/operating.md.")
@click.option(
    "--previews", type=int, default=40, show_default=True, help="Pictures that previews are fitted to; 0: none."
)
@overwrite_option
@as_json
def command(
    server: str, bundle: Path, output: Path, name: str | None, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Write a model repository of Triton Inference Server from a bundle.

    The model needs Triton's Python backend, and this package in the backend's Python: no build tools. The options go
    into its config.pbtxt, where they may be edited. See docs/guide/fleet.md.
    """
    from ldp_runtime.bundle.files import open_bundle
    from ldp_serving.front.loading import ModelOptions
    from ldp_serving.triton.repository import write_model

    checked = ModelOptions(**options)
    check_folder(output)
    opened = open_bundle(bundle)
    folder = write_model(opened, output, checked, name or opened.manifest.model.name, overwrite)
    if as_json:
        print_json({"server": server, "model": folder.name, "folder": str(folder), "digest": opened.manifest.digest})
        return
    click.echo(f"{folder}: serve it with tritonserver --model-repository {shlex.quote(str(output))}")
