"""Builds that can be stopped: the library works on a thread of its own, which Ctrl-C ends cleanly.

An exception must not travel through the library's code. So its callbacks never raise: they note the progress, and
answer whether to go on. The calling thread passes the progress on. When it is interrupted, or when reporting the
progress raises, it asks the library to stop and waits until the library has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

#: Seconds that the calling thread waits for news of the build before it looks whether the build has ended.
_PAUSE = 0.1


class BuildProgress:
    """Progress of a running build, and the request to stop it. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._has_news = threading.Event()
        self._line = ""

    def stop(self) -> None:
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def tell(self, line: str) -> None:
        self._line = line
        self._has_news.set()

    def latest(self, timeout: float) -> str | None:
        """Newest line since the last call, waiting at most `timeout` seconds for one; older lines are dropped."""
        if not self._has_news.wait(timeout):
            return None
        self._has_news.clear()
        return self._line


def progress_monitor(trt: Any, progress: BuildProgress) -> Any:
    """Progress monitor of the library that feeds `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.tell(f"{parent_phase}: {phase_name}" if parent_phase else phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not progress.is_stopped

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def run_cancellable(work: Callable[[], Result], progress: BuildProgress, say: Callable[[str], None]) -> Result:
    """Runs `work` on a thread, and returns its result or raises its error; `say` is called on the calling thread.

    An exception on the calling thread (Ctrl-C, or one that `say` raises) stops the work. It is raised once the work's
    thread has ended.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="engine-build")
    try:
        thread.start()  # an interruption may come as early as here
        while thread.is_alive():
            line = progress.latest(_PAUSE)
            if line is not None:
                say(line)
    finally:
        progress.stop()
        _wait(thread)
    if errors:
        raise errors[0]
    return results[0]


def _wait(thread: threading.Thread) -> None:
    """Waits until the thread has ended, through any Ctrl-C: the thread writes to a folder that is removed next."""
    while thread.is_alive():
        with contextlib.suppress(KeyboardInterrupt):
            thread.join()
