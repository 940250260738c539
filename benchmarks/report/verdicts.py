"""Verdicts of a study, pruned and unpruned, compared as `evaluate compare` does; also of results committed earlier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ldp_calibration.evaluation.comparison import paired
from ldp_calibration.shapes import CATEGORIES


@dataclass(frozen=True)
class Gain:
    """Points of accepted pictures gained, their 95 % interval, and the verdict on a loss of the margin or more."""

    points: tuple[float, float, float]
    is_non_inferior: bool


def gains(result: Mapping[str, Any]) -> dict[str, Gain]:
    """Gain of each policy of a result on non-inferiority, from its verdicts: a sign a prompt, `+` for accepted."""
    first, margin = result["set"]["first_prompt"], result["margin_points"]
    signs = {policy: np.array([sign == "+" for sign in text], float) for policy, text in result["verdicts"].items()}
    return {policy: _gain(values - signs["none"], first, margin) for policy, values in signs.items()}


def _gain(differences: np.ndarray, first: int, margin: float) -> Gain:
    tags = (first + np.arange(len(differences))) % len(CATEGORIES)  # prompts are of all categories in turn
    sample = paired.Sample(differences, paired.tag_numbers([str(tag) for tag in tags]))
    found = paired.difference(sample, is_verdict=True, seed=0)
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    loss = paired.loss_test(sample, margin / 100, is_verdict=True, seed=0)
    return Gain((100 * found.value, 100 * low, 100 * high), loss < paired.ALPHA)
