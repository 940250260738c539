"""The closed form of sampling a bit, against the originals' procedure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime.errors import ConfigError
from ldp_runtime.guidance import guide, last_guided_scale, per_scale
from ldp_runtime.noise import draw_noise, position_noise
from ldp_runtime.sampling import SamplingFilter, logit_difference, sample_bits
from ldp_runtime.schedule import ScaleSchedule


def original_filter(pairs: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`sample_with_top_k_top_p_also_inplace_modifying_logits_` of the originals, on pairs [N, 2]."""
    logits = pairs.clone()
    if top_k > 0:
        k = min(top_k, 2)
        logits.masked_fill_(logits < logits.topk(k, dim=-1).values[:, -1:], -torch.inf)
    if top_p > 0:
        ordered, order = logits.sort(dim=-1, descending=False)
        removed = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[:, -1] = False
        logits.masked_fill_(removed.scatter(-1, order, removed), -torch.inf)
    return logits


def near_the_limit(pairs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Pairs whose less likely outcome has a probability that rounding puts on either side of 1 - top_p."""
    least = pairs.double().softmax(dim=-1).min(dim=-1).values
    return (least - (1 - top_p)).abs() < (1e-6 if top_p < 1 else 0.0)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.sampled_from([0, 1, 2, 900]),
    top_p=st.sampled_from([0.0, 0.3, 0.51, 0.9, 0.97, 1.0]) | st.floats(0.01, 1.0),
    spread=st.sampled_from([0.01, 1.0, 5.0, 30.0]),
)
def test_closed_form_is_seeded_multinomial(seed: int, top_k: int, top_p: float, spread: float) -> None:
    tokens, bits = 64, 8
    logits = torch.randn(tokens, 2 * bits, generator=torch.Generator().manual_seed(seed % 1000)) * spread
    pairs = logits.view(-1, 2)
    probabilities = original_filter(pairs, top_k, top_p).softmax(dim=-1)
    generator = torch.Generator().manual_seed(seed)
    expected = torch.multinomial(probabilities, 1, replacement=True, generator=generator).view(tokens, bits).bool()
    noise = draw_noise(torch.Generator().manual_seed(seed), tokens, bits)
    got = sample_bits(logit_difference(logits), noise, SamplingFilter(top_k, top_p))
    difference, flat_noise = logit_difference(logits).flatten(), noise.flatten()
    too_close = ((difference - flat_noise).abs() < 1e-5 * (1 + spread)) | near_the_limit(pairs, top_p)
    assert too_close.float().mean() < 0.01
    assert torch.equal(got.flatten()[~too_close], expected.flatten()[~too_close])


def test_noise_of_all_scales_is_one_stream() -> None:
    """The originals draw scale by scale from one generator: (token, bit, outcome)."""
    schedule = ScaleSchedule.of_size("0.06M")
    generator = torch.Generator().manual_seed(11)
    for tokens, noise in zip(schedule.tokens, position_noise(11, schedule, 5), strict=True):
        pairs = torch.zeros(tokens * 5, 2).softmax(dim=-1)
        drawn = torch.multinomial(pairs, 1, replacement=True, generator=generator).view(tokens, 5).bool()
        assert torch.equal(sample_bits(torch.zeros(tokens, 5), noise, SamplingFilter()), drawn)


def test_noise_is_logistic() -> None:
    noise = draw_noise(torch.Generator().manual_seed(0), 20_000, 1).flatten()
    for logit in (-2.0, 0.0, 1.0):
        share = float((torch.tensor(logit) > noise).float().mean())
        assert share == pytest.approx(1 / (1 + 2.718281828**-logit), abs=0.01)


def test_greedy_takes_the_likelier_bit_whatever_the_noise() -> None:
    difference = torch.tensor([-1e-6, 1e-6, -50.0, 50.0])
    for noise in (torch.full((4,), 99.0), torch.full((4,), -99.0)):
        assert sample_bits(difference, noise, SamplingFilter(top_k=1)).tolist() == [False, True, False, True]


def test_logit_pairs_are_interleaved() -> None:
    assert logit_difference(torch.tensor([1.0, 5.0, 7.0, 4.0])).tolist() == [4.0, -3.0]


@pytest.mark.parametrize(("top_k", "top_p"), [(-1, 0.0), (2.5, 0.0), (0, -0.1), (0, 1.1), (0, float("nan"))])
def test_bad_filters(top_k: Any, top_p: float) -> None:
    with pytest.raises(ConfigError):
        SamplingFilter(top_k, top_p)


def test_per_scale_values() -> None:
    assert per_scale(2, 3, "x") == (2.0, 2.0, 2.0)
    assert per_scale(np.float32(2), 3, "x") == (2.0, 2.0, 2.0)  # pyright: ignore[reportArgumentType]
    assert per_scale([1, 2, 3, 4], 3, "x") == (1.0, 2.0, 3.0)
    senseless: list[Any] = [[1.0], [1.0, float("nan"), 1.0], float("inf"), "much", [1.0, None, 1.0], torch.tensor(1.0)]
    for wrong in senseless:
        with pytest.raises(ConfigError, match="guidance"):
            per_scale(wrong, 3, "guidance")


def test_guidance() -> None:
    cond, uncond = torch.tensor([3.0]), torch.tensor([1.0])
    assert guide(cond, uncond, 4.0).item() == 9.0
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert last_guided_scale((1.0, 3.0, 3.0, 1.0)) == 2
    assert last_guided_scale((1.0, 1.0)) == -1
