"""One candidate in a process of its own: `python -m ldp_export.bench.worker`, requests and replies as JSON lines.

    {"load": Job}          -> {"load_s": seconds}
    {"draw": DrawRequest}  -> {"drawn": Drawn}
    {"probe": {"threads", "device"}} -> {"flops_per_s": rate of a large matrix product in float32}
    anything that fails    -> {"error": {"code", "message", "hint"}}

It ends when its input ends, and dies with its parent even while it is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import TextIO

from ldp_export.bench.worker.worker import Worker

_PR_SET_PDEATHSIG = 1


def main() -> None:
    with contextlib.suppress(Exception):
        _die_with_parent(os.getppid())
    channel = _take_stdout()
    worker = Worker()
    for line in sys.stdin:
        channel.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        channel.flush()


def _take_stdout() -> TextIO:
    """Keeps standard output for replies: libraries then print to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _die_with_parent(parent: int) -> None:
    """Asks the kernel (on Linux) to end this process with its parent: a stopped process never sees its input end."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
