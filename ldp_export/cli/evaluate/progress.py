"""Progress of a step: a bar on stderr, or lines of JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ldp_export.cli.arguments.options import shown_progress
from ldp_export.progress import ProgressEvent

#: Seconds between two reports to programs.
_PAUSE = 1.0


@contextmanager
def shown_count(stage: str, as_json: bool) -> Generator[Callable[[int, int, str], None]]:
    """Callback that shows how many are done; programs are told about once a second."""
    last = float("-inf")
    with shown_progress(as_json) as progress:

        def report(done: int, total: int, detail: str) -> None:
            nonlocal last
            now = time.monotonic()
            if total and (not as_json or now - last >= _PAUSE or done == total):
                last = now
                progress(ProgressEvent(stage, min(done, total - 1), total, "advanced", detail))

        yield report


def duration(seconds: float) -> str:
    """Seconds in words of a sensible size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
