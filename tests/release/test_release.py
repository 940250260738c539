"""Texts of a release name one version; what is wrong with archives and trees is said."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.tree import ROOT

from ldp_export import __version__
from release import __main__ as release
from release import archives
from release.notice import licence, requirements

TEXTS = ("CHANGELOG.md", "CITATION.cff", "ldp_export/__init__.py")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    (tmp_path / "ldp_export").mkdir()
    for text in TEXTS:
        shutil.copyfile(ROOT / text, tmp_path / text)
    return tmp_path


def test_texts_name_one_version() -> None:
    assert archives.version_faults(ROOT, __version__) == []


def test_unreleased_changes_are_cut(copied: Path) -> None:
    (copied / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n### Added\n- A\n\n## [0.0.1] - 2020-01-02\n- B\n"
    )
    assert len(archives.version_faults(copied, "7.8.9")) == 3
    archives.cut(copied, "7.8.9", "2030-01-02")
    assert archives.version_faults(copied, "7.8.9") == []
    assert '__version__ = "7.8.9"' in (copied / "ldp_export/__init__.py").read_text()
    text = (copied / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [7.8.9] - 2030-01-02\n\n### Added\n- A\n\n## [0.0.1]" in text
    with pytest.raises(ValueError, match="no unreleased changes"):
        archives.cut(copied, "7.9.0", "2030-01-03")
    archives.cut(copied, "7.9.0.dev0", "2030-01-03")
    assert archives.version_faults(copied, "7.9.0.dev0") == []
    with pytest.raises(ValueError, match="is no version"):
        archives.cut(copied, "next", "2030-01-03")


def test_notice_names_every_requirement() -> None:
    """What the licences are is for `make release`: metadata differ between versions."""
    names = [line.split()[0] for line in (ROOT / "NOTICE").read_text().splitlines() if line.startswith("    ")]
    assert names == requirements(ROOT / "pyproject.toml")
    assert licence("click") == "BSD-3-Clause"
    assert licence("no-such-package") is None


def test_a_tree_with_changes_is_refused(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    release.require_clean_tree(tmp_path)
    (tmp_path / "new.txt").write_text("")
    with pytest.raises(SystemExit, match=r"(?s)not clean.*new\.txt"):
        release.require_clean_tree(tmp_path)


def test_archives_that_hold_too_much_or_too_little(tmp_path: Path) -> None:
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for folder in ("ldp_export/cli", "ldp_calibration", "runtime"):
            archive.writestr(f"{folder}/__init__.py", "")
        archive.writestr("a.dist-info/licenses/LICENSE", "")
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("a-1/pyproject.toml", "a-1/tests/golden/x.npz"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    found = "\n".join(archives.faults(wheel, sdist))
    for words in (
        "lacks ldp_runtime/",
        "embedded",
        "static/index.html",
        "lacks NOTICE",
        "installs 'runtime'",
        "holds tests/golden/x.npz",
    ):
        assert words in found
