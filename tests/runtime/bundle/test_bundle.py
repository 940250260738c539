"""A bundle is checked before any engine is opened: edits, damage, versions, states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import CURRENT, MANIFEST, VERSIONS, Bundle, report_path
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
            lambda m: m["graphs"]["blocks"]["inputs"][0].update(shape=["0", "tokens", 4]),
            lambda m: m["graphs"]["prompt"]["outputs"][0].update(shape=["rows", 0]),
            lambda m: m["graphs"]["prompt"]["outputs"][0].update(shape=["rows", 2**40]),
            lambda m: m["graphs"]["decoder"]["outputs"][0].update(dtype="__name__"),
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
    def test_reports_that_say_nothing_may_have_said_rejected(self, copied: Bundle, report: Any) -> None:
        self.report(copied, report)
        assert open_bundle(copied.folder).state == "rejected"

    def report(self, bundle: Bundle, content: Any) -> None:
        assert bundle.root is not None
        report_path(bundle.root, bundle.manifest).write_text(json.dumps(content))

    @pytest.mark.parametrize("damage", [b"", b"{", b'{"state": "rej', b"[" * 100_000, b"\xff", None])
    def test_a_damaged_report_of_a_rejected_bundle_does_not_make_it_load(
        self, copied: Bundle, damage: bytes | None
    ) -> None:
        assert copied.root is not None
        path = report_path(copied.root, copied.manifest)
        path.unlink()
        if damage is None:
            path.mkdir()
        else:
            path.write_bytes(damage)
        assert open_bundle(copied.root).state == "rejected"
        with pytest.raises(IncompatibleBundleError, match="report of it is damaged"):
            Pipeline.load(copied.root)

    def test_a_link_to_a_version_finds_its_state_and_saved_policies(self, copied: Bundle, tmp_path: Path) -> None:
        """As deployments keep a link called `latest`, wherever it lies and whatever it goes through."""
        self.report(copied, {"state": "rejected", "digest": copied.manifest.digest})
        assert copied.root is not None
        (tmp_path / "latest").symlink_to(copied.folder)
        (copied.root / "latest").symlink_to(Path(VERSIONS, copied.folder.name))
        (copied.root / VERSIONS / "latest").symlink_to(copied.folder.name)
        (tmp_path / "again").symlink_to("latest")
        (tmp_path / "v").symlink_to(copied.root / VERSIONS)
        links = ["latest", "bundle/latest", f"bundle/{VERSIONS}/latest", "again", f"v/{copied.folder.name}"]
        for link in links:
            opened = open_bundle(tmp_path / link)
            assert (opened.state, opened.root) == ("rejected", copied.root), link
            with pytest.raises(IncompatibleBundleError, match="failed verification"):
                Pipeline.load(tmp_path / link)

    def test_a_version_that_is_a_link_belongs_where_it_is_named(self, copied: Bundle, tmp_path: Path) -> None:
        """As one that was moved to another disk."""
        self.report(copied, {"state": "rejected", "digest": copied.manifest.digest})
        (tmp_path / "disk").mkdir()
        moved = copied.folder.rename(tmp_path / "disk" / copied.folder.name)
        copied.folder.symlink_to(moved)
        for path in (copied.root, copied.folder):
            assert path is not None
            assert open_bundle(path).state == "rejected"

    def test_a_rejected_first_build_is_rejected_by_its_version_too(self, copied: Bundle) -> None:
        self.report(copied, {"state": "rejected", "digest": copied.manifest.digest})
        assert copied.root is not None
        (copied.root / CURRENT).unlink()
        assert open_bundle(copied.folder).state == "rejected"

    def test_a_relative_path_is_made_absolute(self, copied: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        assert copied.root is not None
        monkeypatch.chdir(copied.root.parent)
        opened = open_bundle(copied.root.name)
        assert opened.folder.is_absolute()
        assert opened.root == copied.root


class TestDigest:
    def test_the_bundle_that_was_meant(self, small_bundle: Bundle) -> None:
        digest = small_bundle.manifest.digest
        for expected in (digest, digest[:16], digest.upper()):
            assert open_bundle(small_bundle.folder, "sizes", expected).manifest.digest == digest
        Pipeline.load(small_bundle, threads=1, expected_digest=digest).close()

    def test_another_bundle(self, small_bundle: Bundle) -> None:
        for bundle in (small_bundle, small_bundle.folder):
            with pytest.raises(
                IntegrityError, match=f"has the digest {small_bundle.manifest.digest}, expected 0{{64}}"
            ):
                Pipeline.load(bundle, expected_digest="0" * 64)

    @pytest.mark.parametrize("text", ["", "0" * 15, "0" * 65, "x" * 64, "sha256:" + "0" * 64])
    def test_what_is_no_digest(self, small_bundle: Bundle, text: str) -> None:
        with pytest.raises(ConfigError, match="is no digest"):
            open_bundle(small_bundle.folder, expected_digest=text)

    def test_on_the_command_line(self, small_bundle: Bundle) -> None:
        from click.testing import CliRunner

        from ldp_export.cli import main

        digest, path = small_bundle.manifest.digest, str(small_bundle.root)
        shown = CliRunner().invoke(main, ["inspect", path, "--expect-digest", digest])
        assert shown.exit_code == 0, shown.output
        assert digest in shown.output
        assert json.loads(CliRunner().invoke(main, ["inspect", path, "--json"]).output)["digest"] == digest
        one = "a red circle"
        for verb in (["inspect"], ["verify"], ["generate", one], ["calibrate"], ["bench"], ["explain", one]):
            refused = CliRunner().invoke(main, [verb[0], path, *verb[1:], "--expect-digest", "0" * 64])
            assert refused.exit_code == IntegrityError.exit_code, (verb, refused.output)


class TestSealed:
    """Manifests whose digest is right: it shows damage, not what somebody wrote."""

    @pytest.mark.parametrize("name", ["/etc/passwd", "../x", "blocks/../../x", "a\\b", "C:/x", "x" * 300, ""])
    def test_names_that_leave_the_folder(self, copied: Bundle, name: str) -> None:
        root = edit(copied, lambda m: m["files"].update({name: m["files"]["constants.safetensors"]}), seal=True)
        with pytest.raises(IntegrityError, match="leaves the folder"):
            open_bundle(root)

    def test_graphs_whose_files_are_not_listed(self, copied: Bundle) -> None:
        root = edit(copied, lambda m: m["files"].pop("blocks/model.onnx") and None, seal=True)
        with pytest.raises(IntegrityError, match=r"(?s)blocks needs 'blocks/model.onnx', which is not listed"):
            open_bundle(root)

    def test_weights_that_are_not_listed(self, copied: Bundle) -> None:
        """The engine would read them beside its graph, and no hash covers them."""
        root = edit(copied, lambda m: m["files"].pop("blocks/weights.safetensors") and None, seal=True)
        with pytest.raises(IntegrityError, match="beside an engine and is not listed"):
            open_bundle(root)

    @pytest.mark.parametrize("name", ["tokenizer.json", "constants.safetensors"])
    def test_other_files_that_are_not_listed(self, copied: Bundle, name: str) -> None:
        root = edit(copied, lambda m: m["files"].pop(name) and None, seal=True)
        with pytest.raises(IntegrityError, match="which is not listed"):
            open_bundle(root)

    @pytest.mark.parametrize("kind", ["prompt", "blocks", "decoder", "text_encoder"])
    def test_missing_kinds_of_graphs(self, copied: Bundle, kind: str) -> None:
        root = edit(copied, lambda m: m["graphs"].pop(kind) and None, seal=True)
        with pytest.raises(IntegrityError, match=f"no graph of the kind {kind}"):
            open_bundle(root)

    @pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (0, 3), (2, 0), (-1, 2)])
    def test_blocks_that_are_not_all_there(self, copied: Bundle, first: int, last: int) -> None:
        root = edit(copied, lambda m: m["graphs"]["blocks"].update(first=first, last=last), seal=True)
        with pytest.raises(IntegrityError, match="blocks does not cover"):
            open_bundle(root)

    @pytest.mark.parametrize("axis", ["tokens", "height", "image_width"])
    def test_an_axis_that_no_input_has(self, copied: Bundle, axis: str) -> None:
        def change(content: dict[str, Any]) -> None:
            tensor = content["graphs"]["prompt"]["outputs"][0]
            tensor["shape"] = [axis, *tensor["shape"][1:]]

        root = edit(copied, change, seal=True)
        with (
            Pipeline.load(root, threads=1, allow_rejected=True) as pipe,
            pytest.raises(IntegrityError, match=f"the axis '{axis}', which no input of its graph has"),
        ):
            pipe("a red circle")

    def test_what_systems_leave_in_folders_is_harmless(self, copied: Bundle) -> None:
        for folder in (copied.folder, copied.path("blocks")):
            (folder / ".DS_Store").write_text("x")
            (folder / "._model.onnx").write_text("x")
        assert open_bundle(copied.folder).state == "verified"

    @pytest.mark.parametrize(
        "text",
        [b"[" * 1000, b"[" * 10**6, b'{"a":' * 1000, b'{"digest": "", "digest": ""}', b'{"schema_version": NaN}'],
    )
    def test_text_that_overwhelms_a_parser(self, copied: Bundle, text: bytes) -> None:
        copied.path(MANIFEST).write_bytes(text)
        with pytest.raises(IntegrityError, match="not a valid manifest"):
            open_bundle(copied.folder)

    def test_a_manifest_of_gigabytes(self, copied: Bundle) -> None:
        with copied.path(MANIFEST).open("wb") as file:
            file.truncate(3 * 2**30)
        with pytest.raises(IntegrityError, match="more than"):
            open_bundle(copied.folder)
