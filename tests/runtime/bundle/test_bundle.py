"""A bundle is checked before any engine is opened: edits, damage, versions, states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import CURRENT, MANIFEST, Bundle, report_path
from ldp_runtime.bundle.manifest import SCHEMA_VERSION, Manifest
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError


@pytest.fixture
def copied(small_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may damage."""
    assert small_bundle.root is not None
    shutil.copytree(small_bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    return open_bundle(tmp_path / "bundle")


Change = Callable[[dict[str, Any]], None]


def edit(bundle: Bundle, change: Change, seal: bool = False) -> Path:
    """Changes the manifest by hand; with `seal`, with a digest (and folder) that fits again."""
    assert bundle.root is not None
    path = bundle.path(MANIFEST)
    content = json.loads(path.read_text())
    change(content)
    if seal:
        content = json.loads(Manifest.model_validate(content).sealed().model_dump_json())
        path.write_text(json.dumps(content))
        bundle.folder.rename(bundle.folder.parent / content["digest"][:16])
        (bundle.root / CURRENT).write_text(content["digest"][:16])
    else:
        path.write_text(json.dumps(content))
    return bundle.root


def test_verified_bundle_opens(small_bundle: Bundle) -> None:
    assert small_bundle.root is not None
    for path in (small_bundle.root, small_bundle.folder, str(small_bundle.root)):
        opened = open_bundle(path)
        assert (opened.state, opened.folder) == ("verified", small_bundle.folder)
    assert open_bundle(small_bundle.root, integrity="sizes").manifest == small_bundle.manifest


class TestManifest:
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m["defaults"].update(guidance=7.5),
            lambda m: m["model"].update(name="other"),
            lambda m: m["limits"].update(text_tokens=99),
            lambda m: m["files"].pop("blocks/model.onnx"),
            lambda m: m["files"]["blocks/model.onnx"].update(sha256="0" * 64),
            lambda m: m.update(digest="0" * 64),
            lambda m: m.pop("digest"),
        ],
    )
    def test_edits_by_hand_are_found(self, copied: Bundle, change: Change) -> None:
        root = edit(copied, change)
        with pytest.raises(IntegrityError, match="changed after the build"):
            open_bundle(root)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.pop("model"),
            lambda m: m.update(surprise=1),
            lambda m: m["model"].update(depth="many"),
            lambda m: m.update(backend="magic"),
            lambda m: m.pop("schema_version"),
        ],
    )
    def test_what_is_no_manifest(self, copied: Bundle, change: Change) -> None:
        root = edit(copied, change)
        with pytest.raises(IntegrityError, match="not a valid manifest"):
            open_bundle(root)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01"])
    def test_what_is_no_json(self, copied: Bundle, text: str) -> None:
        copied.path(MANIFEST).write_text(text)
        with pytest.raises(IntegrityError, match="not a valid manifest"):
            open_bundle(copied.folder)

    @pytest.mark.parametrize("version", [2, SCHEMA_VERSION + 1])
    def test_another_schema(self, copied: Bundle, version: int) -> None:
        root = edit(copied, lambda m: m.update(schema_version=version, not_known_here=True))
        with pytest.raises(IncompatibleBundleError, match=f"schema version {version}.*reads version {SCHEMA_VERSION}"):
            open_bundle(root)

    def test_folder_of_another_version(self, copied: Bundle) -> None:
        assert copied.root is not None
        copied.folder.rename(copied.folder.parent / "0123456789abcdef")
        (copied.root / CURRENT).write_text("0123456789abcdef\n")
        with pytest.raises(IntegrityError, match="holds the version"):
            open_bundle(copied.root)


class TestFiles:
    @pytest.fixture(
        params=["blocks/model.onnx", "decoder/weights.safetensors", "constants.safetensors", "tokenizer.json"]
    )
    def victim(self, request: pytest.FixtureRequest, copied: Bundle) -> Path:
        assert request.param in copied.manifest.files
        return copied.path(request.param)

    def test_missing(self, copied: Bundle, victim: Path) -> None:
        victim.unlink()
        with pytest.raises(IntegrityError, match=f"{victim.name} is missing"):
            Pipeline.load(copied.folder)

    def test_truncated(self, copied: Bundle, victim: Path) -> None:
        size = victim.stat().st_size
        victim.write_bytes(victim.read_bytes()[:-7])
        with pytest.raises(IntegrityError, match=f"{size - 7} bytes instead of {size}"):
            open_bundle(copied.folder, integrity="sizes")

    def test_one_bit(self, copied: Bundle, victim: Path) -> None:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
        open_bundle(copied.folder, integrity="sizes")  # by design: sizes are not hashes
        with pytest.raises(IntegrityError, match="another content"):
            open_bundle(copied.folder)

    def test_all_problems_are_listed(self, copied: Bundle) -> None:
        copied.path("tokenizer.json").unlink()
        copied.path("blocks/model.onnx").write_bytes(b"")
        with pytest.raises(IntegrityError, match=r"(?s)blocks/model\.onnx has 0 bytes.*tokenizer\.json is missing"):
            open_bundle(copied.folder)

    def test_garbage_that_fits_its_hash(self, copied: Bundle) -> None:
        """Only ONNX Runtime can tell; its error becomes ours."""
        import hashlib

        garbage = b"not a graph"
        copied.path("prompt/model.onnx").write_bytes(garbage)
        entry = {"size": len(garbage), "sha256": hashlib.sha256(garbage).hexdigest()}
        root = edit(copied, lambda m: m["files"].update({"prompt/model.onnx": entry}), seal=True)
        with pytest.raises(IntegrityError, match="cannot load"):
            Pipeline.load(root)


class TestPlaces:
    def test_a_way_of_checking_that_there_is_not(self, small_bundle: Bundle) -> None:
        """Taken for the weaker one, a slip would leave hashes unchecked."""
        with pytest.raises(ConfigError, match="integrity must be one of full, sizes, got 'hashes'"):
            open_bundle(small_bundle.folder, "hashes")  # pyright: ignore[reportArgumentType]

    def test_nothing_there(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(ConfigError, match="no bundle at"):
                open_bundle(path)

    @pytest.mark.parametrize("pointer", [b"", b"0000000000000000", b"../elsewhere", b"\x8b\xff"])
    def test_pointer_to_nowhere(self, copied: Bundle, pointer: bytes) -> None:
        assert copied.root is not None
        (copied.root / CURRENT).write_bytes(pointer)
        with pytest.raises(IntegrityError, match="names the version"):
            open_bundle(copied.root)

    def test_version_that_lies_alone(self, copied: Bundle, tmp_path: Path) -> None:
        """A version copied without its reports is whole, but unverified on this machine."""
        shutil.copytree(copied.folder, tmp_path / "alone")
        opened = open_bundle(tmp_path / "alone")
        assert (opened.state, opened.root) == ("unverified", None)


class TestStates:
    def test_rejected_needs_an_override(self, copied: Bundle) -> None:
        self.report(copied, {"state": "rejected", "digest": copied.manifest.digest})
        assert open_bundle(copied.folder).state == "rejected"
        with pytest.raises(IncompatibleBundleError, match="failed verification"):
            Pipeline.load(copied.folder)
        Pipeline.load(copied.folder, allow_rejected=True, threads=1).close()

    def test_unverified_loads_with_a_warning(self, copied: Bundle, caplog: pytest.LogCaptureFixture) -> None:
        assert copied.root is not None
        report_path(copied.root, copied.manifest).unlink()
        Pipeline.load(copied.folder, threads=1).close()
        assert "is unverified; run: ldp-export verify" in caplog.text

    @pytest.mark.parametrize(
        "report", [{"state": "verified", "digest": "of another"}, {"state": "wonderful"}, [], None, {}]
    )
    def test_reports_that_say_nothing_count_for_nothing(self, copied: Bundle, report: Any) -> None:
        self.report(copied, report)
        assert open_bundle(copied.folder).state == "unverified"

    def report(self, bundle: Bundle, content: Any) -> None:
        assert bundle.root is not None
        report_path(bundle.root, bundle.manifest).write_text(json.dumps(content))
