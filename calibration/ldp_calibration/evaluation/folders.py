"""Fidelity of two plain folders of pictures, by the figures that the literature on pruning reports.

Means over pictures, and the PSNR of all pixels together, as torchmetrics computes them (1.5 or newer, data range 0 to
1). Unlike scripts that pass over what has no partner, an unmatched picture is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError, IntegrityError

from ldp_calibration.evaluation.pictures import pixels

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
#: Most files that a message names.
_NAMED = 10
#: LPIPS of tensors [B, 3, H, W] in [0, 1].
Distance = Any


@dataclass(frozen=True)
class PairFidelity:
    """Fidelity of one picture: PSNR in dB (infinite for equal pictures), SSIM, LPIPS or None."""

    psnr: float
    ssim: float
    lpips: float | None


@dataclass(frozen=True)
class FolderFidelity:
    """Fidelity of a folder.

    Attributes:
        psnr, ssim, lpips: means over pictures; one equal pair makes the mean PSNR infinite.
        dataset_psnr: PSNR of all pixels together.
        pictures: by their path in the folder.
        equal: number of pictures that equal their partner.
    """

    psnr: float
    dataset_psnr: float
    ssim: float
    lpips: float | None
    pictures: Mapping[str, PairFidelity]

    @property
    def equal(self) -> int:
        return sum(one.psnr == inf for one in self.pictures.values())


def folder_fidelity(
    candidate: Path, reference: Path, distance: Distance | None = None, jpeg: int | None = None
) -> FolderFidelity:
    """Fidelity of the pictures of one folder to those of the same paths in another.

    Args:
        distance: LPIPS, such as a `PerceptualDistance`; None leaves it out.
        jpeg: quality of the JPEG files that pictures are compared as; None: as they are.

    Raises:
        ConfigError: a folder holds no pictures, or pictures without a partner, or of another size.
        IntegrityError: a picture cannot be read.
    """
    pictures, squares, count = dict[str, PairFidelity](), 0.0, 0
    for name in _pairs(candidate, reference):
        image, other = (read_picture(folder / name, jpeg) for folder in (candidate, reference))
        if image.shape != other.shape:
            raise ConfigError(
                f"{name} is {image.shape[1]}x{image.shape[0]} in {candidate}, and {other.shape[1]}x{other.shape[0]} in "
                f"{reference}",
                hint="compare pictures of one size",
            )
        pictures[name] = _pair(image, other, distance)
        error = np.square(image.astype(np.float64) - other.astype(np.float64))
        squares, count = squares + float(error.sum()), count + error.size
    ones = list(pictures.values())
    lpips = [one.lpips for one in ones if one.lpips is not None]
    return FolderFidelity(
        float(np.mean([one.psnr for one in ones])),
        _decibels(squares / count),
        float(np.mean([one.ssim for one in ones])),
        float(np.mean(lpips)) if lpips else None,
        pictures,
    )


def _pairs(candidate: Path, reference: Path) -> list[str]:
    """Paths of pictures that both folders hold."""
    names = [pictures_of(folder) for folder in (candidate, reference)]
    single = sorted(names[0] ^ names[1])
    if single:
        more = f" and {len(single) - _NAMED} more" if len(single) > _NAMED else ""
        raise ConfigError(
            f"{len(single)} pictures are in one of the two folders only: {', '.join(single[:_NAMED])}{more}",
            hint="take them out, or add their partners: none is passed over",
        )
    return sorted(names[0])


def pictures_of(folder: Path) -> set[str]:
    """Paths of the pictures below a folder. Raises ConfigError if there are none."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS}
    if not found:
        raise ConfigError(f"there are no pictures in {folder}", hint=f"name a folder of {', '.join(_ENDINGS)}")
    return found


def read_picture(path: Path, jpeg: int | None) -> np.ndarray:
    """Pixels [H, W, 3] of a file, as a JPEG file of a quality if one is given. Raises IntegrityError if it is none."""
    try:
        return pixels(path.read_bytes(), jpeg)
    except OSError as error:  # Pillow's own errors are of this kind
        raise IntegrityError(f"{path} cannot be read as a picture: {error}", hint="draw or copy it anew") from error


def _decibels(error: float) -> float:
    """PSNR of a mean squared error of bytes."""
    return inf if error == 0 else -10 * log10(error / 255**2)


def _pair(image: np.ndarray, other: np.ndarray, distance: Distance | None) -> PairFidelity:
    from ldp_calibration.fidelity import as_tensor, ssim

    a, b = (x.astype(np.float32) / np.float32(255) for x in (image, other))
    error = float(np.square(image.astype(np.float64) - other.astype(np.float64)).mean())
    lpips = None if distance is None else float(distance(as_tensor(a), as_tensor(b)))
    return PairFidelity(_decibels(error), ssim(a, b), lpips)
