"""Synthetic checkpoints load like released ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.samples import spec
from ldp_runtime.errors import ConfigError

from ldp_export.checkpoints.files.tensors import read_state
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.checkpoints.var import load_var
from ldp_export.models.registry import MODELS, VarSpec


def test_sharded_and_whole_files_hold_the_same_model(tmp_path: Path) -> None:
    whole = write_checkpoint(spec(), tmp_path / "whole", seed=3)
    sharded = write_checkpoint(spec(), tmp_path / "sharded", seed=3, shard_bytes=100_000)
    index = json.loads((sharded.transformer / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    a, b = load_infinity(whole.transformer), load_infinity(sharded.transformer)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert load_infinity_vae(whole.vae).config == spec().vae
    assert infer_spec(sharded).transformer == spec().transformer


def test_values_are_finite_and_depend_on_the_seed(tmp_path: Path) -> None:
    first = read_state(write_checkpoint(spec(), tmp_path / "a", seed=0).transformer)
    second = read_state(write_checkpoint(spec(), tmp_path / "b", seed=1).transformer)
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_released_names_and_counts(tmp_path: Path) -> None:
    """22 global keys and 21 a block, as in the released files (a thin model with the 125M's depth and chunks)."""
    thin = replace(
        MODELS["infinity-125m"],
        transformer=replace(MODELS["infinity-125m"].transformer, width=64, heads=4, ffn=256, text_channels=32),
        vae=replace(MODELS["infinity-125m"].vae, base_channels=32),
    )
    state = read_state(write_checkpoint(thin, tmp_path / "thin").transformer)
    assert len(state) == 274
    assert "block_chunks.3.module.2.ffn.fc2.bias" in state


def test_class_models_have_the_released_names(tmp_path: Path) -> None:
    """12 global keys and 13 a block, or 14 and 12 with one AdaLN for all blocks (thin models)."""
    for name, keys in (("var-d16", 220), ("var-d36", 446)):
        spec = MODELS[name]
        assert isinstance(spec, VarSpec)
        config = replace(spec.transformer, width=36, heads=4, ffn=64, codes=16, channels=8)
        thin = replace(spec, transformer=config, vae=replace(spec.vae, codes=16, channels=8, base_channels=32))
        sources = write_checkpoint(thin, tmp_path / name)
        assert len(read_state(sources.transformer)) == keys
        inferred = infer_spec(sources)
        assert (inferred.transformer, inferred.vae, inferred.size) == (thin.transformer, thin.vae, spec.size)
        assert load_var(sources.transformer).config == config
        assert all(tensor.isfinite().all() for tensor in read_state(sources.vae).values())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        write_checkpoint(spec(), tmp_path)
