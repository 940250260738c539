"""Codes, pixel shuffle, and the resampling of residuals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.families.infinity import (
    accumulate,
    bits_to_codes,
    latent_to_tokens,
    next_input,
    resize,
    tokens_to_latent,
)
from ldp_runtime.token_layout import LatentLayout

LAYOUTS = [LatentLayout(32), LatentLayout(14, 2), LatentLayout(3, 2)]


@given(st.sampled_from(LAYOUTS), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_tokens_and_latents_are_inverse(layout: LatentLayout, h: int, w: int, batch: int) -> None:
    codes = torch.randn(batch, h, w, layout.bits)
    latent = tokens_to_latent(codes, layout)
    assert latent.shape == (batch, layout.channels, *layout.latent_grid((h, w)))
    assert torch.equal(latent_to_tokens(latent, layout), codes.flatten(1, 2))


def test_patch_order() -> None:
    """Bit 4k + 2dy + dx of a token is channel k at (2y + dy, 2x + dx)."""
    layout = LatentLayout(3, 2)
    codes = torch.arange(2 * 2 * 12.0).view(1, 2, 2, 12)
    latent = tokens_to_latent(codes, layout)
    for k in range(3):
        for y in range(4):
            for x in range(4):
                assert latent[0, k, y, x] == codes[0, y // 2, x // 2, 4 * k + 2 * (y % 2) + x % 2]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_codes_have_unit_norm_per_latent_position(layout: LatentLayout) -> None:
    bits = torch.rand(1, 4, 5, layout.bits) < 0.5
    latent = tokens_to_latent(bits_to_codes(bits, layout), layout)
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(1, 4 * layout.patch, 5 * layout.patch))
    assert torch.equal(latent_to_tokens(latent, layout) > 0, bits.flatten(1, 2))


def test_accumulate_and_next_input() -> None:
    """Constant maps stay constant through any resize; equal grids are not resampled at all."""
    layout = LatentLayout(4, 2)
    latent = accumulate(torch.zeros(1, 4, 8, 6), torch.full((1, 4, 4, 4), 0.5))
    assert torch.equal(latent, torch.full((1, 4, 8, 6), 0.5))
    assert torch.equal(next_input(latent, (2, 3), layout), torch.full((1, 6, 16), 0.5))
    exact = torch.randn(1, 4, 8, 6)
    assert resize(exact, (8, 6)) is exact


def test_resize_down_is_bilinear_without_antialiasing() -> None:
    row = torch.arange(8.0).view(1, 1, 1, 8)
    assert resize(row, (1, 2)).flatten().tolist() == [1.5, 5.5]  # samples at 1.5 and 5.5, no averaging over four


@pytest.mark.parametrize("channels", [4, 14, 16, 18, 32, 56, 64])
def test_codes_are_the_bits_of_the_originals_formula(channels: int) -> None:
    bits = torch.tensor([True, False])
    expected = (bits.float() * 2 - 1) / channels**0.5
    assert torch.equal(bits_to_codes(bits, LatentLayout(channels)), expected)
    assert torch.equal(bits_to_codes(bits.long(), LatentLayout(channels)), expected)
