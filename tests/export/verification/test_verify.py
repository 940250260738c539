"""Verification fails closed: a wrong weight, a wrong shape, NaN, and nothing to compare are all failures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.samples import plan
from ldp_runtime import open_bundle
from ldp_runtime.bundle.files import CURRENT, VERSIONS, Bundle
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from ldp_runtime.errors import VerificationError
from ldp_runtime.pipeline.open_engines import open_engines
from safetensors.torch import load_file

from ldp_export.building import stages as work_module
from ldp_export.building.build import build
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.tensor_files import save_state
from ldp_export.graphs.graph import Graph
from ldp_export.verification.tolerances import IMAGE, image_tolerance
from ldp_export.verification.verify import Report, _compare, require_verified, verify_bundle


@pytest.fixture(scope="module")
def report(small_bundle: Bundle) -> Report:
    return verify_bundle(small_bundle, threads=1)


def names(report: Report, failed: bool = False) -> set[str]:
    """First words of the checks' names."""
    return {check.name.split(",")[0] for check in (report.failures if failed else report.checks)}


def test_all_graphs_and_scales_are_compared(report: Report) -> None:
    assert report.state == "verified"
    checks = [check.name for check in report.checks]
    cases = ("ratio1_guidance3", "ratio1_guidance1", "ratio3_guidance3", "ratio1_guidance3_pruned")
    for case in cases:
        assert [name for name in checks if name.startswith(f"{case}, scale")] == [
            f"{case}, scale {k}, logits" for k in range(7)
        ]
    assert {"text_encoder, prompt 0", "ratio1_guidance3, decoder", "identical rows, logits"} <= set(checks)
    assert any(name.endswith("drawn freely") for name in checks)
    assert len(set(checks)) == len(checks)
    assert all(0 <= check.measured <= check.limit for check in report.checks)


def test_needs_the_bundle_alone(small_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "alone")
    report = verify_bundle(open_bundle(tmp_path / "alone"), threads=1)
    assert report.state == "verified"
    assert report.digest == small_bundle.manifest.digest


def perturbed_export(folder_of: dict[str, Path], graph: str, key: str):
    """An export that hands out finished stages, with one weight of one graph changed a little."""

    def export(module: Graph, folder: Path, *_: object) -> None:
        name = module.signature.name
        shutil.copytree(folder_of[name], folder, dirs_exist_ok=True)
        (folder / "stage.json").unlink()
        if name == graph:
            weights = load_file(folder / "weights.safetensors")
            (victim,) = [k for k in weights if k.endswith(key)]
            weights[victim].view(-1)[7] += 0.01
            save_state(weights, folder / "weights.safetensors")

    return export


@pytest.mark.parametrize(
    ("graph", "key", "failing"),
    [
        ("blocks", "1.ffn.fc1.weight", {"ratio1_guidance3", "ratio1_guidance3_pruned"}),
        ("decoder", "decoder.mid.block_1.conv1.weight", {"ratio1_guidance3"}),
        ("prompt", "shared_ada_lin.1.weight", {"ratio1_guidance3"}),
        ("text_encoder", "layer.0.layer_norm.weight", {"text_encoder"}),
    ],
)
def test_one_changed_weight_is_not_published(
    small_bundle: Bundle,
    small_sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    key: str,
    failing: set[str],
) -> None:
    assert small_bundle.root is not None
    root = tmp_path / "bundle"
    shutil.copytree(small_bundle.root, root)
    stages = {p.name.rpartition("-")[0]: p for p in (small_bundle.root / "stages").iterdir()}
    shutil.rmtree(root / "stages" / stages[graph].name)
    monkeypatch.setattr(work_module, "export_graph", perturbed_export(stages, graph, key))
    with pytest.raises(VerificationError) as caught:
        build(plan(small_sources, root))
    assert all(name in str(caught.value) for name in failing)
    assert "exceeds" in str(caught.value)
    assert (root / CURRENT).read_text().strip() == small_bundle.folder.name
    assert open_bundle(root).state == "verified"
    (rejected,) = [v for v in (root / VERSIONS).iterdir() if v.name != small_bundle.folder.name]
    assert open_bundle(rejected).state == "rejected"


@pytest.mark.parametrize(("graph", "output"), [("blocks", "logits"), ("prompt", "start"), ("decoder", "image")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_are_a_rejection_not_a_crash(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, graph: str, output: str, value: float
) -> None:
    """A bundle that was verified elsewhere and gives NaN here must end up rejected."""
    original = OnnxRuntimeEngine.run

    def run(self: OnnxRuntimeEngine, inputs: dict, outputs: dict) -> None:
        original(self, inputs, outputs)
        if self.name == graph:
            outputs[output].view(-1)[0] = value

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    report = verify_bundle(small_bundle, threads=1)
    assert report.state == "rejected"
    with pytest.raises(VerificationError):
        require_verified(report, small_bundle)


def test_rows_that_differ_are_found(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    original = OnnxRuntimeEngine.run

    def run(self: OnnxRuntimeEngine, inputs: dict, outputs: dict) -> None:
        original(self, inputs, outputs)
        if "logits" in outputs and len(outputs["logits"]) == 2:
            outputs["logits"][1] += 0.001

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    assert "identical rows" in names(verify_bundle(small_bundle, threads=1), failed=True)


class TestComparison:
    def test_tolerance_grows_with_the_reference_only_when_it_is_large(self) -> None:
        expected = torch.ones(100)
        assert _compare("x", expected + 1e-5, expected, 1.2e-5).passed
        assert not _compare("x", expected + 1.5e-5, expected, 1.2e-5).passed
        assert _compare("x", 10 * expected + 4e-5, 10 * expected, 1.2e-5).passed
        assert not _compare("x", 10 * expected + 6e-5, 10 * expected, 1.2e-5).passed

    def test_large_pictures_may_differ_by_more(self) -> None:
        """What ONNX Runtime was seen to differ by at 1024x1024 passes; ten times as much does not."""
        small, large = image_tolerance(torch.empty(3, 64, 64)), image_tolerance(torch.empty(3, 1024, 1024))
        assert small == IMAGE
        assert 2.7e-4 < large < 2.7e-3

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_number_fails(self, value: float) -> None:
        wrong = torch.zeros(4)
        wrong[2] = value
        for got, expected in ((wrong, torch.zeros(4)), (torch.zeros(4), wrong), (wrong, wrong)):
            assert not _compare("x", got, expected, 1.0).passed

    def test_shapes_must_agree(self) -> None:
        check = _compare("x", torch.zeros(2, 3), torch.zeros(3, 2), 1.0)
        assert not check.passed
        assert "shape (2, 3), expected (3, 2)" in check.detail

    def test_nothing_checked_is_not_verified(self, report: Report, small_bundle: Bundle) -> None:
        empty = replace(report, checks=(), state="rejected")
        with pytest.raises(VerificationError):
            require_verified(empty, small_bundle)


def test_engines_open_again_after_verification(small_bundle: Bundle) -> None:
    open_engines(small_bundle, torch.device("cpu"), 1).close()
