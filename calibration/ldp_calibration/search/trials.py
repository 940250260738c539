"""Trials of a search: candidates drawn and scored by the evaluation harness, against unpruned pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ldp_runtime.pipeline.pipeline import Condition
from ldp_runtime.schedule import ScaleSchedule

from ldp_calibration.evaluation.draw import Chosen, Painter
from ldp_calibration.evaluation.pictures import Picture, all_pictures
from ldp_calibration.evaluation.run import UNPRUNED
from ldp_calibration.evaluation.score import Twins, is_of_another_version, read_scores, score, twins_of
from ldp_calibration.evaluation.scorers.scorer import Scorer
from ldp_calibration.search.budget import LOWER_IS_BETTER, Budget
from ldp_calibration.stats import Bound, bound

#: Called with the progress of the work: done, total, in words.
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Point:
    """Summary of a candidate over many prompts. The bound of `lpips` is an upper one.

    Attributes:
        speedup: operations of the unpruned pictures, summed up, over those of the candidate's.
        kept: share of tokens computed at each scale that was run; empty where pictures differ in scales.
        stop_rate: share of pictures whose unconditional branch stopped.
    """

    policy: str
    psnr: Bound
    ssim: Bound
    lpips: Bound | None
    speedup: float
    kept: tuple[float, ...]
    stop_rate: float

    def bound_of(self, measure: str) -> Bound:
        found = {"ssim": self.ssim, "lpips": self.lpips}.get(measure, self.psnr)
        assert found is not None
        return found

    def quality(self, measure: str) -> float:
        """Mean of a measure, its sign turned so that more is better."""
        mean = self.bound_of(measure).mean
        return -mean if LOWER_IS_BETTER.get(measure) else mean

    def meets(self, budget: Budget) -> bool:
        if budget.measure == "speedup":
            return self.speedup >= budget.limit
        worst = self.bound_of(budget.measure).limit
        return worst <= budget.limit if LOWER_IS_BETTER[budget.measure] else worst >= budget.limit


class Trials:
    """Candidates of one run, drawn and scored as far as a search asks; what is there already is taken as it is.

    Args:
        painter: draws the run, whose policies are the candidates and the unpruned one.
        scorers: PSNR and SSIM, and LPIPS where it is asked for.
    """

    def __init__(self, painter: Painter, schedule: ScaleSchedule, scorers: Sequence[Scorer]) -> None:
        self._painter, self._schedule, self._scorers = painter, schedule, scorers

    def points(self, policies: Sequence[str], prompts: Sequence[int], report: Report) -> list[Point]:
        """Summary of each policy over some prompts of the run.

        Raises:
            CapacityError: the disk has no room for the pictures; what is drawn is kept.
        """
        run = self._painter.run
        self._painter.draw_part((UNPRUNED, *policies), Chosen(tuple(prompts)), report)
        for scorer in self._scorers:
            replace = is_of_another_version(run, scorer)
            score(run, scorer, policies, replace=replace, prompts=prompts, report=report)
        twins = twins_of(run, True, prompts)
        return [self._point(policy, prompts, twins) for policy in policies]

    def _point(self, label: str, prompts: Sequence[int], twins: Twins) -> Point:
        run = self._painter.run
        policy = run.settings.policy(label)
        scores = {
            scorer.name: read_scores(run, scorer.name, scorer.fingerprint, policy, twins, prompts)[:, 0].tolist()
            for scorer in self._scorers
        }
        drawn = all_pictures(run, [policy], prompts)
        return Point(
            label,
            bound(scores["psnr"]),
            bound(scores["ssim"]),
            bound(scores["lpips"], upper=True) if "lpips" in scores else None,
            _operations(list(twins.values())) / max(1, _operations(drawn)),
            _kept(drawn, self._schedule),
            sum(picture.record.stopped_after is not None for picture in drawn) / len(drawn),
        )


def _operations(pictures: Sequence[Picture]) -> int:
    return sum(picture.record.operations for picture in pictures)


def _kept(pictures: Sequence[Picture], schedule: ScaleSchedule) -> tuple[float, ...]:
    """Mean share of tokens computed at each scale; nothing where pictures differ in the number of scales."""
    counts = [picture.record.kept for picture in pictures]
    if len({len(kept) for kept in counts}) > 1:
        return ()
    shares = np.array([[n / full for n, full in zip(kept, schedule.tokens, strict=False)] for kept in counts])
    return tuple(shares.mean(axis=0).round(4).tolist())


def prompts_hash(prompts: Sequence[Condition]) -> str:
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
