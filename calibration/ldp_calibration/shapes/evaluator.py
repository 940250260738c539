"""Finds coloured shapes in an image and judges if they make a prompt true.

Each vivid pixel first takes the nearest colour of the palette. Connected pixels of one colour are then one object. Its
kind is the template that overlaps it best. Images come in as uint8 [H, W, 3]; needs scipy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from .captions import Prompt, holds
from .scenes import COLOURS, KINDS, coverage

MIN_CHROMA = 80  # greatest minus least channel; backgrounds stay below 60
MIN_AREA = 0.008  # of the image: half of the smallest shape, so blots of a blurred edge do not count
MIN_OVERLAP = 0.66  # intersection over union with the best template

_TEMPLATE_SIDE = 48


@dataclass(frozen=True)
class Found:
    """One object seen in an image.

    The centre is in fractions of the sides, the area a fraction of the image; `overlap` is with the object's template.
    """

    kind: str
    colour: str
    x: float
    y: float
    area: float
    overlap: float


@dataclass(frozen=True)
class Score:
    """Successes out of trials, with a 95 % Wilson interval."""

    passed: int
    total: int

    @property
    def rate(self) -> float:
        return self.passed / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.96, self.total, self.rate
        centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return (centre - half) / scale, (centre + half) / scale

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.total}"


def find_shapes(image: np.ndarray) -> list[Found]:
    """All objects whose shape is recognised, in reading order of their colours."""
    return [found for found in find_objects(image) if found.overlap >= MIN_OVERLAP]


def find_objects(image: np.ndarray) -> list[Found]:
    """All vivid objects of some size in an image [H, W, 3], each with its best template, however badly it fits."""
    from scipy import ndimage

    labels = nearest_colour(image)  # [H, W], -1 where muted
    objects = []
    for index, colour in enumerate(COLOURS):
        labelled: Any = ndimage.label(labels == index, structure=np.ones((3, 3)))
        parts, count = labelled
        boxes: Any = ndimage.find_objects(parts, max_label=count)
        for number, box in enumerate(boxes, start=1):
            mask = parts[box] == number
            if mask.sum() >= MIN_AREA * labels.size:
                objects.append(_describe(mask, box, colour, labels.shape))
    return objects


def object_mask(image: np.ndarray, margin: int = 2) -> np.ndarray:
    """Mask [H, W] of the vivid objects of some size in an image [H, W, 3] uint8, with `margin` pixels around them."""
    from scipy import ndimage

    labelled: Any = ndimage.label(nearest_colour(image) >= 0, structure=np.ones((3, 3)))
    parts, count = labelled
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    large = areas >= MIN_AREA * parts.size
    large[0] = False
    return ndimage.binary_dilation(large[parts], iterations=margin) if margin else large[parts]


def nearest_colour(image: np.ndarray) -> np.ndarray:
    """Index of the nearest palette colour for each pixel [H, W, 3] -> [H, W]; -1 at pixels that are not vivid."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}")
    pixels = image.astype(np.float32)
    palette = np.array(list(COLOURS.values()), np.float32)  # [colours, 3]
    # Brightness is divided out, as blending with a dark or light ground at an edge changes it most.
    hue, targets = _hue_vector(pixels), _hue_vector(palette)
    nearest = np.linalg.norm(hue[..., None, :] - targets, axis=-1).argmin(-1)
    return np.where(np.ptp(pixels, axis=-1) >= MIN_CHROMA, nearest, -1)


def judge(image: np.ndarray, prompt: Prompt) -> bool:
    """True if the image [H, W, 3] uint8 shows what the prompt claims."""
    return holds(prompt, find_shapes(image))


def score(judgements: Iterable[tuple[Prompt, bool]]) -> Mapping[str, Score]:
    """Scores by category, and their sum under "overall"."""
    tallies: dict[str, list[bool]] = {}
    for prompt, passed in judgements:
        tallies.setdefault(prompt.category, []).append(passed)
    tallies["overall"] = [passed for results in list(tallies.values()) for passed in results]
    return {name: Score(sum(results), len(results)) for name, results in tallies.items()}


def _hue_vector(pixels: np.ndarray) -> np.ndarray:
    """Colour without grey and without strength [..., 3]: the channels less their least, over their greatest."""
    chroma = pixels - pixels.min(-1, keepdims=True)
    return chroma / np.maximum(chroma.max(-1, keepdims=True), 1)


def _describe(mask: np.ndarray, box: tuple[slice, slice], colour: str, shape: tuple[int, ...]) -> Found:
    overlaps = {kind: _overlap(mask, kind) for kind in KINDS}
    kind = max(overlaps, key=overlaps.__getitem__)
    y, x = ((at.start + at.stop) / 2 / side for at, side in zip(box, shape, strict=True))
    return Found(kind, colour, x, y, float(mask.sum()) / (shape[0] * shape[1]), overlaps[kind])


def _overlap(mask: np.ndarray, kind: str) -> float:
    """Intersection over union of the mask in its box and the template stretched over that box.

    Stretching forgives a shape drawn a little too wide; one drawn much too wide is worth less.
    """
    template = _template(kind)  # [t, t]
    height, width = mask.shape
    rows = ((np.arange(height) + 0.5) / height * template.shape[0]).astype(int)
    columns = ((np.arange(width) + 0.5) / width * template.shape[1]).astype(int)
    fitted = template[rows][:, columns]
    aspect = template.shape[1] / template.shape[0]
    stretch = (width / height) / aspect
    return float((mask & fitted).sum() / (mask | fitted).sum()) * min(1.0, 1.25 * min(stretch, 1 / stretch))


@cache
def _template(kind: str) -> np.ndarray:
    """The shape as a mask cut to its own box."""
    cover = coverage(kind, 0.5, 0.5, 0.4, _TEMPLATE_SIDE * 2) > 0.5
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
