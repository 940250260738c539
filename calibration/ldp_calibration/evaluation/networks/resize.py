"""Resizing of bytes by whole numbers, bit for bit as OpenCV's `INTER_LINEAR` does, without OpenCV."""

from __future__ import annotations

import numpy as np

#: Weights of a pixel are multiples of 1 / 2048.
_ONE = 2048


def linear_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Image [H, W, C] uint8 resized to [height, width, C], bilinear, not antialiased."""
    if image.shape[:2] == (height, width):
        return image
    columns, right, left_weight, right_weight = _taps(image.shape[1], width, is_row=True)
    rows, below, top_weight, bottom_weight = _taps(image.shape[0], height, is_row=False)
    source = image.astype(np.int32)
    lines = source[:, columns] * left_weight[:, None] + source[:, right] * right_weight[:, None]  # [H, width, C]
    lines >>= 4
    upper = (lines[rows] * top_weight[:, None, None]) >> 16
    lower = (lines[below] * bottom_weight[:, None, None]) >> 16
    return np.clip((upper + lower + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(size: int, wanted: int, is_row: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two source pixels of each wanted one, and their weights [wanted] each.

    Args:
        is_row: True along a row, where a pixel beyond the border gives its whole weight to the pixel at the border.
            Between rows the border's own row is weighted twice, and rounded twice.
    """
    place = ((np.arange(wanted) + 0.5) * (size / wanted) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if is_row:
        share[(first < 0) | (first >= size - 1)] = 0
    near, far = (np.rint(part * np.float32(_ONE)).astype(np.int32) for part in (np.float32(1) - share, share))
    return np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1), near, far
