"""Verb `ldp-export convert`: converts a checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, precision_option, print_json, shown_progress
from ldp_export.cli.arguments.outputs import check_folder


@click.command(
    "convert",
    cls=Command,
    epilog="""\b
Examples:
  ldp-export convert infinity_2b_reg.pth 2b-bfloat16 --precision bfloat16
  ldp-export convert infinity_8b_weights/ 8b-bfloat16
  ldp-export convert infinity_vae.pth vae.safetensors --precision float32
  ldp-export convert flan-t5-xl/ encoder        its encoder alone
""",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@precision_option("Of the blocks' weights: bfloat16, float16 or float32.", default="bfloat16")
@as_json
def command(source: Path, output: Path, precision: str, as_json: bool) -> None:
    """Convert a checkpoint to safetensors, in memory bounded by a small piece of one tensor.

    SOURCE is a .pth or safetensors file, a folder of shards, or the folder of a T5 model. OUTPUT is a new folder, or a
    .safetensors file. No pickled code is run. What the original code keeps in float32 stays float32. Interrupted, it
    keeps the finished shards and goes on when it is run again.
    """
    from ldp_export.checkpoints.convert import plan_conversion
    from ldp_export.hub.converted import run_conversion

    if not source.exists() and output.exists():
        from ldp_runtime.errors import ConfigError

        swapped = f"ldp-export convert {shlex.quote(str(output))} {shlex.quote(str(source))}"
        raise ConfigError(f"{source} does not exist, but {output} does", hint=f"swap them: {swapped}")
    check_folder(output.parent)
    plan = plan_conversion(source, output, precision)
    with shown_progress(as_json) as progress:
        run_conversion(plan, progress)
    if as_json:
        print_json({"output": str(output), "precision": precision, "bytes": plan.bytes, "shards": len(plan.shards)})
        return
    click.echo(f"{output}: {len(plan.shards)} file(s), {plan.bytes / 1e9:.2f} GB, {precision}")
