"""Verification fails closed: a wrong weight, a wrong shape, NaN, and nothing to compare are all failures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.samples import plan
from ldp_runtime import open_bundle
from ldp_runtime.bundle.files import CURRENT, VERSIONS, Bundle
from ldp_runtime.engines.cache_memory import CacheMemory
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from ldp_runtime.errors import VerificationError
from ldp_runtime.pipeline.open_engines import open_engines
from safetensors.torch import load_file

from ldp_export.building import stages as work_module
from ldp_export.building.build import build
from ldp_export.checkpoints.files.tensors import save_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.graphs.graph import Graph
from ldp_export.verification.cases import ROUNDING_FILE, Case, ReferenceCases
from ldp_export.verification.checks import compare
from ldp_export.verification.tolerances import Limits
from ldp_export.verification.verify import Report, require_verified, verify_bundle


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
    assert {"text of 1, scale 1, logits", "text of 16, scale 1, logits"} <= set(checks)
    assert {f"batch of {n}, logits" for n in range(1, 33)} <= set(checks)
    assert {"cache filled with NaN, logits", "cache filled with large numbers, logits"} <= set(checks)
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


def test_a_batch_size_that_fails_is_found(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of one batch size shift by one, as a kernel for that size might do."""
    original = OnnxRuntimeEngine.run

    def run(self: OnnxRuntimeEngine, inputs: dict, outputs: dict) -> None:
        original(self, inputs, outputs)
        if "logits" in outputs and len(outputs["logits"]) == 6:
            outputs["logits"].copy_(outputs["logits"].roll(1, 0))

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    assert names(verify_bundle(small_bundle, threads=1), failed=True) == {"batch of 3"}


def test_engines_that_read_beyond_the_past_are_found(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine adds a little of the position behind the past, which is zero in fresh memory."""
    original = OnnxRuntimeEngine.run

    def run(self: OnnxRuntimeEngine, inputs: dict, outputs: dict) -> None:
        past = inputs.get("past_v_0")
        if past is None:
            original(self, inputs, outputs)
            return
        end = past.storage_offset() + past.numel()
        room = past.untyped_storage().nbytes() // past.itemsize >= end + past[0:1].numel() + past.stride(0)
        behind = past.as_strided(past.shape[1:], past.stride()[1:], end).clone() if room else torch.zeros(1)
        original(self, inputs, outputs)
        outputs["logits"] += 1e-6 * behind.mean()

    monkeypatch.setattr(CacheMemory, "_empty", zeroed)
    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    failed = names(verify_bundle(small_bundle, threads=1), failed=True)
    assert failed == {"cache filled with NaN", "cache filled with large numbers"}


def zeroed(
    memory: CacheMemory, elements: int, create: Callable[[CacheMemory, int], torch.Tensor] = CacheMemory._empty
) -> torch.Tensor:
    """Memory of caches that is zero, as fresh memory often is."""
    return create(memory, elements).zero_()


def test_bundles_without_bounds_are_held_to_the_former_limits(small_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(small_bundle.folder, tmp_path / "older")
    rounding = tmp_path / "older" / "reference" / ROUNDING_FILE
    rounding.unlink()
    rounding.write_text('{"logits": 1e-6}')
    older = Bundle(small_bundle.manifest, tmp_path / "older", None, "unverified")
    report = verify_bundle(older, threads=1)
    assert report.state == "verified"
    limits = {check.name: check.limit for check in report.checks}
    assert limits["ratio1_guidance3, scale 0, logits"] == pytest.approx(1.2e-5, rel=0.5)
    assert limits["ratio1_guidance3, latent"] == 1e-6


class TestFormerLimits:
    """Those of bundles that did not record the rounding of each output."""

    limits = Limits(ReferenceCases((), {}, {"logits": 1e-5}), "float32", 1.0)

    def test_grow_with_the_reference_only_when_it_is_large(self) -> None:
        case = Case("run", 1.0, 3.0)
        assert self.limits.latent(torch.ones(100)) == 1e-6
        assert self.limits.latent(10 * torch.ones(100)) == pytest.approx(4e-6)
        assert self.limits.logits(case, 0, torch.ones(100)) == pytest.approx(3e-5)

    def test_large_pictures_may_differ_by_more(self) -> None:
        """What ONNX Runtime was seen to differ by at 1024x1024 passes; ten times as much does not."""
        assert self.limits.image(torch.zeros(3, 64, 64)) == 1e-4
        assert 2.7e-4 < self.limits.image(torch.zeros(3, 1024, 1024)) < 2.7e-3


class TestComparison:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_no_number_fails(self, value: float) -> None:
        wrong = torch.zeros(4)
        wrong[2] = value
        for got, expected in ((wrong, torch.zeros(4)), (torch.zeros(4), wrong), (wrong, wrong)):
            assert not compare("x", got, expected, 1.0).passed

    def test_shapes_must_agree(self) -> None:
        check = compare("x", torch.zeros(2, 3), torch.zeros(3, 2), 1.0)
        assert not check.passed
        assert "shape (2, 3), expected (3, 2)" in check.detail

    def test_nothing_checked_is_not_verified(self, report: Report, small_bundle: Bundle) -> None:
        empty = replace(report, checks=(), state="rejected")
        with pytest.raises(VerificationError):
            require_verified(empty, small_bundle)


def test_engines_open_again_after_verification(small_bundle: Bundle) -> None:
    open_engines(small_bundle, torch.device("cpu"), 1).close()
