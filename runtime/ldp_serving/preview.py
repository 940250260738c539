"""Partial images: a small decoder, fitted once to the bundle's own, that costs a hundredth of it.

A patch of pixels is a linear function of features of its latent. These are the latents around it, their products with
each other, and their products with the picture's mean and root mean square. The last two stand for the decoder's
normalizations, which see the whole picture. Fitted by ridge regression to pictures that the bundle draws at start.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pixels import to_output
from torch.nn import functional as F

logger = logging.getLogger(__name__)

#: Scales, from the last, whose latents are fitted: partial images come from them.
_LAST_SCALES = 3
#: Strength of the ridge, relative to the number of patches.
_RIDGE = 1e-3
#: Least PSNR of a partial image against the bundle's own decoder, in the mean of held-out pictures.
LEAST_DB = 20.0
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


class Fit:
    """Ridge regression of pixels on features, one latent at a time."""

    def __init__(self, stride: int) -> None:
        self._stride, self._count = stride, 0
        self._products = self._targets = torch.zeros(())

    def add(self, latent: torch.Tensor, image: torch.Tensor) -> None:
        """Takes a latent [d, h, w] and its picture [1, 3, h * stride, w * stride] in [-1, 1]."""
        x = features(latent)
        y = F.unfold(image, self._stride, stride=self._stride)[0].T
        self._products, self._targets = self._products + x.T @ x, self._targets + x.T @ y
        self._count += len(x)

    def decoder(self) -> PreviewDecoder:
        """The decoder that fits best to what was added."""
        ridge = _RIDGE * self._count * torch.eye(len(self._products), dtype=torch.float64)
        weights = torch.linalg.solve(self._products.double() + ridge, self._targets.double())
        return PreviewDecoder(weights.float(), self._stride)


def fit_previews(
    pipeline: Pipeline, pictures: int = 40, most_s: float = 120.0, on_picture: Callable[[], None] = lambda: None
) -> PreviewDecoder | None:
    """A decoder of partial images, fitted to what the pipeline draws; None if no such decoder comes near the bundle's.

    Args:
        pictures: number of pictures to draw; one in six is held out and decides.
        most_s: seconds after which no further picture is drawn.
        on_picture: is called before each picture; what it raises ends the fit.
    """
    ends, fit = time.monotonic() + most_s, Fit(pipeline.manifest.model.vae_stride)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, condition in enumerate(_conditions(pipeline, pictures)):
        on_picture()
        for latent in _drawn(pipeline, condition, seed=number):
            pair = latent.cpu(), pipeline.decode(latent[None], "torch").cpu() * 2 - 1
            if number % 6 == 1:
                held.append(pair)
            else:
                fit.add(*pair)
        if time.monotonic() > ends and held:
            break
    fitted = fit.decoder()
    decibels = [psnr_db(fitted.pixels(latent), image) for latent, image in held]
    mean = sum(decibels) / max(len(decibels), 1)
    fine = mean >= LEAST_DB
    words = "by the fitted decoder" if fine else "by the bundle's own decoder, which costs more"
    logger.info("partial images are made %s (held out: %.1f dB, least %.1f dB)", words, mean, min(decibels, default=0))
    return fitted if fine else None


def psnr_db(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [-1, 1]."""
    return -10 * math.log10(max(float((one - other).square().mean()) / 4, 1e-12))


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
    model = pipeline.manifest.model
    classes = None if model.reads_text else getattr(model, "classes", None)
    for _ in range(count):
        if classes is not None:
            yield {"class_labels": generator.randrange(classes)}
            continue
        one, other = (f"{generator.choice(_COLOURS)} {generator.choice(_THINGS)}" for _ in range(2))
        yield {"prompt": f"a {one} {generator.choice(_PLACES)} a {other}"}
