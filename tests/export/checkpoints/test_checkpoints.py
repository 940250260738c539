"""The original file layouts, strictly: what fits loads, what does not is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.samples import TRANSFORMER, VAE, random_transformer, random_vae
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime.errors import CheckpointError
from safetensors.torch import save_file

from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.infinity import (
    State,
    build_infinity,
    build_infinity_vae,
    infer_infinity_config,
    infer_infinity_vae_config,
    load_infinity,
    load_infinity_vae,
    original_infinity_state,
    original_infinity_vae_state,
)
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.sizes import InfinityConfig, InfinityVaeConfig


@pytest.fixture(scope="module")
def transformer() -> InfinityTransformer:
    return random_transformer()


@pytest.fixture(scope="module")
def vae() -> InfinityVae:
    return random_vae()


@pytest.fixture
def state(transformer: InfinityTransformer) -> State:
    return original_infinity_state(transformer)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def shard(state: State, folder: Path, count: int = 3) -> Path:
    """A folder in the hub's sharded layout; returns its index file."""
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    places = {key: names[i % count] for i, key in enumerate(sorted(state))}
    for name in names:
        save_file({key: state[key] for key, place in places.items() if place == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


class TestLayouts:
    def test_chunked_and_flat_keys(self, transformer: InfinityTransformer, state: State) -> None:
        assert any(key.startswith("block_chunks.1.module.0.") for key in state)
        assert not any(key.startswith("blocks.") for key in state)
        flat = transformer.state_dict()
        assert same_weights(build_infinity(state), build_infinity(dict(flat)))
        assert same_weights(build_infinity(state), transformer)

    def test_chunks_number_blocks_globally(self) -> None:
        config = InfinityConfig(6, 32, 2, 64, bits=8, text_channels=16, text_tokens=4, pool_heads=2, chunks=3)
        model = random_transformer(config)
        state = original_infinity_state(model)
        key = "block_chunks.2.module.1.ffn.fc1.weight"
        assert torch.equal(state[key], model.blocks[5].ffn.fc1.weight)
        assert same_weights(build_infinity(state), model)

    def test_buffers_that_carry_nothing_are_ignored(self, transformer: InfinityTransformer, state: State) -> None:
        extra = {name: torch.zeros(3) for name in ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen")}
        assert any(key.endswith("zero_k_bias") for key in state)
        assert same_weights(build_infinity(state | extra), transformer)

    def test_flash_layout_of_the_attention_scale(self, transformer: InfinityTransformer, state: State) -> None:
        moved = {}
        for key, value in state.items():
            if key.endswith("scale_mul_1H11"):
                moved[key.removesuffix("_1H11")] = value.reshape(1, 1, -1, 1)
            else:
                moved[key] = value
        assert same_weights(build_infinity(moved), transformer)

    def test_wrapped_and_plain_vae_keys(self, vae: InfinityVae) -> None:
        wrapped, plain = original_infinity_vae_state(vae), dict(vae.state_dict())
        for key in ("decoder.conv_in.conv.weight", "encoder.down.0.block.0.norm1.norm.bias", "quantize.lfq.mask"):
            assert key in wrapped
        assert "encoder.down.0.downsample.conv.conv.weight" in wrapped
        assert same_weights(build_infinity_vae(wrapped), vae)
        assert same_weights(build_infinity_vae(plain), vae)

    def test_half_precision_files_become_float32(self, state: State, tmp_path: Path) -> None:
        save_state(state, tmp_path / "half.safetensors", torch.bfloat16)
        loaded = load_infinity(tmp_path / "half.safetensors")
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        assert torch.equal(loaded.head.weight, state["head.weight"].bfloat16().float())


class TestFiles:
    def test_sharded_folder_and_index(self, transformer: InfinityTransformer, state: State, tmp_path: Path) -> None:
        index = shard(state, tmp_path / "shards")
        assert same_weights(load_infinity(index.parent), transformer)
        assert same_weights(load_infinity(index), transformer)

    def test_missing_shard_is_named(self, state: State, tmp_path: Path) -> None:
        index = shard(state, tmp_path / "shards")
        (index.parent / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"names the shard model-00002-of-00003\.safetensors"):
            load_infinity(index.parent)

    def test_shard_that_lacks_a_key(self, state: State, tmp_path: Path) -> None:
        index = shard(state, tmp_path / "shards")
        content = json.loads(index.read_text())
        content["weight_map"]["head.more"] = "model-00001-of-00003.safetensors"
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"shards lack: head\.more"):
            load_infinity(index.parent)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": 3}', "\x80"])
    def test_damaged_index(self, state: State, tmp_path: Path, content: str) -> None:
        index = shard(state, tmp_path / "shards")
        index.write_text(content)
        with pytest.raises(CheckpointError, match="not a safetensors index"):
            load_infinity(index.parent)

    def test_shards_without_an_index(self, state: State, tmp_path: Path) -> None:
        index = shard(state, tmp_path / "shards")
        index.unlink()
        with pytest.raises(CheckpointError, match="3 safetensors files and no model"):
            load_infinity(tmp_path / "shards")

    def test_folder_with_one_file(self, transformer: InfinityTransformer, state: State, tmp_path: Path) -> None:
        save_state(state, tmp_path / "model.safetensors")
        assert same_weights(load_infinity(tmp_path), transformer)

    @pytest.mark.parametrize("old_format", [False, True])
    @pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"trainer": {"gpt_fsdp": s}, "epoch": 3}])
    def test_pth(self, transformer: InfinityTransformer, state: State, tmp_path: Path, wrap, old_format: bool) -> None:
        torch.save(wrap(state), tmp_path / "model.pth", _use_new_zipfile_serialization=not old_format)
        assert same_weights(load_infinity(tmp_path / "model.pth"), transformer)

    def test_vae_pth_takes_the_vae_not_its_average(self, vae: InfinityVae, tmp_path: Path) -> None:
        state = original_infinity_vae_state(vae)
        average = {key: torch.zeros_like(value) for key, value in state.items()}
        torch.save({"vae": state, "ema": average, "discriminator": {"x": torch.ones(2)}}, tmp_path / "vae.pth")
        assert same_weights(load_infinity_vae(tmp_path / "vae.pth"), vae)

    def test_pickled_code_is_refused_and_not_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "was_run"

        class Malicious:
            def __reduce__(self) -> tuple[Callable, tuple]:
                return Path.touch, (marker,)

        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
        torch.save({"w": Malicious()}, tmp_path / "zipped.pth")
        for name in ("plain.pth", "zipped.pth"):
            with pytest.raises(CheckpointError, match="without running pickled code"):
                read_state(tmp_path / name)
        assert not marker.exists()

    @pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 3}, {}, {"vae": {"a": "text"}}])
    def test_pth_without_tensors(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match="no dictionary of tensors"):
            read_state(tmp_path / "model.pth")

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
    def test_truncated(self, state: State, tmp_path: Path, name: str, share: float) -> None:
        path = tmp_path / name
        save_state(state, path) if name.endswith(".safetensors") else torch.save(state, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError, match="cannot read"):
            read_state(path)

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
    def test_garbage(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\x93" * 1000)
        with pytest.raises(CheckpointError, match="cannot read"):
            read_state(tmp_path / name)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            read_state(tmp_path / "absent.safetensors")
        with pytest.raises(CheckpointError, match="0 safetensors files"):
            read_state(tmp_path)


class TestKeys:
    def test_all_problems_are_listed(self, state: State) -> None:
        del state["head.bias"]
        del state["block_chunks.1.module.0.sa.q_bias"]
        state["head.scale"] = torch.ones(1)
        state["block_chunks.0.module.0.ffn.fc2.weight"] = torch.ones(3, 4)
        with pytest.raises(CheckpointError) as caught:
            build_infinity(state)
        message = str(caught.value)
        assert "2 missing: blocks.1.sa.q_bias, head.bias" in message
        assert "1 unexpected: head.scale" in message
        assert "1 of the wrong shape: blocks.0.ffn.fc2.weight (3, 4) instead of (64, 256)" in message

    def test_every_key_is_needed(self, transformer: InfinityTransformer) -> None:
        full = dict(transformer.state_dict())
        for key in full:
            with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
                build_infinity({k: v for k, v in full.items() if k != key}, TRANSFORMER)

    def test_every_vae_key_is_needed(self, vae: InfinityVae) -> None:
        full = original_infinity_vae_state(vae)
        for key in full:
            if not key.endswith("lfq.mask"):
                with pytest.raises(CheckpointError):
                    build_infinity_vae({k: v for k, v in full.items() if k != key})

    def test_missing_blocks(self, state: State) -> None:
        for prefix in ("block_chunks.0.", "block_chunks.1.", "block_chunks."):
            rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
            with pytest.raises(CheckpointError):
                build_infinity(rest, TRANSFORMER)

    def test_attention_in_the_vae_is_unexpected(self, vae: InfinityVae) -> None:
        state = original_infinity_vae_state(vae) | {"decoder.mid.attn_1.q.weight": torch.ones(1)}
        with pytest.raises(CheckpointError, match=r"unexpected: decoder\.mid\.attn_1"):
            build_infinity_vae(state)

    def test_another_size_than_named(self, state: State) -> None:
        wider = InfinityConfig(2, 128, 4, 256, bits=8, text_channels=32, text_tokens=16, pool_heads=2)
        with pytest.raises(CheckpointError, match="of another size than named"):
            build_infinity(state, wider)

    def test_swapped_files(self, state: State, vae: InfinityVae) -> None:
        with pytest.raises(CheckpointError, match="takes a transformer of Infinity"):
            build_infinity(original_infinity_vae_state(vae))
        with pytest.raises(CheckpointError, match="BSQ VAE"):
            build_infinity_vae(state)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, state: State, value: float) -> None:
        state["block_chunks.1.module.0.ffn.fc1.weight"] = state["block_chunks.1.module.0.ffn.fc1.weight"].clone()
        state["block_chunks.1.module.0.ffn.fc1.weight"][3, 4] = value
        with pytest.raises(CheckpointError, match=r"NaN or infinity.*blocks\.1\.ffn\.fc1\.weight"):
            build_infinity(state)

    def test_shapes_that_make_no_model(self, state: State, vae: InfinityVae) -> None:
        state["block_chunks.0.module.0.sa.scale_mul_1H11"] = torch.ones(1, 3, 1, 1)
        with pytest.raises(CheckpointError, match="make no Infinity transformer"):
            build_infinity(state)
        narrow = original_infinity_vae_state(vae)
        for key in [k for k in narrow if k.startswith(("encoder.conv_in", "encoder.down", "decoder.conv_in"))]:
            narrow[key] = narrow[key][:16]
        with pytest.raises(CheckpointError):
            build_infinity_vae(narrow)


@st.composite
def transformer_configs(draw: st.DrawFn) -> InfinityConfig:
    heads, chunks, pool_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    return InfinityConfig(
        depth=chunks * draw(st.integers(1, 2)),
        width=heads * 4 * draw(st.sampled_from([2, 4])),
        heads=heads,
        ffn=draw(st.sampled_from([16, 48])),
        bits=draw(st.integers(1, 20)),
        text_channels=draw(st.integers(1, 24)),
        text_tokens=draw(st.integers(1, 20)),
        levels=draw(st.integers(7, 16)),
        pool_heads=pool_heads,
        chunks=chunks,
    )


@settings(max_examples=25)
@given(transformer_configs())
def test_sizes_of_a_transformer_are_read_from_its_shapes(config: InfinityConfig) -> None:
    state = original_infinity_state(InfinityTransformer(config))
    assert infer_infinity_config(state) == config
    build_infinity(state)


@settings(max_examples=25)
@given(
    bits=st.integers(1, 40),
    base=st.sampled_from([24, 32]),
    multipliers=st.lists(st.integers(1, 3), max_size=4).map(lambda more: (1, *more)),
    res_blocks=st.integers(1, 2),
    data=st.data(),
)
def test_sizes_of_a_vae_are_read_from_its_shapes(
    bits: int, base: int, multipliers: tuple[int, ...], res_blocks: int, data: st.DataObject
) -> None:
    stride = 2 ** data.draw(st.integers(0, len(multipliers) - 1))
    config = InfinityVaeConfig(bits, base, multipliers, res_blocks, stride)
    with torch.device("meta"):
        state = dict(InfinityVae(config).state_dict())
    assert infer_infinity_vae_config(state) == config


def test_sample_vae_has_what_its_configuration_says(vae: InfinityVae) -> None:
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, 16, 24))
        assert latent.shape == (1, VAE.bits, 4, 6)
        assert vae.decode(latent).shape == (1, 3, 16, 24)
