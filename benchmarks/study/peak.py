"""A piece of Python in a process of its own: its seconds, and the most anonymous memory it held (Linux)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_FRAME = """
import json, sys, threading, time
from pathlib import Path
import torch

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

most, running, started = 0, True, time.perf_counter()

def watch():
    global most
    while running:
        most = max(most, anonymous())
        time.sleep(0.02)

thread = threading.Thread(target=watch, daemon=True)
thread.start()
"""
_END = """
running = False
thread.join()
print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_anonymous_mib": most // 2**20}))
"""


def measured(code: str) -> dict[str, Any]:
    """Runs code in a fresh interpreter: {"seconds", "peak_anonymous_mib"}, importing PyTorch not counted as time.

    Lines of JSON that the code prints are part of the answer.
    """
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{_FRAME}{code}{_END}"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {key: value for line in made.stdout.splitlines() for key, value in json.loads(line).items()}
