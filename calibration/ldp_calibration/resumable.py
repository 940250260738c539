"""Results of long work, kept line by line as JSON: work that was killed goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldp_runtime.system.disk import full_disk_is_typed

#: Adds one entry to a file.
Add = Callable[[Mapping[str, Any]], None]


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a file of JSON lines, which need not exist; half-written lines, as kills leave them, are left out."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


@contextmanager
def appended(path: Path) -> Generator[Add]:
    """Function that adds entries to a file of JSON lines, each of which is on its way to the disk when it returns.

    A half-written line that a kill left is closed first, so that it takes no later entry with it.

    Raises:
        CapacityError: the disk is full; what was added before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_typed(path.parent), path.open("ab") as file:
        start = b"" if _is_closed(path) else b"\n"

        def add(entry: Mapping[str, Any]) -> None:
            nonlocal start
            with full_disk_is_typed(path.parent):
                file.write(start + f"{json.dumps(entry)}\n".encode())
                file.flush()
            start = b""

        yield add


def _is_closed(path: Path) -> bool:
    """True if a file is empty or ends in a whole line."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return True
        file.seek(-1, 2)
        return file.read() == b"\n"
