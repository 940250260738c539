"""Choice of a scorer by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ldp_runtime.errors import ConfigError, suggestion

from ldp_calibration.evaluation.scorers.opening import PLAIN, Opened, Wish
from ldp_calibration.evaluation.scorers.scorer import Scorer, ScorerKind, installed_version

#: Ending of the names of scorers that look at JPEG files of the pictures, as in psnr-jpeg95.
_JPEG = re.compile(r"(.+)-jpeg([0-9]+)")
#: Scorers by name.
KINDS = {
    kind.name: kind
    for kind in (
        ScorerKind("shapes", is_verdict=True, unit="%", digits=1, margin=0.02),
        ScorerKind("psnr", needs_twin=True, unit=" dB", digits=2),
        ScorerKind("ssim", needs_twin=True, digits=4),
        ScorerKind("lpips", needs_twin=True, digits=4, higher_is_better=False),
        ScorerKind("geneval", is_verdict=True, unit="%", digits=1, margin=0.01, extra="scorers"),
        ScorerKind("hpsv2.1", digits=2, margin=0.1, extra="scorers"),
        ScorerKind("hpsv2.1-no-antialias", digits=2, margin=0.1, extra="scorers"),
        ScorerKind("hpsv2.0", digits=2, margin=0.1, extra="scorers"),
        ScorerKind("hpsv2.0-no-antialias", digits=2, margin=0.1, extra="scorers"),
        ScorerKind("imagereward", digits=3, margin=0.02, extra="scorers"),
        ScorerKind("clip", digits=4, extra="scorers"),
        ScorerKind("dpg", digits=2, margin=0.5),
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


def open_scorer(name: str, jpeg: int | None = None, wish: Wish = PLAIN) -> Scorer:
    """Opens a scorer; nothing is downloaded.

    Args:
        jpeg: compare JPEG files of this quality, as the literature does; scorers of single pictures have no use of it.

    Raises:
        ConfigError: the name, the quality or another wish is none, or a library or weights are missing.
        IntegrityError: weights are damaged, or others than those that are published.
    """
    kind = kind_of(name)
    jpeg = _split(name)[1] if jpeg is None else jpeg
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise ConfigError(f"a JPEG quality lies in [1, 100], got {jpeg}", hint="--jpeg 95 is the literature's")
    if jpeg is not None and not kind.needs_twin:
        jpeg = None
    opened = _open(kind.name)(wish)
    files = "PNG" if jpeg is None else {"JPEG": jpeg, "subsampling": "4:2:0", "Pillow": installed_version("Pillow")}
    full = kind.name if jpeg is None else f"{kind.name}-jpeg{jpeg}"
    settings = {"scorer": kind.name, "pictures": files, **opened.settings}
    return Scorer(full, kind, settings, opened.score, jpeg, opened.check, opened.batch)


#: Module and function that open each scorer; the module is imported when the scorer is asked for.
_OPEN = {
    "shapes": "shapes.open_shapes",
    "psnr": "fidelity.open_psnr",
    "ssim": "fidelity.open_ssim",
    "lpips": "fidelity.open_lpips",
    "geneval": "geneval.open_geneval",
    "hpsv2.1": "preference.open_hps_v21",
    "hpsv2.1-no-antialias": "preference.open_hps_v21_no_antialias",
    "hpsv2.0": "preference.open_hps_v20",
    "hpsv2.0-no-antialias": "preference.open_hps_v20_no_antialias",
    "imagereward": "preference.open_imagereward",
    "clip": "preference.open_clip_score",
    "dpg": "dpg.open_dpg",
}


def _open(name: str) -> Callable[[Wish], Opened]:
    module, _, function = _OPEN[name].partition(".")
    found: Any = import_module(f"ldp_calibration.evaluation.scorers.{module}")
    return getattr(found, function)
