"""Colours of objects: CLIP compares the object, cut out of its picture, with sentences that name its colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldp_calibration.evaluation.geneval.verdict import COLOURS
from ldp_calibration.evaluation.networks.clip import ClipNetwork
from ldp_calibration.evaluation.networks.inputs import clip_input

#: Ground that keeps the picture's own pixels around an object.
ORIGINAL = "original"


@dataclass(frozen=True)
class CutOptions:
    """Options of the official script for cutting objects out, with its defaults.

    Attributes:
        ground: colour around the object, or "original" for the picture's own.
        crop: cut the box out; else the whole picture is looked at.
    """

    ground: str = "#999"
    crop: bool = True


def sentences(name: str) -> list[list[str]]:
    """Sentences of each colour, for an object of a class."""
    return [
        [f"a photo of a {c} {name}", f"a photo of a {c}-colored {name}", f"a photo of a {c} object"] for c in COLOURS
    ]


def cut_out(image: Any, box: np.ndarray, mask: np.ndarray | None, options: CutOptions = CutOptions()) -> Any:
    """Cuts an object out of a PIL image: a ground around its mask, then its box, black beyond the picture.

    Args:
        mask: True at the object's pixels [H, W]; None: the picture stays as it is.
    """
    from PIL import Image

    if mask is not None:
        ground = image if options.ground == ORIGINAL else Image.new("RGB", image.size, options.ground)
        image = Image.composite(image, ground, Image.fromarray(mask))
    return image.crop(tuple(map(float, box[:4]))) if options.crop else image


class ColourClassifier:
    """Colours of objects, with the classes' sentences encoded once each."""

    def __init__(self, clip: ClipNetwork, options: CutOptions = CutOptions()) -> None:
        self._clip, self._options = clip, options
        self._vectors = dict[str, Tensor]()

    def vectors(self, name: str) -> Tensor:
        """Vectors of the colours for a class [width, colours]."""
        if name not in self._vectors:
            texts = sentences(name)
            encoded = self._clip.texts([text for colour in texts for text in colour])
            mean = encoded.view(len(texts), len(texts[0]), -1).mean(1)
            self._vectors[name] = (mean / mean.norm(dim=-1, keepdim=True)).T
        return self._vectors[name]

    def logits(self, name: str, inputs: Tensor) -> Tensor:
        """Logits [n, colours] of objects of a class, of their inputs [n, 3, side, side]."""
        return 100 * self._clip.images(inputs) @ self.vectors(name)

    def colours(
        self, image: Any, name: str, boxes: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
    ) -> list[str]:
        """Colours of the objects of a class in a PIL image; the first of equal ones."""
        cuts = [cut_out(image, box, mask, self._options) for box, mask in zip(boxes, masks, strict=True)]
        inputs = torch.stack([clip_input(cut, self._clip.side) for cut in cuts])
        return [COLOURS[i] for i in self.logits(name, inputs).argmax(1).tolist()]
