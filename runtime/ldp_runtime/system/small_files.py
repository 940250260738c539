"""Reading of small files that others may have written: bounded in size and depth, and plain files only.

Whatever is wrong with a file is a ValueError or an OSError, which callers turn into their own typed error.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

#: Most bytes of a file of JSON, a pointer, or a record.
MOST_BYTES = 16 * 2**20
#: Most brackets that may be open at once: more than any file of ours has, and far fewer than the parser's stack holds.
MOST_LEVELS = 64
#: Most bytes of one part of a path, on all common file systems.
_MOST_NAME_BYTES = 255


def is_plain_file(path: Path) -> bool:
    """True for a regular file or a link to one; devices, pipes, sockets, folders and broken links are none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def kind_of(path: Path) -> str:
    """Kind of whatever is at a path, in words."""
    kinds = {
        stat.S_ISREG: "a file",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    mode = path.stat().st_mode
    return next(words for test, words in kinds.items() if test(mode))


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """Content of a small regular file; never waits for a pipe.

    Raises:
        ValueError: it is no regular file, or has more than `most` bytes.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"it is {kind_of(path)}, not a file")
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def text_lines(content: bytes) -> list[str]:
    """Lines of a UTF-8 text, ended as lines of files are; what else Unicode lets end a line is part of it.

    Raises:
        ValueError: it is no UTF-8 text.
    """
    lines = content.decode().replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_json(path: Path) -> Any:
    """Value in a small file of JSON; raises as `read_small` and `parse_json`."""
    return parse_json(read_small(path))


def parse_json(text: str | bytes) -> Any:
    """Value of a JSON text.

    Raises:
        ValueError: it is no JSON; it nests deeper than `MOST_LEVELS`, names a key twice, or holds a number that is not
            finite.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refuse_constant, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError(f"it nests more than {MOST_LEVELS} levels deep") from None
    _check_depth(value)
    return value


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON text of a value, which `parse_json` reads: numbers that are not finite become null, since JSON has none."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(n for n in names if names.count(n) > 1)[:80]!r} twice")
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:40]}, which is too large")
    return number


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it nests more than {MOST_LEVELS} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def stays_inside(name: object) -> bool:
    """True if a name that others wrote leads to a file below the folder it is joined to, on every system.

    Absolute names, drives, backslashes, `..`, `.`, empty parts, control characters, parts of dots and spaces, and parts
    of more than 255 bytes do not.
    """
    if not isinstance(name, str) or "\\" in name or PureWindowsPath(name).drive:
        return False
    if any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in name):
        return False
    return all(part.strip(" .") and len(part.encode()) <= _MOST_NAME_BYTES for part in name.split("/"))
