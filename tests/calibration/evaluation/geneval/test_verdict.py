"""GenEval's verdicts against the original's, in its words; and its summary."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from helpers.evaluation_goldens import VECTORS, verdict_cases, verdict_options
from ldp_calibration.evaluation.geneval.summary import summary
from ldp_calibration.evaluation.geneval.verdict import COLOURS, Verdict, judge, relations


def judged(case: dict[str, Any]) -> Verdict:
    logits = case.get("colors", {})
    return judge(
        case["metadata"],
        {name: np.array(rows, np.float32).reshape(-1, 5) for name, rows in case["detections"].items()},
        lambda name, numbers: [COLOURS[int(np.argmax(logits[name][i]))] for i in numbers],
        verdict_options(case.get("options", {})),
    )


def as_sets(reason: str) -> list[Any]:
    """Lines of a reason; two relations come from a set, whose order is none."""
    return [frozenset(re.split(r" found | and | target$", line)) for line in reason.split("\n")]


def test_verdicts_are_those_of_the_original() -> None:
    cases = list(verdict_cases())
    assert len(cases) > 1000
    for case in cases:
        found, expected = judged(case), case["expected"]
        assert (found.correct, as_sets(found.reason)) == (expected["correct"], as_sets(expected["reason"])), case["id"]
        assert {name: list(numbers) for name, numbers in found.kept.items()} == expected["kept"], case["id"]
        asked = [{"class": name, "indices": list(numbers)} for name, numbers in found.colour_queries]
        assert asked == expected["color_queries"], case["id"]


def test_summary_is_that_of_the_original() -> None:
    rows = [
        {
            "tag": case["metadata"]["tag"],
            "correct": judged(case).correct,
            "metadata": json.dumps(case["metadata"]),
        }
        for case in verdict_cases()
        if case["id"].startswith("random_")
    ]
    found = summary(rows)
    assert found.text() == (VECTORS / "geneval" / "random_summary.txt").read_text().rstrip()
    assert found.overall == pytest.approx(0.56133, abs=5e-6)


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no results"):
        summary([])


def test_a_position_to_what_comes_later_is_no_clause() -> None:
    asked = {
        "tag": "position",
        "include": [{"class": "cat", "count": 1, "position": ["above", 1]}, {"class": "dog", "count": 1}],
    }
    boxes = {name: np.array([[0, 0, 9, 9, 0.9]]) for name in ("cat", "dog")}
    with pytest.raises(ValueError, match="does not come before it"):
        judge(asked, boxes, lambda name, numbers: [])


def test_relations_of_boxes() -> None:
    def box(x: float, y: float) -> np.ndarray:
        return np.array([x, y, x + 10, y + 10, 1], np.float32)

    assert relations(box(0, 0), box(50, 0), 0.1) == ("left of",)
    assert relations(box(50, 60), box(0, 0), 0.1) == ("right of", "below")
    assert relations(box(1, 1), box(0, 0), 0.1) == ()
