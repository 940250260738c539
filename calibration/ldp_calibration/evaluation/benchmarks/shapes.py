"""Benchmark `shapes`: the small world of the embedded model, by the six kinds of GenEval's prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.shapes.captions import CATEGORIES, Claim, Prompt, framed, sample_prompt
from ldp_calibration.shapes.scenes import COLOURS, KINDS, RELATIONS

#: Number of prompts of `shapes`, and the seed that they are drawn from.
_SHAPES, _SHAPES_SEED = 500, 24


def shapes() -> Benchmark:
    """The small world of shapes, by the six kinds of GenEval's prompts, for the embedded model.

    All prompts differ, and each is part of a sentence ("a picture of a red circle"). So none of them is one of those
    that calibration fits and searches on, or that policies were chosen by.
    """
    rng = np.random.default_rng((_SHAPES_SEED, 500))
    found: dict[str, Prompt] = {}
    while len(found) < _SHAPES:  # all kinds in turn, so that the first few are of all kinds too
        prompt = framed(sample_prompt(CATEGORIES[len(found) % len(CATEGORIES)], rng), rng)
        found.setdefault(prompt.text, prompt)
    prompts = tuple(map(with_claims, found.values()))
    return Benchmark("shapes", prompts, 1, ("shapes", "psnr", "ssim"), "infinity-shapes")


def with_claims(prompt: Prompt) -> EvaluationPrompt:
    """A prompt of the small world as one of a benchmark, with what it claims."""
    facts: dict[str, Any] = {"claims": [[claim.kind, claim.colour] for claim in prompt.claims]}
    if prompt.count is not None:
        facts["count"] = prompt.count
    if prompt.relation is not None:
        facts["relation"] = prompt.relation
    return EvaluationPrompt(prompt.text, prompt.category, facts)


def claims_of(prompt: EvaluationPrompt) -> Prompt:
    """A prompt with its claims, for the evaluator of shapes.

    Raises:
        ConfigError: the prompt says nothing of shapes.
    """
    count, relation = prompt.facts.get("count"), prompt.facts.get("relation")
    try:
        claims = tuple(Claim(str(kind), colour) for kind, colour in prompt.facts["claims"])
        known = all(claim.kind in KINDS and claim.colour in (None, *COLOURS) for claim in claims)
        if not known or len(claims) not in (1, 2) or relation not in (None, *RELATIONS):
            raise ValueError
        if count is not None and (not isinstance(count, int) or len(claims) > 1):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the prompt {prompt.text[:80]!r} does not say which shapes it claims",
            hint='the scorer shapes judges --benchmark shapes, or a .jsonl with "claims": [["circle", "red"]]',
        ) from error
    return Prompt(prompt.tag or "", prompt.text, claims, count, relation)
