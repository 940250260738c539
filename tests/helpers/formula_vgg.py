"""VGG-16 with weights by a formula, in place of torchvision's, which are not here."""

from __future__ import annotations

import numpy as np
import torch

#: Channels of VGG-16's convolutions, and their numbers among its features.
_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def formula_weights(layer: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights by hashing their place, as where the golden figures were made."""
    mask = np.uint64(0xFFFFFFFF)
    n = np.arange(int(np.prod(shape)), dtype=np.uint64)
    x = (np.uint64(1664525) * n + np.uint64((1013904223 * layer + 12345) % 2**32)) & mask
    for shift, factor in ((16, 2246822519), (13, 3266489917)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & mask
    x ^= x >> np.uint64(16)
    weights = (2 * x.astype(np.float64) / 2**32 - 1) * np.sqrt(6 / np.prod(shape[1:]))
    return torch.from_numpy(weights.astype(np.float32)).reshape(shape)


def formula_vgg() -> dict[str, torch.Tensor]:
    """The network's features by torchvision's names; biases are zero."""
    state, before = dict[str, torch.Tensor](), 3
    for layer, (number, channels) in enumerate(zip(_NUMBERS, _CHANNELS, strict=True)):
        state[f"features.{number}.weight"] = formula_weights(layer, (channels, before, 3, 3))
        state[f"features.{number}.bias"] = torch.zeros(channels)
        before = channels
    return state
