"""Compares two results: a regression, or noise?

The runs were made at different times, so nothing is paired but the prompts, and the machine may have been slower in one
run. If both measured eager PyTorch, which no change of ours makes faster, every ratio is divided by eager's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ldp_calibration.stats import Times, unpaired_ratio
from ldp_runtime.errors import ConfigError

from ldp_export.bench.older_results import of_today
from ldp_export.bench.plan import EAGER
from ldp_export.bench.read_result import check_result
from ldp_export.bench.result import Scope, within

Verdict = Literal["slower", "faster", "no difference shown"]
#: Entries of the JSON, as (group, key), that two results must share to be compared.
_SAME = (
    ("hardware", "cpu"),
    ("hardware", "instructions"),
    ("hardware", "cores_usable"),
    ("hardware", "gpu"),
    ("hardware", "os"),
    ("settings", "threads"),
    ("settings", "device"),
    ("settings", "scope"),
    ("settings", "prompts"),
    ("settings", "classes"),
    ("settings", "seed"),
    ("model", "name"),
    ("model", "size"),
    ("model", "image"),
)


@dataclass(frozen=True)
class Change:
    """Change of one candidate: times of the second run's calls over those of the first, with a 95 % interval.

    Attributes:
        low, high: None where too few calls were measured for an interval.
        corrected: True if eager PyTorch's own ratio was divided out.
    """

    name: str
    batch: int
    before_ms: float
    after_ms: float
    ratio: float
    low: float | None
    high: float | None
    corrected: bool

    @property
    def verdict(self) -> Verdict:
        if self.low is not None and self.low > 1:
            return "slower"
        return "faster" if self.high is not None and self.high < 1 else "no difference shown"


def compare(before: dict[str, Any], after: dict[str, Any], seed: int = 0) -> list[Change]:
    """Changes of all candidates that both results hold.

    Raises:
        ConfigError: a result is damaged or holds NaN. Or they are of another format, hardware, model or setting, or
            share no candidate.
    """
    for place, result in {"first": before, "second": after}.items():
        check_result(place, result)
    _check_comparable(before, after)
    try:
        before, after = (of_today(result) for result in (before, after))
    except RecursionError as error:
        raise ConfigError("a result is damaged: it is nested without end", hint="measure it again") from error
    scope: Scope = before["settings"]["scope"]
    first, second = _samples(before, scope), _samples(after, scope)
    shared = [key for key in first if key in second and first[key].keys() & second[key].keys()]
    if not shared:
        raise ConfigError(
            "the two results share no candidate",
            hint="compare results of one bundle, measured with the same --policy and --batch",
        )
    changes = []
    for name, batch in shared:
        pair, eager = (first[name, batch], second[name, batch]), (EAGER, batch)
        control = (first[eager], second[eager]) if eager in shared and name != EAGER else None
        if control is not None and not set[int].intersection(*(set(times) for times in (*pair, *control))):
            control = None
        found = unpaired_ratio(*pair, control, seed)
        old, new = (float(np.median(np.concatenate(list(times.values())))) for times in pair)
        changes.append(Change(name, batch, old, new, found.value, found.low, found.high, control is not None))
    return changes


def _check_comparable(before: dict[str, Any], after: dict[str, Any]) -> None:
    differences = [
        f"{group}.{key}: {before[group].get(key)!r} and {after[group].get(key)!r}"
        for group, key in _SAME
        if before[group].get(key) != after[group].get(key)
    ]
    if differences:
        raise ConfigError(
            "the results cannot be compared, they differ in " + "; ".join(differences),
            hint="measure both on one machine with the same options",
        )


def _samples(result: dict[str, Any], scope: Scope) -> dict[tuple[str, int], Times]:
    """Times of every candidate and batch size within the scope, by prompt group."""
    samples: dict[tuple[str, int], Times] = {}
    for candidate in result["candidates"]:
        groups: dict[int, list[float]] = {}
        for sample in candidate["samples"]:
            parts = (sample[name] for name in ("wall_ms", "text_ms", "blocks_ms"))
            groups.setdefault(sample["group"], []).append(within(scope, *parts))
        samples[candidate["name"], candidate["batch"]] = {g: np.array(times) for g, times in groups.items()}
    return samples
