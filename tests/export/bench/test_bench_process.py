"""Workers that die, talk nonsense or fail."""

import os
import signal
import sys
import time

import psutil
import pytest
from helpers.waiting import HANGS
from ldp_runtime.errors import CapacityError, InternalError

from ldp_export.bench.process import BenchWorkerError, Turns, WorkerProcess

_ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def ask(code: str, request: dict | None = None) -> dict:
    with Turns() as turns:
        return turns.start("engines", python(code)).ask(request or {})


def test_dying_worker_is_named_with_its_last_words():
    with pytest.raises(BenchWorkerError, match=r"'engines' ended with exit status 3(.|\n)*out of luck"):
        ask("import sys; sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(3)")


def test_worker_that_is_dead_before_it_is_asked():
    with Turns() as turns:
        worker = turns.start("engines", python("raise SystemExit(4)"))
        while psutil.Process(worker.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pytest.raises(BenchWorkerError, match="exit status 4"):
            worker.ask({})


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_worker():
    with pytest.raises(BenchWorkerError, match="SIGKILL") as caught:
        ask(f"import os, sys; sys.stdin.readline(); os.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert caught.value.hint is not None
    assert "memory" in caught.value.hint


def test_reply_that_is_no_json():
    with pytest.raises(BenchWorkerError, match="not JSON"):
        ask("input(); print('hello')")


def test_typed_error_crosses_the_process():
    with pytest.raises(CapacityError, match="engines: no room") as caught:
        ask(_ECHO, {"error": {"code": "CapacityError", "message": "no room", "hint": "less"}})
    assert caught.value.hint == "less"


def test_untyped_error_crosses_the_process():
    with pytest.raises(BenchWorkerError, match="ZeroDivisionError"):
        ask(_ECHO, {"error": {"code": "ZeroDivisionError", "message": "ZeroDivisionError: division by zero"}})


def test_real_worker_answers_errors_and_goes_on():
    with Turns() as turns:
        worker = turns.start("engines")
        for _ in range(2):
            with pytest.raises(InternalError, match="nothing is loaded"):
                worker.ask({"draw": {"prompts": [0], "seeds": [0]}})


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_only_one_worker_runs():
    with Turns() as turns:
        first, second = turns.start("a", python(_ECHO)), turns.start("b", python(_ECHO))

        def stopped(worker: WorkerProcess) -> bool:
            return psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED

        assert stopped(first)
        assert not stopped(second)
        turns.yield_to(first)
        assert stopped(second)
        assert first.ask({"x": 1}) == {"x": 1}
        turns.yield_to(second)
        assert stopped(first)
        assert second.ask({"x": 2}) == {"x": 2}
    assert not any(psutil.pid_exists(worker.pid) for worker in turns.workers)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_stopped_worker_dies_with_its_parent():
    code = (
        "import os, time; from ldp_export.bench.process import Turns\n"
        "turns = Turns(); worker = turns.start('a')\n"
        "try: worker.ask({'draw': {}})\n"
        "except Exception: pass\n"
        "turns.yield_to(None); print(worker.pid, flush=True); os._exit(0)"
    )
    import subprocess

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(python(code), capture_output=True, text=True, env=environment, check=True)
    pid = int(done.stdout)
    until = time.monotonic() + HANGS
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the worker outlives its parent"
        time.sleep(0.05)
