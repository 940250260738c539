"""Benchmark `hpsv2`: prompts of four styles."""

from __future__ import annotations

from collections.abc import Mapping

from ldp_runtime.system.small_files import parse_json

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.benchmarks.published import STYLES

#: Pictures of a prompt, as the protocol has it.
IMAGES = 1


def read(files: Mapping[str, bytes]) -> list[EvaluationPrompt]:
    """Prompts tagged by style, with their number in it. Raises ValueError for another format."""
    return [
        EvaluationPrompt(text, style, {"index": i})
        for style in STYLES
        for i, text in enumerate(parse_json(files[f"{style}.json"]))
    ]
