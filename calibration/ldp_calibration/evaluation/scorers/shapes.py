"""Scorer `shapes`: the evaluator of the small world finds what the prompt claims, or not."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ldp_calibration.evaluation.benchmarks.shapes import claims_of
from ldp_calibration.evaluation.scorers.opening import Opened, Wish
from ldp_calibration.evaluation.scorers.scorer import installed_version, one_by_one


def open_shapes(_: Wish) -> Opened:
    from ldp_calibration.shapes import evaluator

    rules = {name: getattr(evaluator, name) for name in ("MIN_CHROMA", "MIN_AREA", "MIN_OVERLAP")}
    settings = {"evaluator": evaluator_hash(), "scipy": installed_version("scipy"), **rules}
    score = one_by_one(lambda image, _, prompt: float(evaluator.judge(image, claims_of(prompt))))
    return Opened(score, settings, claims_of)


@cache
def evaluator_hash() -> str:
    """Hash of the evaluator's code, of which verdicts depend on every line."""
    from ldp_calibration.shapes import captions, evaluator, scenes

    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (captions, evaluator, scenes))
    return hashlib.sha256(code).hexdigest()[:16]
