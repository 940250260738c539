"""Bundles of schema 3 are read as they are: the same engines, pictures and states, and edits are still noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.older_schema import age, schema_3_of
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import MANIFEST, Bundle
from ldp_runtime.bundle.older_manifest import from_schema_3
from ldp_runtime.errors import IntegrityError

#: Manifest that a build of schema 3 wrote: the embedded model, its last scales and its decoder in 8 bits.
WRITTEN = Path(__file__).parent / "manifest_of_schema_3.json"


@pytest.fixture
def older(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(small_bundle.root or "", tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    return age(open_bundle(tmp_path / "bundle"))


def draw(bundle: Bundle) -> torch.Tensor:
    with Pipeline.load(bundle, threads=1) as pipe:
        text = torch.ones(3, bundle.manifest.model.text_channels)
        return pipe(prompt_embeds=[text], seed=5, policy="ld", output_type="latent").images


def test_it_draws_what_it_drew(older: Bundle, small_bundle: Bundle) -> None:
    assert (older.manifest.schema_version, older.state) == (3, "verified")
    assert older.manifest.noise == "generator"
    assert torch.equal(draw(older), draw(small_bundle))


def test_quantized_scales_keep_their_set(older: Bundle) -> None:
    """A manifest as it was written, whose last scales are quantized."""
    place = older.folder.parent.parent.parent / "written"
    place.mkdir()
    (place / MANIFEST).write_text(WRITTEN.read_text())
    raw = json.loads(WRITTEN.read_text())
    for name in raw["files"]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(bytes(raw["files"][name]["size"]))
    manifest = open_bundle(place, integrity="sizes").manifest
    assert manifest.digest == raw["digest"]
    schedule = manifest.schedule()
    assert {k: entry.precision for k, entry in manifest.quantized_scales(schedule).items()} == dict.fromkeys(
        (4, 5, 6), "int8"
    )
    assert [graph.file for graph in manifest.chunks("blocks", "last")] == ["late_blocks/model.onnx"]
    assert [graph.scales for graph in manifest.chunks("blocks")] == [""]
    assert set(manifest.sources) == set(raw["sources"])
    assert manifest.sources["vae"].sha256 == raw["sources"]["vae"]


def test_the_older_form_is_the_inverse(small_bundle: Bundle) -> None:
    """What these tests call schema 3 is what `from_schema_3` reads, and what was written then has the same fields."""
    content = json.loads(small_bundle.path(MANIFEST).read_text())
    aged = schema_3_of(content)
    assert set(aged) == set(json.loads(WRITTEN.read_text()))
    assert from_schema_3(aged)["graphs"].keys() == content["graphs"].keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [("late", {"precision": "int8", "share": 0.5}), ("defaults", {"guidance": 9}), ("sources", {}), ("graphs", {})],
)
def test_edits_are_noticed(older: Bundle, key: str, value: object) -> None:
    content = json.loads(older.path(MANIFEST).read_text())
    older.path(MANIFEST).write_text(json.dumps(content | {key: value}))
    with pytest.raises(IntegrityError, match=r"changed after the build|not a valid manifest"):
        open_bundle(older.root or "")


@pytest.mark.parametrize("change", [{"graphs": None}, {"graphs": {"a": 1}}, {"sources": []}, {"late": 3}])
def test_what_is_no_manifest_of_schema_3(older: Bundle, change: dict) -> None:
    content = json.loads(older.path(MANIFEST).read_text())
    older.path(MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(IntegrityError, match="not a valid manifest"):
        open_bundle(older.root or "")


@pytest.mark.parametrize("field", ["graphs", "sources"])
def test_missing_fields_are_named(older: Bundle, field: str) -> None:
    content = json.loads(older.path(MANIFEST).read_text())
    content.pop(field)
    older.path(MANIFEST).write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=f"the field '{field}' is missing"):
        open_bundle(older.root or "")
