"""Partial images: a small decoder, fitted once to the bundle's own, that costs a hundredth of it.

A patch of pixels is a linear function of features of its latent: the latents around it, their products with each other,
and their products with the picture's mean and root mean square. The last two stand for the decoder's normalizations,
which see the whole picture. Fitted by ridge regression to pictures that the bundle draws at start.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pixels import to_output
from torch.nn import functional as F

#: Scales, from the last, whose latents are fitted: partial images come from them.
_LAST_SCALES = 4
#: Strength of the ridge, relative to the number of patches.
_RIDGE = 1e-3
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black", "brown", "grey")
_THINGS = (
    "circle",
    "square",
    "star",
    "house",
    "dog",
    "face",
    "tree",
    "car",
    "flower",
    "triangle",
    "street",
    "portrait",
)
_PLACES = ("on", "next to", "above", "in front of")


def features(latent: torch.Tensor) -> torch.Tensor:
    """Features [h*w, n] of a latent [d, h, w]."""
    d = latent.shape[0]
    around = F.unfold(F.pad(latent[None], (1, 1, 1, 1), mode="replicate"), 3)[0]  # [9 d, h*w]
    own = latent.flatten(1)
    mean, size = own.mean(1, keepdim=True), own.square().mean(1, keepdim=True).sqrt()
    first, second = torch.triu_indices(d, d)
    parts = (
        around,
        torch.ones_like(own[:1]),
        mean.expand_as(own),
        size.expand_as(own),
        (own[:, None] * mean).flatten(0, 1),
        (own[:, None] * size).flatten(0, 1),
        own[first] * own[second],
    )
    return torch.cat(parts).T


class PreviewDecoder:
    """Pictures of latents, from a fitted linear map of their features.

    Args:
        weights: [features, 3 * stride ** 2].
        stride: pixels per latent.
    """

    def __init__(self, weights: torch.Tensor, stride: int) -> None:
        self._weights, self._stride = weights, stride

    def pixels(self, latent: torch.Tensor) -> torch.Tensor:
        """Picture [1, 3, h * stride, w * stride] in [-1, 1] of a latent [d, h, w]."""
        with torch.no_grad():
            patches = features(latent.to(self._weights.device, torch.float32)) @ self._weights
        h, w = latent.shape[-2:]
        size = (h * self._stride, w * self._stride)
        return F.fold(patches.T[None], size, self._stride, stride=self._stride).clamp(-1, 1)

    def __call__(self, latent: torch.Tensor) -> Any:
        """PIL image of a latent [d, h, w]."""
        return to_output(self.pixels(latent), "pil")[0]

    @classmethod
    def fit(cls, pipeline: Pipeline, pictures: int = 24, most_s: float = 60.0) -> PreviewDecoder:
        """A decoder fitted to what the pipeline draws.

        Args:
            pictures: number of pictures to draw.
            most_s: seconds after which no further picture is drawn.
        """
        ends, stride = time.monotonic() + most_s, pipeline.manifest.model.vae_stride
        products = targets = None
        count = 0
        for condition in _conditions(pipeline, pictures):
            for latent in _drawn(pipeline, condition, seed=count):
                image = pipeline.decode(latent[None], "torch").cpu() * 2 - 1
                x = features(latent.cpu())
                y = F.unfold(image, stride, stride=stride)[0].T
                products = x.T @ x if products is None else products + x.T @ x
                targets = x.T @ y if targets is None else targets + x.T @ y
                count += len(x)
            if time.monotonic() > ends:
                break
        assert products is not None
        assert targets is not None
        ridge = _RIDGE * count * torch.eye(len(products), dtype=torch.float64)
        weights = torch.linalg.solve(products.double() + ridge, targets.double()).float()
        return cls(weights, stride)


def _drawn(pipeline: Pipeline, condition: dict[str, Any], seed: int) -> list[torch.Tensor]:
    """Latents after the last scales of one picture."""
    latents: list[torch.Tensor] = []

    def keep(event: ScaleEvent) -> None:
        latents.append(event.latents[0].clone())

    pipeline(**condition, seed=seed, output_type="latent", callback_on_scale=keep)
    return latents[-_LAST_SCALES:]


def _conditions(pipeline: Pipeline, count: int) -> Iterator[dict[str, Any]]:
    """Prompts, classes or text features to fit with, always the same."""
    generator = random.Random(0)
    classes = getattr(pipeline.manifest.model, "classes", None)
    for _ in range(count):
        if classes is not None:
            yield {"class_labels": generator.randrange(classes)}
            continue
        one, other = (f"{generator.choice(_COLOURS)} {generator.choice(_THINGS)}" for _ in range(2))
        yield {"prompt": f"a {one} {generator.choice(_PLACES)} a {other}"}
