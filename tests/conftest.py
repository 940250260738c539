"""Bundles are expensive to build, so each is built once for the whole session."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from helpers import shared
from helpers.goldens import FOLDER, Golden
from helpers.samples import build_bundle, spec, write_sources
from hypothesis import HealthCheck, settings
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle

from ldp_export.checkpoints.sources import Sources

# No test may depend on how fast the machine is: drawing examples takes as long as it takes.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# New examples at every run, for `make test-all`.
settings.register_profile("fuzz", settings.get_profile("suite"), derandomize=False, print_blob=True)
settings.load_profile("suite")
# The models are tiny: a thread pool costs more than it gives.
ENGINE_THREADS = 1
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session", autouse=True)
def _stages(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stages of builds are shared by all workers of a session, whose folders lie side by side."""
    base = tmp_path_factory.getbasetemp()
    shared.folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "stages"
    shared.folder.mkdir(exist_ok=True)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's bundles lie. Tests must not change them; they copy."""
    return tmp_path_factory.mktemp("bundles")


def golden_bundle(golden: Golden, output: Path, chunk: int | None = None) -> Bundle:
    sources = Sources(golden.weights / "transformer.safetensors", golden.weights / "vae.safetensors")
    return build_bundle(sources, output, spec(golden.transformer.config, golden.vae.config), chunk)


@pytest.fixture(scope="session")
def golden_2b() -> Golden:
    return Golden(FOLDER / "infinity_2blike")


@pytest.fixture(scope="session")
def golden_8b() -> Golden:
    return Golden(FOLDER / "infinity_8blike")


@pytest.fixture(scope="session")
def tiny_bundle(bundles: Path, golden_2b: Golden) -> Bundle:
    """The 2B-like golden checkpoint, all blocks in one graph."""
    return golden_bundle(golden_2b, bundles / "2b")


@pytest.fixture(scope="session")
def tiny_bundle_8b(bundles: Path, golden_8b: Golden) -> Bundle:
    """The 8B-like golden checkpoint (2x2 patchify), two blocks a graph."""
    return golden_bundle(golden_8b, bundles / "8b", chunk=2)


@pytest.fixture(scope="session")
def small_sources(bundles: Path) -> Sources:
    return write_sources(bundles / "small_sources", text_encoder=True)


@pytest.fixture(scope="session")
def small_bundle(bundles: Path, small_sources: Sources) -> Bundle:
    """A random model of two blocks with a text encoder; draws 64x64 pixels."""
    return build_bundle(small_sources, bundles / "small")


@pytest.fixture(scope="session")
def tiny_pipe(tiny_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle, threads=ENGINE_THREADS) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def tiny_pipe_8b(tiny_bundle_8b: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle_8b, threads=ENGINE_THREADS) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def small_pipe(small_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(small_bundle, threads=ENGINE_THREADS) as pipe:
        yield pipe


def may_skip(test: str, reason: str) -> bool:
    """True for tests of GPUs, or of another operating system; a missing tool fails its tests."""
    return "GPU" in reason or test.startswith("tests/gpu/") or not sys.platform.startswith("linux")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skips((yield))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _without_skips(report: Report) -> Report:
    """Lets a skipped test (or file) fail unless it may be skipped."""
    if report.skipped and not hasattr(report, "wasxfail"):
        *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (str(report.longrepr),)
        if not may_skip(report.nodeid, reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}: tests fail where a tool is missing, so that none is left out unseen"
    return report
