"""Fetching scorers' weights, against a server on this machine: hashes, pins, resumption, and every refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.hub_server import COMMIT, Hub, serving
from ldp_calibration.evaluation.networks import weights
from ldp_runtime.errors import ConfigError, HubError, IntegrityError

from ldp_export.cli import main
from ldp_export.hub.weights import RECORD, WEIGHTS, PublishedWeights, fetch_weights, plan_weights


def content(file: PublishedWeights) -> bytes:
    return f"content of {file.name}, ".encode() * 40


def served(file: PublishedWeights) -> PublishedWeights:
    """A file of the catalogue as the server here has it."""
    sha256 = hashlib.sha256(content(file)).hexdigest()[:8] if file.sha256 else ""
    return replace(file, sha256=sha256, revision="main" if file.host == "hub" else file.revision)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folders = dict[str, Path]()
    for name, files in WEIGHTS.items():
        for file in files:
            repository = file.repository or f"{file.host}/files"
            folders[repository] = tmp_path / "served" / repository
            path = folders[repository] / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(file))
        monkeypatch.setitem(WEIGHTS, name, tuple(map(served, files)))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    with serving(folders) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def get(hub: Hub, folder: Path, *names: str) -> None:
    openmmlab, pytorch = (f"{hub.url}/raw/{host}/files/{COMMIT}" for host in ("openmmlab", "pytorch"))
    fetch_weights(plan_weights(names, folder), github=f"{hub.url}/raw", openmmlab=openmmlab, pytorch=pytorch)


def fetch(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", "fetch", *map(str, arguments)])


def test_every_network_of_a_scorer_has_a_source() -> None:
    """Files that scorers open, by the names that they open them by; those outside the hub have a hash or a commit."""
    names = {file.name for files in WEIGHTS.values() for file in files}
    assert {weights.DETECTOR, weights.CLIP, weights.HPS_V21, weights.HPS_V20, weights.REWARD} <= names
    assert {weights.CLIP_WORDS, weights.BERT_WORDS, weights.CLASSES} <= names
    for file in (file for files in WEIGHTS.values() for file in files):
        assert file.host == "hub" or file.sha256 or len(file.revision) == 40
    free = plan_weights((), Path("nowhere")).files
    assert {file.licence for file in free} == {"MIT", "Apache-2.0"}
    assert not {file.name for file in WEIGHTS["lpips"]} & {file.name for file in free}


def test_files_are_fetched_once_and_pinned(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    get(hub, folder, "geneval", "imagereward", "selftest")
    for name in ("geneval", "imagereward", "selftest"):
        for file in WEIGHTS[name]:
            assert (folder / file.name).read_bytes() == content(file)
    record = json.loads((folder / RECORD).read_text())
    assert record[weights.CLIP]["revision"] == COMMIT
    assert record[weights.CLIP]["licence"] == "MIT"
    assert str(folder) not in (folder / RECORD).read_text()
    asked = len(hub.requests)
    assert plan_weights(["geneval"], folder).here == {file.name for file in WEIGHTS["geneval"]}
    get(hub, folder, "geneval")
    assert len(hub.requests) == asked


def test_a_fetch_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    hub.fault.cut_after, hub.fault.down_after_cut = 300, True
    with pytest.raises(HubError):
        get(hub, folder, "clip")
    assert not (folder / weights.CLIP).exists()
    hub.fault.down_after_cut, hub.fault.status = False, None
    before = len(hub.downloads())
    get(hub, folder, "clip")
    assert hub.downloads()[before][1]  # asks for the rest
    assert (folder / weights.CLIP).read_bytes() == content(WEIGHTS["clip"][0])


def test_other_contents_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.fault.replace = {WEIGHTS["geneval"][0].path}
    with pytest.raises(IntegrityError, match="were deleted"):
        get(hub, tmp_path / "weights", "geneval")
    assert not (tmp_path / "weights" / weights.DETECTOR).exists()


def test_a_file_that_is_not_the_published_one_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    get(hub, folder, "clip")
    (folder / weights.CLIP_WORDS).write_bytes(b"something else")
    get(hub, folder, "clip")
    assert (folder / weights.CLIP_WORDS).read_bytes() == content(WEIGHTS["clip"][1])


def test_a_repository_that_lacks_the_file(hub: Hub, tmp_path: Path) -> None:
    file = WEIGHTS["hpsv2.1"][0]
    (hub.repositories[file.repository] / file.path).unlink()
    with pytest.raises(HubError, match=r"lacks HPS_v2.1_compressed.pt"):
        get(hub, tmp_path / "weights", "hpsv2.1")


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    planned = fetch("--weights", folder, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    files = json.loads(planned.stdout)["weights"]["files"]
    assert {"name", "repository", "licence", "megabytes", "sha256", "here"} <= set(files[0])
    assert not any(file["here"] for file in files)
    assert not hub.requests
    assert not folder.exists()
    made = fetch("--weights", folder, "imagereward", "--github-mirror", f"{hub.url}/raw")
    assert made.exit_code == 0, made.output
    assert "ImageReward.pt: 1790 MB from THUDM/ImageReward, licence Apache-2.0; was fetched" in made.output
    assert "is here" in fetch("--weights", folder, "imagereward", "--dry-run").output
    wrong = fetch("--weights", folder, "imageraward")
    assert wrong.exit_code == ConfigError.exit_code
    assert "did you mean 'imagereward'" in wrong.output
