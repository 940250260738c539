"""Step `ldp-export evaluate score`: scores the pictures of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json
from ldp_export.cli.evaluate.progress import duration, shown_count

if TYPE_CHECKING:
    from ldp_calibration.evaluation.run import Run
    from ldp_calibration.evaluation.score import ScorePlan
    from ldp_calibration.evaluation.scorers.scorer import Scorer

#: Pictures that a dry run scores, to tell how long the others take.
_TRIED = 3


@click.command(
    "score",
    cls=Command,
    short_help="Score the pictures of a run.",
    epilog="""\b
Examples:
  ldp-export evaluate score runs/shapes
  ldp-export evaluate score runs/mine --scorer psnr --scorer ssim
  ldp-export evaluate score runs/mine --scorer lpips --weights weights
  ldp-export evaluate score runs/mine --scorer psnr --jpeg 95
""",
)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--scorer", "names", multiple=True, help="shapes, psnr, ssim or lpips; repeatable.  [default: the run's]")
@click.option("--policy", "labels", multiple=True, help="Score these only; repeatable.  [default: all]")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of networks' weights; nothing is downloaded.")
@click.option(
    "--jpeg",
    type=click.IntRange(1, 100),
    help="Compare JPEG files of this quality (4:2:0), as papers do (95): scores apart, as psnr-jpeg95.",
)
@click.option("--overwrite", is_flag=True, help="Score all pictures anew, in place of scores by other versions.")
@click.option("--dry-run", is_flag=True, help="Say what would be scored and how long it takes, and stop.")
@as_json
def command(
    run_folder: Path,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    weights: Path | None,
    jpeg: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score a run's pictures: shapes judges a picture, psnr, ssim and lpips compare it with its unpruned twin.

    Scores are kept by the pictures' hashes and the scorer's version. Missing or damaged pictures are an error.
    """
    from ldp_calibration.evaluation.run import open_run
    from ldp_calibration.evaluation.score import check_scorer, plan_scores, score
    from ldp_calibration.evaluation.scorers.choose import open_scorer

    run = open_run(run_folder)
    scorers = [open_scorer(name, jpeg, weights) for name in dict.fromkeys(names or run.settings.scorers)]
    scorers = list({scorer.name: scorer for scorer in scorers}.values())
    for scorer in scorers:  # refused before the first one scores
        check_scorer(run, scorer, overwrite)
    if dry_run:
        plans = {scorer.name: plan_scores(run, scorer, labels, overwrite) for scorer in scorers}
        seconds = {scorer.name: _seconds(run, scorer, plans[scorer.name]) for scorer in scorers}
        found = {name: {"pictures": p.left, "there": p.there, "seconds": seconds[name]} for name, p in plans.items()}
        print_json({"run": str(run_folder), "scorers": found}) if as_json else _say_plan(found)
        return
    scored = {}
    for scorer in scorers:
        with shown_count(f"scoring by {scorer.name}", as_json) as report:
            plan = score(run, scorer, labels, replace=overwrite, report=report)
        scored[scorer.name] = {"scored": plan.left, "were_there": plan.there, "settings": dict(scorer.settings)}
        if not as_json:
            click.echo(f"{run_folder}: {scorer.name}: {plan.left} pictures scored, {plan.there} were")
    if as_json:
        print_json({"run": str(run_folder), "scorers": scored})


def _seconds(run: Run, scorer: Scorer, plan: ScorePlan) -> float:
    """Seconds that the scoring takes, by trying a few pictures."""
    from ldp_calibration.evaluation.score import score_picture

    tried = [picture for pictures in plan.missing.values() for picture in pictures][:_TRIED]
    if not tried:
        return 0.0
    score_picture(scorer, tried[0], plan.twins, run)
    started = time.perf_counter()
    for picture in tried:
        score_picture(scorer, picture, plan.twins, run)
    return round(plan.left * (time.perf_counter() - started) / len(tried), 1)


def _say_plan(found: dict[str, dict[str, float]]) -> None:
    for name, plan in found.items():
        about = f", about {duration(plan['seconds'])}" if plan["pictures"] else ""
        click.echo(f"{name}: {plan['pictures']} pictures to score, {plan['there']} are scored{about}")
