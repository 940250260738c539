"""Weights of the detector that are not its own, and files of weights: pickles, conversions, hashes."""

from __future__ import annotations

import os
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.evaluation_goldens import VECTORS, detector_size
from helpers.tree import ROOT
from ldp_calibration.evaluation.networks.mask2former import load_detector
from ldp_calibration.evaluation.networks.weights import existing, file_hash, read_weights
from ldp_runtime.errors import ConfigError, IntegrityError
from safetensors.torch import load_file, save_file

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("panoptic_head.cls_embed.bias", "1 missing: class_predictor.bias"),
        ("backbone.stages.0.blocks.0.attn.w_msa.qkv.bias", "3 missing: .*attention.q_proj.bias"),
        ("backbone.stages.2.downsample.norm.weight", "1 missing"),
        ("panoptic_head.mask_embed.4.weight", "mask_embedder.2.0.weight"),
    ],
)
def test_a_detector_that_lacks_a_key_is_refused(name: str, said: str) -> None:
    weights = load_file(VECTORS / "mask2former" / "weights.safetensors")
    del weights[name]
    with pytest.raises(IntegrityError, match=said):
        load_detector(weights, detector_size())


@pytest.mark.parametrize(
    "name",
    [
        "bbox_head.cls.weight",
        "backbone.stages.0.blocks.7.norm1.weight",
        "panoptic_head.transformer_decoder.layers.0.norms.3.weight",
        "backbone.norm4.weight",
    ],
)
def test_a_detector_with_a_key_too_many_is_refused(name: str) -> None:
    weights = load_file(VECTORS / "mask2former" / "weights.safetensors")
    with pytest.raises(IntegrityError, match="1 too many"):
        load_detector({**weights, name: torch.zeros(16)}, detector_size())


def test_a_detector_of_another_shape_is_refused() -> None:
    weights = load_file(VECTORS / "mask2former" / "weights.safetensors")
    qkv = "backbone.stages.0.blocks.0.attn.w_msa.qkv.bias"
    for odd in (torch.zeros(3), torch.zeros(2), torch.zeros(())):
        with pytest.raises(IntegrityError):
            load_detector({**weights, qkv: odd}, detector_size())
    reduction = "backbone.stages.0.downsample.reduction.weight"
    with pytest.raises(IntegrityError):
        load_detector({**weights, reduction: torch.zeros(5, 6)}, detector_size())


def test_an_older_library_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.9.2")
    with pytest.raises(ConfigError, match=r"names weights otherwise than 5\.10") as raised:
        load_detector({}, detector_size())
    assert "transformers>=5.10" in str(raised.value.hint)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["scorers"]
    assert "transformers>=5.10,<6" in declared


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_converted_once(tmp_path: Path, wrapped: bool, archive: bool) -> None:
    path = tmp_path / "model.pt"
    content = {"state_dict": TENSORS, "meta": {"epoch": 3}} if wrapped else TENSORS
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    digest = file_hash(path)
    found, source = read_weights(path, {"model.pt": digest[:8]})
    assert source == digest
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    converted = tmp_path / "converted" / "model.pt.safetensors"
    before = converted.stat().st_mtime_ns
    path.unlink()  # what was converted can replace it
    assert existing(tmp_path, "model.pt", "clip") == path
    again, source = read_weights(path, {"model.pt": digest[:8]})
    assert (source, converted.stat().st_mtime_ns) == (digest, before)
    assert torch.equal(again["b"], TENSORS["b"])


def test_what_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(IntegrityError, match="damaged, or holds more than weights"):
            read_weights(tmp_path / name, {})
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], {"state_dict": {"a": "text"}}])
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(IntegrityError, match="holds no weights by name"):
        read_weights(tmp_path / "a.pt", {})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    for content in (b"", b"PK", whole[:-200], os.urandom(64)):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(IntegrityError):
            read_weights(tmp_path / "a.pt", {})
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    with pytest.raises(IntegrityError, match="no whole file"):
        read_weights(tmp_path / "a.safetensors", {})


def test_a_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    with pytest.raises(IntegrityError, match="is not the published file"):
        read_weights(tmp_path / "a.pt", {"a.pt": "00000000"})
    assert not (tmp_path / "converted").exists()
    save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match="is not the published file"):
        read_weights(tmp_path / "a.safetensors", {"a.safetensors": "00000000"})


def test_a_conversion_that_was_changed_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    read_weights(tmp_path / "a.pt", {})
    place = tmp_path / "converted" / "a.pt.safetensors"
    torch.save({**TENSORS, "b": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(IntegrityError, match=r"converted from another a.pt"):
        read_weights(tmp_path / "a.pt", {})
    save_file({**TENSORS, "b": torch.zeros(2)}, place)
    with pytest.raises(IntegrityError, match="was changed since it was converted"):
        read_weights(tmp_path / "a.pt", {})
    place.with_suffix(".json").write_text("{")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_weights(tmp_path / "a.pt", {})


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="geneval needs weights") as raised:
        existing(None, "a.pt", "geneval")
    assert "fetch --weights DIR geneval" in str(raised.value.hint)
    with pytest.raises(ConfigError, match=r"a.pt is not in"):
        existing(tmp_path, "a.pt", "geneval")
