"""Scorer: what is known of it beforehand, its settings, and how it scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError
from ldp_runtime.system.installation import install

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt


@dataclass(frozen=True)
class Sample:
    """A picture to score.

    Attributes:
        image, twin: [H, W, 3] uint8; the twin is empty for scorers that need none.
        policy: label of the policy that drew it; number: of the picture among those of its prompt.
    """

    image: np.ndarray
    twin: np.ndarray
    prompt: EvaluationPrompt
    policy: str = ""
    number: int = 0


@dataclass(frozen=True)
class Score:
    """Score of a picture; `facts` say how it came about, as JSON."""

    value: float
    facts: Mapping[str, Any] = field(default_factory=dict)


#: Scores of pictures, in their order.
ScoreFunction = Callable[[Sequence[Sample]], list[Score]]


def one_by_one(score: Callable[[np.ndarray, np.ndarray, EvaluationPrompt], float]) -> ScoreFunction:
    """Scores of pictures by a function of picture, twin and prompt."""
    return lambda samples: [Score(score(one.image, one.twin, one.prompt)) for one in samples]


@dataclass(frozen=True)
class ScorerKind:
    """Properties of a scorer that are known before it is opened.

    Attributes:
        needs_twin: True if pictures are compared with the unpruned ones of the same prompt and number.
        is_verdict: True if scores are 1 or 0; they are told in percent, and differences in points.
        unit, digits: how means are written.
        higher_is_better: False for distances.
        margin: loss that counts as none unless the user says otherwise, in the scores' own unit; None: none is known.
        extra: of this package, which brings the scorer's libraries.
    """

    name: str
    needs_twin: bool = False
    is_verdict: bool = False
    unit: str = ""
    digits: int = 3
    higher_is_better: bool = True
    margin: float | None = None
    extra: str = "eval"

    @property
    def scale(self) -> float:
        """Factor between scores and what is written: verdicts are written in percent."""
        return 100.0 if self.is_verdict else 1.0


@dataclass(frozen=True)
class Scorer:
    """A scorer, ready to score.

    Attributes:
        name: as in the run's folder; its kind's name, with the JPEG quality if there is one.
        settings: everything that its numbers depend on; numbers of other settings are never mixed.
        jpeg: quality of the JPEG files that the pictures are compared as, or None.
        check: raises ConfigError for a prompt whose pictures it cannot judge.
        batch: number of pictures that it scores at a time.
    """

    name: str
    kind: ScorerKind
    settings: Mapping[str, Any]
    score: ScoreFunction
    jpeg: int | None = None
    check: Callable[[EvaluationPrompt], object] = lambda prompt: None
    batch: int = 1

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of a scorer's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def installed_version(package: str, extra: str = "eval") -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ConfigError(f"{package} is not installed", hint=install(extra)) from error
