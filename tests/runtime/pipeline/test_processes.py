"""Processes around a pipeline: forks after loading, other defaults of PyTorch, another working folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.var_samples import VAR_MODELS, build_var_bundle
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ClosedError
from ldp_runtime.numerics import scalar
from ldp_runtime.schedule import rope_table

#: Draws in the parent, forks while another thread holds the pipeline, and asks the child for three things.
FORKS = """
import hashlib, os, sys, threading
from ldp_runtime import Pipeline

def picture(pipe):
    return hashlib.sha256(pipe("a red circle", seed=1, policy="ld").images[0].tobytes()).hexdigest()

pipe = Pipeline.load(sys.argv[1], threads=2)
drawn = picture(pipe)
begun, go_on = threading.Event(), threading.Event()
hold = lambda event: begun.set() or go_on.wait()
thread = threading.Thread(target=lambda: pipe("a red circle", callback_on_scale=hold))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    for call in (pipe, pipe.start, pipe.warmup, lambda _: pipe.cuda_graphs):
        try:
            call("a red circle")
        except Exception as error:
            print(type(error).__name__, "load after fork" in str(error))
    pipe.close()
    with Pipeline.load(sys.argv[1], threads=2) as own:
        print(picture(own) == drawn)
    sys.exit(7)
go_on.set()
thread.join()
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), picture(pipe) == drawn)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("telemetry", ["1", "0"])
def test_a_forked_child_is_told_to_load_and_ends(small_bundle: Bundle, telemetry: str) -> None:
    """The engine's library ends its threads when it is destroyed, which are the parent's: the child hung there."""
    command = [sys.executable, "-c", FORKS, str(small_bundle.root)]
    settings = os.environ | {"ORT_DISABLE_TELEMETRY": telemetry, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings)
    assert done.stdout.splitlines() == ["ForkedError True"] * 4 + ["True", "child 7 True"], done.stderr


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Generator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
}
POLICIES = ("none:delta=0.15", "ld", "top-k:score=random", "top-p:score=variance,fill=zero,stop=first,then=reuse")


def pictures(bundle: Bundle, **request: object) -> list[str]:
    """Hashes of what a freshly loaded bundle draws under several policies."""
    scalar.cache_clear()
    rope_table.cache_clear()
    with Pipeline.load(bundle, threads=1) as pipe:
        drawn = [pipe(**request, seed=3, policy=policy).images for policy in POLICIES]  # pyright: ignore[reportArgumentType]
    return [hashlib.sha256(image.tobytes()).hexdigest() for images in drawn for image in images]


@pytest.mark.parametrize("name", SETTINGS)
def test_what_another_library_set_changes_nothing(small_bundle: Bundle, name: str) -> None:
    request = {"prompt": ["a red circle", "a blue star"], "negative_prompt": "green"}
    expected = pictures(small_bundle, **request)
    with SETTINGS[name]():
        assert pictures(small_bundle, **request) == expected


@pytest.fixture(scope="module")
def classes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("classes")
    return build_var_bundle(VAR_MODELS["one phi, three scales"].write(folder / "sources"), folder / "bundle")


@pytest.mark.parametrize("name", ["float64", "device", "autocast"])
def test_nor_for_a_model_of_classes(classes_bundle: Bundle, name: str) -> None:
    request = {"class_labels": [0, 1], "more_smooth": True}
    expected = pictures(classes_bundle, **request)
    with SETTINGS[name]():
        assert pictures(classes_bundle, **request) == expected


def test_a_relative_path_outlives_the_working_folder(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small_bundle.root is not None
    monkeypatch.chdir(small_bundle.root.parent)
    with Pipeline.load(small_bundle.root.name, threads=1) as pipe:
        monkeypatch.chdir(tmp_path)
        assert pipe.root == small_bundle.root.resolve()


CALLS: dict[str, Callable[[Pipeline], object]] = {
    "call": lambda pipe: pipe("a red circle"),
    "warm up": lambda pipe: pipe.warmup(),
    "decode": lambda pipe: pipe.decode(torch.zeros(1, 8, 16, 16)),
    "graphs": lambda pipe: pipe.cuda_graphs,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_pipeline_says_so(small_bundle: Bundle, name: str) -> None:
    pipe = Pipeline.load(small_bundle, threads=1)
    pipe.close()
    pipe.close()
    with pytest.raises(ClosedError, match="closed"):
        CALLS[name](pipe)
