"""HART's released layout: what is read, what is left aside, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hart_samples import HartGolden, released_folder
from ldp_runtime.errors import CheckpointError

from ldp_export.checkpoints.convert import convert, plan_conversion
from ldp_export.checkpoints.files.tensors import State, read_state, save_state
from ldp_export.checkpoints.hart import check_hart_files, infer_hart_config, load_hart
from ldp_export.checkpoints.infer import check_name, infer_spec
from ldp_export.checkpoints.original import original_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.var import load_var_vae
from ldp_export.models.registry import HartSpec, find_model
from ldp_export.models.sizes import HartConfig

GOLDEN = HartGolden()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy of the released files, whose settings may be changed."""
    shutil.copytree(released_folder(), tmp_path / "hart")
    return tmp_path / "hart"


def test_sizes_are_read_from_tensors_and_settings() -> None:
    spec, given = infer_spec(GOLDEN.sources), GOLDEN.config["model"]
    assert isinstance(spec, HartSpec)
    expected = HartConfig(
        given["depth"], given["embed_dim"], given["num_heads"], 256, 640, 16, given["context_dim"],
        given["context_token"], tuple(given["patch_nums"]), given["diff_width"], given["diff_depth"], 8,
    )  # fmt: skip
    assert spec.transformer == expected
    assert spec.size == "192px"


def test_averages_of_training_are_read_as_they_are_pickled(folder: Path) -> None:
    """`ema_model.bin` is a flat dictionary of tensors; its settings lie beside it."""
    torch.save(read_state(folder / "llm"), folder / "llm" / "ema_model.bin")
    model = load_hart(folder / "llm" / "ema_model.bin")
    assert all(torch.equal(value, GOLDEN.transformer.state_dict()[key]) for key, value in model.state_dict().items())


def test_buffers_of_training_are_no_weights() -> None:
    state = read_state(GOLDEN.sources.transformer)
    aside = set(state) - set(GOLDEN.transformer.state_dict())
    assert {"lvl_1L", "attn_bias_for_masking", "blocks.0.attn.zero_k_bias"} <= aside
    assert set(original_state(GOLDEN.transformer.config)) == set(state)


def test_the_vae_is_taken_from_beside_its_discriminator(tmp_path: Path) -> None:
    """A second decoder is of no use; what is unknown is refused, under `vae.` or beside it."""
    state = read_state(GOLDEN.sources.vae)
    assert "disc.main.0.weight" in state
    save_state(state | {"vae.decoder2.conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    vae = load_var_vae(tmp_path / "vae.safetensors")
    assert all(torch.equal(value, GOLDEN.vae.state_dict()[key]) for key, value in vae.state_dict().items())
    for key in ("vae.decoder3.x", "other.x"):
        save_state(state | {key: torch.zeros(1)}, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match="1 unexpected"):
            load_var_vae(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attn_l2_norm": True}, "attn_l2_norm True"),
        ({"use_timestep_embed": False}, "use_timestep_embed False"),
        ({"patch_nums": [1, 2, 3]}, "patch_nums"),
        ({"context_token": 300}, "context_token"),
        ({"num_heads": 5}, "make no HART transformer"),
        ({"num_heads": "3x"}, "whole number"),
        ({"num_sampling_steps": "1"}, "make no HART transformer"),
        ({"norm_eps": 0}, "small number"),
    ],
)
def test_settings_of_another_model_are_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    path = folder / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(CheckpointError, match=message):
        infer_spec(Sources(folder / "llm" / "model.safetensors", GOLDEN.sources.vae))


def _without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("decoder_norm.weight"), "1 missing: decoder_norm.weight"),
        (_without("lvl_1L"), "lacks 'lvl_1L'"),
        (lambda state: state | {"pos_start": torch.zeros(1)}, "differs from the released one in pos_start"),
        (lambda state: state | {"blocks.0.ada_gss": torch.zeros(1)}, "differs from the released one"),
        (lambda state: state | {"blocks.0.other": torch.zeros(1)}, "1 unexpected: blocks.0.other"),
        (lambda state: state | {"lvl_1L": torch.tensor([[0, 0, 1, 1, 1]])}, "no square grids"),
        (lambda state: state | {"head.bias": torch.full((640,), float("nan"))}, "NaN or infinity in head.bias"),
    ],
)
def test_other_tensors_are_refused(folder: Path, change: Callable[[State], State], message: str) -> None:
    state = change(read_state(GOLDEN.sources.transformer))
    state.pop("attn_bias_for_masking")
    path = folder / "llm" / "changed.safetensors"
    save_or_pickle(state, path)
    with pytest.raises(CheckpointError, match=message):
        load_hart(path)


def save_or_pickle(state: State, path: Path) -> None:
    """Writes tensors that our own writer would refuse, such as NaN."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in state.items()}, path)


def test_files_of_another_schedule_than_the_names_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"is not hart-0\.7b: it has 4 blocks of width 96 behind 20 rows"):
        check_name(find_model("hart-0.7b"), GOLDEN.sources)
    state = read_state(GOLDEN.sources.transformer)
    config = infer_hart_config(state, GOLDEN.sources.transformer)
    other = HartConfig(**(vars(config) | {"grids": (1, 2, 3, 4, 5, 7, 9, 13)}))
    with pytest.raises(CheckpointError, match="has grids of sides"):
        check_hart_files(GOLDEN.sources.transformer, GOLDEN.sources.vae, other, GOLDEN.vae.config)


def test_converted_files_are_the_same_model(tmp_path: Path) -> None:
    """Their settings go with them; the training's mask, half of the file, does not."""
    target = convert(plan_conversion(released_folder() / "llm", tmp_path / "converted", "float32"))
    assert (target / "config.json").exists()
    model = load_hart(target)
    assert model.config == GOLDEN.transformer.config
    assert all(torch.equal(value, GOLDEN.transformer.state_dict()[key]) for key, value in model.state_dict().items())
    assert "attn_bias_for_masking" not in read_state(target)
