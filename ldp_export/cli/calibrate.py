"""Verb `ldp-export calibrate`: searches a policy for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command, Renamed
from ldp_export.cli.arguments.options import (
    as_json,
    bundle_argument,
    device_option,
    overwrite_option,
    print_json,
    prompt_lines,
    shown_progress,
    threads_option,
)
from ldp_export.cli.arguments.outputs import check_folder, check_new
from ldp_export.cli.arguments.settings import settings_options

if TYPE_CHECKING:
    from ldp_calibration.search.calibrate import Calibration
    from ldp_runtime.architecture.choose import ModelEntry


@click.command(
    "calibrate",
    cls=Command,
    renamed={"--prompts": Renamed("--prompt-count")},
    epilog="""\b
Examples:
  ldp-export calibrate bundles/shapes --budget "psnr>=28" --name careful
  ldp-export generate bundles/shapes "a red circle" --policy careful
  ldp-export calibrate bundles/mine --budget "speedup>=1.8" \\
      --prompts-file prompts.txt --name fast
  ldp-export calibrate bundles/shapes --fit-only
  ldp-export generate bundles/shapes "a red circle" --policy ld:fill=linear
""",
)
@bundle_argument
@click.option(
    "--budget", help='"psnr>=28" (dB), "ssim>=0.9", "lpips<=0.1" (needs its weights) or "speedup>=1.8" (operations).'
)
@click.option(
    "--fit-only", is_flag=True, help="Only fit what fill=linear, score=error and the like need, on all prompts."
)
@click.option("--name", default="calibrated", show_default=True, help="Of the saved policy.")
@click.option(
    "--prompts-file",
    type=click.Path(path_type=Path),
    help="One prompt (or class) a line.  [default: own ones]",
)
@click.option(
    "--prompt-count",
    "count",
    type=int,
    default=32,
    show_default=True,
    help="How many of the project's own prompts.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chart", type=click.Path(path_type=Path), help="Draw speed against fidelity into this .png.")
@overwrite_option
@device_option
@threads_option
@as_json
@settings_options
def command(
    bundle: Path,
    budget: str | None,
    fit_only: bool,
    name: str,
    prompts_file: Path | None,
    count: int,
    seed: int,
    chart: Path | None,
    overwrite: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the cheapest thresholds whose loss stays within a budget, and save them as a policy beside the bundle.

    Searches on half of the prompts, proves on the other half. The budget holds when the lower 95 % bound of the mean on
    the held-out prompts meets it. Interrupted, it resumes. The saved policy serves this version of this bundle only.
    """
    from ldp_calibration.drawing import pyplot
    from ldp_calibration.search.budget import Budget
    from ldp_calibration.search.calibrate import calibrate, most_room, search_folder
    from ldp_calibration.search.fits import fit
    from ldp_calibration.search.report import calibration_json, draw_front, make_saved, save_fits, save_policy
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.bundle.saved_policies import check_saved_name, saved_folder
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.pipeline.pipeline import Pipeline
    from ldp_runtime.system.disk import gigabytes, write_durably

    from ldp_export.progress import ProgressEvent

    if (budget is None) != fit_only:
        said = "both --budget and --fit-only are" if fit_only else "neither --budget nor --fit-only is"
        raise ConfigError(
            f"{said} given",
            hint='--budget "psnr>=28" searches a policy; --fit-only fits the numbers of fill=linear and the like',
        )
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}", hint="--seed 0, or another number")
    if chart is not None:
        if fit_only:
            raise ConfigError("--chart draws the search, and --fit-only searches nothing", hint="leave one of them out")
        check_new(chart, overwrite, ".png", ".pdf", ".svg")
        pyplot()  # refuses here if Matplotlib is missing, before the search
    goal = None if budget is None else Budget.parse(budget)
    check_saved_name(name)
    opened = open_bundle(bundle)
    if opened.root is None:
        raise ConfigError(f"{bundle} is a single version: profiles lie beside a bundle", hint="name the bundle's path")
    folder = saved_folder(opened.root, opened.manifest)
    check_folder(folder)
    if goal is not None and (saved_path := folder / f"{name}.json").exists() and not overwrite:
        raise ConfigError(
            f"a policy of the name {name!r} is saved already: {saved_path}",
            hint="give another --name, or add --overwrite to replace it",
        )
    texts = _prompts(prompts_file, count, seed, opened.manifest.model)
    work = search_folder(folder, opened.manifest, texts, seed, device)
    if goal is not None and not as_json:
        room = gigabytes(most_room(opened.manifest, len(texts)))
        click.echo(f"{work}: the search draws into it; its pictures take at most {room}", err=True)
    with Pipeline.load(opened, device=device, threads=threads) as pipe, shown_progress(as_json) as progress:

        def report(done: int, total: int, detail: str) -> None:
            progress(ProgressEvent("calibrate", min(done, total - 1), total, "advanced", detail))

        if goal is None:
            fitted = fit(pipe, texts, range(seed, seed + len(texts)), report)
            path = save_fits(opened.root, opened.manifest, fitted, texts)
            _say_fits(path, as_json)
            return
        calibration = calibrate(pipe, texts, goal, work, seed=seed, device=device, report=report)
    saved = make_saved(name, opened.manifest, calibration)
    path = save_policy(opened.root, opened.manifest, saved)
    write_durably(path.with_suffix(".search"), calibration_json(calibration).encode())
    save_fits(opened.root, opened.manifest, calibration.fitted, texts)
    if chart is not None:
        draw_front(calibration, chart)
    print_json(saved.model_dump()) if as_json else _say_profile(path, calibration)


def _say_profile(path: Path, found: Calibration) -> None:
    chosen, (value, low, high) = found.chosen, found.timed
    click.echo(f"{path}\n  policy {chosen.policy}")
    click.echo(
        f"  held out, {chosen.psnr.count} prompts: {chosen.psnr.mean:.1f} dB (lower bound {chosen.psnr.limit:.1f}, "
        f"5th percentile {chosen.psnr.fifth_percentile:.1f}), SSIM {chosen.ssim.mean:.3f}"
        + ("" if chosen.lpips is None else f", LPIPS {chosen.lpips.mean:.3f}")
    )
    click.echo(f"  {chosen.speedup:.2f}x fewer operations; measured {value:.2f}x [{low:.2f}, {high:.2f}] end to end")


def _say_fits(path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"fitted": str(path)})
    else:
        click.echo(f"{path}\n  --policy ld:fill=linear and the like now find their numbers")


def _prompts(file: Path | None, count: int, seed: int, model: ModelEntry) -> list[str] | list[int]:
    """Prompts or classes to measure on: a file's lines, the project's own prompts, or evenly spread classes for VAR."""
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.pipeline.request import check_labels

    lines = None if file is None else prompt_lines(file)
    if not model.reads_text:
        if lines is None:
            return [i * model.classes // count for i in range(count)]
        try:
            labels = [int(line) for line in lines]
        except ValueError as error:
            raise ConfigError(
                f"{file} must hold a class number a line: {error}", hint="write numbers such as 207, one a line"
            ) from error
        check_labels(model, labels)
        return labels
    if lines is not None:
        return lines
    if model.name != "infinity-shapes":
        raise ConfigError(
            f"the project's own prompts are for infinity-shapes, not for {model.name}", hint="give --prompts-file"
        )
    import numpy as np
    from ldp_calibration.shapes import CATEGORIES, sample_prompt

    rng = np.random.default_rng((seed, 7))
    categories = list(CATEGORIES)
    return [sample_prompt(categories[i % len(categories)], rng).text for i in range(count)]
