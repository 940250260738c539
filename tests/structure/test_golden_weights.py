"""Golden weights: what is unpacked is what was packed, on any processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import golden_weights
from helpers.golden_weights import GOLDEN, Stream, golden_folder, hash_of, pack, packed_files, unpacked
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("case", sorted({case for case, _ in packed_files()}))
def test_files_are_those_of_the_original_run(case: str) -> None:
    names = [name for other, name in packed_files() if other == case]
    assert len(names) == 2
    for name in names:
        weights = load_file(golden_folder(case) / f"{name}.safetensors")
        assert hash_of(weights) == hash_of(unpacked(GOLDEN / case / f"{name}.npz"))


def test_draws_are_those_of_pytorch() -> None:
    for count in (3, 16, 37, 64):
        drawn, expected = Stream(5, 8).normal(count), torch.Generator().manual_seed(5)
        torch.rand(8, generator=expected)
        np.testing.assert_allclose(drawn, torch.randn(count, generator=expected).numpy(), rtol=0, atol=2e-6)


def test_packed_and_unpacked(tmp_path: Path) -> None:
    stream = torch.Generator().manual_seed(3)
    tensors = {
        "b.weight": torch.randn(24, 5, 3, generator=stream) * 2 / 15**0.5,
        "b.bias": torch.randn(24, generator=stream) * 0.1,
        "few": torch.randn(4, generator=stream),
        "a.weight": 1 + 0.2 * torch.randn(33, generator=stream),
        "counts": torch.arange(7),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    pack(tmp_path / "a.safetensors", tmp_path / "a.npz", seed=3, skip=0)
    found = unpacked(tmp_path / "a.npz")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_other_rounding_of_libraries_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Stream.normal
    for nudges in ((3e-15, -3e-15), (-3e-15, 3e-15)):
        monkeypatch.setattr(Stream, "normal", lambda self, count, nudges=nudges: plain(self, count, nudges))
        unpacked(GOLDEN / "infinity_8blike" / "transformer.npz")  # it compares its hash


def test_another_generator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = golden_weights.scaled
    monkeypatch.setattr(golden_weights, "scaled", lambda drawn, *rule: plain(drawn * np.float32(1.001), *rule))
    with pytest.raises(ValueError, match="does not draw the golden weights"):
        unpacked(GOLDEN / "var_d16like" / "vae.npz")
