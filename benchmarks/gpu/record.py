"""The result while it grows: what was measured so far, how long phases took, when the time is up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldp_runtime.system.disk import write_durably


class Record:
    """The result so far, on disk at any moment."""

    def __init__(self, path: Path, minutes: float, **first: Any) -> None:
        self.path, self.started, self.minutes = path, time.monotonic(), minutes
        self.result: dict[str, Any] = {"results": [], "phases_s": {}, **first}

    @property
    def time_is_up(self) -> bool:
        return time.monotonic() - self.started > 60 * self.minutes

    def save(self, entry: dict[str, Any] | None = None) -> None:
        """Replaces the file in one step: a run that is killed leaves the last whole one."""
        if entry is not None:
            self.result["results"].append(entry)
        write_durably(self.path, (json.dumps(self.result, indent=1) + "\n").encode())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Notes and prints how long something took, so that the next run can be planned."""
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.result["phases_s"][name] = round(took, 2)
        self.save()
        print(f"[{time.monotonic() - self.started:6.1f} s] {name}: {took:.1f} s", flush=True)
