"""The public API, as a snapshot: thirteen names, their parameters, and the programs that `python -m` starts.

Nothing else is public. A change of `public_api.txt` is a change that users meet: it belongs into CHANGELOG.md.

    python tests/runtime/test_public_api.py      writes the snapshot anew
"""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ldp_runtime

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def lines() -> Iterator[str]:
    """A line for each exported name, and one for each of its public members."""
    for name in ldp_runtime.__all__:
        value = getattr(ldp_runtime, name)
        yield f"{name}{signature(value)}"
        if inspect.isclass(value):
            yield from (f"    {member}" for member in sorted(members(value)))


def signature(value: Any) -> str:
    """Parameters of a callable, without their annotations, whose spelling differs between versions of Python."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def members(kind: type) -> Iterator[str]:
    """Public methods and attributes that a class of this project defines."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name in {*dir(kind), *fields}:
        if name.startswith("_") and name != "__call__":
            continue
        value = inspect.getattr_static(kind, name, None)
        if isinstance(value, classmethod | staticmethod):
            yield f"{name}{signature(getattr(kind, name))}"
        elif inspect.isfunction(value):
            yield f"{name}{signature(value)}"
        elif name in fields or isinstance(value, property):
            yield name


def test_exported_names_and_their_parameters() -> None:
    assert list(lines()) == SNAPSHOT.read_text().splitlines()


def test_programs_start_under_their_names() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "ldp_export", "--help"], capture_output=True, text=True, check=True
    )
    assert "build" in help_text.stdout
    answer = subprocess.run(
        [sys.executable, "-m", "ldp_export.bench.worker"],
        input='{"draw": {}}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing is loaded" in answer.stdout


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n")
