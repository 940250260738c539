"""Self-test of scorers with their published weights: pictures whose scores their authors published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.folders import read_picture
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.scorers.scorer import Sample


@dataclass(frozen=True)
class Example:
    """A published score: of a picture for a prompt; `tolerance` covers devices and the digits that were published."""

    scorer: str
    picture: str
    prompt: str
    score: float
    tolerance: float


_OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"
_REWARDS = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)
_CAT = "A cat with two horns on its head"
#: Examples of HPSv2's (of the weights of 2.0) and ImageReward's authors. How the first was resized is not published.
EXAMPLES = (
    *(Example(name, weights.HPS_EXAMPLE, _CAT, 28.76, 0.1) for name in ("hpsv2.0", "hpsv2.0-no-antialias")),
    *(Example("imagereward", p, _OCEAN, r, 0.01) for p, r in zip(weights.REWARD_EXAMPLES, _REWARDS, strict=True)),
)


@dataclass(frozen=True)
class Checked:
    """An example with the score that it has here.

    Attributes:
        why: reason for which it was not scored, or does not count.
    """

    example: Example
    score: float | None
    why: str = ""

    @property
    def is_right(self) -> bool | None:
        """True if the score is the published one; None if there is none, or it does not count."""
        if self.score is None or self.why:
            return None
        return abs(self.score - self.example.score) <= self.example.tolerance


def selftest(wish: Wish, examples: Sequence[Example] = EXAMPLES) -> list[Checked]:
    """Scores the examples whose weights and pictures are in the folder.

    Raises:
        ConfigError: none are. IntegrityError: a file is damaged, or another one.
    """
    folder = wish.weights
    if folder is None or not folder.is_dir():
        raise ConfigError(
            "the self-test needs a folder of weights" if folder is None else f"there is no folder of weights {folder}",
            hint="ldp-export evaluate fetch --weights DIR hpsv2.0 imagereward selftest, then --weights DIR here",
        )
    found = _one_of_each(list(_checked(wish, folder, examples)))
    if all(one.score is None for one in found):
        raise ConfigError(
            f"{folder} holds none of what the self-test needs: {'; '.join(dict.fromkeys(one.why for one in found))}",
            hint=f"ldp-export evaluate fetch --weights {folder} hpsv2.0 imagereward selftest",
        )
    return found


def _one_of_each(found: Sequence[Checked]) -> list[Checked]:
    """Leaves aside what another scorer of the same picture gets right: the published score is of one of them."""
    right = {(one.example.picture, one.example.prompt): one.example.scorer for one in found if one.is_right}
    return [
        replace(one, why=f"the published score is that of {better}")
        if one.is_right is False and (better := right.get((one.example.picture, one.example.prompt)))
        else one
        for one in found
    ]


def _checked(wish: Wish, folder: Path, examples: Sequence[Example]) -> Iterator[Checked]:
    for scorer in dict.fromkeys(one.scorer for one in examples):
        of_scorer = [one for one in examples if one.scorer == scorer]
        try:
            opened = open_scorer(scorer, wish=wish)
        except ConfigError as error:
            yield from (Checked(one, None, error.message) for one in of_scorer)
            continue
        for one in of_scorer:
            path = folder / one.picture
            if not path.is_file():
                yield Checked(one, None, f"{one.picture} is not in {folder}")
                continue
            weights.checked_hash(path, {path.name: (wish.networks or weights.Networks()).known.get(one.picture, "")})
            sample = Sample(read_picture(path, None), np.zeros((0, 0, 3), np.uint8), EvaluationPrompt(one.prompt))
            yield Checked(one, opened.score([sample])[0].value)
