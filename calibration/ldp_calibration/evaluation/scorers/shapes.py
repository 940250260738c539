"""Scorer `shapes`: the evaluator of the small world finds what the prompt claims, or not."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from ldp_calibration.evaluation.benchmarks.shapes import claims_of
from ldp_calibration.evaluation.scorers.scorer import ScoreFunction, installed_version


def open_shapes(_: Path | None) -> tuple[ScoreFunction, dict[str, Any]]:
    from ldp_calibration.shapes import evaluator

    rules = {name: getattr(evaluator, name) for name in ("MIN_CHROMA", "MIN_AREA", "MIN_OVERLAP")}
    settings = {"evaluator": evaluator_hash(), "scipy": installed_version("scipy"), **rules}
    return lambda image, _, prompt: float(evaluator.judge(image, claims_of(prompt))), settings


@cache
def evaluator_hash() -> str:
    """Hash of the evaluator's code, of which verdicts depend on every line."""
    from ldp_calibration.shapes import captions, evaluator, scenes

    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (captions, evaluator, scenes))
    return hashlib.sha256(code).hexdigest()[:16]
