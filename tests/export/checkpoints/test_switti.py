"""Switti's released layout: sizes from tensors and from the configuration beside them, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.switti_samples import CASES, SwittiGolden, released_folder
from ldp_runtime.errors import CheckpointError
from safetensors.torch import load_file, save_file

from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.original import original_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.switti import check_switti_files, infer_switti_config, load_switti, map_switti
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.models.registry import SwittiSpec

State = dict[str, torch.Tensor]


@pytest.fixture
def files(tmp_path: Path) -> tuple[State, dict[str, Any]]:
    folder = released_folder(CASES[0])
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def written(folder: Path, state: State, settings: dict[str, Any] | str | None) -> Path:
    save_file(state, folder / "model.safetensors")
    if settings is not None:
        (folder / "config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder / "model.safetensors"


@pytest.mark.parametrize("case", CASES)
def test_everything_is_read(case: str) -> None:
    golden = SwittiGolden(case)
    model, spec = golden.config["model"], infer_spec(golden.sources)
    assert isinstance(spec, SwittiSpec)
    config = spec.transformer
    assert (config.depth, config.width, config.heads) == (model["depth"], model["embed_dim"], model["num_heads"])
    assert (config.codes, config.channels, config.ffn) == (model["V"], model["Cvae"], model["ffn_hidden"])
    assert (config.text_channels, config.pooled_channels) == (model["context_dim"], model["pooled_embed_size"])
    assert config.grids == tuple(model["patch_nums"])
    assert config.keeps_past is model["use_ar"]
    check_switti_files(golden.sources.transformer, golden.sources.vae, config, spec.vae)


def test_released_schedules_end_guidance_where_the_demos_do() -> None:
    spec = infer_spec(SwittiGolden(CASES[0]).sources)
    assert isinstance(spec, SwittiSpec)
    ends = {}
    for grids in ((1, 2, 3, 4, 6, 9, 13, 18, 24, 32), (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)):
        ends[len(grids)] = _with_grids(spec, grids).first_unguided
    assert ends == {10: 8, 14: 11}


def _with_grids(spec: SwittiSpec, grids: tuple[int, ...]) -> SwittiSpec:
    from dataclasses import replace

    return replace(spec, transformer=replace(spec.transformer, grids=grids))


def test_a_released_configuration_that_names_little(tmp_path: Path, files: tuple[State, dict[str, Any]]) -> None:
    """That of the 512 models has no size, and none has the number of heads: then heads have 64 channels."""
    state, _ = files
    path = written(tmp_path, state, {"depth": 4, "rope": True, "use_ar": False})
    with pytest.raises(CheckpointError, match="head"):  # 96 channels make no heads of 64
        infer_switti_config({**state, "pos_start": state["pos_start"][..., :90]}, path)
    assert infer_switti_config(state, path).heads == 1


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        (lambda s: s.pop("lvl_1L"), {}, "lvl_1L"),
        (lambda s: s.update(lvl_1L=torch.tensor([[0, 1, 1]])), {}, "no square grids"),
        (lambda s: s.pop("attn_bias_for_masking"), {}, "use_ar"),
        (lambda s: s, {"use_ar": True}, "the training mask says False"),
        (lambda s: s, {"use_swiglu_ffn": False}, "use_swiglu_ffn"),
        (lambda s: s, {"rope": False}, "rope"),
        (lambda s: s.update(pos_1LC=torch.zeros(1, 3, 96)), {}, "pos_1LC"),
        (lambda s: s, {"num_heads": 2.5}, "num_heads is 2.5"),
        (lambda s: s, {"rope_size": -1}, "rope_size is -1"),
        (lambda s: s, "{", "no configuration"),
        (lambda s: s.pop("blocks.0.ffn.up_proj.weight"), {}, "up_proj"),
    ],
)
def test_what_is_no_switti_is_named(
    tmp_path: Path,
    files: tuple[State, dict[str, Any]],
    damage: Callable[[State], object],
    settings: dict[str, Any] | str,
    message: str,
) -> None:
    state, known = files
    damage(state)
    path = written(tmp_path, state, settings if isinstance(settings, str) else known | settings)
    if isinstance(settings, dict) and message == "use_ar":
        path = written(tmp_path, state, {key: value for key, value in known.items() if key != "use_ar"})
    with pytest.raises(CheckpointError, match=message):
        infer_switti_config(state, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("blocks.2.attn.proj.bias"), "blocks.2.attn.proj.bias"),
        (lambda s: s.update({"blocks.0.extra": torch.zeros(2)}), "blocks.0.extra"),
        (lambda s: s.update({"head.weight": torch.zeros(512, 95)}), "head.weight"),
        (lambda s: s["head.weight"].fill_(float("nan")), "NaN"),
    ],
)
def test_weights_are_read_strictly(
    tmp_path: Path, files: tuple[State, dict[str, Any]], damage: Callable[[State], object], message: str
) -> None:
    state, settings = files
    config = infer_switti_config(state, released_folder(CASES[0]) / "model.safetensors")
    damage(state)
    with pytest.raises(CheckpointError, match=message):
        load_switti(written(tmp_path, state, settings), config)


def test_a_vae_of_another_codebook_is_refused(tmp_path: Path) -> None:
    golden = SwittiGolden(CASES[0])
    vae = load_file(golden.sources.vae)
    vae["quantize.embedding.weight"] = vae["quantize.embedding.weight"][:100].clone()
    save_file(vae, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="draws from 512 codes"):
        infer_spec(Sources(golden.sources.transformer, tmp_path / "vae.safetensors"))


def test_half_precision_keeps_the_crop(tmp_path: Path, files: tuple[State, dict[str, Any]]) -> None:
    """Rounded weights are read as they are; the crop's phases are computed from them in float32."""
    state, settings = files
    halved = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    path = written(tmp_path, halved, settings)
    mapped = map_switti(path, infer_switti_config(halved, path))
    loaded = load_switti(path)
    with torch.no_grad():
        assert mapped.crop_embed.weight.dtype == torch.bfloat16
        torch.testing.assert_close(mapped.crop_condition(), loaded.crop_condition(), atol=0, rtol=0)


def test_contents_of_a_released_file() -> None:
    golden = SwittiGolden(CASES[0])
    expected = load_file(golden.sources.transformer)
    listed = original_state(golden.transformer.config)
    assert {key: tuple(t.shape) for key, t in listed.items()} == {key: tuple(t.shape) for key, t in expected.items()}
    assert torch.equal(listed["lvl_1L"], expected["lvl_1L"])


@pytest.mark.parametrize("case", CASES)
def test_synthetic_checkpoints_say_their_kind(tmp_path: Path, case: str) -> None:
    """A checkpoint of random weights has no `config.json`: whether scales see earlier ones stands in its mask."""
    spec = replace(infer_spec(SwittiGolden(case).sources), name="random")
    sources = write_checkpoint(spec, tmp_path)
    assert load_switti(sources.transformer).config.keeps_past is spec.transformer.keeps_past
    assert infer_spec(sources).transformer.grids == spec.transformer.grids
