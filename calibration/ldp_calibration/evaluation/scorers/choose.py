"""Choice of a scorer by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError, suggestion

from ldp_calibration.evaluation.benchmarks.shapes import claims_of
from ldp_calibration.evaluation.scorers.fidelity import open_lpips, open_psnr, open_ssim
from ldp_calibration.evaluation.scorers.scorer import ScoreFunction, Scorer, ScorerKind, installed_version
from ldp_calibration.evaluation.scorers.shapes import open_shapes

#: Ending of the names of scorers that look at JPEG files of the pictures, as in psnr-jpeg95.
_JPEG = re.compile(r"(.+)-jpeg([0-9]+)")
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
    files = "PNG" if jpeg is None else {"JPEG": jpeg, "subsampling": "4:2:0", "Pillow": installed_version("Pillow")}
    full = kind.name if jpeg is None else f"{kind.name}-jpeg{jpeg}"
    check = claims_of if kind.name == "shapes" else lambda prompt: None
    return Scorer(full, kind, {"scorer": kind.name, "pictures": files, **settings}, score, jpeg, check)


_OPEN: dict[str, Callable[[Path | None], tuple[ScoreFunction, dict[str, Any]]]] = {
    "shapes": open_shapes,
    "psnr": open_psnr,
    "ssim": open_ssim,
    "lpips": open_lpips,
}
