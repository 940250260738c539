"""Fetching a model whose parts lie in repositories of their own: Switti, its VAE, and two CLIP models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.hub_server import Hub, serving
from helpers.switti_samples import CASES, released_folder, write_towers
from ldp_runtime.errors import CheckpointError, HubError
from safetensors.torch import load_file, save_file

from ldp_export.checkpoints.clip import encoded, load_clip
from ldp_export.checkpoints.convert import plan_conversion
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.synthetic import write_shards
from ldp_export.cli import main
from ldp_export.hub.fetch import fetch, fetched_sources, plan_fetch
from ldp_export.hub.local import local_files
from ldp_export.hub.resolve import resolve_model
from ldp_export.models import registry
from ldp_export.models.hub_files import INDEX_NAME, SINGLE_NAME, HubFiles, HubPart
from ldp_export.models.registry import SwittiSpec

NAME = "switti-tiny"
_TEXT = ("config.json", "tokenizer.json")
_PARTS = (
    HubPart("transformer", "acme/Switti", SINGLE_NAME, beside=("config.json",), folder="Switti"),
    HubPart("vae", "acme/VAE", SINGLE_NAME, folder="VAE"),
    HubPart("text_encoder", "acme/clip-l", beside=_TEXT, folder="text_encoder", licence="MIT"),
    HubPart("text_encoder_2", "acme/bigg", beside=_TEXT, folder="text_encoder_2", licence="BSD"),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four repositories; the second CLIP model's holds the same weights for another library, too."""
    root = tmp_path_factory.mktemp("published")
    golden, model, vae = released_folder(CASES[0]), root / "switti", root / "vae"
    model.mkdir()
    vae.mkdir()
    for name in (SINGLE_NAME, "config.json"):
        shutil.copy(golden / name, model / name)
    shutil.copy(golden / "vae.safetensors", vae / SINGLE_NAME)
    (vae / "config.json").write_text("{}")
    first, second = write_towers(root / "towers")
    save_file({}, second / "open_clip_model.safetensors")
    return {"acme/Switti": model, "acme/VAE": vae, "acme/clip-l": first, "acme/bigg": second}


@pytest.fixture
def spec(published: dict[str, Path]) -> SwittiSpec:
    inferred = infer_spec(Sources(published["acme/Switti"] / SINGLE_NAME, published["acme/VAE"] / SINGLE_NAME))
    assert isinstance(inferred, SwittiSpec)
    return replace(inferred, name=NAME, hub=HubFiles(_PARTS))


@pytest.fixture
def hub(published: dict[str, Path], spec: SwittiSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(published) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(registry, "MODELS", {NAME: spec})
        yield server


def test_all_parts_arrive_in_the_cache(hub: Hub, spec: SwittiSpec) -> None:
    assert local_files(spec).state == "absent"
    fetched = fetch(plan_fetch(spec))
    assert fetched.published == ("transformer", "vae", "text_encoder", "text_encoder_2")
    assert local_files(spec).state == "complete"
    wanted = {path.rpartition("/")[2] for path, _ in hub.downloads()}
    assert wanted == {SINGLE_NAME, "config.json", "tokenizer.json"}
    assert "acme/VAE/config.json" not in "\n".join(path for path, _ in hub.downloads())
    hub.requests.clear()
    found, sources = resolve_model(NAME)
    assert (found, sources) == (spec, fetched)
    assert not hub.requests
    origins = {name: (part.repository, part.licence) for name, part in sources.described(found).items()}
    assert origins["text_encoder_2"] == ("acme/bigg", "BSD")
    assert origins["vae"] == ("acme/VAE", spec.licence)


def test_a_folder_is_carried(hub: Hub, spec: SwittiSpec, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["fetch", NAME, "--local-dir", str(tmp_path / "carried"), "--json"])
    assert result.exit_code == 0, result.output
    hub.requests.clear()
    sources = fetched_sources(spec, tmp_path / "carried", ())
    assert not hub.requests
    assert {path.relative_to(tmp_path / "carried").as_posix() for _, path in sources.items()} == {
        "Switti/model.safetensors",
        "VAE/model.safetensors",
        "text_encoder",
        "text_encoder_2",
    }
    assert encoded(load_clip(sources.text_encoders), "a", 77).shape[1] == spec.transformer.text_channels


def test_own_towers_replace_the_hubs(hub: Hub, spec: SwittiSpec, published: dict[str, Path]) -> None:
    own = (published["acme/clip-l"], published["acme/bigg"])
    fetch(plan_fetch(spec, text_encoder=False))
    sources = fetched_sources(spec, None, own)
    assert sources.text_encoders == own
    assert sources.published == ("transformer", "vae")


def test_what_is_missing_is_named_with_its_repository(hub: Hub, spec: SwittiSpec) -> None:
    fetch(plan_fetch(spec, text_encoder=False))
    with pytest.raises(CheckpointError, match=rf"acme/clip-l/config\.json(.|\n)*fetch {NAME}"):
        fetched_sources(spec, None, ())
    (hub.repositories["acme/bigg"] / "tokenizer.json").rename(hub.repositories["acme/bigg"] / "aside")
    try:
        with pytest.raises(HubError, match=r"acme/bigg at main lacks tokenizer\.json"):
            plan_fetch(spec)
    finally:
        (hub.repositories["acme/bigg"] / "aside").rename(hub.repositories["acme/bigg"] / "tokenizer.json")


def test_shards_of_a_tower_are_fetched_instead_of_its_file(hub: Hub, spec: SwittiSpec, tmp_path: Path) -> None:
    whole, sharded = hub.repositories["acme/bigg"], tmp_path / "sharded"
    write_shards(load_file(whole / SINGLE_NAME), sharded, 0, 200_000)
    for name in _TEXT:
        shutil.copy(whole / name, sharded / name)
    hub.repositories["acme/bigg"] = sharded
    folder = fetch(plan_fetch(spec)).text_encoder_2
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {path.name for path in sharded.iterdir()}
    assert (folder / INDEX_NAME).is_file()
    assert local_files(spec).state == "complete"


def test_converted_parts_build_the_same_model(hub: Hub, spec: SwittiSpec, tmp_path: Path) -> None:
    folder = tmp_path / "bfloat16"
    result = CliRunner().invoke(main, ["fetch", NAME, "--local-dir", str(folder), "--precision", "bfloat16", "--json"])
    assert result.exit_code == 0, result.output
    sources = fetched_sources(spec, folder, ())
    assert infer_spec(sources).transformer == spec.transformer
    assert {path.name for path in folder.iterdir()} == {
        "transformer",
        "vae.safetensors",
        "text_encoder",
        "text_encoder_2",
        "converted.json",
    }
    assert json.loads((folder / "transformer/config.json").read_text())["use_ar"] is False
    kept = load_file(folder / "transformer" / SINGLE_NAME)
    assert str(kept["blocks.0.attn.to_qkv.weight"].dtype) == "torch.bfloat16"
    assert str(kept["blocks.0.crop_cond_scales"].dtype) == "torch.float32"
    tower = load_file(folder / "text_encoder" / SINGLE_NAME)
    assert not any(name.startswith("vision_model") for name in tower)
    assert load_clip(sources.text_encoders).pooled_channels == spec.transformer.pooled_channels


def test_a_conversion_needs_what_the_mask_would_say(published: dict[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(published["acme/Switti"] / SINGLE_NAME, alone / SINGLE_NAME)
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        plan_conversion(alone / SINGLE_NAME, tmp_path / "out", "bfloat16")
