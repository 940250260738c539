"""Noise that another thread draws is the noise that would have been drawn at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ldp_runtime.families.base import Codec
from ldp_runtime.families.infinity import BitCodec
from ldp_runtime.families.var import CodebookCodec
from ldp_runtime.pipeline.noise_ahead import NoiseAhead
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


def codecs() -> list[Codec]:
    codes = CodebookCodec(torch.randn(12, 4), torch.randn(2, 4, 4, 3, 3), torch.randn(2, 4), 0.5)
    return [BitCodec(LatentLayout(8, 1)), codes]


@pytest.mark.parametrize("codec", codecs(), ids=["bits", "codebook"])
def test_the_same_noise(codec: Codec) -> None:
    schedule = ScaleSchedule.of_squares((1, 2, 4, 7))
    with ThreadPoolExecutor(1) as drawer:
        several = [NoiseAhead(seed, codec, schedule, torch.device("cpu"), drawer) for seed in (5, 6)]
        for seed, ahead in zip((5, 6), several, strict=True):
            expected = codec.noise(seed, schedule)
            assert len(ahead) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(ahead, expected, strict=True))
            assert torch.equal(ahead[-1], expected[-1])
            assert all(torch.equal(a, b) for a, b in zip(ahead[1:3], expected[1:3], strict=True))


def test_an_error_of_the_drawing_thread_is_raised_where_its_noise_is_asked_for() -> None:
    class Broken(BitCodec):
        def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
            raise ValueError("no noise")

    with ThreadPoolExecutor(1) as drawer:
        ahead = NoiseAhead(0, Broken(LatentLayout(8, 1)), ScaleSchedule.of_squares((1, 2)), torch.device("cpu"), drawer)
        with pytest.raises(ValueError, match="no noise"):
            ahead[0]
