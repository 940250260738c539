"""Benchmark `geneval`: prompts whose claims name COCO's classes, and the same prompts rewritten by a language model."""

from __future__ import annotations

from collections.abc import Mapping

from ldp_runtime.system.small_files import parse_json, text_lines

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt

_PROMPTS, _REWRITTEN = "evaluation_metadata.jsonl", "prompt_rewrite_cache.json"
#: Pictures of a prompt, as the protocol has it.
IMAGES = 4


def read(files: Mapping[str, bytes]) -> list[EvaluationPrompt]:
    """Prompts with what they claim (`include`, `exclude`), tagged by task. Raises ValueError for another format."""
    prompts = list[EvaluationPrompt]()
    for line in text_lines(files[_PROMPTS]):
        entry = parse_json(line)
        text, tag = entry.pop("prompt"), entry.pop("tag")
        prompts.append(EvaluationPrompt(text, tag, entry))
    return prompts


def read_rewritten(files: Mapping[str, bytes]) -> list[EvaluationPrompt]:
    """Prompts whose text is the rewritten one; what they claim, and the prompt as it was, stay facts of them."""
    texts = parse_json(files[_REWRITTEN])
    return [
        EvaluationPrompt(texts[prompt.text], prompt.tag, {**prompt.facts, "original": prompt.text})
        for prompt in read(files)
    ]
