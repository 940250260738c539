"""Names in prose: files and modules that docs, comments and docstrings name are there."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.tree import ROOT

#: Where a path in prose may begin.
BASES = (
    "",
    "runtime",
    "calibration",
    "ldp_export",
    "runtime/ldp_runtime",
    "runtime/ldp_serving",
    "calibration/ldp_calibration",
    "tests",
    "deploy",
)
MODULE = re.compile(r"(?<![\w./-])((?:ldp_export|ldp_runtime|ldp_serving|ldp_calibration)(?:\.\w+)+)(?![\w{])")
PATH = re.compile(r"(?<![\w/.])((?:[a-z_]+/)+[\w.-]+\.(?:py|md))\b")
FILE = re.compile(r"`(\w+\.py)`")
#: Part of a name that stands for any.
ANY = "NAME"


def sources() -> list[Path]:
    """Python files, and pages of prose; the changelog speaks of files that were."""
    folders = ("ldp_export", "runtime", "calibration", "tests", "benchmarks", "docs_tools", "training")
    code = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*code, *(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))])


@cache
def resolves(name: str) -> bool:
    """True if a dotted name is a module, or something in one."""
    parts = name.removesuffix(".py").split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@cache
def file_names() -> frozenset[str]:
    return frozenset(path.name for path in sources())


def missing(path: Path) -> Iterator[str]:
    """Names in a file that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    yield from (name for name in MODULE.findall(text) if not resolves(name))
    for name in PATH.findall(text):
        if ANY not in name and not any((base / name).exists() for base in (path.parent, *(ROOT / b for b in BASES))):
            yield name
    yield from (name for name in FILE.findall(text) if ANY not in name and name not in file_names())


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_prose_names_is_there(path: Path) -> None:
    if path == Path(__file__):
        return
    assert not sorted(set(missing(path)))
