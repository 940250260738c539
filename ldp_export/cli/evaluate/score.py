"""Step `ldp-export evaluate score`: scores the pictures of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldp_export.cli.arguments.command import Command
from ldp_export.cli.arguments.options import as_json, print_json
from ldp_export.cli.evaluate.networks import network_options, wish_of
from ldp_export.cli.evaluate.progress import duration, shown_count

if TYPE_CHECKING:
    from collections.abc import Callable

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
  ldp-export evaluate score runs/geneval --scorer geneval \\
      --weights weights --device cuda
  ldp-export evaluate score runs/dpg --scorer dpg \\
      --answers none=none.txt --answers ld=ld.txt
""",
)
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--scorer",
    "names",
    multiple=True,
    help="shapes, psnr, ssim, lpips, geneval, hpsv2.1, imagereward, clip or dpg; repeatable.  [default: the run's]",
)
@click.option("--policy", "labels", multiple=True, help="Score these only; repeatable.  [default: all]")
@network_options
@click.option(
    "--answers",
    multiple=True,
    metavar="POLICY=FILE",
    help="What the official VQA answered about a policy's pictures, for dpg; repeatable.",
)
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
    device: str,
    precision: str,
    batch: int,
    answers: tuple[str, ...],
    jpeg: int | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score a run's pictures: by themselves, for their prompts, or against their unpruned twins.

    Scores are kept by the pictures' hashes and the scorer's version. Missing or damaged pictures are an error.
    """
    from ldp_calibration.evaluation.run import open_run
    from ldp_calibration.evaluation.score import plan_scores, score
    from ldp_calibration.evaluation.scorers.choose import open_scorer

    run = open_run(run_folder)
    wish = wish_of(weights, device, precision, batch, answers)
    for policy in wish.answers:
        run.settings.policy(policy)  # refuses one that the run has not
    opening = partial(open_scorer, jpeg=jpeg, wish=wish)
    chosen = list(dict.fromkeys(names or run.settings.scorers))
    if dry_run:
        found = dict[str, dict[str, float]]()
        for scorer in _checked(run, chosen, opening, overwrite):
            plan = plan_scores(run, scorer, labels, overwrite)
            found[scorer.name] = {"pictures": plan.left, "there": plan.there, "seconds": _seconds(run, scorer, plan)}
        print_json({"run": str(run_folder), "scorers": found}) if as_json else _say_plan(found)
        return
    scored = {}
    for scorer in _checked(run, chosen, opening, overwrite):
        with shown_count(f"scoring by {scorer.name}", as_json) as report:
            plan = score(run, scorer, labels, replace=overwrite, report=report)
        scored[scorer.name] = {"scored": plan.left, "were_there": plan.there, "settings": dict(scorer.settings)}
        if not as_json:
            click.echo(f"{run_folder}: {scorer.name}: {plan.left} pictures scored, {plan.there} were")
    if as_json:
        print_json({"run": str(run_folder), "scorers": scored})


def _checked(run: Run, names: Sequence[str], opening: Callable[[str], Scorer], overwrite: bool) -> Iterator[Scorer]:
    """Scorers one after the other, so that the networks of one are in memory; all are refused before the first scores.

    So several are opened twice.
    """
    from ldp_calibration.evaluation.score import check_scorer

    seen = set[str]()
    for name in names if len(names) > 1 else ():
        check_scorer(run, opening(name), overwrite)
    for name in names:
        scorer = opening(name)
        check_scorer(run, scorer, overwrite)
        if scorer.name not in seen:
            seen.add(scorer.name)
            yield scorer


def _seconds(run: Run, scorer: Scorer, plan: ScorePlan) -> float:
    """Seconds that the scoring takes, by trying a few pictures."""
    from ldp_calibration.evaluation.score import batches, score_pictures

    missing = [picture for pictures in plan.missing.values() for picture in pictures]
    tried = missing[: _TRIED * scorer.batch]
    if not tried:
        return 0.0
    score_pictures(scorer, tried[:1], plan.twins, run)
    started = time.perf_counter()
    for pictures in batches(tried, scorer.batch):
        score_pictures(scorer, pictures, plan.twins, run)
    return round(plan.left * (time.perf_counter() - started) / len(tried), 1)


def _say_plan(found: dict[str, dict[str, float]]) -> None:
    for name, plan in found.items():
        about = f", about {duration(plan['seconds'])}" if plan["pictures"] else ""
        click.echo(f"{name}: {plan['pictures']} pictures to score, {plan['there']} are scored{about}")
