"""Processes of steps: each has its own, so that a crash of a library, or a hang, ends that step alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import psutil

from ldp_export.import_path import import_path, safe_environment

#: Program of a step that is a verb of the command line, and of one that is this package's own.
VERB = "from ldp_export.cli import main; main()"
OWN = "from ldp_export.gpu_report.work import main; main()"
_PREFIX = "import json, sys; sys.path += [p for p in json.loads(sys.argv.pop(1)) if p not in sys.path]; "
_TAIL_LINES = 12
#: Seconds that processes have to be gone once they are killed.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Ended:
    """End of a process: its exit status (None: it took too long, and was ended), and what it said."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def how(self) -> str:
        """Words for an end that no error explains, with the last lines of what was said."""
        if self.status is None:
            how = f"it was ended after {self.seconds:.0f} s, all that it may take"
        elif self.status < 0:
            how = f"its process was ended by {_signal_name(-self.status)}"
        else:
            how = f"its process ended with exit status {self.status}"
        lines = self.err.strip().splitlines()[-_TAIL_LINES:]
        return "\n  ".join([how + ("; its last words:" if lines else ""), *lines])


def run_child(program: str, arguments: Sequence[str], seconds: float) -> Ended:
    """Runs a program in a process of its own, and ends it, with all that it started, when its time is up.

    Settings of this toolkit in the environment are left out: a report is of its defaults.
    """
    command = [sys.executable, "-P", "-c", _PREFIX + program, json.dumps(import_path()), *arguments]
    environment = {name: value for name, value in safe_environment().items() if not name.startswith("LDP_")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        return Ended(status, _text(out), _text(err), time.monotonic() - started)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started, if it still runs."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=_PATIENCE)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
