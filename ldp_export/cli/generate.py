"""Verb `ldp-export generate`: draws images with a bundle."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ldp_runtime.system.small_files import json_text

from ldp_export.cli.arguments.command import Command, grouped
from ldp_export.cli.arguments.options import (
    POLICY_HELP,
    as_json,
    aspect_ratio_option,
    bundle_argument,
    check_order,
    check_policy,
    check_size,
    classes_option,
    conditions,
    device_option,
    overwrite_option,
    print_json,
    shown_scales,
    threads_option,
)
from ldp_export.cli.arguments.outputs import check_distinct, check_folder, check_new
from ldp_export.cli.arguments.settings import settings_options

if TYPE_CHECKING:
    from ldp_runtime.pipeline.drawing import ImageEvent
    from ldp_runtime.pipeline.trace import Trace
    from PIL.Image import Image

#: Endings of an image file; "-" writes a PNG to standard output, and a path without an ending is a folder.
_PICTURES = (".png", ".webp")
_SHEETS = (".png", ".jpg", ".jpeg", ".webp")
_STANDARD_OUTPUT = Path("-")
#: An ending that names a kind of file, as in notes.txt, unlike that of a folder such as run.12.
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")


@click.command(
    "generate",
    cls=Command,
    meant={"--size": "--height and --width"},
    epilog="""\b
Examples:
  ldp-export generate bundles/shapes "a red circle" --output circle.png
  ldp-export generate bundles/shapes "a blue star" "a green ring" --seed 7
  ldp-export generate bundles/shapes "a red circle" --policy ld --trace t.json
  ldp-export generate bundles/shapes "a red circle" --sheet all.png
  ldp-export generate bundles/shapes "a red circle" --output - > circle.png
  ldp-export generate bundles/var-d16 --class 207 --class 88 --output dogs

"""
    + POLICY_HELP,
)
@bundle_argument
@click.argument("prompts", nargs=-1)
@click.option("--prompt", "prompt_options", multiple=True, help="A prompt, as PROMPTS; repeatable.")
@classes_option
@click.option(
    "--policy", help="none, ld, none:skip_last=1, a saved policy's name; see below.  [default: the bundle's, else none]"
)
@device_option
@threads_option
@grouped(
    "Picture",
    click.option("--seed", type=int, help="Seed of the first image; the others count up. Default: drawn and reported."),
    click.option("--num-images", type=int, default=1, show_default=True, help="Images per prompt."),
    aspect_ratio_option(),
    click.option("--height", type=int, help="In pixels, with --width: a size that `inspect` lists, or close to one."),
    click.option("--width", type=int, help="In pixels, with --height."),
    click.option("--negative-prompt", help="What to steer away from."),
    click.option(
        "--guidance",
        type=float,
        help="1 means none; for VAR the end of its ramp, 0 means none.  [default: the bundle's]",
    ),
    click.option("--temperature", type=float, help="[default: the bundle's]"),
    click.option("--top-k", type=int, help="1 draws the likeliest bits."),
    click.option("--top-p", type=float, help="0 switches the filter off."),
    click.option(
        "--more-smooth/--no-more-smooth",
        default=None,
        help="VAR, Switti and HART: mix codes instead of choosing them.  [default: as the model's settings recommend]",
    ),
)
@grouped(
    "Result",
    as_json,
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path(),
        help="A .png or .webp (lossless) of one image, a folder, or - for standard output.  [default: this folder]",
    ),
    click.option("--sheet", type=click.Path(path_type=Path), help="Also all images on one sheet, with prompts."),
    click.option("--trace", type=click.Path(path_type=Path), help="Write what happened at each scale, as JSON."),
    click.option("--no-metadata", is_flag=True, help="Leave prompt, seed, policy and model out of the PNG."),
    overwrite_option,
)
@settings_options
def command(
    bundle: Path,
    prompts: tuple[str, ...],
    prompt_options: tuple[str, ...],
    classes: tuple[int, ...],
    output: Path,
    policy: str | None,
    negative_prompt: str | None,
    guidance: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    num_images: int,
    more_smooth: bool | None,
    seed: int | None,
    aspect_ratio: float | None,
    height: int | None,
    width: int | None,
    sheet: Path | None,
    trace: Path | None,
    no_metadata: bool,
    overwrite: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Draw PROMPTS (or classes) with a bundle, and say what each image cost."""
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.system.disk import written_result

    from ldp_export.inspection.pictures import drawn_from

    drawn = conditions((*prompts, *prompt_options), classes)
    check_order("generate", bundle, [*prompts, *prompt_options])
    check_size(height, width, aspect_ratio)
    single = _is_single(output)
    count = len(drawn) * num_images
    if single and count > 1:
        raise ConfigError(
            f"{output} is one file, {count} images were asked for",
            hint="name a folder; a prompt of several words is put in quotes",
        )
    if output == _STANDARD_OUTPUT and as_json:
        raise ConfigError("--output - and --json both write to standard output", hint="name a file for the picture")
    check_distinct({"--output": output if single else None, "--sheet": sheet, "--trace": trace})
    if output != _STANDARD_OUTPUT:
        check_new(output, overwrite, *_PICTURES) if single else _check_folder(output, seed, count, overwrite)
    for path, endings in ((sheet, _SHEETS), (trace, ())):
        if path is not None:
            check_new(path, overwrite, *endings)
    chosen = None if policy is None else check_policy(bundle, policy)

    def keep(event: ImageEvent) -> None:
        """Writes each image when it is decoded, so that stopping loses none of those that are finished."""
        texts = None if no_metadata else drawn_from(pipe.manifest, drawn[event.index // num_images], event.trace)
        _save(event.image, output if single else _path_in(output, event.index, event.trace.seed), texts)

    from ldp_runtime.pipeline.pipeline import Pipeline

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
        path = output if single else _path_in(output, i, one.seed)
        rows.append({"file": str(path), "class" if classes else "prompt": drawn[i // num_images]} | _cost(one))
    if sheet is not None:
        _write_sheet(sheet, [str(condition) for condition in drawn], result.images)
    if trace is not None:
        with written_result(trace) as scratch:
            scratch.write_text(json_text([one.to_json() for one in result.traces], indent=1))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        if output == _STANDARD_OUTPUT:
            row["file"] = "standard output"
        stopped = row["unconditional_stopped_after"]
        tail = "" if stopped is None else f", one branch from scale {stopped + 1}"
        click.echo(
            f"{row['file']}: seed {row['seed']}, {row['tokens']} of {row['tokens_full']} tokens{tail}",
            err=output == _STANDARD_OUTPUT,
        )
    for path in filter(None, (sheet, trace)):
        click.echo(f"{path}: written", err=output == _STANDARD_OUTPUT)


def _is_single(output: Path) -> bool:
    """True if the output is one file. Raises ConfigError for a file of a kind that is not written."""
    from ldp_runtime.errors import ConfigError

    if output == _STANDARD_OUTPUT:
        return True
    if output.is_dir():
        return False
    if output.suffix.lower() not in _PICTURES and _ENDING.fullmatch(output.suffix):
        raise ConfigError(
            f"cannot write pictures as {output.suffix}: {output}",
            hint=f"name a file that ends in {' or '.join(_PICTURES)}, or a folder without such an ending",
        )
    return output.suffix.lower() in _PICTURES


def _check_folder(folder: Path, seed: int | None, count: int, overwrite: bool) -> None:
    """Checks a folder for pictures; seeds that the user leaves open are new, and so are their pictures' names."""
    check_folder(folder)
    if seed is not None:
        for i in range(count):
            check_new(_path_in(folder, i, seed + i), overwrite)


def _path_in(folder: Path, index: int, seed: int) -> Path:
    return folder / f"image-{index:03d}-seed{seed}.png"


def _save(image: Image, path: Path, texts: Mapping[str, str] | None) -> None:
    """Writes a picture without loss; a PNG says how it was drawn."""
    from ldp_export.inspection.pictures import png_texts, save_picture

    if path == _STANDARD_OUTPUT:
        image.save(sys.stdout.buffer, "PNG", pnginfo=png_texts(texts or {}))
    else:
        save_picture(image, path, texts)


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
