"""Batches on Ray Data: the run of `evaluate generate`, whatever the shards; actors that die, and runs that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers.evaluation import tree
from helpers.tree import ROOT
from helpers.waiting import HANGS
from ldp_calibration.evaluation.benchmarks.choose import find_benchmark
from ldp_calibration.evaluation.draw import draw
from ldp_calibration.evaluation.pictures import INDEX
from ldp_calibration.evaluation.policies import run_policies
from ldp_calibration.evaluation.run import IMAGES, RUN, Run, begin, new_settings
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.system.disk import exclusive

pytestmark = pytest.mark.slow
PROMPTS = 30


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("benchmark") / "p.txt"
    file.write_text("".join(f"a red circle, {number} of many\n" for number in range(PROMPTS)))
    return file


@pytest.fixture(scope="module")
def whole(small_bundle: Bundle, benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as one process draws it, without Ray."""
    manifest = small_bundle.manifest
    policies = run_policies(["ld"], small_bundle.root, manifest, with_null=True)
    prompts = find_benchmark(str(benchmark), manifest)
    settings = new_settings(manifest, prompts, policies, seed=7, images=2)
    run = begin(tmp_path_factory.mktemp("evaluation") / "whole", settings, prompts.prompts)
    draw(run, small_bundle, [policy.label for policy in policies], threads=1)
    return run


@contextmanager
def drawing(bundle: Bundle, benchmark: Path, folder: Path, shards: int) -> Generator[subprocess.Popen[str]]:
    """The script while it draws with two actors; it leaves no process."""
    command = [
        *(
            sys.executable,
            ROOT / "deploy/ray/draw_shards.py",
            bundle.folder,
            "--benchmark",
            benchmark,
            "--policy",
            "ld",
        ),
        *("--seed", "7", "--images", "2", "--output", folder, "--shards", shards, "--actors", 2),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        own = psutil.Process(process.pid)
        try:
            yield process
        finally:
            left = own.children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(HANGS)
            _, alive = psutil.wait_procs(left, HANGS)
            assert not alive


def drawn(bundle: Bundle, benchmark: Path, folder: Path, shards: int) -> dict[int, tuple[int, int]]:
    """Draws to the end; pictures of each shard that were drawn, and that were there."""
    with drawing(bundle, benchmark, folder, shards) as process:
        out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    said = [line.split() for line in out.splitlines() if line.startswith("shard ")]
    return {int(words[1].rstrip(":")): (int(words[2]), int(words[5])) for words in said}


def same(folder: Path, whole: Run) -> bool:
    return (
        tree(folder, IMAGES) == tree(whole.folder, IMAGES)
        and (folder / RUN).read_bytes() == (whole.folder / RUN).read_bytes()
    )


def actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that hold a pipeline."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "MapWorker(Map(Shards))" in " ".join(child.cmdline())
    ]


def wait(done: Callable[[], object]) -> None:
    ends = time.monotonic() + HANGS
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_dead_actor_is_replaced_and_its_shard_goes_on(
    small_bundle: Bundle, benchmark: Path, whole: Run, tmp_path: Path
) -> None:
    """Both are stopped at the first prompt that is drawn, so that one dies amid its shard."""
    folder = tmp_path / "run"
    with drawing(small_bundle, benchmark, folder, 3) as process:
        wait(lambda: list(folder.rglob(INDEX)))
        found = actors(process)
        for actor in found:
            actor.suspend()
        assert len(list(folder.rglob(INDEX))) < PROMPTS  # of the 30 that each shard has
        for actor in found[:1]:
            actor.send_signal(signal.SIGKILL)
        for actor in found[1:]:
            actor.resume()
        _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert same(folder, whole)


def test_other_shards_go_on_where_a_run_was_stopped(
    small_bundle: Bundle, benchmark: Path, whole: Run, tmp_path: Path
) -> None:
    """A shard that another process draws ends it in words; afterwards five shards draw what three left."""
    folder = tmp_path / "run"
    with (
        exclusive(folder / ".locks" / "shard-1-of-3", "a test draws it"),
        drawing(small_bundle, benchmark, folder, 3) as process,
    ):
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode != 0
        assert "drawing of this shard is going on" in err
    found = drawn(small_bundle, benchmark, folder, 5)
    assert sorted(found) == list(range(5))
    assert {sum(counts) for counts in found.values()} == {PROMPTS // 5 * 3 * 2}
    assert sum(new for new, _ in found.values()) >= PROMPTS // 3 * 3 * 2
    assert same(folder, whole)
