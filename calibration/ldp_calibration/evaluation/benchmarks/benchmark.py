"""Benchmark: which prompts are drawn, how often each, and what judges the pictures."""

from __future__ import annotations

from dataclasses import dataclass

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt


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
