"""The named models: sizes of the released checkpoints, found by name, sources checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers.samples import spec, write_sources
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.infinity import original_infinity_state
from ldp_export.checkpoints.original import original_state
from ldp_export.checkpoints.released import released_bytes
from ldp_export.graphs.clip import ClipTowersGraph
from ldp_export.hub.resolve import find_sources, resolve_model
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.registry import DEFAULT_MODEL, MODELS, HartSpec, InfinitySpec, SwittiSpec, find_model
from ldp_export.models.sizes import ClipTowersSizes, ffn_width
from ldp_export.models.t5 import FLAN_T5_XL

#: Parameters of the released transformers, and all their numbers with buffers, whose four bytes each are the files.
RELEASED = {
    "infinity-125m": (125_148_800, 125_168_000, 274),
    "infinity-2b": (2_204_564_032, 2_204_697_152, 694),
    "infinity-8b": (8_375_791_824, 8_376_082_128, 862),
    "infinity-8b-512": (8_375_791_824, 8_376_082_128, 862),
}


def model(name: str) -> InfinitySpec:
    spec = find_model(name)
    assert isinstance(spec, InfinitySpec)
    return spec


def transformer(name: str) -> InfinityTransformer:
    with torch.device("meta"):
        return InfinityTransformer(model(name).transformer)


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name: str) -> None:
    made = transformer(name)
    parameters, numbers, keys = RELEASED[name]
    state = original_infinity_state(made)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert sum(tensor.numel() for tensor in state.values()) == numbers
    assert len(state) == keys
    assert any(key.startswith("block_chunks.") for key in state)


def test_released_vae_size() -> None:
    with torch.device("meta"):
        vae = InfinityVae(model("infinity-2b").vae)
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
    assert spec.run_bytes() > 2 * spec.parameters
    assert 0 < released_bytes(spec)["vae"] <= released_bytes(spec)["transformer"] or spec.hub is not None
    if isinstance(spec, InfinitySpec):
        assert spec.layout.bits == spec.transformer.bits
        assert spec.transformer.levels >= 13


@pytest.mark.parametrize(
    ("name", "parameters", "keys", "tokens"),
    [
        ("var-d16", 310_283_520, 220, 680),
        ("var-d20", 600_917_136, 272, 680),
        ("var-d24", 1_033_399_360, 324, 680),
        ("var-d30", 2_010_020_356, 402, 680),
        ("var-d36", 2_353_893_904, 446, 2240),
    ],
)
def test_released_var_sizes(name: str, parameters: int, keys: int, tokens: int) -> None:
    spec = find_model(name)
    assert spec.parameters == pytest.approx(parameters + 108_948_355, rel=1e-4)
    assert len(original_state(spec.transformer)) == keys
    assert spec.schedules[0].total_tokens == tokens


@pytest.mark.parametrize(
    ("name", "part", "gigabytes"),
    [
        ("infinity-2b", "transformer", 8.82),
        ("infinity-8b", "transformer", 33.5),
        ("infinity-8b", "vae", 1.56),
        ("infinity-125m", "transformer", 0.501),
        ("infinity-2b", "text_encoder", 11.4),
        ("var-d16", "transformer", 1.24),
        ("var-d36", "transformer", 9.44),
        ("var-d36", "vae", 0.436),
    ],
)
def test_sizes_on_disk_are_those_of_the_published_files(name: str, part: str, gigabytes: float) -> None:
    assert released_bytes(find_model(name))[part] / 1e9 == pytest.approx(gigabytes, rel=3e-3)


def test_sizes_of_the_text_encoder() -> None:
    from transformers import T5Config, T5EncoderModel

    sizes = FLAN_T5_XL
    config = T5Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.width,
        d_kv=sizes.head_dim,
        d_ff=sizes.ffn,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = T5EncoderModel(config)
    assert sum(p.numel() for p in encoder.parameters()) == sizes.encoder_parameters
    assert sizes.parameters == 2_849_757_184


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.hub])
def test_hub_models_say_where_they_come_from(name: str) -> None:
    hub = find_model(name).hub
    assert hub is not None
    assert all(re.fullmatch(r"[0-9a-f]{40}|main", part.revision) for part in hub.parts)
    assert [part.name for part in hub.parts[:2]] == ["transformer", "vae"]
    readers = {"var": 0, "infinity": 1, "switti": 2, "hart": 1}[find_model(name).family]
    assert [part.name for part in hub.text_encoders] == ["text_encoder", "text_encoder_2"][:readers]
    assert all(part.licence for part in hub.text_encoders)


def test_sizes_of_hart_as_published() -> None:
    """Parameters of all tensors of its code at the released sizes; the page's 0.7B are those of the transformer."""
    spec = find_model("hart-0.7b")
    assert isinstance(spec, HartSpec)
    assert spec.counts is not None
    assert (spec.counts.transformer, spec.counts.block) == (732_399_168, 28_317_696)
    assert (spec.transformer.schedule.total_tokens, spec.transformer.head_dim) == (9451, 64)
    assert (spec.guidance, spec.top_k, spec.late_top_k, spec.more_smooth) == (4.5, 600, 300, True)
    assert spec.text_encoder is not None
    assert spec.text_encoder.encoder_parameters == 1_543_714_304


def test_sizes_of_switti_as_published() -> None:
    """Counts and bytes of the original's parameters and files, and its grids."""
    for name, parameters, size, tokens in (
        ("switti", 2_470_518_256, 9_902_161_344, 2240),
        ("switti-1024-ar", 2_470_525_936, 10_239_464_956, 9451),
    ):
        spec = find_model(name)
        assert isinstance(spec, SwittiSpec)
        assert spec.counts is not None
        assert spec.counts.transformer == parameters
        assert spec.counts.vae == 108_948_355
        assert 0 < size - spec.counts.transformer_bytes < 100_000  # the header
        assert spec.transformer.schedule.total_tokens == tokens
        assert spec.transformer.keeps_past == name.endswith("-ar")
    assert [find_model(name).guidance for name in ("switti", "switti-1024")] == [6.0, 6.0]


def test_sizes_of_the_clip_towers() -> None:
    from ldp_export.models.clip import ClipTowers

    sizes = find_model("switti").text_encoder
    assert isinstance(sizes, ClipTowersSizes)
    with torch.device("meta"):
        towers = ClipTowers(sizes.clip_l, sizes.clip_bigg)
    weights = {name: p.numel() for name, p in towers.named_parameters()}
    assert sum(weights.values()) == sizes.encoder_parameters
    assert sum(n for name, n in weights.items() if ClipTowersGraph.ISLANDS.match(name)) == sizes.encoder_islands


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean infinity-2b"):
        find_model("infinity-2B")
    with pytest.raises(ConfigError, match="ldp-export models"):
        find_model("stable-diffusion")


def test_sources_by_path(tmp_path: Path) -> None:
    spec, sources = model(DEFAULT_MODEL), write_sources(tmp_path)
    assert find_sources(spec, sources.transformer, sources.vae) == sources
    with pytest.raises(ConfigError, match="together"):
        find_sources(spec, weights=sources.transformer)
    with pytest.raises(CheckpointError, match="does not exist"):
        find_sources(spec, sources.transformer, tmp_path / "absent")
    with pytest.raises(ConfigError, match="were ever released"):
        find_sources(model("infinity-20b"))


def test_a_checkpoint_of_another_size_than_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work, with the name of what it really is."""
    sources = write_sources(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"not infinity-8b: it has 2 blocks of width 64 and 8 bits.*has 40 blocks"
    ):
        resolve_model("infinity-8b", sources.transformer, sources.vae)
    monkeypatch.setitem(MODELS, "sample", spec())
    with pytest.raises(CheckpointError, match="that is sample; infinity-2b has 32 blocks of width 2048"):
        resolve_model("infinity-2b", sources.transformer, sources.vae)
    assert resolve_model("sample", sources.transformer, sources.vae)[0] == spec()
