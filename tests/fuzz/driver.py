"""Driver of the fuzzers: cases in a process of their own, counts that add up in a file over several runs."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ldp_runtime.system.disk import write_durably

KINDS = ("bundles", "checkpoints", "listings", "kills", "requests", "evaluations")
#: Far above what any case takes, also on a slow machine.
SECONDS_PER_CASE = 300.0
#: Far above what the start of a process takes, samples included.
_SECONDS_TO_START = 900.0
#: Most cases that one process runs: a leak of one case must not decide another.
_CASES_PER_PROCESS = 100


_PROGRAM = "from fuzz.driver import work; work()"


@dataclass
class Tally:
    """Outcomes of the first `done` cases of a kind, and the cases that went wrong."""

    seed: int
    done: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, outcome: str, detail: str) -> None:
        self.done += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if outcome != "right":
            self.wrong.append({"case": case, "outcome": outcome, "detail": detail})


def fuzz(kind: str, count: int, tally: Tally) -> Iterator[Tally]:
    """Runs the next `count` cases of a kind; yields the tally after each of them."""
    last = tally.done + count
    while tally.done < last:
        worker = _Worker(kind, tally.seed, tally.done, min(_CASES_PER_PROCESS, last - tally.done))
        with contextlib.closing(worker):
            for case, outcome, detail in worker.results():
                tally.add(case, outcome, detail)
                yield tally


def load(path: Path, kind: str, seed: int) -> Tally:
    """Tally of a kind in a file of counts; a new one if there is none of this seed."""
    known = json.loads(path.read_text()).get(kind) if path.is_file() else None
    return Tally(**known) if known is not None and known["seed"] == seed else Tally(seed)


def save(path: Path, kind: str, tally: Tally) -> None:
    """Writes the tally of a kind into a file of counts, beside those of other kinds."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(known | {kind: tally.__dict__}, indent=1).encode())


class _Worker:
    """A process that runs cases one after the other, and says each before it begins."""

    def __init__(self, kind: str, seed: int, first: int, count: int) -> None:
        self._count = count
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {_PROGRAM}"]
            + [kind, str(seed), str(first), str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    def results(self) -> Iterator[tuple[str, str, str]]:
        """Each case with its outcome; ends early, after the case at fault, if the process dies or hangs."""
        for _ in range(self._count):
            begun = self._line(_SECONDS_TO_START)
            if begun is None:
                raise RuntimeError("the fuzzer's process died before its first case; try the case alone with --only")
            ended = self._line(SECONDS_PER_CASE)
            if ended is None:
                dead = self._process.poll() is not None
                yield begun["case"], "untyped" if dead else "hang", f"exit status {self._process.returncode}"
                return
            yield begun["case"], ended["outcome"], ended["detail"]

    def _line(self, seconds: float) -> dict[str, Any] | None:
        stream = self._process.stdout
        assert stream is not None
        line = _read_line(stream, seconds)
        if line:
            return json.loads(line)
        if line == b"":
            self._process.wait()
        return None

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _read_line(stream: IO[bytes], seconds: float) -> bytes | None:
    """The next line; b"" at the end of the stream, None if nothing comes in time."""
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(seconds):
                return None
            byte = os.read(stream.fileno(), 1)
            if not byte:
                return b""
            line += byte
    return line


def tried(kind: str, case: Any) -> tuple[str, str]:
    """Outcome of a case and, for an error of no type, where it arose."""
    run = importlib.import_module(f"fuzz.{kind}").run
    try:
        return run(case), ""
    except Exception:
        return "untyped", "".join(traceback.format_exc().splitlines(keepends=True)[-8:])


def work() -> None:
    """Runs cases as a worker: `work KIND SEED FIRST COUNT`, two lines of JSON for each case."""
    kind, *numbers = sys.argv[1:]
    seed, first, count = map(int, numbers)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cases = importlib.import_module(f"fuzz.{kind}").cases(seed)
    for case in itertools.islice(cases, first, first + count):
        channel.write(json.dumps({"case": repr(case)}) + "\n")
        channel.flush()
        outcome, detail = tried(kind, case)
        channel.write(json.dumps({"outcome": outcome, "detail": detail}) + "\n")
        channel.flush()
