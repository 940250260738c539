"""Figures of a run as the benchmarks' own scripts report them, from scores that are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.dpg.all_tiles import all_tiles
from ldp_calibration.evaluation.dpg.official import OfficialScriptError, official_score
from ldp_calibration.evaluation.dpg.questions import questions_of
from ldp_calibration.evaluation.geneval.summary import metadata
from ldp_calibration.evaluation.geneval.summary import summary as geneval_summary
from ldp_calibration.evaluation.pictures import Picture
from ldp_calibration.evaluation.run import SCORES, Run, RunPolicy
from ldp_calibration.evaluation.score import SETTINGS, scored_pictures, scorer_settings
from ldp_calibration.evaluation.scorers.scorer import Score, fingerprint

#: Pictures whose mean is one of those that HPSv2's script takes mean and deviation of.
_CHUNK = 80
#: Pictures with their scores, by prompt and number.
Scored = Sequence[tuple[Picture, Score]]


@dataclass(frozen=True)
class Figures:
    """Figures of a policy by one scorer: as numbers, and as text."""

    policy: str
    scorer: str
    numbers: Mapping[str, Any]
    text: str


def summarised(run: Run, scorers: Sequence[str] = (), labels: Sequence[str] = ()) -> list[Figures]:
    """Figures of policies by each scorer that has a script of its own.

    Args:
        scorers, labels: scorers and policies, or none for all that there are.

    Raises:
        ConfigError: there are no such scores, or some are missing. IntegrityError: pictures are missing or damaged.
    """
    there = sorted(path.parent.name for path in (run.folder / SCORES).glob(f"*/{SETTINGS}"))
    names = list(scorers) or [name for name in there if name in SUMMARIES]
    for name in names:
        if name not in SUMMARIES:
            raise ConfigError(f"{name} has no summary of its own", hint=f"there is one of {', '.join(SUMMARIES)}")
    if not names:
        raise ConfigError(
            "the run has no scores of a published benchmark",
            hint=f"ldp-export evaluate score {run.folder} --scorer {next(iter(SUMMARIES))} --weights DIR",
        )
    policies = [run.settings.policy(label) for label in labels] or list(run.settings.policies)
    return [_figures(run, name, policy) for name in names for policy in policies]


def _figures(run: Run, name: str, policy: RunPolicy) -> Figures:
    mark = fingerprint(scorer_settings(run, name))
    numbers, text = SUMMARIES[name](run, scored_pictures(run, name, mark, policy, {}))
    return Figures(policy.label, name, numbers, text)


def geneval_rows(run: Run, scored: Scored) -> list[dict[str, Any]]:
    """Results as the official script writes them, a picture each."""
    rows = list[dict[str, Any]]()
    for picture, score in scored:
        line = metadata(run.prompts[picture.record.prompt])
        rows.append(
            {
                "filename": f"{picture.record.prompt:05d}/samples/{picture.path.name}",
                "tag": line["tag"],
                "prompt": line["prompt"],
                "correct": score.value == 1,
                "reason": score.facts.get("reason", ""),
                "metadata": json.dumps(line),
                "details": json.dumps(score.facts.get("details", {})),
            }
        )
    return rows


def _geneval(run: Run, scored: Scored) -> tuple[dict[str, Any], str]:
    found = geneval_summary(geneval_rows(run, scored))
    numbers = {
        "overall": found.overall,
        "correct_images": found.correct_images,
        "correct_prompts": found.correct_prompts,
        "tasks": {task: correct / count for task, (correct, count) in found.tasks.items()},
    }
    return numbers, found.text()


def chunked(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation of the means of consecutive 80 scores, as HPSv2's script takes them of a style."""
    means = [float(np.mean(scores[i : i + _CHUNK])) for i in range(0, len(scores), _CHUNK)]
    return float(np.mean(means)), float(np.std(means))


def _hps(run: Run, scored: Scored) -> tuple[dict[str, Any], str]:
    by_style = dict[str, list[float]]()
    for picture, score in scored:
        by_style.setdefault(run.prompts[picture.record.prompt].tag or "images", []).append(score.value)
    styles = {style: chunked(values) for style, values in by_style.items()}
    average = float(np.mean([score.value for _, score in scored]))
    lines = [f"{style:<15} {mean:.2f} \t {deviation:.4f}" for style, (mean, deviation) in styles.items()]
    numbers = {"average": average, "styles": {style: mean for style, (mean, _) in styles.items()}}
    return numbers, "\n".join((*lines, f"{'Average':<15} {average:.2f}"))


def _mean(run: Run, scored: Scored) -> tuple[dict[str, Any], str]:
    """Mean over pictures, and over prompts, whose numbers of pictures are equal."""
    values = np.array([score.value for _, score in scored]).reshape(len(run.prompts), -1)
    deviation = float(values.mean(axis=1).std())
    mean = float(values.mean())
    return {"mean": mean, "deviation_of_prompts": deviation}, f"mean {mean:.4f} over {values.size} pictures"


def _dpg(run: Run, scored: Scored) -> tuple[dict[str, Any], str]:
    """The official score and ours; kinds of questions by ours alone, as the official ones are noise."""
    items = [str(prompt.facts["item_id"]) for prompt in run.prompts]
    answers = {
        (items[picture.record.prompt], picture.record.image, text): answer
        for picture, score in scored
        for text, answer in score.facts["answers"].items()
    }
    questions, tiles = questions_of(run.prompts), run.settings.images
    ours = all_tiles(questions, answers, tiles)
    numbers: dict[str, Any] = {"all_tiles": ours.score, "groups": dict(ours.groups), "kinds": dict(ours.kinds)}
    numbers["oddities"] = list(ours.oddities)
    try:
        official = official_score(questions, items, answers, tiles)
    except OfficialScriptError as error:
        return numbers | {"official": None}, f"official: the script dies: {error.message}\nall tiles: {ours.score:.4f}"
    numbers |= {"official": official.score, "official_failed": dict(official.failed)}
    failed = "".join(f"\n  left out officially: {item} ({why})" for item, why in official.failed.items())
    groups = "".join(f"\n  {group}: {value:.2f}" for group, value in ours.groups.items())
    groups += "".join(f"\n  {oddity}" for oddity in ours.oddities)
    return numbers, f"official: {official.score:.4f}{failed}\nall tiles: {ours.score:.4f}{groups}"


#: Summaries by scorer.
SUMMARIES: dict[str, Callable[[Run, Scored], tuple[dict[str, Any], str]]] = {
    "geneval": _geneval,
    "hpsv2.1": _hps,
    "hpsv2.1-no-antialias": _hps,
    "hpsv2.0": _hps,
    "hpsv2.0-no-antialias": _hps,
    "imagereward": _mean,
    "clip": _mean,
    "dpg": _dpg,
}
