"""Counter-based noise: the published generator, and variates that depend on nothing but their place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ldp_runtime.families.infinity import BitCodec
from ldp_runtime.families.var import CodebookCodec
from ldp_runtime.noise import (
    CounterNoise,
    counter_words,
    exponentials,
    logistics,
    philox,
    position_noise,
    uniforms,
)
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

FULL = 0xFFFFFFFF
#: Counter, key and words of Philox 4x32-10, from the known answers that Random123 publishes (`kat_vectors`).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
CPU = torch.device("cpu")


def plain_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The published algorithm with Python's whole numbers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (second >> 32) ^ b ^ k0, second & FULL, (first >> 32) ^ d ^ k1, first & FULL
        k0, k1 = (k0 + 0x9E3779B9) & FULL, (k1 + 0xBB67AE85) & FULL
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    found = philox([torch.tensor([number]) for number in counter], key)
    assert tuple(int(word) for word in found) == words == plain_philox(counter, key)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1, 2**64 - 1])
def test_words_of_a_place(seed: int) -> None:
    """Every bit of a seed counts; words of four channels are one block."""
    positions = torch.tensor([0, 7, 4095])
    words = counter_words(seed, 12, positions, 10)
    assert words.shape == (3, 10)
    key = (seed & FULL, seed >> 32)
    for row, position in zip(words.tolist(), positions.tolist(), strict=True):
        blocks = [plain_philox((block, position, 12, 0), key) for block in range(3)]
        assert row == [word for block in blocks for word in block][:10]


def test_variates_of_words() -> None:
    """No word gives a variate that is infinite or zero."""
    words = torch.tensor([0, 1, 2**31, FULL - 1, FULL])
    uniform = uniforms(words)
    assert uniform.tolist() == [(word + 0.5) / 2**32 for word in words.tolist()]
    exponential, logistic = exponentials(uniform), logistics(uniform)
    for word, e, l in zip(words.tolist(), exponential.tolist(), logistic.tolist(), strict=True):
        u = (word + 0.5) / 2**32
        assert e == pytest.approx(-math.log1p(-u), rel=2**-23)
        assert l == pytest.approx(math.log(u / (1 - u)), rel=2**-23, abs=1e-9)
    assert exponential.dtype == logistic.dtype == torch.float32
    assert (exponential > 0).all()
    assert torch.cat((exponential, logistic)).isfinite().all()


CODECS = [
    BitCodec(LatentLayout(8, 1)),
    CodebookCodec(torch.zeros(50, 4), torch.zeros(1, 4, 4, 3, 3), torch.zeros(1, 4)),
]


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_place_decides(codec: BitCodec | CodebookCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept positions in any order and number get what the full grid gives them, drawn at once or in parts."""
    schedule = ScaleSchedule.of_squares((1, 2, 6))
    variates = [codec.variates(k, len(schedule)) for k in range(len(schedule))]
    noise = CounterNoise(3, schedule.tokens, CPU, variates, codec.of_uniforms)
    full = noise.at(2, None)
    assert full.shape == (36, variates[2])
    assert full.dtype == torch.float32
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 5, 36):
        kept = torch.randperm(36, generator=generator)[:count]
        assert torch.equal(noise.at(2, kept), full[kept])
    monkeypatch.setattr("ldp_runtime.noise._AT_A_TIME", 7)
    assert torch.equal(noise.at(2, None), full)
    assert codec.noise(3, schedule)[2].shape == full.shape


def words_of(seed: int, scale: int, positions: int = 4096, channels: int = 32) -> torch.Tensor:
    return counter_words(seed, scale, torch.arange(positions), channels)


def chi_square(counts: torch.Tensor) -> float:
    """Chi-square statistic against equal counts, in standard deviations from its mean."""
    expected, freedom = counts.sum() / counts.numel(), counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_words_are_uniform(seed: int, shift: int) -> None:
    counts = torch.bincount(((words_of(seed, 9) >> shift) & 0xFF).flatten(), minlength=256).double()
    assert abs(chi_square(counts)) < 4


def test_neighbours_are_independent() -> None:
    """Pairs of neighbouring channels, positions, scales and seeds fill a grid of 16 by 16 cells evenly, and have no
    correlation."""
    here = words_of(5, 9)
    pairs = {
        "channels": (here[:, :-1], here[:, 1:]),
        "positions": (here[:-1], here[1:]),
        "rows": (here[:-64], here[64:]),
        "scales": (here, words_of(5, 10)),
        "seeds": (here, words_of(6, 9)),
        "high seeds": (here, words_of(5 + 2**32, 9)),
    }
    for name, (one, other) in pairs.items():
        cells = torch.bincount(((one >> 28) * 16 + (other >> 28)).flatten(), minlength=256).double()
        assert abs(chi_square(cells)) < 4, name
        both = torch.stack((uniforms(one).flatten(), uniforms(other).flatten()))
        assert abs(float(torch.corrcoef(both)[0, 1])) * math.sqrt(both.shape[1]) < 4, name


def test_no_place_repeats_another() -> None:
    seen = torch.cat([words_of(seed, scale, 1024, 8).flatten() for seed, scale in itertools.product((0, 1), range(4))])
    # Of 65,536 words of 32 bits about half a pair agree by chance.
    assert len(seen.unique()) > len(seen) - 6


def test_moments_of_variates() -> None:
    """Mean and variance of exponential and logistic variates, and both kinds of noise alike."""
    uniform = uniforms(words_of(11, 3))
    count = uniform.numel()
    exponential, logistic = exponentials(uniform).double(), logistics(uniform).double()
    assert abs(float(exponential.mean() - 1)) < 4 / math.sqrt(count)
    assert abs(float(exponential.var() - 1)) < 4 * math.sqrt(8 / count)
    assert abs(float(logistic.mean())) < 4 * math.sqrt(math.pi**2 / 3 / count)
    assert abs(float(logistic.var() / (math.pi**2 / 3) - 1)) < 4 * math.sqrt(3.2 / count)
    generator = position_noise(1, ScaleSchedule.of_squares((64,)), 32)[0].double().flatten()
    for share in (0.01, 0.25, 0.5, 0.9, 0.999):
        bound = 5 * math.sqrt(share * (1 - share) / count)
        at = math.log(share / (1 - share))
        assert abs(float((logistic <= at).double().mean()) - share) < bound
        assert abs(float((generator <= at).double().mean()) - share) < bound
