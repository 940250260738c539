"""CLIP's text towers against transformers, and folders that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.switti_samples import clip_tokenizer, write_towers
from ldp_runtime.errors import CheckpointError
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.clip import check_clip_folders, encoded, load_clip, map_clip


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_towers(tmp_path_factory.mktemp("towers"))


@pytest.mark.parametrize("prompt", ["", "a", "A small Red circle", "x" * 300])
def test_features_are_those_of_the_padded_original(towers: tuple[Path, Path], prompt: str) -> None:
    """The original pads to 77 tokens and masks: unpadded rows are the same, since attention is causal."""
    from transformers import CLIPTextModel

    encoder = load_clip(towers)
    got = (
        encoded(encoder, prompt, 77)
        if len(prompt) < 70
        else encoder.features(PromptTokenizer(encoder.tokenizer, 77)(prompt))
    )
    ids = torch.tensor(clip_tokenizer().encode(prompt).ids)
    ids = ids if len(ids) <= 77 else torch.cat((ids[:76], ids[-1:]))
    padded = torch.nn.functional.pad(ids, (0, 77 - len(ids)), value=int(ids[-1]))[None]
    mask = (torch.arange(77) < len(ids)).long()[None]
    parts, pooled = [], torch.empty(0)
    for folder in towers:
        model = CLIPTextModel.from_pretrained(folder)
        model.config.eos_token_id = int(ids[-1])
        with torch.no_grad():
            parts.append(model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)])
        pooled = parts[-1][-1]
    expected = torch.cat(parts, dim=-1)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(got[-1, -encoder.pooled_channels :], pooled, atol=2e-6, rtol=0)


def test_mapped_towers_compute_the_same(towers: tuple[Path, Path]) -> None:
    assert torch.equal(encoded(map_clip(towers), "a circle", 77), encoded(load_clip(towers), "a circle", 77))


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _changed(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text())
    content.update(values)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _without(f, "clip_l/tokenizer.json"), "clip_l lacks tokenizer.json"),
        (lambda f: shutil.rmtree(f / "clip_bigg"), "clip_bigg lacks config.json and tokenizer"),
        (lambda f: _changed(f, "clip_l/config.json", model_type="t5"), "expected 'clip'"),
        (lambda f: _changed(f, "clip_l/config.json", text_config={"hidden_size": -3}), "hidden_size is -3"),
        (lambda f: _changed(f, "clip_bigg/config.json", text_config={"hidden_act": "relu"}), "hidden_act"),
        (lambda f: (f / "clip_l" / "config.json").write_text("{"), "no configuration"),
        (lambda f: (f / "clip_l" / "tokenizer.json").write_text("{}"), "no tokenizer"),
    ],
)
def test_damage_is_named(towers: tuple[Path, Path], tmp_path: Path, damage, message: str) -> None:
    folders = _copied(towers, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        check_clip_folders(folders)


def _copied(towers: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    first, second = (Path(shutil.copytree(tower, folder / tower.name)) for tower in towers)
    return first, second


def test_one_tower_is_refused_by_name(towers: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"two towers, given is .*clip_bigg") as caught:
        check_clip_folders(towers[1:])
    assert "--text-encoder-2" in str(caught.value.hint)


def test_weights_of_another_depth_are_refused(towers: tuple[Path, Path], tmp_path: Path) -> None:
    folders = _copied(towers, tmp_path)
    path = folders[0] / "config.json"
    content = json.loads(path.read_text())
    content["text_config"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="3 layers, the weights are of 2"):
        load_clip(folders)
