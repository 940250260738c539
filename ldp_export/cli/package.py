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
    overwrite_option,
    print_json,
)
from ldp_export.cli.arguments.outputs import check_folder
from ldp_export.cli.arguments.serving import model_options


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
@model_options
@overwrite_option
@as_json
def command(
    server: str, bundle: Path, output: Path, name: str | None, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Write a model repository of Triton Inference Server from a bundle.

    The model needs Triton's Python backend, and this package in the backend's Python: no build tools. The options go
    into its config.pbtxt, where they may be edited. See docs/guide/triton.md.
    """
    from ldp_runtime.bundle.files import open_bundle
    from ldp_serving.front.loading import ModelOptions
    from ldp_serving.triton.repository import write_model

    checked = ModelOptions(timeout_s=options.pop("timeout"), **options)
    check_folder(output)
    opened = open_bundle(bundle)
    folder = write_model(opened, output, checked, name or opened.manifest.model.name, overwrite)
    if as_json:
        print_json({"server": server, "model": folder.name, "folder": str(folder), "digest": opened.manifest.digest})
        return
    click.echo(f"{folder}: serve it with tritonserver --model-repository {shlex.quote(str(output))}")
