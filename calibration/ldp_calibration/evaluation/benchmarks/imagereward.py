"""Benchmark `imagereward`: a hundred prompts that people asked for pictures of."""

from __future__ import annotations

from collections.abc import Mapping

from ldp_runtime.system.small_files import parse_json

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt

_PROMPTS = "benchmark-prompts.json"
#: Pictures of a prompt, as the protocol has it.
IMAGES = 10


def read(files: Mapping[str, bytes]) -> list[EvaluationPrompt]:
    """Prompts with their ids. Raises ValueError for another format."""
    return [EvaluationPrompt(entry["prompt"], None, {"id": entry["id"]}) for entry in parse_json(files[_PROMPTS])]
