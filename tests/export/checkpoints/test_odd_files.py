"""Files that are named for what they are not, hold more than weights, or are no files: read by content, or refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.samples import TRANSFORMER, write_sources, write_text_encoder
from helpers.var_samples import VAR_MODELS
from ldp_runtime.errors import CheckpointError

from ldp_export.checkpoints.convert import convert, plan_conversion
from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import infer_infinity_config, load_infinity, unwrap_vae_keys
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.t5 import check_folder, load_text_encoder
from ldp_export.checkpoints.var import load_var, load_var_vae

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return VAR_MODELS["a phi each, one block"].write(tmp_path_factory.mktemp("var"))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_text_encoder(tmp_path / "encoder", TRANSFORMER.text_channels)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class TestContent:
    @pytest.mark.parametrize("name", ["x.ckpt", "x.pth", "x.SAFETENSORS", "x.bin", "x", "x.safetensors", "x.pt.bak"])
    @pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
    def test_files_are_read_by_content(self, tmp_path: Path, name: str, kind: str) -> None:
        path = tmp_path / name
        if kind == "safetensors":
            save_state(STATE, tmp_path / "made")
            (tmp_path / "made").rename(path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
        assert same(read_state(path), STATE)

    @pytest.mark.parametrize(
        ("start", "says"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer to a file in Git LFS"),
            (b"<!DOCTYPE html><html>", "a page of HTML"),
            (b"GGUF\3\0\0\0", "a GGUF file"),
            (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
            (b"\x1f\x8b\x08\0", "compressed with gzip"),
            (b'{"a": 1}', "a file of JSON"),
            (b"", "empty"),
            (bytes(1000), "full of zeros"),
        ],
    )
    @pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
    def test_what_is_no_checkpoint_is_named_for_what_it_is(
        self, tmp_path: Path, name: str, start: bytes, says: str
    ) -> None:
        (tmp_path / name).write_bytes(start)
        with pytest.raises(CheckpointError, match=says):
            read_state(tmp_path / name)

    def test_hidden_files_are_no_weights(self, tmp_path: Path) -> None:
        """As a Mac leaves one beside each file on a stick."""
        save_state(STATE, tmp_path / "model.Safetensors")
        (tmp_path / "._model.safetensors").write_bytes(b"\0\5\x16\7")
        (tmp_path / ".hidden.safetensors").mkdir()
        assert same(read_state(tmp_path), STATE)
        converted = convert(plan_conversion(tmp_path, tmp_path.with_name(f"{tmp_path.name}.out"), "float32"))
        assert same(read_state(converted), STATE)
        shutil.rmtree(converted)


class TestNoFiles:
    def test_pipes_sockets_devices_and_links_to_nowhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe.safetensors")
        Path("zero.pth").symlink_to("/dev/zero")
        Path("nowhere.pth").symlink_to("absent")
        Path("loop.pth").symlink_to("loop.pth")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.pth")
            for name in ("pipe.safetensors", "zero.pth", "nowhere.pth", "loop.pth", "socket.pth", "absent.pth"):
                path = tmp_path / name
                with pytest.raises(CheckpointError):
                    read_state(path)
                with pytest.raises(CheckpointError):
                    Sources(path, path).check()
                with pytest.raises(CheckpointError):
                    plan_conversion(path, tmp_path / "out", "float32")

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_pipes_in_the_folder_of_an_encoder(self, encoder: Path, name: str) -> None:
        (encoder / name).unlink()
        os.mkfifo(encoder / name)
        with pytest.raises(CheckpointError):
            load_text_encoder(encoder)

    def test_a_pipe_for_a_shard_or_an_index(self, tmp_path: Path) -> None:
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
        os.mkfifo(tmp_path / "1.safetensors")
        with pytest.raises(CheckpointError, match="a named pipe"):
            read_state(tmp_path)
        index.unlink()
        os.mkfifo(index)
        with pytest.raises(CheckpointError, match="a named pipe"):
            read_state(tmp_path)


class TestTraining:
    """What VAR's own training writes: both parts, under the trainer, beside its optimizer."""

    def test_both_parts_are_read_from_one_file(self, var: Sources, tmp_path: Path) -> None:
        transformer, vae = read_state(var.transformer), read_state(var.vae)
        optimizer = {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1}],
        }
        trainer = {
            "var_wo_ddp": transformer,
            "vae_local": vae,
            "var_opt": {"optimizer": optimizer},
            "config": {"pg": 1},
        }
        path = tmp_path / "ar-ckpt-last.pth"
        torch.save({"epoch": 7, "iter": 0, "trainer": trainer, "args": {"depth": 1}}, path)
        assert infer_spec(Sources(path, path)).transformer == infer_spec(var).transformer
        assert same(load_var(path).state_dict(), load_var(var.transformer).state_dict())
        assert same(load_var_vae(path).state_dict(), load_var_vae(var.vae).state_dict())

    def test_what_is_there_is_listed(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        torch.save({"epoch": 7, "model_ema": {"a": torch.zeros(1)}, "trainer": {"other": {}, "lr": 0.1}}, path)
        with pytest.raises(CheckpointError, match=r"it holds epoch, model_ema, trainer\.other, trainer\.lr"):
            read_state(path)
        torch.save([1, 2], path)
        with pytest.raises(CheckpointError, match="it holds a list"):
            read_state(path)


class TestNumbers:
    @pytest.mark.parametrize(
        "key",
        [
            "blocks.999999999.x",
            "blocks.3.x",
            "block_chunks.999999999.module.0.x",
            "blocks.99999999999999999999999.x",
            "blocks.00.x",
        ],
    )
    def test_no_more_blocks_than_keys(self, sources: Sources, tmp_path: Path, key: str) -> None:
        save_state(read_state(sources.transformer) | {key: torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError):
            infer_spec(Sources(tmp_path / "x.safetensors", sources.vae))

    @pytest.mark.parametrize("key", ["encoder.down.999999999.x", "encoder.down.0.block.999999999.x"])
    def test_no_more_levels_than_keys(self, sources: Sources, var: Sources, tmp_path: Path, key: str) -> None:
        for whole in (sources, var):
            save_state(read_state(whole.vae) | {key: torch.zeros(1)}, tmp_path / "x.safetensors")
            with pytest.raises(CheckpointError):
                infer_spec(Sources(whole.transformer, tmp_path / "x.safetensors"))

    @pytest.mark.parametrize("levels", [[[0, 10**12]], [[-1, 0]], [[]]])
    def test_scales_that_cannot_be_counted(self, var: Sources, tmp_path: Path, levels: Any) -> None:
        state = read_state(var.transformer) | {"lvl_1L": torch.tensor(levels)}
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="does not number scales"):
            infer_spec(Sources(tmp_path / "x.pth", var.vae))

    def test_one_key_under_two_names(self, sources: Sources) -> None:
        state = read_state(sources.transformer)
        twice = state | {"blocks.0.ffn.fc1.weight": state["block_chunks.0.module.0.ffn.fc1.weight"]}
        with pytest.raises(CheckpointError, match="there under another name"):
            infer_infinity_config(twice)
        vae = read_state(sources.vae)
        key = next(key for key in vae if key.endswith(".conv_in.conv.weight"))
        with pytest.raises(CheckpointError, match="there under another name"):
            unwrap_vae_keys(vae | {key.replace(".conv.weight", ".weight"): vae[key]})


class TestTypes:
    @pytest.mark.parametrize("kind", ["float8_e5m2", "complex64", "uint16", "uint32", "float8_e4m3fnuz"])
    def test_a_conversion_names_the_tensor(self, tmp_path: Path, kind: str) -> None:
        torch.save(STATE | {"odd.weight": torch.ones(2, 2).to(getattr(torch, kind))}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=rf"odd\.weight is of {kind}"):
            plan_conversion(tmp_path / "x.pth", tmp_path / "out", "bfloat16")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", [torch.complex64, torch.int64, torch.bool, torch.float8_e5m2, torch.uint16])
    def test_a_build_names_the_tensor(self, sources: Sources, tmp_path: Path, kind: torch.dtype) -> None:
        state = read_state(sources.transformer)
        torch.save(state | {"head.weight": state["head.weight"].to(kind)}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"of an element type.*: head\.weight"):
            load_infinity(tmp_path / "x.pth")


class TestIndex:
    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors", "", 7, None]
    )
    def test_shards_that_lie_elsewhere(self, tmp_path: Path, name: object) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        save_state(STATE, tmp_path / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="is no file beside it"):
            read_state(folder)

    @pytest.mark.parametrize(
        "text", ["[" * 1000, "{}", '{"weight_map": []}', '{"weight_map": {}}', " " * (17 * 2**20), "\0"]
    )
    def test_what_is_no_index(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not a safetensors index"):
            read_state(tmp_path)


class TestTextEncoder:
    def change(self, folder: Path, **fields: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    @pytest.mark.parametrize("kind", ["umt5", "mt5", "bert", "T5", "", None, 5])
    def test_relatives_are_refused_by_name(self, encoder: Path, kind: object) -> None:
        self.change(encoder, model_type=kind)
        for check in (check_folder, load_text_encoder):
            with pytest.raises(CheckpointError, match="is of the model type"):
                check(encoder)

    def test_keys_that_no_parameter_takes(self, encoder: Path) -> None:
        """UMT5 under T5's name: each block has its own table of positions."""
        state = read_state(encoder)
        bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
        state["encoder.block.0.layer.9.x"] = state[bias.format(0)]
        (encoder / "model.safetensors").unlink()
        save_state(state, encoder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"holds encoder\.block\.0\.layer\.9\.x, which a T5 encoder"):
            load_text_encoder(encoder)

    @pytest.mark.parametrize("count", [10_000_000, 2**63, 0, -1, 2, 1.0, "1", None, True])
    def test_a_configuration_of_another_depth(self, encoder: Path, count: object) -> None:
        self.change(encoder, num_layers=count)
        with pytest.raises(CheckpointError, match="makes no T5 encoder"):
            load_text_encoder(encoder)

    @pytest.mark.parametrize(
        "fields",
        [
            {"layer_norm_epsilon": 1e300},
            {"layer_norm_epsilon": -1e-6},
            {"relative_attention_max_distance": 0},
            {"relative_attention_num_buckets": 10**12},
            {"d_model": 10**9},
            {"num_heads": 0},
            {"d_kv": "8"},
            {"feed_forward_proj": "unheard-of"},
        ],
    )
    def test_numbers_that_no_encoder_computes_with(self, encoder: Path, fields: dict[str, object]) -> None:
        self.change(encoder, **fields)
        with pytest.raises(CheckpointError):
            load_text_encoder(encoder)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    @pytest.mark.parametrize("text", ["", "[" * 10**5, "null", '{"model_type": NaN}', " " * (17 * 2**20)])
    def test_files_that_are_damaged(self, encoder: Path, name: str, text: str) -> None:
        (encoder / name).write_text(text)
        with pytest.raises(CheckpointError):
            check_folder(encoder)
