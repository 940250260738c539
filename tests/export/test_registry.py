"""The named models: sizes of the released checkpoints, found by name, sources checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ldp_runtime.errors import CheckpointError, ConfigError
from samples import write_sources

from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.checkpoints import original_transformer_state
from ldp_export.models.infinity import InfinityTransformer, ffn_width
from ldp_export.models.registry import DEFAULT_MODEL, MODELS, find_model
from ldp_export.models.sources import find_sources

#: Parameters of the released transformers, and all their numbers with buffers, whose four bytes each are the files.
RELEASED = {
    "infinity-125m": (125_148_800, 125_168_000, 274),
    "infinity-2b": (2_204_564_032, 2_204_697_152, 694),
    "infinity-8b": (8_375_791_824, 8_376_082_128, 862),
    "infinity-8b-512": (8_375_791_824, 8_376_082_128, 862),
}


def transformer(name: str) -> InfinityTransformer:
    with torch.device("meta"):
        return InfinityTransformer(find_model(name).transformer)


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name: str) -> None:
    model = transformer(name)
    parameters, numbers, keys = RELEASED[name]
    state = original_transformer_state(model)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    assert len(state) == keys
    assert any(key.startswith("block_chunks.") for key in state)


def test_released_vae_size() -> None:
    with torch.device("meta"):
        vae = BsqVae(find_model("infinity-2b").vae)
    assert sum(p.numel() for p in vae.parameters()) == 110_118_051
    assert sum(p.numel() for p in vae.decoder.parameters()) == 65_092_355


@pytest.mark.parametrize(("width", "expected"), [(2048, 8192), (2080, 8192), (3360, 13312), (3584, 14336), (768, 3072)])
def test_feed_forward_widths_round_half_to_even(width: int, expected: int) -> None:
    assert ffn_width(width) == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_made(name: str) -> None:
    spec = find_model(name)
    assert spec.name == name
    assert spec.parameters > 0
    assert spec.layout.bits == spec.transformer.bits
    assert spec.transformer.levels >= 13


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean infinity-2b"):
        find_model("infinity-2B")
    with pytest.raises(ConfigError, match="ldp-export models"):
        find_model("stable-diffusion")


def test_sources_by_path(tmp_path: Path) -> None:
    spec, sources = find_model(DEFAULT_MODEL), write_sources(tmp_path)
    assert find_sources(spec, sources.transformer, sources.vae) == sources
    with pytest.raises(ConfigError, match="together"):
        find_sources(spec, weights=sources.transformer)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_sources(spec, sources.transformer, tmp_path / "absent")
    with pytest.raises(ConfigError, match="were ever released"):
        find_sources(find_model("infinity-20b"))
