"""The tree of the project: modules, and which of them import which."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Packages of the project and the folders that they are imported from.
SOURCES = {
    "ldp_runtime": ROOT / "runtime",
    "ldp_serving": ROOT / "runtime",
    "ldp_calibration": ROOT / "calibration",
    "ldp_export": ROOT,
}


def project_modules() -> list[Path]:
    """Files of all packages, in order."""
    return [path for package, source in SOURCES.items() for path in sorted((source / package).rglob("*.py"))]


@cache
def modules() -> dict[str, Path]:
    """Modules by their dotted names; a package is its `__init__`."""
    found = {}
    for package, source in SOURCES.items():
        for path in sorted((source / package).rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(name: str) -> str:
    """The folder of a module, as a dotted name."""
    return name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Modules that each module imports, in functions too; imports for type checkers alone are left out.

    `__init__` files draw no arrows: they are doors, which export what lies behind them.
    """
    return {name: frozenset(_imported(path)) for name, path in modules().items() if path.name != "__init__.py"}


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if "TYPE_CHECKING" in ast.dump(block.test):
            block.body = []
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    known = modules()
    return {name for name in named if name in known and known[name].name != "__init__.py" and known[name] != path}
