"""Opening of a scorer: what a user asks for, and what every scorer's opening function gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.scorers.scorer import ScoreFunction

if TYPE_CHECKING:
    from ldp_calibration.evaluation.networks.weights import Networks

#: Precisions that networks compute in, by name.
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Wish:
    """Wish of a user for a scorer.

    Attributes:
        weights: folder of networks' weights; nothing is downloaded.
        device: "cpu", "cuda" or "cuda:1"; precision: of the networks.
        batch: pictures that networks look at together.
        answers: files of the official VQA's answers by policy, for DPG-Bench.
        networks: sizes and hashes of the networks; None: those that are published.
    """

    weights: Path | None = None
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 1
    answers: Mapping[str, Path] = field(default_factory=dict)
    networks: Networks | None = None

    def check(self) -> None:
        """Raises ConfigError for a device, precision or batch that there is not."""
        import torch

        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {self.precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
        if self.batch < 1:
            raise ConfigError(f"a batch holds at least 1 picture, got {self.batch}", hint="--batch 8")
        kind, _, number = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise ConfigError(f"cannot read the device {self.device!r}", hint="cpu, cuda or cuda:0")
        if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"there is no {self.device}: PyTorch finds {torch.cuda.device_count()} GPUs",
                hint="--device cpu, or install a PyTorch with CUDA",
            )


@dataclass(frozen=True)
class Opened:
    """A scorer's function, the settings that its numbers depend on, and what its prompts must be."""

    score: ScoreFunction
    settings: Mapping[str, Any]
    check: Callable[[EvaluationPrompt], object] = lambda prompt: None
    batch: int = 1


#: Wish that asks for nothing but the published networks on the CPU.
PLAIN = Wish()
#: Opens a scorer.
Open = Callable[[Wish], Opened]
