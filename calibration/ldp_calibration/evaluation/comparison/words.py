"""A comparison in words and tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ldp_calibration.evaluation.comparison import paired
from ldp_calibration.evaluation.comparison.compare import Comparison, Difference, PolicyResult
from ldp_calibration.evaluation.comparison.paired import Estimate
from ldp_calibration.evaluation.run import NULL
from ldp_calibration.evaluation.scorers.choose import kind_of
from ldp_calibration.evaluation.scorers.scorer import ScorerKind


@dataclass(frozen=True)
class Table:
    """Table of texts; all columns but the first are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def tables(comparison: Comparison) -> list[Table]:
    """Speed and tokens; each scorer's means and differences; and means by tag."""
    return [_costs(comparison), *(_scores(comparison, name) for name in comparison.scorers), *_by_tag(comparison)]


def _costs(comparison: Comparison) -> Table:
    columns = ("policy", "times faster", "s a prompt", "tokens", "of all", "fewer operations", "branch stopped")
    return Table("what is computed", columns, tuple(_cost_row(one) for one in comparison.policies))


def _cost_row(one: PolicyResult) -> tuple[str, ...]:
    cost = one.cost
    return (
        one.policy.label,
        "-" if cost.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*cost.speedup),
        "-" if cost.seconds is None else f"{cost.seconds:.3f}",
        f"{cost.tokens:.1f}",
        f"{cost.share:.0%}",
        f"{cost.operations:.2f}",
        f"{cost.stop_rate:.0%}",
    )


def _scores(comparison: Comparison, name: str) -> Table:
    kind, shown = kind_of(name), [one for one in comparison.policies if name in one.results]
    has_differences = any(one.results[name].difference for one in shown)
    unit = f" ({kind.unit.strip()})" if kind.unit else ""
    title = f"{name}{unit}{', against the unpruned picture' if kind.needs_twin else ''}"
    columns = ("policy", "mean [95 %]")
    if has_differences:
        gain = "points" if kind.is_verdict else "gain"
        p = "p, adjusted" if comparison.adjusted else "p"
        columns += (f"{gain} to {comparison.reference} [95 %]", "better", "equal", "worse", p, "no loss")
    rows = [(one.policy.label, _estimate(kind, one.results[name].mean)) for one in shown]
    if has_differences:
        rows = [
            (*row, *_difference_cells(kind, one.results[name].difference)) for row, one in zip(rows, shown, strict=True)
        ]
    return Table(title, columns, tuple(rows))


def _difference_cells(kind: ScorerKind, found: Difference | None) -> tuple[str, ...]:
    if found is None:
        return ("",) * 6
    signs, shown = found.signs, {None: "", True: "shown", False: "not shown"}[found.is_non_inferior]
    counts = (str(signs.better), str(signs.equal), str(signs.worse))
    return _estimate(kind, found.estimate, sign="+"), *counts, _p(found.p_value), shown


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _estimate(kind: ScorerKind, found: Estimate, sign: str = "") -> str:
    def text(value: float) -> str:
        return f"{kind.scale * value:{sign}.{kind.digits}f}"

    if found.low is None or found.high is None:
        return text(found.value)
    return f"{text(found.value)} [{text(found.low)}, {text(found.high)}]"


def _by_tag(comparison: Comparison) -> Iterator[Table]:
    """Means by tag: of verdicts, whose tags differ most; of numbers where there are none."""
    names = [name for name in comparison.scorers if kind_of(name).is_verdict] or list(comparison.scorers)[:1]
    for name in names:
        shown = [one for one in comparison.policies if name in one.results]
        tags = list(shown[0].results[name].by_tag) if shown else []
        if tags:
            rows = [
                (one.policy.label, *(_estimate(kind_of(name), one.results[name].by_tag[tag]) for tag in tags))
                for one in shown
            ]
            yield Table(f"{name} by tag", ("policy", *tags), tuple(rows))


def sentences(comparison: Comparison) -> list[str]:
    """Conclusions of a comparison and their limits, a sentence a policy and scorer."""
    return [
        sentence
        for name in comparison.scorers
        for one in comparison.policies
        if name in one.results and (sentence := _sentence(comparison, name, one))
    ]


def _sentence(comparison: Comparison, name: str, one: PolicyResult) -> str:
    kind, found, reference = kind_of(name), one.results[name].difference, comparison.reference
    if found is None:
        return ""
    label = one.policy.label
    if found.estimate.low is None or found.estimate.high is None:
        return f"{label}: too few prompts to say anything of {name}"
    low = f"{kind.scale * found.estimate.low:+.{kind.digits}f}"
    interval = f"95 % interval {low} to {_signed(kind, found.estimate.high)}"
    if label == NULL:
        return f"{label}: other seeds alone move {name} by {_signed(kind, found.estimate.value)} ({interval})"
    moved = f"{name} {_signed(kind, found.estimate.value)} against {reference}, {interval}"
    if found.margin is None:
        return f"{label}: {moved}; no margin is given (--margin {name}=...)"
    margin = _plain(kind, found.margin)
    if found.is_equivalent:
        return f"{label} is equivalent to {reference}: {moved}, within {margin} on both sides"
    if found.is_non_inferior:
        return f"{label} is non-inferior to {reference}: {moved}; a loss of {margin} or more is ruled out"
    if found.estimate.high <= -found.margin:
        return f"{label} is worse than {reference}: {moved}, a loss of {margin} or more"
    if found.estimate.high < 0:
        return f"{label} loses: {moved}; a loss of {margin} is not ruled out"
    needed = "" if found.needed is None else f"; if it loses nothing, {found.needed:,} prompts would show it"
    count = f" (here {found.signs.count:,}; four runs in five)" if needed else ""
    adjusted = ", adjusted for the number of policies" if found.estimate.low > -found.margin else ""
    unsure = f"{label} is not shown to be non-inferior: {moved}; a loss of {margin} is not ruled out"
    return unsure + adjusted + needed + count


def _signed(kind: ScorerKind, value: float) -> str:
    return f"{kind.scale * value:+.{kind.digits}f}{' points' if kind.is_verdict else kind.unit}"


def _plain(kind: ScorerKind, value: float) -> str:
    return f"{kind.scale * value:g}{' points' if kind.is_verdict else kind.unit}"


def notes(comparison: Comparison) -> list[str]:
    """Settings of the comparison that its figures depend on."""
    run, settings = comparison.run, comparison.run.settings
    drawn = f"{len(run.prompts)} prompts"
    if settings.limit < settings.prompts:
        drawn = f"the first {settings.limit} of {settings.prompts} prompts"
    numbered = paired.tag_numbers([prompt.tag for prompt in run.prompts])
    has_tags = any(prompt.tag for prompt in run.prompts)
    weighting = "each tag counts alike" if numbered is not None else "each prompt counts alike"
    if has_tags and numbered is None:
        weighting += ", as some tags have too few prompts to be resampled alone"
    found = [
        f"{settings.benchmark}: {drawn}, {settings.images} picture{'s' * (settings.images > 1)} each, seeds from "
        f"{settings.seed}, {settings.picture_format}; {settings.model} {settings.bundle[:16]}, {settings.backend}, "
        f"{settings.precision}, {settings.device}",
        f"intervals hold 95 %: prompts resampled {comparison.resamples:,} times from seed {comparison.seed}; "
        f"{weighting}; of verdicts at least as wide as score intervals",
        "p: exact McNemar test of verdicts (prompts by sign), sign-flip test of numbers"
        + (", adjusted for their number (Holm)" if comparison.adjusted else ""),
    ]
    if any(one.cost.speedup for one in comparison.policies):
        found.append("times faster: paired by prompt while drawing; `ldp-export bench` measures alone on the machine")
    equal = [f"{label} {count}" for label, count in _equal_to_twin(comparison) if count]
    if equal:
        found.append(f"pictures equal to their unpruned twin, which count as 60 dB: {', '.join(equal)}")
    return found


def _equal_to_twin(comparison: Comparison) -> Iterator[tuple[str, int]]:
    from ldp_calibration.fidelity import PSNR_CAP

    for (name, label), scores in comparison.scores.items():
        if kind_of(name).name == "psnr":
            yield label, int((scores >= PSNR_CAP).sum())


def as_markdown(comparison: Comparison) -> str:
    """The comparison as a page."""
    parts = [f"# {comparison.run.settings.benchmark}: policies against {comparison.reference}"]
    parts += [f"## {table.title}\n\n{table.markdown()}" for table in tables(comparison)]
    listed = "\n".join(f"- {_cell(text)}" for text in sentences(comparison))
    if listed:
        parts.append(f"## In words\n\n{listed}")
    parts.append("## Settings\n\n" + "\n".join(f"- {_cell(text)}" for text in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain numbers, with the settings that they depend on."""
    settings = comparison.run.settings
    return {
        "format": 1,
        "run": settings.model_dump(exclude={"policies"}),
        "reference": comparison.reference,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "p_values_adjusted": comparison.adjusted,
        "scorers": dict(comparison.scorers),
        "policies": [_policy_json(one) for one in comparison.policies],
        "speed": {
            one.policy.label: {"speedup": one.cost.speedup, "seconds": one.cost.seconds} for one in comparison.policies
        },
        "words": sentences(comparison),
    }


def _policy_json(one: PolicyResult) -> dict[str, Any]:
    cost = {key: value for key, value in asdict(one.cost).items() if key not in ("speedup", "seconds")}
    return {
        "label": one.policy.label,
        "policy": one.policy.policy,
        **cost,
        "results": {
            name: _result_json(result.mean, result.by_tag, result.difference) for name, result in one.results.items()
        },
    }


def _result_json(mean: Estimate, by_tag: Any, difference: Difference | None) -> dict[str, Any]:
    found: dict[str, Any] = {"mean": asdict(mean), "by_tag": {tag: asdict(one) for tag, one in by_tag.items()}}
    if difference is not None:
        found["difference"] = {
            **asdict(difference),
            "non_inferior": difference.is_non_inferior,
            "equivalent": difference.is_equivalent,
        }
    return found
