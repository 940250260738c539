"""`ldp-export calibrate`."""

from __future__ import annotations

from pathlib import Path

import click

from ldp_export.cli.options import as_json, bundle_argument, print_json, shown_progress, threads_option


@click.command(
    epilog="""\b
Examples:
  ldp-export calibrate bundles/infinity-shapes --budget "psnr>=28" --name careful
  ldp-export calibrate bundles/mine --budget "speedup>=1.8" --prompts-file prompts.txt --name fast
  ldp-export generate bundles/infinity-shapes "a red circle" --policy careful
"""
)
@bundle_argument
@click.option("--budget", required=True, help='"psnr>=28" (dB), "ssim>=0.9" or "speedup>=1.8" (operations).')
@click.option("--name", default="calibrated", show_default=True, help="Of the profile.")
@click.option(
    "--prompts-file", type=click.Path(path_type=Path), help="One prompt a line.  [default: the project's own]"
)
@click.option(
    "--prompts", "count", type=int, default=32, show_default=True, help="How many of the project's own prompts."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--chart", type=click.Path(path_type=Path), help="Draw speed against fidelity into this .png.")
@threads_option
@as_json
def command(
    bundle: Path,
    budget: str,
    name: str,
    prompts_file: Path | None,
    count: int,
    seed: int,
    chart: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Find the cheapest thresholds whose loss stays within a budget, and save them as a policy profile.

    Searches on half of the prompts, proves on the other half: the budget holds when the lower 95 % bound of the mean on
    the held-out prompts meets it. Interrupted, it resumes. The profile serves this version of this bundle only.
    """
    from ldp_calibration.report import calibration_json, draw_front, make_profile, save_profile
    from ldp_calibration.search import Budget, calibrate, measurement_key
    from ldp_runtime.bundle import open_bundle
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.pipeline import Pipeline
    from ldp_runtime.profiles import check_profile_name, profile_folder

    from ldp_export.progress import ProgressEvent

    wanted = Budget.parse(budget)
    check_profile_name(name)
    opened = open_bundle(bundle)
    if opened.root is None:
        raise ConfigError(f"{bundle} is a single version: profiles lie beside a bundle", hint="name the bundle's path")
    texts = _prompts(prompts_file, count, seed, opened.manifest.model.name)
    with Pipeline.load(opened, threads=threads) as pipe, shown_progress(as_json) as progress:
        folder = profile_folder(opened.root, opened.manifest)
        work = folder / f"measurements-{measurement_key(opened.manifest, texts, seed)}.jsonl"

        def report(done: int, total: int, detail: str) -> None:
            progress(ProgressEvent("calibrate", min(done, total - 1), total, "advanced", detail))

        found = calibrate(pipe, texts, wanted, work, seed=seed, report=report)
    profile = make_profile(name, opened.manifest, found)
    path = save_profile(opened.root, opened.manifest, profile)
    path.with_suffix(".search").write_text(calibration_json(found))
    if chart is not None:
        draw_front(found, chart)
    if as_json:
        print_json(profile.model_dump())
        return
    chosen, (value, low, high) = found.chosen, found.timed
    click.echo(f"{path}\n  policy {chosen.policy}")
    click.echo(
        f"  held out, {chosen.psnr.count} prompts: {chosen.psnr.mean:.1f} dB (lower bound {chosen.psnr.lower:.1f}, "
        f"5th percentile {chosen.psnr.fifth_percentile:.1f}), SSIM {chosen.ssim.mean:.3f}"
    )
    click.echo(f"  {chosen.speedup:.2f}x fewer operations; measured {value:.2f}x [{low:.2f}, {high:.2f}] end to end")


def _prompts(file: Path | None, count: int, seed: int, model: str) -> list[str]:
    from ldp_runtime.errors import ConfigError

    if file is not None:
        if not file.is_file():
            raise ConfigError(f"there is no prompts file {file}")
        texts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        if not texts:
            raise ConfigError(f"{file} holds no prompt", hint="write one prompt a line")
        return texts
    if model != "infinity-shapes":
        raise ConfigError(
            f"the project's own prompts are for infinity-shapes, not for {model}", hint="give --prompts-file"
        )
    import numpy as np
    from ldp_calibration.shapes import CATEGORIES, sample_prompt

    rng = np.random.default_rng((seed, 7))
    categories = list(CATEGORIES)
    return [sample_prompt(categories[i % len(categories)], rng).text for i in range(count)]
