"""HART's tokens between the engine calls: ramps, filters, noise, places, and the inputs of the residual."""

from __future__ import annotations

import pytest
import torch
from ldp_runtime.families.hart import HartCodec, guidance_weights, ramp_share, residual_weights
from ldp_runtime.families.var import mixture_weights
from ldp_runtime.noise import CounterNoise
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule, corner_places

SCHEDULE = ScaleSchedule.of_squares((1, 2, 3))
CODES, CHANNELS, STEPS = 24, 4, 3


def codec(**options: object) -> HartCodec:
    generator = torch.Generator().manual_seed(0)
    shapes = ((CODES, CHANNELS), (4, CHANNELS, CHANNELS, 3, 3), (4, CHANNELS))
    tensors = (torch.randn(shape, generator=generator) for shape in shapes)
    return HartCodec(*tensors, first_late=2, late_top_k=3, steps=STEPS, last_scale=2, **options)  # pyright: ignore


class TestRamps:
    def test_the_last_scale_repeats_the_one_before_it(self) -> None:
        assert guidance_weights(4.5, 4) == (1.0, 1 + 4.5 / 3, 1 + 4.5 * 2 / 3, 1 + 4.5 * 2 / 3)
        assert [ramp_share(k, 3) for k in range(3)] == [0.0, 0.5, 0.5]

    def test_a_list_holds_the_weights_themselves(self) -> None:
        assert guidance_weights([1, 2, 3, 4], 4) == (1, 2, 3, 4)

    def test_branches_of_the_residual(self) -> None:
        assert residual_weights(4.0, guided=True) == (4.0, -3.0)
        assert residual_weights(4.0, guided=False) == (1.0,)
        assert residual_weights(2.0, guided=True) == (1.0,)  # the original's special case


class TestNoise:
    @pytest.mark.parametrize("smooth", [False, True])
    def test_is_the_originals_order(self, smooth: bool) -> None:
        """Index, then mixture, at every scale; the residual's behind all of them, step by step."""
        drawn = codec(more_smooth=smooth).noise(5, SCHEDULE)
        generator = torch.Generator().manual_seed(5)
        for k, tokens in enumerate(SCHEDULE.tokens):
            index = torch.empty(tokens, CODES).exponential_(1, generator=generator)
            mixture = torch.empty(tokens, CODES).exponential_(1, generator=generator) if smooth else index
            assert torch.equal(drawn[k][:, :CODES], mixture)
        steps = [torch.empty(9, CHANNELS).normal_(generator=generator) for _ in range(STEPS)]
        assert torch.equal(drawn[2][:, -STEPS * CHANNELS :], torch.cat(steps, dim=1))
        assert torch.equal(drawn[2][:, -STEPS * CHANNELS - CODES : -STEPS * CHANNELS], index)

    def test_of_positions_does_not_depend_on_others(self) -> None:
        mixing, kept = codec(more_smooth=True), torch.tensor([1, 4, 8])
        variates = [mixing.variates(k, 3) for k in range(3)]
        noise = CounterNoise(7, SCHEDULE.tokens, torch.device("cpu"), variates, mixing.of_uniforms)
        full = noise.at(2, None)
        assert variates == [CODES, CODES, 2 * CODES + STEPS * CHANNELS]
        assert full.shape == mixing.noise(7, SCHEDULE)[2].shape
        assert torch.equal(noise.at(2, kept), full[kept])

    def test_normal_variates_have_their_moments(self) -> None:
        uniform = torch.rand(4000, CODES + STEPS * CHANNELS, generator=torch.Generator().manual_seed(1)).double()
        normal = codec().of_uniforms(uniform)[:, CODES:]
        assert abs(float(normal.mean())) < 0.02
        assert abs(float(normal.std()) - 1) < 0.02


class TestDraws:
    def test_late_scales_draw_from_fewer_codes(self) -> None:
        scores, noise = torch.randn(500, CODES, generator=torch.Generator().manual_seed(2)), torch.rand(500, CODES)
        allowed = scores.topk(3).indices
        for scale, few in ((1, False), (2, True)):
            codes = codec().draw(scores, noise, SamplingFilter(20, 0.0), scale, 3, False)
            index = torch.cdist(codes, codec().codebook).argmin(dim=1)
            assert bool((index[:, None] == allowed).any(dim=1).all()) is few

    def test_no_limit_stays_none(self) -> None:
        """`top_k=0` draws from all codes, at late scales too; 1 stays 1."""
        assert codec()._at(SamplingFilter(0, 0.5), 2) == SamplingFilter(0, 0.5)
        assert codec()._at(SamplingFilter(1, 0.0), 2) == SamplingFilter(1, 0.0)

    def test_a_mixtures_residual_is_of_the_index_drawn_beside_it(self) -> None:
        mixing, rule = codec(more_smooth=True), SamplingFilter(20, 0.0)
        noise = mixing.noise(3, SCHEDULE)[2]
        scores = torch.randn(9, CODES, generator=torch.Generator().manual_seed(4))
        inputs = mixing.residual_inputs(scores, noise, rule, 3.0, guided=True)
        assert inputs is not None
        hard = codec().draw(scores, noise[:, CODES : 2 * CODES], rule, 2, 3, False)
        assert torch.equal(inputs["codes"], hard)
        assert inputs["weights"].tolist() == [3.0, -2.0]
        mixed = mixing.draw(scores, noise, rule, 2, 3, False)
        limited = scores.masked_fill(scores < scores.topk(3).values[:, -1:], -torch.inf)
        expected = mixture_weights(limited, noise[:, :CODES], 0.5) @ mixing.codebook
        torch.testing.assert_close(mixed, expected)

    def test_codes_of_the_last_scale_pass_no_phi(self) -> None:
        latent, codes = torch.zeros(CHANNELS, 3, 3), torch.randn(3, 3, CHANNELS)
        assert torch.equal(codec().accumulate(latent, codes, 2, 3), codes.permute(2, 0, 1))
        assert not torch.equal(codec().accumulate(latent, codes, 1, 3), codes.permute(2, 0, 1))


def test_places_are_corners_on_the_last_grid() -> None:
    """The start token has the frequencies of text, at the place of the text's last row."""
    table = corner_places(SCHEDULE, 8)
    assert table[1][0].tolist() == [[0, 0], [0, 1.5], [1.5, 0], [1.5, 1.5]]
    assert table[2][0][5].tolist() == [1, 2]
    torch.testing.assert_close(table[0][1][0], 10000.0 ** -torch.tensor([0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(table[1][1][0], 10000.0 ** -torch.tensor([0, 0.5, 0, 0.5]))
