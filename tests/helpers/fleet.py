"""A fleet of two replicas on this machine, as `ldp-export serve --ray` starts it, and hooks that hold or break one."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ldp_serving.hooks import Hooks

from helpers.ports import free_port
from helpers.waiting import HANGS

#: Variable that names the folder in which tests say what replicas do; see `Holding`.
SAYS = "LDP_TEST_SAYS"


class Holding(Hooks):
    """Hooks of a replica under test. A file `hold` keeps pictures back; each replica writes its number of them.

    A file `break` ends the engine thread of the replica that gets the next request.
    """

    def check_prompt(self, prompt: str, key: str | None) -> None:
        try:
            (Path(os.environ[SAYS]) / "break").unlink()
        except FileNotFoundError:
            return
        (engine,) = (thread for thread in threading.enumerate() if thread.name == "ldp-engine")
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(engine.ident or 0), ctypes.py_object(SystemExit))
        engine.join()

    def check_picture(self, image: Any, key: str | None) -> None:
        folder = Path(os.environ[SAYS])
        shown = folder / f"{os.getpid()}"
        shown.write_text(shown.read_text() + "." if shown.exists() else ".")
        while self._is_held(folder):
            time.sleep(0.01)

    def _is_held(self, folder: Path) -> bool:
        """True while `hold` says that this picture, counted in its replica, is to be kept back."""
        try:
            first = int((folder / "hold").read_text())
        except (OSError, ValueError):
            return False
        return len((folder / f"{os.getpid()}").read_text()) >= first


holding = Holding()


class Fleet:
    """A running fleet."""

    def __init__(self, process: subprocess.Popen[str], port: int, says: Path) -> None:
        self.process, self.port, self.says = process, port, says

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replicas(self) -> list[int]:
        """Processes that hold a pipeline."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                words = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if re.search(r"ServeReplica:\w+:Replica", words):
                found.append(child.pid)
        return sorted(found)

    def hold(self, first: int = 1) -> None:
        """Keeps pictures back, in each replica from its `first` one counted from now."""
        for counted in self.says.glob("[0-9]*"):
            counted.unlink()
        scratch = self.says / "scratch"
        scratch.write_text(str(first))
        scratch.rename(self.says / "hold")

    def release(self) -> None:
        (self.says / "hold").unlink(missing_ok=True)

    def holders(self, first: int = 1) -> list[int]:
        """Replicas that have so many pictures to show, the last of which is kept back."""
        return [int(path.name) for path in self.says.glob("[0-9]*") if len(path.read_text()) >= first]

    def wait(self, done: Any) -> None:
        ends = time.monotonic() + HANGS
        while not done():
            assert self.process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)


@contextmanager
def running(bundle: Path, says: Path, *options: str) -> Generator[Fleet]:
    """A fleet of a bundle that is ready; SIGTERM ends it with status 0, and leaves no process."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "ldp_export", "serve", str(bundle), "--ray", "--port", str(port)),
        *("--hooks", "helpers.fleet:holding", "--previews", "0", "--policy", "none", *options),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), SAYS: str(says)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready on"):
            break
    else:
        raise AssertionError("".join(lines))
    drain = threading.Thread(target=lambda: lines.extend(process.stderr or []), daemon=True)
    drain.start()
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        yield Fleet(process, port, says)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(HANGS)
        psutil.wait_procs(children, HANGS)
    assert status == 0, "".join(lines)
