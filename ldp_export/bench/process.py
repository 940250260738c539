"""Worker processes, of which one at a time may run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil
from ldp_runtime import errors
from ldp_runtime.errors import InternalError, LdpError

from ldp_export.import_path import import_path, safe_environment

_CAN_STOP = hasattr(signal, "SIGSTOP")
#: Program of a worker. It looks for modules where this process does, after Python's own places, and never in the
#: folder that it happens to run in: `-P` and `import_path` leave that out.
_PROGRAM = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv.pop(1)) if p not in sys.path]; "
    "from ldp_export.bench.worker.__main__ import main; main()"
)
_TAIL_LINES = 20
#: Seconds that a worker has to stop or to end when asked.
_PATIENCE = 5.0


class BenchWorkerError(LdpError):
    """A worker of the comparison died, or failed in a way that has no type of its own."""


def worker_command() -> list[str]:
    """Command that starts a worker."""
    return [sys.executable, "-P", "-c", _PROGRAM, json.dumps(import_path())]


class WorkerProcess:
    """A worker and the two pipes to it. Its standard error goes to a file, which can never fill up and block it.

    Args:
        name: name of its candidate, for messages.
        command: command that starts it; None for `worker_command`.
    """

    def __init__(self, name: str, command: Sequence[str] | None = None) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed with the worker
        # A process group of its own: Ctrl-C reaches only the parent, which then ends its workers in order.
        group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        self._process = subprocess.Popen(
            worker_command() if command is None else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=safe_environment(),
            encoding="utf-8",
            **group,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Raises:
            BenchWorkerError: the worker has died (its last output is in the message), or met an error without a type of
                its own.
            LdpError: the worker met an error of this type.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # a broken pipe: nobody reads any more
            line = ""
        if not line.endswith("\n"):
            raise self._death()
        try:
            reply = json.loads(line)
        except ValueError:
            raise BenchWorkerError(
                f"the worker of {self.name!r} said {line.strip()[:200]!r}, not JSON",
                hint="its own output is in the way: run with fewer libraries in the environment, or report it",
            ) from None
        if "error" in reply:
            raise self._error(reply["error"])
        return reply

    def pause(self) -> None:
        """Stops the worker; returns once its threads no longer run (only on POSIX; elsewhere it waits for requests)."""
        if not self._signal("SIGSTOP"):
            return
        still = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        until = time.monotonic() + _PATIENCE
        try:
            process = psutil.Process(self._process.pid)
            while process.status() not in still and time.monotonic() < until:
                time.sleep(0.001)
        except psutil.NoSuchProcess:
            pass

    def resume(self) -> None:
        self._signal("SIGCONT")

    def close(self) -> None:
        """Ends the worker, by request if it still listens."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what a dead worker never read
            self._process.stdin.close()
        if self._process.poll() is None:
            self.resume()
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def kill(self) -> None:
        """Ends the worker at once, stopped or not."""
        self._process.kill()
        self._process.wait()
        self.close()

    def _signal(self, name: str) -> bool:
        """Sends a signal to the worker; True if that was possible."""
        if not _CAN_STOP or self._process.poll() is not None:
            return False
        self._process.send_signal(getattr(signal, name))
        return True

    def _error(self, entry: dict[str, Any]) -> LdpError:
        kind = getattr(errors, str(entry.get("code")), None)
        message = f"{self.name}: {entry.get('message')}"
        if kind is InternalError:
            return InternalError(message)
        if isinstance(kind, type) and issubclass(kind, LdpError):
            return kind(message, hint=entry.get("hint"))
        return BenchWorkerError(f"{message}{self._tail()}")

    def _death(self) -> BenchWorkerError:
        try:
            status = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        how = f"ended with exit status {status}" if status >= 0 else f"was ended by {_signal_name(-status)}"
        hint = "the system may have run out of memory" if how.endswith("SIGKILL") else None
        return BenchWorkerError(f"the worker of {self.name!r} {how}{self._tail()}", hint=hint)

    def _tail(self) -> str:
        """Last lines that the worker wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-_TAIL_LINES:]
        return "; its last words:\n  " + "\n  ".join(lines) if lines else "; it said nothing"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Turns:
    """Workers that run one at a time: starting or calling one stops the others."""

    def __init__(self) -> None:
        self.workers: list[WorkerProcess] = []

    def start(self, name: str, command: Sequence[str] | None = None) -> WorkerProcess:
        self.yield_to(None)
        worker = WorkerProcess(name, command)
        self.workers.append(worker)
        return worker

    def yield_to(self, worker: WorkerProcess | None) -> None:
        """Stops all workers but one."""
        for other in self.workers:
            if other is not worker:
                other.pause()
        if worker is not None:
            worker.resume()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for worker in self.workers:
            worker.close() if kind is None else worker.kill()
