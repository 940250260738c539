"""Kills: a real build that dies before one of its file system calls; the bundle before serves, the next build ends.

A process is forked, counts the calls that change something below the output path, and sends itself SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from helpers.samples import spec, write_sources
from ldp_runtime.bundle.files import VERSIONS, open_bundle
from ldp_runtime.system.disk import SCRATCH

from fuzz import Outcome
from fuzz.samples import folder
from fuzz.samples import sources as sources_of
from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.building.plan import BuildPlan
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources

#: Events of Python's audit that change a disk, and the positions of the paths in their arguments.
_CHANGES = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (0, 1),
    "os.symlink": (1,),
    "os.chmod": (0,),
    "shutil.copyfile": (1,),
}
#: Stages that a case lets run again, for real.
_AGAIN = ("", "", "", "constants", "decoder", "reference")


#: Models that are built, one of them more often; see `_builds`.
_MODELS = ("infinity", "infinity", "switti")


@dataclass(frozen=True)
class Case:
    model: str
    again: str
    share: float


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        yield Case(rng.choice(_MODELS), rng.choice(_AGAIN), rng.random())


def run(case: Case) -> Outcome:
    place = Path(tempfile.mkdtemp(prefix="kill-", dir=folder()))
    try:
        return _run(case, place / "bundle")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(case: Case, root: Path) -> Outcome:
    builds = _builds(case.model)
    shutil.copytree(builds.ready, root, symlinks=True)
    for stage in (root / "stages").glob(f"{case.again}-*" if case.again else "-"):
        shutil.rmtree(stage)
    victim = 1 + int(case.share * builds.calls(case.again))
    died = in_a_child(lambda: _build_until(builds, root, victim))
    if died not in (-signal.SIGKILL, 0):
        return "untyped"
    served, after = open_bundle(root), builds.versions
    if served.state != "verified" or served.folder.name not in after:
        return "wrong accepted"
    if in_a_child(lambda: build(builds.plan(builds.sources[1], root))) != 0:
        return "right refused"
    names = {path.name for path in (root / VERSIONS).iterdir()}
    whole = open_bundle(root).folder.name == after[1] and names == set(after)
    return "right" if whole and not list(root.rglob(f"{SCRATCH}*")) else "wrong accepted"


def in_a_child(work: Callable[[], object]) -> int:
    """Exit status of work in a forked process; negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _build_until(builds: _Builds, root: Path, victim: int) -> None:
    """Builds the second bundle, and dies before the call of that number."""
    counter = Counter(root)
    counter.victim = victim
    build(builds.plan(builds.sources[1], root))


class Counter:
    """Counts the calls that change something below a folder; kills its process before one of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.count, self.victim = str(root), 0, 0
        sys.addaudithook(self._on_event)
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self.tick()
            fsync(descriptor)

        os.fsync = counted  # the one call that Python does not announce

    def _on_event(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else "r" not in str(mode)
            paths = (path,) if writes else ()
        else:
            paths = tuple(arguments[i] for i in _CHANGES.get(event, ()))
        if any(isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root) for path in paths):
            self.tick()

    def tick(self) -> None:
        self.count += 1
        if self.count == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class _Builds:
    """Two builds of a model in one place, made once: the second has only to verify and publish.

    Attributes:
        model: name of the model in `_MODELS`.
        sources: checkpoints of the first build and of the second.
    """

    model: str
    sources: tuple[Sources, Sources]

    def plan(self, sources: Sources, root: Path) -> BuildPlan:
        return plan_build(spec() if self.model == "infinity" else infer_spec(sources), sources, BuildOptions(root))

    @property
    def ready(self) -> Path:
        """Bundle of the first build, with the finished stages of the second."""
        return self._finished() / "ready"

    @property
    def versions(self) -> tuple[str, str]:
        """Names of the versions of the two builds."""
        one, two = (self._finished() / "names").read_text().split()
        return one, two

    def _finished(self) -> Path:
        place = folder() / f"kills-{self.model}"
        if not (place / "names").exists():
            shutil.rmtree(place, ignore_errors=True)
            first, second = self.sources
            one, _ = build(self.plan(first, place / "ready"))
            two, _ = build(self.plan(second, place / "other"))
            shutil.rmtree(place / "ready/stages")
            shutil.move(place / "other/stages", place / "ready/stages")
            (place / "names").write_text(f"{one.manifest.version} {two.manifest.version}")
        return place

    def calls(self, again: str) -> int:
        """Number of calls of a whole second build in which the stages of that name run again."""
        note = self._finished() / f"calls-{again}"
        if not note.exists():
            root = folder() / f"counted-{self.model}-{again}/bundle"
            shutil.copytree(self.ready, root, symlinks=True)
            for stage in (root / "stages").glob(f"{again}-*" if again else "-"):
                shutil.rmtree(stage)

            def count() -> None:
                counter = Counter(root)
                build(self.plan(self.sources[1], root))
                note.write_text(str(counter.count))

            assert in_a_child(count) == 0
            shutil.rmtree(root.parent)
        return int(note.read_text())


@lru_cache
def _builds(model: str) -> _Builds:
    """Builds of two checkpoints; Switti's second one brings text towers."""
    if model == "infinity":
        one, two = (write_sources(folder() / f"kill_sources_{seed}", seed=seed) for seed in (0, 1))
        return _Builds(model, (one, two))
    whole = sources_of("switti")
    return _Builds(model, (whole.with_text(()), whole))
