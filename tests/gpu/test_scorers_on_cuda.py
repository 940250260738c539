"""Published scorers on a GPU against the CPU, with small networks of random weights; not run without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.evaluation_networks import judged_prompts, small_networks
from ldp_calibration.evaluation.networks.weights import Networks
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.scorers.scorer import Sample

#: Largest differences of scores from float32 on the CPU: in float32 (no TF32, see `conftest.py`), in half precision.
BOUNDS = {
    "hpsv2.1": {"float32": 0.01, "float16": 0.2, "bfloat16": 1.0},
    "imagereward": {"float32": 2e-3, "float16": 0.03, "bfloat16": 0.2},
    "clip": {"float32": 2e-4, "float16": 2e-3, "bfloat16": 1e-2},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Networks]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, small_networks(folder)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    noise = np.random.default_rng(0)
    sizes = ((256, 256), (200, 320), (320, 200), (256, 256))
    pictures = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    none = np.zeros((0, 0, 3), np.uint8)
    return [Sample(one, none, prompt) for one, prompt in zip(pictures, judged_prompts(len(pictures)), strict=True)]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", BOUNDS)
def test_scores_are_near(files: tuple[Path, Networks], samples: list[Sample], name: str, precision: str) -> None:
    folder, networks = files
    on_cpu = open_scorer(name, wish=Wish(folder, networks=networks)).score(samples)
    wish = Wish(folder, device="cuda", precision=precision, batch=len(samples), networks=networks)
    on_gpu = open_scorer(name, wish=wish).score(samples)
    differences = [abs(a.value - b.value) for a, b in zip(on_cpu, on_gpu, strict=True)]
    assert max(differences) < BOUNDS[name][precision]


def test_verdicts_come_with_reasons(files: tuple[Path, Networks], samples: list[Sample]) -> None:
    folder, networks = files
    wish = Wish(folder, device="cuda", precision="float16", networks=networks)
    for score in open_scorer("geneval", wish=wish).score(samples):
        assert (score.value == 1) == (score.facts["reason"] == "")
