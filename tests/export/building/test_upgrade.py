"""An upgraded bundle holds the same engines under a manifest of today, with its reports and saved policies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.older_schema import age
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import CURRENT, VERSIONS, Bundle
from ldp_runtime.bundle.manifest import SCHEMA_VERSION
from ldp_runtime.bundle.saved_policies import list_saved, resolve_policy, saved_folder
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.pruning.parse import parse_policy

from ldp_export.building.upgrade import upgrade
from ldp_export.verification.verify import verify_bundle


@pytest.fixture
def older(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(small_bundle.root or "", tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    return age(open_bundle(tmp_path / "bundle"))


def test_engines_stay_and_the_report_is_carried_over(older: Bundle) -> None:
    assert older.root is not None
    upgraded = upgrade(older.root)
    assert (upgraded.manifest.schema_version, upgraded.state) == (SCHEMA_VERSION, "verified")
    assert upgraded.manifest.files == older.manifest.files
    assert (older.root / CURRENT).read_text().strip() == upgraded.manifest.version
    assert {path.name for path in (older.root / VERSIONS).iterdir()} == {older.folder.name, upgraded.folder.name}
    assert open_bundle(older.folder).state == "verified"  # the version before still serves who asks for it
    assert verify_bundle(upgraded, "cpu", 1).state == "verified"


def test_saved_policies_are_carried_over_with_every_field(older: Bundle) -> None:
    assert older.root is not None
    place = saved_folder(older.root, older.manifest)
    place.mkdir(parents=True)
    saved = {"name": "careful", "policy": "ld:rho=0.9", "digest": older.manifest.digest, "budget": "", "evidence": {}}
    (place / "careful.json").write_text(json.dumps(saved))
    (place / "foreign.json").write_text(json.dumps(saved | {"digest": "0" * 64}))
    meant = resolve_policy("careful", older.root, older.manifest)
    upgraded = upgrade(older.root)
    assert list_saved(upgraded.root, upgraded.manifest) == ["careful"]
    assert resolve_policy("careful", upgraded.root, upgraded.manifest) == meant
    assert meant != parse_policy("ld:rho=0.9")  # it was saved when `ld` meant something else


def test_a_bundle_of_today_is_left_alone(small_bundle: Bundle) -> None:
    assert upgrade(small_bundle.root or Path()) == small_bundle


def test_again_changes_nothing(older: Bundle) -> None:
    once = upgrade(older.root or Path())
    assert upgrade(older.root or Path()) == once


def test_a_damaged_bundle_is_refused(older: Bundle) -> None:
    path = older.path("blocks/model.onnx")
    path.unlink()
    path.write_bytes(b"no graph")
    with pytest.raises(IntegrityError, match=r"blocks/model\.onnx"):
        upgrade(older.root or Path())
    assert not any(path.name.startswith(".") for path in (older.root or Path()).glob("versions/*"))


def test_a_version_on_its_own_is_refused(older: Bundle, tmp_path: Path) -> None:
    shutil.copytree(older.folder, tmp_path / "alone")
    with pytest.raises(ConfigError, match="without the pointer"):
        upgrade(tmp_path / "alone")


def test_a_default_policy_is_the_bundles_own(small_bundle: Bundle) -> None:
    """A bundle that names a policy draws by it; a request that names none, or the full model, has its way."""
    manifest = small_bundle.manifest
    own = manifest.model_copy(update={"defaults": manifest.defaults.model_copy(update={"policy": "ld-fast"})})
    with Pipeline.load(small_bundle, threads=1) as pipe:
        pipe.manifest = own
        text = [torch.ones(3, manifest.model.text_channels)]
        pruned, full, asked = (
            pipe(prompt_embeds=text, seed=1, output_type="latent", **given).traces[0].policy
            for given in ({}, {"policy": "none"}, {"policy": "ld-paper"})
        )
    assert parse_policy(pruned) == parse_policy("ld-fast")
    assert full == "none"
    assert parse_policy(asked) == parse_policy("ld-paper")
