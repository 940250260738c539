"""Benchmarks by name: which prompts are drawn, how often each, and what judges the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import ConfigError, suggestion

from ldp_calibration.evaluation.prompts import EvaluationPrompt, read_prompts
from ldp_calibration.shapes.captions import CATEGORIES, Claim, Prompt, framed, sample_prompt
from ldp_calibration.shapes.scenes import COLOURS, KINDS, RELATIONS


@dataclass(frozen=True)
class Benchmark:
    """A set of prompts.

    Attributes:
        images: pictures of a prompt, unless the user asks for another number.
        scorers: what judges them, unless the user names others.
        model: name of the only model that it is for; None: any.
    """

    name: str
    prompts: tuple[EvaluationPrompt, ...]
    images: int = 1
    scorers: tuple[str, ...] = ("psnr", "ssim")
    model: str | None = None


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
    prompts = tuple(map(_with_claims, found.values()))
    return Benchmark("shapes", prompts, 1, ("shapes", "psnr", "ssim"), "infinity-shapes")


def _with_claims(prompt: Prompt) -> EvaluationPrompt:
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


#: Benchmarks by their names.
BENCHMARKS: dict[str, Callable[[], Benchmark]] = {"shapes": shapes}


def find_benchmark(name: str, manifest: Manifest) -> Benchmark:
    """A benchmark by its name, or the prompts (or classes) of a file.

    Raises:
        ConfigError: there is neither, or it is for another model.
    """
    if name not in BENCHMARKS:
        file = Path(name)
        if not file.exists() and not file.suffix:
            known = ", ".join(BENCHMARKS)
            raise ConfigError(
                f"unknown benchmark {name!r}", hint=f"{suggestion(name, BENCHMARKS)}one of {known}, or a prompts file"
            )
        benchmark = Benchmark(file.name, tuple(read_prompts(file)))
    else:
        benchmark = BENCHMARKS[name]()
    if benchmark.model not in (None, manifest.model.name):
        raise ConfigError(
            f"the benchmark {name} is for {benchmark.model}, and the bundle holds {manifest.model.name}",
            hint="name a file of prompts",
        )
    if not manifest.model.reads_text:
        _check_classes(benchmark.prompts, manifest)
    return benchmark


def _check_classes(prompts: Sequence[EvaluationPrompt], manifest: Manifest) -> None:
    from ldp_runtime.pipeline.request import check_labels

    try:
        labels = [int(prompt.text) for prompt in prompts]
    except ValueError as error:
        raise ConfigError(
            f"{manifest.model.name} draws classes: {error}", hint="write numbers such as 207, one a line"
        ) from error
    check_labels(manifest.model, labels)
