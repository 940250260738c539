"""Verb `ldp-export generate`: draws images with a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldp_export.cli.options import (
    POLICY_HELP,
    as_json,
    bundle_argument,
    check_policy,
    classes_option,
    conditions,
    device_option,
    print_json,
    shown_scales,
    threads_option,
)
from ldp_export.cli.outputs import check_file, check_folder

if TYPE_CHECKING:
    from ldp_runtime.pipeline.drawing import ImageEvent
    from ldp_runtime.pipeline.trace import Trace
    from PIL.Image import Image

#: Endings of an image file; an output with any other ending is a folder.
_PICTURES = (".png", ".jpg", ".jpeg")


@click.command(
    epilog="""\b
Examples:
  ldp-export generate bundles/infinity-shapes "a red circle" --output circle.png
  ldp-export generate bundles/infinity-shapes "a blue star" "two green rings" --policy ld --seed 7 --output pictures/
  ldp-export generate bundles/infinity-shapes "a red circle" --policy ld:rho=0.4,fill=zero --trace trace.json
  ldp-export generate bundles/infinity-shapes "a red circle" "a blue star" --num-images 4 --output all/ --sheet all.png
  ldp-export generate bundles/var-d16 --class 207 --class 88 --policy ld --seed 1 --output dogs/

"""
    + POLICY_HELP
)
@bundle_argument
@click.argument("prompts", nargs=-1)
@classes_option
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="A .png file (one image) or a folder.")
@click.option(
    "--policy", help="none, ld, none:skip_last=1, a saved policy's name; see below.  [default: the bundle's, else none]"
)
@click.option("--negative-prompt", help="What to steer away from.")
@click.option(
    "--guidance",
    type=float,
    help="1 means none; for VAR the end of its ramp, 0 means none.  [default: the bundle's]",
)
@click.option("--temperature", type=float, help="[default: the bundle's]")
@click.option("--top-k", type=int, help="1 draws the likeliest bits.")
@click.option("--top-p", type=float, help="0 switches the filter off.")
@click.option("--num-images", type=int, default=1, show_default=True, help="Images per prompt.")
@click.option("--more-smooth", is_flag=True, help="VAR only: mix codes instead of choosing them.")
@click.option("--seed", type=int, help="Seed of the first image; the others count up. Default: drawn and reported.")
@click.option("--aspect-ratio", type=float, help="height / width; the nearest template is drawn.")
@click.option("--height", type=int, help="In pixels, with --width: a size that `inspect` lists, or close to one.")
@click.option("--width", type=int)
@click.option("--sheet", type=click.Path(path_type=Path), help="Also put all images on one sheet, under their prompts.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write what happened at each scale, as JSON.")
@click.option("--no-metadata", is_flag=True, help="Leave prompt, seed, policy and model out of the PNG.")
@device_option
@threads_option
@as_json
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    classes: tuple[int, ...],
    output: Path,
    policy: str | None,
    negative_prompt: str | None,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    num_images: int,
    more_smooth: bool,
    seed: int | None,
    aspect_ratio: float | None,
    height: int | None,
    width: int | None,
    sheet: Path | None,
    trace: Path | None,
    no_metadata: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Draw PROMPTS (or classes) with a bundle, and say what each image cost."""
    from ldp_runtime.disk import written_result
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.pipeline.pipeline import Pipeline

    from ldp_export.inspection.pictures import drawn_from, save_picture

    drawn = conditions(prompts, classes)
    single = output.suffix.lower() in _PICTURES and not output.is_dir()
    count = len(drawn) * num_images
    if single and count > 1:
        raise ConfigError(f"{output} is one file, {count} images were asked for", hint="name a folder")
    check_file(output, ".png") if single else check_folder(output)
    for path, endings in ((sheet, _PICTURES), (trace, ())):
        if path is not None:
            check_file(path, *endings)
    chosen = None if policy is None else check_policy(bundle, policy)

    def path_of(index: int, seed: int) -> Path:
        return output if single else output / f"image-{index:03d}-seed{seed}.png"

    def keep(event: ImageEvent) -> None:
        """Writes each image when it is decoded, so that stopping loses none of those that are finished."""
        texts = None if no_metadata else drawn_from(pipe.manifest, drawn[event.index // num_images], event.trace)
        save_picture(event.image, path_of(event.index, event.trace.seed), texts)

    with Pipeline.load(bundle, device=device, threads=threads) as pipe, shown_scales(count, as_json) as on_scale:
        result = pipe.draw(
            drawn,
            negative_prompt=negative_prompt,
            guidance_scale=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_images_per_prompt=num_images,
            more_smooth=more_smooth,
            seed=seed,
            policy=chosen,
            aspect_ratio=aspect_ratio,
            height=height,
            width=width,
            callback_on_scale=on_scale,
            callback_on_image=keep,
        )
    rows = []
    for i, one in enumerate(result.traces):
        path = path_of(i, one.seed)
        rows.append({"file": str(path), "class" if classes else "prompt": drawn[i // num_images]} | _cost(one))
    if sheet is not None:
        _write_sheet(sheet, [str(condition) for condition in drawn], result.images)
    if trace is not None:
        with written_result(trace) as scratch:
            scratch.write_text(json.dumps([one.to_json() for one in result.traces], indent=1))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        stopped = row["unconditional_stopped_after"]
        tail = "" if stopped is None else f", one branch from scale {stopped + 1}"
        click.echo(f"{row['file']}: seed {row['seed']}, {row['tokens']} of {row['tokens_full']} tokens{tail}")


def _cost(trace: Trace) -> dict[str, Any]:
    """Cost of an image; images that shared an engine call share its time equally."""
    seconds = sum(s.select_s + s.blocks_s / s.images_in_call + s.residual_s for s in trace.scales)
    return {
        "seed": trace.seed,
        "policy": trace.policy,
        "tokens": trace.tokens,
        "tokens_full": trace.tokens_full,
        "unconditional_stopped_after": trace.stopped_after,
        "scales_s": round(seconds, 4),
    }


def _write_sheet(path: Path, prompts: Sequence[str], images: Sequence[Image]) -> None:
    from ldp_export.inspection.contact_sheet import Panel, contact_sheet
    from ldp_export.inspection.pictures import save_picture

    count = len(images) // len(prompts)
    blocks = [Panel(prompt, images[i * count : (i + 1) * count]) for i, prompt in enumerate(prompts)]
    save_picture(contact_sheet(blocks), path)
