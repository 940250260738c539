"""The verb `package`: what it writes and says, and what it refuses before it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ldp_runtime.bundle.files import Bundle, open_bundle

from ldp_export.cli import main


def package(bundle: Bundle, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["package", "triton", str(bundle.root), *map(str, arguments)])


def test_a_repository_is_written(small_bundle: Bundle, tmp_path: Path) -> None:
    done = package(small_bundle, "--output", tmp_path / "models", "--policy", "none", "--allow-policy", "ld", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["digest"] == small_bundle.manifest.digest
    folder = Path(told["folder"])
    assert folder == tmp_path / "models" / small_bundle.manifest.model.name
    assert open_bundle(folder / "1" / "bundle").manifest == small_bundle.manifest
    assert 'key: "allow_policy" value { string_value: "ld" }' in (folder / "config.pbtxt").read_text()


def test_models_lie_side_by_side(small_bundle: Bundle, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = package(small_bundle, "--output", tmp_path, "--name", name)
        assert done.exit_code == 0, done.output
        assert "tritonserver --model-repository" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    again = package(small_bundle, "--output", tmp_path, "--name", "two")
    assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)
    assert package(small_bundle, "--output", tmp_path, "--name", "two", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-batch", "0"), "max_batch"),
        (("--max-images", "65"), "max-images"),
        (("--policy", "nonsense"), "nonsense"),
        (("--name", "a/b"), "a/b"),
        (("--expect-digest", "0" * 64), "digest"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    small_bundle: Bundle, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = package(small_bundle, "--output", tmp_path / "models", *arguments)
    assert done.exit_code in (2, 8)
    assert says in done.stderr
    assert not (tmp_path / "models").exists()
