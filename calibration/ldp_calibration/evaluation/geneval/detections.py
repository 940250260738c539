"""Objects in a picture, from the detector's logits: boxes, scores and masks, as GenEval's detector gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ldp_calibration.evaluation.networks.inputs import detector_size

#: Most detections of a picture, and how many of their masks are enlarged at once.
_MOST, _AT_ONCE = 100, 10


@dataclass(frozen=True)
class Detection:
    """An object in a picture.

    Attributes:
        label: number of its class.
        box: left, top, right, bottom and score, float32 [5].
        mask: True at its pixels [H, W].
    """

    label: int
    box: np.ndarray
    mask: np.ndarray


def detections(
    class_logits: Tensor, mask_logits: Tensor, width: int, height: int, least_score: float = 0.0
) -> list[Detection]:
    """Detections of a picture of a size, in the detector's order.

    A query may appear under several classes. Boxes enclose the masks; an empty mask has a box and a score of zero.

    Args:
        class_logits: [queries, classes + 1]; the last class is the background.
        mask_logits: [queries, h, w], at a quarter of the padded input.
        least_score: leaves out objects whose class is less likely than this, which no mask can make likelier.
    """
    likely = class_logits.float().softmax(-1)[:, :-1]
    scores, places = likely.flatten().topk(min(_MOST, likely.numel()), sorted=False)
    wanted = scores > least_score if least_score > 0 else torch.ones_like(scores, dtype=torch.bool)
    scores, places = scores[wanted], places[wanted]
    found = list[Detection]()
    for begin in range(0, len(scores), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        queries, labels = places[part] // likely.shape[1], places[part] % likely.shape[1]
        masks = _enlarged(mask_logits[queries].float(), width, height)
        found += _objects(labels, scores[part], masks)
    return found


def _enlarged(masks: Tensor, width: int, height: int) -> Tensor:
    """Mask logits [n, h, w] at the picture's size: first at the padded input's, then cut, then at the picture's."""
    padded = [4 * side for side in masks.shape[1:]]
    inner_width, inner_height = detector_size(width, height)
    large = functional.interpolate(masks[:, None], padded, mode="bilinear", align_corners=False)
    cut = large[:, :, :inner_height, :inner_width]
    return functional.interpolate(cut, (height, width), mode="bilinear", align_corners=False)[:, 0]


def _objects(labels: Tensor, scores: Tensor, logits: Tensor) -> Iterator[Detection]:
    inside = logits > 0
    sums = (logits.sigmoid() * inside).flatten(1).sum(1)
    scores = scores * (sums / (inside.flatten(1).sum(1) + 1e-6))
    for label, score, mask in zip(labels.tolist(), scores.cpu().numpy(), inside.cpu().numpy(), strict=True):
        yield Detection(label, np.array([*_enclosing(mask), score], dtype=np.float32), mask)


def _enclosing(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
