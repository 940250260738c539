"""Words that a report must not tell: the names of its machine and user, and every path."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Fields of a report that this program fills with words of its own.
_OURS = frozenset({"format", "created", "version", "kind", "state", "device", "backend", "model", "title", "png"})
#: A path of Unix or of Windows; an address (https://...) and a fraction (1/2) are none.
_PATH = re.compile(
    r"(?<![\w:/.<])(?:~|\.{1,2})?/(?![/\s])[^\s'\"`,;:()<>\[\]]+|\b[A-Za-z]:[\\/][^\s'\"`,;()<>\[\]]+|\\\\[^\s'\"`,;]+"
)
_HIDDEN = "<path>"


class Private:
    """Names and folders of this machine and its user, which are taken out of texts.

    Args:
        folders: whose paths may hold spaces, and are known anyway.
    """

    def __init__(self, *folders: Path) -> None:
        # Longest first: a folder before the one that it lies in.
        places = {str(path) for path in (*folders, *_folders()) if len(str(path)) > 1}
        self._places = sorted(places, key=len, reverse=True)
        names = sorted({name for name in _names() if name}, key=len, reverse=True)
        self._names = (
            re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE) if names else None
        )

    def out_of(self, text: str) -> str:
        """Text without them."""
        for place in self._places:
            text = text.replace(place, "/hidden")
        text = _PATH.sub(_HIDDEN, text)
        return text if self._names is None else self._names.sub("<name>", text)

    def out_of_all(self, value: Any) -> Any:
        """The same of every text in a report's JSON, but for the fields that hold this program's own words."""
        if isinstance(value, str):
            return self.out_of(value)
        if isinstance(value, list):
            return [self.out_of_all(entry) for entry in value]
        if isinstance(value, dict):
            return {name: entry if name in _OURS else self.out_of_all(entry) for name, entry in value.items()}
        return value


def _folders() -> Iterator[Path]:
    yield from (Path.home(), Path.cwd(), Path(sys.prefix), Path(sys.base_prefix))
    yield from (Path(path) for path in sys.path if path)


def _names() -> Iterator[str]:
    """Names of the user and of the host, whole and without its domain."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        yield getpass.getuser()
    yield from (os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "COMPUTERNAME"))
    yield Path.home().name
    for host in (socket.gethostname(), platform.node()):
        yield from (host, host.partition(".")[0])
