"""Scorers by name: each gives a picture one number, by itself or against its unpruned twin."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError, suggestion
from ldp_runtime.system.installation import install

from ldp_calibration.evaluation.benchmarks import claims_of
from ldp_calibration.evaluation.prompts import EvaluationPrompt

#: Picture and twin [H, W, 3] uint8 (the twin is empty for scorers that need none), and the prompt.
ScoreFunction = Callable[[np.ndarray, np.ndarray, EvaluationPrompt], float]
#: Most numbers of a picture that one thread compares best.
_SMALL = 3 * 512 * 512
#: Ending of the names of scorers that look at JPEG files of the pictures, as in psnr-jpeg95.
_JPEG = re.compile(r"(.+)-jpeg([0-9]+)")


@dataclass(frozen=True)
class ScorerKind:
    """Properties of a scorer that are known before it is opened.

    Attributes:
        needs_twin: True if pictures are compared with the unpruned ones of the same prompt and number.
        is_verdict: True if scores are 1 or 0; they are told in percent, and differences in points.
        unit, digits: how means are written.
        higher_is_better: False for distances.
        margin: loss that counts as none unless the user says otherwise, in the scores' own unit; None: none is known.
    """

    name: str
    needs_twin: bool
    is_verdict: bool = False
    unit: str = ""
    digits: int = 3
    higher_is_better: bool = True
    margin: float | None = None

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
    """

    name: str
    kind: ScorerKind
    settings: Mapping[str, Any]
    score: ScoreFunction
    jpeg: int | None = None
    check: Callable[[EvaluationPrompt], object] = lambda prompt: None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Short hash of a scorer's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


#: Scorers by name.
KINDS = {
    kind.name: kind
    for kind in (
        ScorerKind("shapes", needs_twin=False, is_verdict=True, unit="%", digits=1, margin=0.02),
        ScorerKind("psnr", needs_twin=True, unit=" dB", digits=2),
        ScorerKind("ssim", needs_twin=True, digits=4),
        ScorerKind("lpips", needs_twin=True, digits=4, higher_is_better=False),
    )
}


def kind_of(name: str) -> ScorerKind:
    """Kind of a scorer by its name, which may end in -jpegQUALITY. Raises ConfigError for an unknown one."""
    plain, _ = _split(name)
    if plain not in KINDS:
        raise ConfigError(f"unknown scorer {name!r}", hint=f"{suggestion(plain, KINDS)}there are {', '.join(KINDS)}")
    return KINDS[plain]


def _split(name: str) -> tuple[str, int | None]:
    found = _JPEG.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def jpeg_quality(name: str) -> int | None:
    """Quality of the JPEG files that a scorer of this name looks at."""
    return _split(name)[1]


def open_scorer(name: str, jpeg: int | None = None, weights: Path | None = None) -> Scorer:
    """Opens a scorer; nothing is downloaded.

    Args:
        jpeg: compare JPEG files of this quality, as the literature does; scorers of single pictures have no use of it.
        weights: folder of networks' weights.

    Raises:
        ConfigError: the name or the quality is none, or a library or weights are missing.
    """
    kind = kind_of(name)
    jpeg = _split(name)[1] if jpeg is None else jpeg
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise ConfigError(f"a JPEG quality lies in [1, 100], got {jpeg}", hint="--jpeg 95 is the literature's")
    if jpeg is not None and not kind.needs_twin:
        jpeg = None
    score, settings = _OPEN[kind.name](weights)
    files = "PNG" if jpeg is None else {"JPEG": jpeg, "subsampling": "4:2:0", "Pillow": _version("Pillow")}
    full = kind.name if jpeg is None else f"{kind.name}-jpeg{jpeg}"
    check = claims_of if kind.name == "shapes" else lambda prompt: None
    return Scorer(full, kind, {"scorer": kind.name, "pictures": files, **settings}, score, jpeg, check)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ConfigError(f"{package} is not installed", hint=install("eval")) from error


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)


def _open_psnr(_: Path | None) -> tuple[ScoreFunction, dict[str, Any]]:
    from ldp_calibration.fidelity import PSNR_CAP, psnr_db

    return lambda image, twin, _: psnr_db(_unit(image), _unit(twin)), {"cap_db": PSNR_CAP}


def _open_ssim(_: Path | None) -> tuple[ScoreFunction, dict[str, Any]]:
    from ldp_calibration.fidelity import ssim

    installed = _version("torchmetrics")
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < (1, 5):
        raise ConfigError(
            f"torchmetrics {installed} cuts the border off in SSIM", hint="pip install 'torchmetrics>=1.5'"
        )

    def score(image: np.ndarray, twin: np.ndarray, _: EvaluationPrompt) -> float:
        with _one_thread(image.size <= _SMALL):
            return ssim(_unit(image), _unit(twin))

    return score, {"torchmetrics": installed}


@contextmanager
def _one_thread(wanted: bool) -> Generator[None]:
    """Keeps PyTorch to one thread: of a small picture each gets so little that waiting for the others costs more."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open_lpips(weights: Path | None) -> tuple[ScoreFunction, dict[str, Any]]:
    from ldp_calibration.fidelity import lpips
    from ldp_calibration.perceptual import VGG_WEIGHTS, load_distance

    if weights is None:
        raise ConfigError("lpips needs the weights of a network", hint=f"--weights FOLDER, which holds {VGG_WEIGHTS}")
    load_distance(weights / VGG_WEIGHTS)  # refuses here what is missing
    settings = {"network": VGG_WEIGHTS, "version": "0.1"}
    return lambda image, twin, _: lpips(_unit(image), _unit(twin), weights / VGG_WEIGHTS), settings


def _open_shapes(_: Path | None) -> tuple[ScoreFunction, dict[str, Any]]:
    from ldp_calibration.shapes import evaluator

    rules = {name: getattr(evaluator, name) for name in ("MIN_CHROMA", "MIN_AREA", "MIN_OVERLAP")}
    settings = {"evaluator": evaluator_hash(), "scipy": _version("scipy"), **rules}
    return lambda image, _, prompt: float(evaluator.judge(image, claims_of(prompt))), settings


@cache
def evaluator_hash() -> str:
    """Hash of the evaluator's code, of which verdicts depend on every line."""
    from ldp_calibration.shapes import captions, evaluator, scenes

    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (captions, evaluator, scenes))
    return hashlib.sha256(code).hexdigest()[:16]


_OPEN: dict[str, Callable[[Path | None], tuple[ScoreFunction, dict[str, Any]]]] = {
    "shapes": _open_shapes,
    "psnr": _open_psnr,
    "ssim": _open_ssim,
    "lpips": _open_lpips,
}
