"""Switti's window of guidance, temperatures and mixtures, without engines."""

from __future__ import annotations

import pytest
import torch
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.families.choose import guidance_end, guidance_weights, temperatures
from ldp_runtime.families.switti import SwittiCodec
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule


def entry(first_guided: int = 0, first_unguided: int = 3) -> SwittiEntry:
    sizes = {"depth": 2, "width": 32, "heads": 2, "ffn": 64, "latent_channels": 4, "vae_stride": 16, "codes": 20}
    text = {"text_channels": 12, "pooled_channels": 8, "keeps_past": False, "rope_theta": 1e4, "rope_size": 128}
    window = {"first_guided": first_guided, "first_unguided": first_unguided, "first_smooth": 1, "more_smooth": True}
    return SwittiEntry(name="tiny", grids=(1, 2, 3, 4, 5), phi_share=0.5, **sizes, **text, **window)


@pytest.mark.parametrize(
    ("first", "end", "weights"),
    [(0, 3, (1, 2, 3, 1, 1)), (2, 4, (1, 1, 3, 4, 1)), (0, 9, (1, 2, 3, 4, 5)), (4, 2, (1, 1, 1, 1, 1))],
)
def test_the_ramp_holds_within_the_window(first: int, end: int, weights: tuple[float, ...]) -> None:
    model = entry(first, end)
    assert guidance_weights(model, 4.0, 5) == pytest.approx(weights)
    assert guidance_end(model, 4.0, 5) == max(first, end)


def test_a_list_has_its_own_window() -> None:
    model = entry()
    assert guidance_weights(model, [1, 2, 1, 3, 1], 5) == (1, 2, 1, 3, 1)
    assert guidance_end(model, [1, 2, 1, 3, 1], 5) == 4
    assert guidance_end(model, [1] * 5, 5) == 0


def test_one_temperature_is_that_of_unguided_scales() -> None:
    assert temperatures(entry(), 0.1, 5) == ((1.0,) * 5, (0.1,) * 5)
    listed = (1.0, 0.9, 0.8, 0.7, 0.6)
    assert temperatures(entry(), listed, 5) == (listed, listed)


class TestMixtures:
    codec = SwittiCodec(torch.randn(20, 4), torch.zeros(1, 4, 4, 3, 3), torch.zeros(1, 4), first_smooth=1).mixing()
    scores, noise = torch.randn(6, 20), torch.empty(6, 20).exponential_(1)

    def drawn(self, scale: int, ended: bool, rule: SamplingFilter) -> torch.Tensor:
        return self.codec.draw(self.scores, self.noise, rule, scale, 5, ended)

    @pytest.mark.parametrize(("scale", "ended"), [(0, False), (1, True), (4, True)])
    def test_single_codes_before_and_after(self, scale: int, ended: bool) -> None:
        drawn = self.drawn(scale, ended, SamplingFilter(0, 0.0))
        assert all(any(torch.equal(code, entry) for entry in self.codec.codebook) for code in drawn)

    def test_take_all_logits(self) -> None:
        """Filters that leave one code change nothing: the original mixes unfiltered."""
        assert torch.equal(self.drawn(2, False, SamplingFilter(1, 0.0)), self.drawn(2, False, SamplingFilter(0, 0.0)))

    def test_one_block_of_noise_a_scale(self) -> None:
        one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        assert torch.equal(
            self.codec.draw_noise(one, ScaleSchedule.of_grids(((2, 3),)), 0),
            torch.empty(6, 20).exponential_(1, generator=other),
        )
        assert torch.equal(one.get_state(), other.get_state())
