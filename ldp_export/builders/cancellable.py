"""Builds that can be stopped: the library works on a thread of its own, which Ctrl-C ends cleanly.

An exception must not travel through the library's code, so its callbacks never raise: they note how far it is and
answer whether to go on. The calling thread passes the progress on and, when it is interrupted (or when telling the
progress raises), asks the library to stop and waits until it has.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

#: Seconds between two looks at the progress.
_PAUSE = 0.1


class BuildProgress:
    """What a running build reports, and whether it should go on. All methods may be called from any thread."""

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
        """The newest line since the last look, waiting for one at most `timeout` seconds; older ones are dropped."""
        if not self._has_news.wait(timeout):
            return None
        self._has_news.clear()
        return self._line


def progress_monitor(trt: Any, progress: BuildProgress) -> Any:
    """The library's monitor that feeds `progress`."""

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
    """Runs `work` on a thread and returns its result or raises its error; `say` hears the progress on this thread.

    An exception on this thread (Ctrl-C, or one that `say` raises) stops the work; it is raised once the thread has
    ended.
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
    """Until the thread has ended, however often the user presses Ctrl-C: it writes to a folder that is removed next."""
    while thread.is_alive():
        with contextlib.suppress(KeyboardInterrupt):
            thread.join()
