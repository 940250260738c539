"""Conversion: values rounded once, in bounded memory, resumable, whole or not at all."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from helpers.samples import TRANSFORMER, random_transformer, random_vae, spec, write_text_encoder
from helpers.var_samples import VAR_MODELS, Held
from ldp_runtime.errors import CapacityError, CheckpointError, ConfigError
from ldp_runtime.system.disk import SCRATCH, scratch_path

from ldp_export.checkpoints import convert as module
from ldp_export.checkpoints.convert import PARTIAL, convert, plan_conversion
from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import (
    State,
    load_infinity,
    load_infinity_vae,
    original_infinity_state,
    original_infinity_vae_state,
)
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.cli import main


@pytest.fixture(scope="module")
def state() -> State:
    return original_infinity_state(random_transformer())


@pytest.fixture
def pth(state: State, tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "tiny_reg.pth")
    return tmp_path / "tiny_reg.pth"


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_matrices_of_blocks_are_rounded_and_nothing_else(
    state: State, pth: Path, tmp_path: Path, precision: str
) -> None:
    dtype = getattr(torch, precision)
    target = convert(plan_conversion(pth, tmp_path / "out", precision, shard_bytes=100_000))
    assert len(list(target.glob("*-of-*.safetensors"))) > 2
    converted = read_state(target)
    assert converted.keys() == state.keys()
    rounded = 0
    for name, value in state.items():
        in_block = name.startswith("block_chunks.") and value.dim() > 1
        assert torch.equal(converted[name], value.to(dtype) if in_block else value), name
        rounded += in_block
    assert rounded > 10
    assert load_infinity(target).config == TRANSFORMER


def test_shards_become_fewer_shards(tmp_path: Path) -> None:
    source = write_checkpoint(spec(), tmp_path / "published", shard_bytes=100_000).transformer
    target = convert(plan_conversion(source, tmp_path / "out", "bfloat16"))
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    before, after = load_infinity(source).state_dict(), load_infinity(target).state_dict()
    for name, value in before.items():
        assert torch.allclose(after[name], value, rtol=2**-8, atol=1e-30), name


def test_a_vae_keeps_its_precision_and_loses_what_is_no_vae(tmp_path: Path) -> None:
    original = original_infinity_vae_state(random_vae())
    torch.save({"vae": original, "ema": {"x": torch.ones(3)}, "step": 7}, tmp_path / "vae.pth")
    target = convert(plan_conversion(tmp_path / "vae.pth", tmp_path / "vae.safetensors", "bfloat16"))
    assert read_state(target).keys() == original.keys()
    assert torch.equal(load_infinity_vae(target).decoder.conv_in.weight, random_vae().decoder.conv_in.weight)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("held", VAR_MODELS.values(), ids=list(VAR_MODELS))
def test_files_of_var_as_released(held: Held, precision: str, tmp_path: Path) -> None:
    """`.pth` with the training mask, whose minus infinity is no damage, and with every naming of the convolutions."""
    sources = held.write(tmp_path / "released")
    original = torch.load(sources.transformer, weights_only=True)
    assert original["attn_bias_for_masking"].isinf().any()
    target = convert(plan_conversion(sources.transformer, tmp_path / "var", precision))
    converted = read_state(target)
    assert converted.keys() == original.keys() - {"attn_bias_for_masking"}
    reduced = {name for name, value in converted.items() if value.dtype == getattr(torch, precision)}
    matrices = re.compile(r"blocks\.\d+\.(attn\.mat_qkv|attn\.proj|ffn\.fc1|ffn\.fc2|ada_lin\.1)\.weight")
    assert reduced == set(filter(matrices.fullmatch, original))
    assert all(torch.equal(converted[name], original[name].to(converted[name].dtype)) for name in converted)
    vae = convert(plan_conversion(sources.vae, tmp_path / "vae.safetensors", precision))
    assert all(torch.equal(value, read_state(sources.vae)[name]) for name, value in read_state(vae).items())
    spec = infer_spec(Sources(target, vae))
    assert (spec.transformer, spec.vae) == (held.transformer, held.vae)
    assert load_var(target).word_embed.weight.equal(original["word_embed.weight"])
    assert load_var_vae(vae).phis[-1].weight.equal(load_var_vae(sources.vae).phis[-1].weight)


def test_of_a_text_encoder_only_the_encoder_is_kept(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = write_text_encoder(tmp_path / "t5", 32)
    config = T5Config.from_pretrained(folder)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    assert any(key.startswith("decoder.") for key in read_state(folder))
    target = convert(plan_conversion(folder, tmp_path / "encoder", "bfloat16"))
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert not any(key.startswith(("decoder.", "lm_head")) for key in read_state(target))
    ids = torch.tensor([[3, 4, 5, 1]])
    full, half = (load_text_encoder(path).module(input_ids=ids).last_hidden_state for path in (folder, target))
    assert 0 < float((full - half).abs().max()) < 0.05


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_the_table_of_tokens_has_several_names(tmp_path: Path, name: str) -> None:
    folder = write_text_encoder(tmp_path / "t5", 32)
    state = {key: value.clone() for key, value in read_state(folder).items()}
    table = state.pop("shared.weight")
    (folder / "model.safetensors").unlink()
    save_state(state | {name: table}, folder / "model.safetensors")
    assert torch.equal(load_text_encoder(folder).module.get_input_embeddings().weight, table)
    target = convert(plan_conversion(folder, tmp_path / "encoder", "float32"))
    assert torch.equal(read_state(target)["shared.weight"], table)
    assert torch.equal(load_text_encoder(target).module.get_input_embeddings().weight, table)


def test_an_interrupted_conversion_goes_on(pth: Path, state: State, tmp_path: Path) -> None:
    plan = plan_conversion(pth, tmp_path / "out", "bfloat16", shard_bytes=100_000)
    convert_until(plan, tensor=30)
    begun = tmp_path / f"out{PARTIAL}"
    finished = {path.name: path.stat().st_mtime_ns for path in begun.glob("*.safetensors")}
    assert 0 < len(finished) < len(plan.shards)
    assert not (tmp_path / "out").exists()
    said: list[int] = []
    target = convert(
        plan_conversion(pth, tmp_path / "out", "bfloat16", shard_bytes=100_000),
        lambda name, done, total: said.append(done),
    )
    assert {name: (target / name).stat().st_mtime_ns for name in finished} == finished
    assert said[0] > 0, "progress counts what was there"
    assert read_state(target).keys() == state.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny_reg.pth"]


@pytest.mark.parametrize("changed", ["precision", "source"])
def test_another_conversion_does_not_go_on_in_its_place(pth: Path, state: State, tmp_path: Path, changed: str) -> None:
    convert_until(plan_conversion(pth, tmp_path / "out", "bfloat16", shard_bytes=100_000), tensor=30)
    if changed == "source":
        state = {name: value * 2 for name, value in state.items()}
        torch.save(state, pth)
    precision = "float16" if changed == "precision" else "bfloat16"
    converted = read_state(convert(plan_conversion(pth, tmp_path / "out", precision, shard_bytes=100_000)))
    name = "block_chunks.0.module.0.ffn.fc1.weight"
    assert torch.equal(converted[name], state[name].to(getattr(torch, precision)))


def test_a_killed_conversion_leaves_nothing_in_the_result(pth: Path, tmp_path: Path) -> None:
    plan = plan_conversion(pth, tmp_path / "out", "bfloat16", shard_bytes=100_000)
    convert_until(plan, tensor=30)
    scratch_path(plan.begun).write_bytes(b"half a shard: SIGKILL lets nobody clean up")
    assert not list(convert(plan).glob(f"{SCRATCH}*"))


def test_a_killed_conversion_to_one_file_leaves_nothing_beside_it(pth: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    plan = plan_conversion(pth, folder / "out.safetensors", "bfloat16")
    convert_until(plan, tensor=30)
    scratch_path(plan.begun).write_bytes(b"half a file")
    assert len(read_state(convert(plan))) == len(plan.shards["out.safetensors"])
    assert [path.name for path in folder.iterdir()] == ["out.safetensors"]


def test_two_conversions_to_one_place(pth: Path, tmp_path: Path) -> None:
    plan = plan_conversion(pth, tmp_path / "out", "bfloat16")
    with FileLock(tmp_path / "out.lock"), pytest.raises(ConfigError, match="another conversion is writing"):
        convert(plan)
    assert not (tmp_path / "out").exists()


def convert_until(plan: module.Conversion, tensor: int) -> None:
    """Converts and is interrupted at a tensor, as by Ctrl-C."""
    count = 0

    def stop(name: str, done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(plan, stop)


def spoil(name: str, value: float) -> Callable[[State], State]:
    def change(state: State) -> State:
        tensor = state[name].clone()
        tensor.view(-1)[5] = value
        return state | {name: tensor}

    return change


@pytest.mark.parametrize(
    ("value", "precision", "says"), [(float("nan"), "bfloat16", "NaN"), (1e6, "float16", "float16 cannot hold")]
)
def test_values_that_cannot_be_kept(
    pth: Path, state: State, tmp_path: Path, value: float, precision: str, says: str
) -> None:
    torch.save(spoil("block_chunks.1.module.0.ffn.fc2.weight", value)(state), pth)
    with pytest.raises(CheckpointError, match=says):
        convert(plan_conversion(pth, tmp_path / "out", precision, shard_bytes=100_000))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_reg.pth"]


def test_bad_input_is_refused_before_work(pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="one of float32, bfloat16, float16"):
        plan_conversion(pth, tmp_path / "out", "int8")
    with pytest.raises(ConfigError, match="exists"):
        plan_conversion(pth, pth, "bfloat16")
    encoder = write_text_encoder(tmp_path / "t5", 32)
    with pytest.raises(ConfigError, match=r"config.json and tokenizer.json must lie beside"):
        plan_conversion(encoder, tmp_path / "encoder.safetensors", "bfloat16")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        plan_conversion(tmp_path / "none", tmp_path / "out", "bfloat16")
    source = write_checkpoint(spec(), tmp_path / "published", shard_bytes=100_000).transformer
    shard = sorted(source.glob("*-of-*"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"cannot read .*{shard.name}"):
        plan_conversion(source, tmp_path / "out", "bfloat16")
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names the shard {shard.name}"):
        plan_conversion(source, tmp_path / "out", "bfloat16")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match="are free"):
        plan_conversion(pth, tmp_path / "out", "bfloat16")


def test_a_disk_that_fills_up_midway(pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_conversion(pth, tmp_path / "out", "bfloat16", shard_bytes=100_000)
    last = list(plan.shards)[-1]

    def write(sources: object, path: Path, on_tensor: object) -> None:
        if path.name == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.undo()
        module.write_tensors(sources, path, on_tensor)  # pyright: ignore[reportArgumentType]
        monkeypatch.setattr(module, "write_tensors", write)

    monkeypatch.setattr(module, "write_tensors", write)
    with pytest.raises(CapacityError, match="it resumes"):
        convert(plan)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert len(read_state(convert(plan))) == sum(len(shard) for shard in plan.shards.values())


def test_command_line(pth: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(pth), str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "convert out" in result.output
    assert json.loads(result.output.splitlines()[-1])["precision"] == "bfloat16"
    assert CliRunner().invoke(main, arguments).exit_code == ConfigError.exit_code


_MEASURE = """
import sys, threading, time
from pathlib import Path
from ldp_export.checkpoints.convert import convert, plan_conversion

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

import torch
torch.ones(8).to(torch.bfloat16)
before, most, running = anonymous(), 0, True
def watch():
    global most
    while running:
        most = max(most, anonymous() - before)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
convert(plan_conversion(Path(sys.argv[1]), Path(sys.argv[2]), "bfloat16", 64 * 2**20))
running = False
thread.join()
print(most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("layout", ["shards", "pth"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, layout: str) -> None:
    """512 MiB are converted in less than 128 MiB of anonymous memory."""
    tensors = {f"blocks.{i}.ffn.fc1.weight": torch.full((2048, 2048), float(i)) for i in range(32)}
    if layout == "pth":
        source = tmp_path / "a.pth"
        torch.save(tensors, source)
    else:
        from ldp_export.checkpoints.files.writer import TensorSource, write_tensors

        source = tmp_path / "shards"
        source.mkdir()
        for i, (name, tensor) in enumerate(tensors.items()):
            write_tensors([TensorSource.of(name, tensor)], source / f"{i}.safetensors")
        places = {name: f"{i}.safetensors" for i, name in enumerate(tensors)}
        (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{_MEASURE}"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    most = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert most < 128 * 2**20
    assert torch.equal(read_state(tmp_path / "out")["blocks.31.ffn.fc1.weight"], tensors["blocks.31.ffn.fc1.weight"])
