"""Checks of the archives: what is in them, and that all texts of a release name one version."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

_IN_THE_WHEEL = (
    "ldp_export/cli/",
    "ldp_runtime/pipeline/",
    "ldp_calibration/",
    "ldp_export/checkpoints/embedded/",
    "ldp_serving/front/static/index.html",
    "ldp_serving/front/static/page.js",
)
_IN_THE_SDIST = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "CITATION.cff", "tests/", "docs/")
#: Bytes of the largest archive: the embedded model's weights, and less than as much again.
_LARGEST = 40 * 2**20


def faults(wheel: Path, sdist: Path) -> list[str]:
    """Faults of a wheel and of a source archive, in words; none if both hold what they should."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.namelist()
    with tarfile.open(sdist) as archive:
        source = [name.partition("/")[2] for name in archive.getnames()]
    found = _missing(wheel, shipped, _IN_THE_WHEEL) + _missing(sdist, source, _IN_THE_SDIST)
    foreign = {name.split("/")[0] for name in shipped if ".dist-info/" not in name} - {
        "ldp_export",
        "ldp_runtime",
        "ldp_serving",
        "ldp_calibration",
    }
    found += [f"{wheel.name} installs {name!r} at the top level" for name in sorted(foreign)]
    found += [f"{wheel.name} lacks {name}" for name in ("LICENSE", "NOTICE") if not _ends(shipped, f"licenses/{name}")]
    found += [f"{sdist.name} holds {name}" for name in source if name.startswith("tests/golden/")][:1]
    for path in (wheel, sdist):
        if (size := path.stat().st_size) > _LARGEST:
            found.append(f"{path.name} has {size / 2**20:.0f} MiB, more than {_LARGEST >> 20}")
    return found


def _missing(path: Path, names: list[str], expected: tuple[str, ...]) -> list[str]:
    return [f"{path.name} lacks {start}" for start in expected if not any(name.startswith(start) for name in names)]


def _ends(names: list[str], end: str) -> bool:
    return any(name.endswith(end) for name in names)


def version_faults(root: Path, version: str) -> list[str]:
    """Texts of a release that name another version; a final version also has its section in the changelog."""
    found = []
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff does not name version {version}")
    if ".dev" in version:
        return found
    unreleased, *sections = re.split(
        r"^## \[", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )[1:]
    if unreleased.partition("\n")[2].strip():
        found.append("CHANGELOG.md has unreleased changes: cut them first (python -m release --cut VERSION)")
    if not sections or not re.match(re.escape(version) + r"\] - \d{4}-\d\d-\d\d\n", sections[0]):
        found.append(f"the newest section of CHANGELOG.md is not '## [{version}] - YYYY-MM-DD'")
    return found


def cut(root: Path, version: str, day: str) -> None:
    """Gives the unreleased changes a version and a day, and writes the version wherever one is named.

    Raises:
        ValueError: the version is none, or nothing is unreleased.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", version):
        raise ValueError(f"{version!r} is no version: name one like 0.2.0, or 0.3.0.dev0 for the time after it")
    if ".dev" not in version:
        changelog = root / "CHANGELOG.md"
        text = changelog.read_text(encoding="utf-8")
        head, _, changes = text.partition("## [Unreleased]\n")
        if not changes.partition("\n## [")[0].strip():
            raise ValueError("CHANGELOG.md has no unreleased changes")
        changelog.write_text(f"{head}## [Unreleased]\n\n## [{version}] - {day}\n{changes}", encoding="utf-8")
    _rewrite(root / "ldp_export" / "__init__.py", r'(?<=^__version__ = ")[^"]+', version)
    _rewrite(root / "CITATION.cff", r"(?<=^version: )\S+", version)
    _rewrite(root / "CITATION.cff", r"(?<=^date-released: )\S+", day)


def _rewrite(path: Path, pattern: str, value: str) -> None:
    text, count = re.subn(pattern, value, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{path} has {count} places for {value}, expected 1")
    path.write_text(text, encoding="utf-8")
