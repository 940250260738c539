"""Partial images: the fitted decoder finds what can be found, and is refused where it is not near the bundle's own."""

from __future__ import annotations

import pytest
import torch
from ldp_runtime import Pipeline
from ldp_serving.preview import Fit, PreviewDecoder, features, fit_previews, psnr_db
from ldp_serving.rates import LAST_PARTIAL, partial_scales

CHANNELS, STRIDE = 4, 2


def latents(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(CHANNELS, 6, 8, generator=generator) for _ in range(count)]


def test_a_decoder_of_its_own_kind_is_found() -> None:
    width = features(latents(1, 0)[0]).shape[1]
    weights = 0.02 * torch.randn(width, 3 * STRIDE**2, generator=torch.Generator().manual_seed(1))
    true, fit = PreviewDecoder(weights, STRIDE), Fit(STRIDE)
    for latent in latents(60, 2):
        fit.add(latent, true.pixels(latent))
    for latent in latents(3, 3):
        assert psnr_db(fit.decoder().pixels(latent), true.pixels(latent)) > 40
        assert true(latent).size == (16, 12)


def test_a_random_decoder_is_not_imitated(small_pipe: Pipeline) -> None:
    """The decoder of random weights has no smooth map to find: the bundle's own is taken."""
    assert fit_previews(small_pipe, pictures=8) is None


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_partial_images_are_spread(count: int) -> None:
    shares = [0.03, 0.06, 0.1, 0.2, 0.33, 0.5, 0.72]
    chosen = partial_scales(shares, count)
    assert chosen == [[], [6], [4, 6], [3, 5, 6]][count]
    assert all(shares[scale] >= LAST_PARTIAL for scale in chosen[-1:])


def test_runs_of_few_scales_have_fewer_partial_images() -> None:
    assert partial_scales([0.4, 0.5], 3) == [0, 1]
    assert partial_scales([0.1, 0.2, 0.3, 0.4, 0.5, 0.9], 3) == [2, 4, 5]
    assert partial_scales([0.9], 3) == [0]
