"""Fetching HART: pickled averages in one folder of its repository, the VAE in another, and Qwen2 elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.hart_samples import known_instruction, released_folder, write_qwen2
from helpers.hub_server import Hub, serving
from ldp_runtime.errors import CheckpointError
from safetensors.torch import load_file

from ldp_export.checkpoints.files.tensors import read_state
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.qwen2vl import check_qwen2_folder, load_qwen2
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import main
from ldp_export.hub.fetch import fetched_sources
from ldp_export.models import registry
from ldp_export.models.hub_files import SINGLE_NAME, HubFiles, HubPart
from ldp_export.models.registry import HartSpec

NAME = "hart-tiny"
_HUB = HubFiles(
    (
        HubPart("transformer", "acme/hart", "llm/ema_model.bin", beside=("llm/config.json",), folder="hart"),
        HubPart("vae", "acme/hart", f"tokenizer/{SINGLE_NAME}", folder="hart"),
        HubPart(
            "text_encoder",
            "acme/qwen",
            beside=("config.json", "tokenizer.json", "tokenizer_config.json"),
            folder="text_encoder",
        ),
    )
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(released_folder(), root / "hart")
    torch.save(read_state(root / "hart" / "llm"), root / "hart" / "llm" / "ema_model.bin")
    (write_qwen2(root / "qwen") / "constants.py").unlink()  # it is no part of that repository
    return {"acme/hart": root / "hart", "acme/qwen": root / "qwen"}


@pytest.fixture
def spec(published: dict[str, Path]) -> HartSpec:
    hart = published["acme/hart"]
    inferred = infer_spec(Sources(hart / "llm" / "ema_model.bin", hart / "tokenizer" / SINGLE_NAME))
    assert isinstance(inferred, HartSpec)
    return replace(inferred, name=NAME, hub=_HUB)


@pytest.fixture
def hub(published: dict[str, Path], spec: HartSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(published) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(registry, "MODELS", {NAME: spec})
        yield server


def test_averages_are_fetched_and_not_the_other_weights(hub: Hub, spec: HartSpec, tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    result = CliRunner().invoke(main, ["fetch", NAME, "--local-dir", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    sources = fetched_sources(spec, folder, ())
    assert infer_spec(sources).transformer == spec.transformer
    wanted = {path.split("/resolve/main/")[-1] for path, _ in hub.downloads()}
    assert not any(path.endswith("llm/model.safetensors") for path in wanted)
    text = sources.text_encoder
    assert text is not None
    with known_instruction():
        with pytest.raises(CheckpointError, match=r"lacks constants\.py"):
            check_qwen2_folder(text)
        shutil.copy(write_qwen2(tmp_path / "other") / "constants.py", text)
        assert load_qwen2(text, 20).channels == spec.transformer.text_channels


def test_converted_parts_are_the_same_model(hub: Hub, spec: HartSpec, tmp_path: Path) -> None:
    folder = tmp_path / "bfloat16"
    result = CliRunner().invoke(main, ["fetch", NAME, "--local-dir", str(folder), "--precision", "bfloat16", "--json"])
    assert result.exit_code == 0, result.output
    sources = fetched_sources(spec, folder, ())
    assert infer_spec(sources).transformer == spec.transformer
    assert json.loads((folder / "transformer/config.json").read_text())["num_heads"] == 3
    kept = load_file(folder / "transformer" / SINGLE_NAME)
    assert str(kept["blocks.0.attn.qkv_proj.weight"].dtype) == "torch.bfloat16"
    assert str(kept["diffloss.net.final_layer.linear.weight"].dtype) == "torch.float32"
    assert "attn_bias_for_masking" not in kept
    assert (folder / "text_encoder" / "tokenizer_config.json").is_file()  # it names the side of padding
