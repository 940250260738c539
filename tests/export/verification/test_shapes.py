"""Models that are too large for whole runs: their blocks alone, at late and pruned shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.samples import build_bundle, spec, write_sources
from helpers.switti_samples import CASES, SwittiGolden, write_towers
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine

from ldp_export.cli.inspect import command as inspect
from ldp_export.families.infinity import InfinityFamily
from ldp_export.verification.cases import ReferenceCases
from ldp_export.verification.coverage import coverage
from ldp_export.verification.recording import sizes
from ldp_export.verification.verify import verify_bundle


@pytest.fixture(scope="module")
def large(bundles: Path) -> Bundle:
    """A small model that is treated as a large one: two scales are run, the others checked block by block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_WHOLE_RUNS", 0.0)
        patch.setattr(sizes, "_ONE_CALL", 1e7)
        return build_bundle(write_sources(bundles / "large_sources"), bundles / "large", chunk=1)


def test_every_chunk_is_checked_whole_and_pruned(large: Bundle) -> None:
    report = verify_bundle(large, threads=1)
    assert report.state == "verified"
    assert [check.name for check in report.checks if "alone" in check.name] == [
        "scale 6 alone (256 tokens after 265), blocks 0 to 1",
        "scale 6 alone (256 tokens after 265), blocks 1 to 2",
        "scale 6 alone, pruned (51 tokens after 179), blocks 0 to 1",
        "scale 6 alone, pruned (51 tokens after 179), blocks 1 to 2",
    ]


@pytest.mark.parametrize("kind", ["row", "past"])
def test_an_engine_that_is_wrong_only_at_its_largest_shape_is_rejected(
    large: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One row of the second block's output is another's, or the first position of the past is read twice."""
    original = OnnxRuntimeEngine.run

    def run(self: OnnxRuntimeEngine, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        wrong = self.name == "blocks_1_2" and len(inputs["cos"]) == 256
        if wrong and kind == "past":
            past = inputs["past_v_1"]
            inputs = {**inputs, "past_v_1": torch.cat((past[:1], past[:-1]))}
        original(self, inputs, outputs)
        if wrong and kind == "row":
            outputs["logits"][0, 200] = outputs["logits"][0, 201]

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    failed = [check.name for check in verify_bundle(large, threads=1).failures]
    assert failed == ["scale 6 alone (256 tokens after 265), blocks 1 to 2"]


def test_every_scale_that_is_not_run_is_recorded(large: Bundle) -> None:
    """Engines with optimization profiles are checked at all of them."""
    shapes = ReferenceCases.load(large.path(REFERENCE)).shapes
    schedule = large.manifest.schedule()
    assert [shape.scale for shape in shapes] == [2, 3, 4, 5, 6, 6]
    assert [shape.tokens for shape in shapes[:-1]] == list(schedule.tokens[2:])
    assert [shape.past for shape in shapes[:-1]] == list(schedule.offsets[2:-1])


def test_inspect_says_what_share_was_verified(large: Bundle, small_bundle: Bundle) -> None:
    assert str(coverage(large)) == "5 of 521 tokens (1%) end to end, the shapes of 3 of 7 scales, 1 pruned"
    assert str(coverage(small_bundle)) == "521 of 521 tokens (100%) end to end, the shapes of 7 of 7 scales, 1 pruned"
    printed = CliRunner().invoke(inspect, [str(large.root)], catch_exceptions=False).output
    assert "verified: 5 of 521 tokens (1%) end to end" in " ".join(printed.split())
    shown = json.loads(CliRunner().invoke(inspect, [str(large.root), "--json"], catch_exceptions=False).output)
    assert shown["coverage"] == {"tokens": 5, "all_tokens": 521, "scales": 3, "all_scales": 7, "pruned": 1}


def test_reduced_precisions_are_measured_at_these_shapes(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_WHOLE_RUNS", 0.0)
    monkeypatch.setattr(sizes, "_ONE_CALL", 1e7)
    family = InfinityFamily(spec(), write_sources(bundles / "reduced_sources"), None)
    exact, reduced = (family.record(precision, None, lambda text: None) for precision in ("float32", "bfloat16"))
    for shape in exact.shapes:
        key = f"{shape.name}.logits"
        assert 100 * exact.rounding[key] < reduced.rounding[key] < 1


@pytest.fixture(scope="module", params=CASES)
def large_switti(request: pytest.FixtureRequest, bundles: Path) -> Bundle:
    """A small Switti that is treated as a large one, in chunks of one block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "_WHOLE_RUNS", 0.0)
        patch.setattr(sizes, "_ONE_CALL", 1e7)
        golden = SwittiGolden(request.param)
        widths = tuple(golden.config["model"]["context_parts"])
        return golden.build(
            bundles / f"large_{request.param}", 1, write_towers(bundles / f"towers_{request.param}", widths)
        )


def test_large_models_without_a_cache_are_checked_block_by_block(large_switti: Bundle) -> None:
    """Scales that see themselves alone have no past; the longest text is encoded and read."""
    model, schedule = large_switti.manifest.model, large_switti.manifest.schedule()
    report = verify_bundle(large_switti, threads=1)
    assert report.state == "verified"
    alone = [check.name for check in report.checks if "alone" in check.name]
    past = schedule.offsets[-2] if model.cached_layers else 0
    last, tokens = len(schedule) - 1, schedule.tokens[-1]
    assert alone[0] == f"scale {last} alone ({tokens} tokens after {past}), blocks 0 to 1"
    assert len(alone) == 2 * model.depth
    cases = ReferenceCases.load(large_switti.path(REFERENCE)).cases
    assert [(case.name, case.scales) for case in cases] == [("first2_guidance6", 2), ("text of 77", 2)]
    assert coverage(large_switti).tokens == sum(schedule.tokens[:2])


def test_a_row_that_is_wrong_at_the_last_scale_alone(large_switti: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    original, tokens = OnnxRuntimeEngine.run, large_switti.manifest.schedule().tokens[-1]

    def run(self: OnnxRuntimeEngine, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        original(self, inputs, outputs)
        if self.name == "blocks_1_2" and len(inputs["cos"]) == tokens:
            out = next(iter(outputs.values()))
            out[0, tokens // 2] = out[0, tokens // 2 + 1]

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    failed = [check.name for check in verify_bundle(large_switti, threads=1).failures]
    assert len(failed) == 1
    assert "blocks 1 to 2" in failed[0]
