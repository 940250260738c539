"""Comparison of a run's policies with one of them, prompt by prompt: never means alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.comparison import paired
from ldp_calibration.evaluation.comparison.paired import Estimate, Sample, Signs
from ldp_calibration.evaluation.pictures import Picture, all_pictures
from ldp_calibration.evaluation.run import NULL, SCORES, UNPRUNED, Run, RunPolicy
from ldp_calibration.evaluation.score import SETTINGS, read_scores, scorer_settings, twins_of
from ldp_calibration.evaluation.scorers.choose import jpeg_quality, kind_of
from ldp_calibration.evaluation.scorers.scorer import ScorerKind, fingerprint
from ldp_calibration.evaluation.times import read_times, seconds_by_policy, speedup
from ldp_calibration.stats import Interval

#: Number of compared policies from which on p-values are adjusted for their number.
MOST_UNADJUSTED = 5


@dataclass(frozen=True)
class Difference:
    """Paired difference of a policy to the reference, in the scores' own unit; more is better, also of distances.

    Attributes:
        signs: prompts that are better, worse, equal.
        p_value: exact McNemar test of verdicts, sign-flip test of numbers; adjusted where many are compared.
        margin: loss that counts as none, or None.
        loss_p_value: of a loss of the margin or more.
        needed: prompts that would show less loss than the margin, if nothing is lost in truth.
    """

    estimate: Estimate
    signs: Signs
    p_value: float
    margin: float | None = None
    loss_p_value: float | None = None
    needed: int | None = None

    @property
    def is_non_inferior(self) -> bool | None:
        """True if a loss of the margin or more is ruled out; None without a margin."""
        return None if self.loss_p_value is None else self.loss_p_value < paired.ALPHA

    @property
    def is_equivalent(self) -> bool | None:
        """True if the interval lies within the margin on both sides."""
        if self.margin is None or self.estimate.low is None or self.estimate.high is None:
            return None
        return bool(self.is_non_inferior) and self.estimate.high < self.margin


@dataclass(frozen=True)
class Result:
    """Scores of a policy by one scorer: means with intervals, over all prompts and by tag."""

    mean: Estimate
    by_tag: Mapping[str, Estimate]
    difference: Difference | None


@dataclass(frozen=True)
class Cost:
    """Cost of a policy.

    Attributes:
        tokens: mean number computed; share: of all tokens.
        operations: of the reference's blocks over its own.
        speedup: measured over the reference, with its interval, or None.
        seconds: median for the pictures of a prompt, or None.
        stop_rate: share of pictures whose unconditional branch stopped.
    """

    tokens: float
    share: float
    operations: float
    speedup: Interval | None
    seconds: float | None
    stop_rate: float


@dataclass(frozen=True)
class PolicyResult:
    """A policy of the comparison: its cost, and its result by each scorer."""

    policy: RunPolicy
    cost: Cost
    results: Mapping[str, Result]


@dataclass(frozen=True)
class Comparison:
    """Comparison of policies with a reference.

    Attributes:
        scorers: settings of each scorer by name.
        scores: by scorer and policy [prompts, images]; for charts and sheets.
        adjusted: True if p-values are adjusted for the number of policies.
    """

    run: Run
    reference: str
    scorers: Mapping[str, Mapping[str, object]]
    policies: tuple[PolicyResult, ...]
    scores: Mapping[tuple[str, str], np.ndarray]
    resamples: int
    seed: int
    adjusted: bool

    def of(self, label: str) -> PolicyResult:
        return next(one for one in self.policies if one.policy.label == label)


def scored_by(run: Run, names: Sequence[str] = ()) -> list[str]:
    """Scorers to compare by: those that are named, or all that the run has scores of and that look at PNG files.

    Raises:
        ConfigError: the run has no scores, or PNG and JPEG figures would stand beside each other.
    """
    there = sorted(path.parent.name for path in (run.folder / SCORES).glob(f"*/{SETTINGS}"))
    chosen = list(dict.fromkeys(names)) or [name for name in there if jpeg_quality(name) is None]
    chosen.sort(key=lambda name: not kind_of(name).is_verdict)
    unscored = [name for name in chosen if name not in there]
    if unscored or not chosen:
        what = ", ".join(unscored) or "any scorer"
        wanted = " ".join(f"--scorer {name}" for name in unscored or run.settings.scorers)
        raise ConfigError(f"the run has no scores of {what}", hint=f"ldp-export evaluate score {run.folder} {wanted}")
    files = {jpeg_quality(name) for name in chosen if kind_of(name).needs_twin}
    if len(files) > 1:
        raise ConfigError(
            f"{', '.join(chosen)} look at different files (PNG, JPEG)", hint="compare them in calls of their own"
        )
    return chosen


def compare(
    run: Run,
    reference: str = UNPRUNED,
    scorers: Sequence[str] = (),
    labels: Sequence[str] = (),
    *,
    margins: Mapping[str, float] | None = None,
    resamples: int = paired.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares policies with a reference.

    Args:
        labels: policies, or none for all; the reference is always among them.
        margins: loss that counts as none by scorer, in its own unit.

    Raises:
        ConfigError: the run has no such policy or scores, or some are missing.
        IntegrityError: pictures are missing or damaged.
    """
    names = scored_by(run, scorers)
    shown = [run.settings.policy(label) for label in dict.fromkeys((reference, *labels))]
    shown = (
        shown
        if labels
        else [run.settings.policy(reference)]
        + [policy for policy in run.settings.policies if policy.label != reference]
    )
    scores = _all_scores(run, names, shown)
    statistics = _Statistics(run, reference, margins or {}, resamples, seed)
    results = {name: statistics.results(name, scores, shown) for name in names}
    compared = [policy.label for policy in shown if policy.label not in (reference, NULL)]
    if adjusted := len(compared) > MOST_UNADJUSTED:
        results = {name: _adjusted(found, compared) for name, found in results.items()}
    costs = _costs(run, shown, reference, seed)
    policies = tuple(
        PolicyResult(
            policy, costs[policy.label], {n: results[n][policy.label] for n in names if policy.label in results[n]}
        )
        for policy in shown
    )
    settings = {name: scorer_settings(run, name) for name in names}
    return Comparison(run, reference, settings, policies, scores, resamples, seed, adjusted)


def _all_scores(run: Run, names: Sequence[str], policies: Sequence[RunPolicy]) -> dict[tuple[str, str], np.ndarray]:
    scores = dict[tuple[str, str], np.ndarray]()
    twins = twins_of(run, any(kind_of(name).needs_twin for name in names))
    for name in names:
        mark, needs_twin = fingerprint(scorer_settings(run, name)), kind_of(name).needs_twin
        for policy in policies:
            if not (needs_twin and policy.label == UNPRUNED):
                scores[name, policy.label] = read_scores(run, name, mark, policy, twins if needs_twin else {})
    return scores


@dataclass(frozen=True)
class _Statistics:
    """Statistics of a comparison, all with the same resampling."""

    run: Run
    reference: str
    margins: Mapping[str, float]
    resamples: int
    seed: int

    def results(
        self, name: str, scores: Mapping[tuple[str, str], np.ndarray], policies: Sequence[RunPolicy]
    ) -> dict[str, Result]:
        """Results of a scorer by policy."""
        found = {p.label: scores[name, p.label].mean(axis=1) for p in policies if (name, p.label) in scores}
        kind, base = kind_of(name), found.get(self.reference)
        return {
            label: Result(
                self._mean(kind, values),
                self._by_tag(kind, values),
                None if base is None or label == self.reference else self._difference(name, values, base),
            )
            for label, values in found.items()
        }

    def _tags(self) -> list[str | None]:
        return [prompt.tag for prompt in self.run.prompts]

    def _mean(self, kind: ScorerKind, values: np.ndarray) -> Estimate:
        return paired.mean(Sample(values, paired.tag_numbers(self._tags())), kind.is_verdict, self.seed, self.resamples)

    def _by_tag(self, kind: ScorerKind, values: np.ndarray) -> dict[str, Estimate]:
        tags = np.array([str(tag) for tag in self._tags()])
        names = [tag for tag in dict.fromkeys(self._tags()) if tag is not None]
        return {
            tag: paired.mean(Sample(values[tags == tag]), kind.is_verdict, self.seed, self.resamples) for tag in names
        }

    def _difference(self, name: str, values: np.ndarray, base: np.ndarray) -> Difference:
        kind = kind_of(name)
        gained = values - base if kind.higher_is_better else base - values
        sample = Sample(gained, paired.tag_numbers(self._tags()))
        signs = paired.signs(gained)
        estimate = paired.difference(sample, kind.is_verdict, self.seed, self.resamples)
        p = paired.mcnemar(signs) if kind.is_verdict else paired.sign_flip_test(sample, self.seed, self.resamples)
        margin = self.margins.get(name, kind.margin)
        if margin is None:
            return Difference(estimate, signs, p)
        loss = paired.loss_test(sample, margin, kind.is_verdict, self.seed, self.resamples)
        return Difference(estimate, signs, p, margin, loss, paired.prompts_needed(sample, margin, kind.is_verdict))


def _adjusted(results: Mapping[str, Result], compared: Sequence[str]) -> dict[str, Result]:
    """Results whose p-values are adjusted for the number of policies compared (Holm)."""
    from dataclasses import replace

    given = {label: results[label].difference for label in compared if label in results}
    known = {label: found for label, found in given.items() if found is not None}
    p_values = paired.holm([found.p_value for found in known.values()])
    losses = [found.loss_p_value for found in known.values()]
    loss_p_values = paired.holm([1.0 if p is None else p for p in losses])
    changed = {
        label: replace(found, p_value=p, loss_p_value=None if found.loss_p_value is None else loss)
        for (label, found), p, loss in zip(known.items(), p_values, loss_p_values, strict=True)
    }
    return {
        label: replace(result, difference=changed.get(label, result.difference)) for label, result in results.items()
    }


def _costs(run: Run, policies: Sequence[RunPolicy], reference: str, seed: int) -> dict[str, Cost]:
    times = read_times(run)
    seconds = seconds_by_policy(times)
    drawn = {policy.label: all_pictures(run, [policy]) for policy in policies}
    base = _operations(drawn[reference])
    return {
        label: Cost(
            tokens=float(np.mean([p.record.tokens for p in pictures])),
            share=sum(p.record.tokens for p in pictures) / sum(p.record.tokens_full for p in pictures),
            operations=base / max(1, _operations(pictures)),
            speedup=speedup(times, reference, label, seed),
            seconds=seconds.get(label),
            stop_rate=float(np.mean([p.record.stopped_after is not None for p in pictures])),
        )
        for label, pictures in drawn.items()
    }


def _operations(pictures: Sequence[Picture]) -> int:
    return sum(picture.record.operations for picture in pictures)
