"""Self-attention that keeps no scores: chosen where they would be large, equal to plain attention but for rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.samples import random_texts, spec
from helpers.shared import build_shared
from ldp_runtime import LHEP, SATS, Pipeline, Policy
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.bundle.manifest import content_digest
from ldp_runtime.pipeline.activations import layer_bytes, score_bytes
from ldp_runtime.pipeline.memory import estimate_memory

from ldp_export.building import plan as planning
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.building.plan import BuildPlan
from ldp_export.building.stages import BuildStages
from ldp_export.checkpoints.sources import Sources
from ldp_export.models.registry import find_model

PRUNED = Policy(LHEP(0.6), SATS(9.0))


@pytest.fixture(scope="module")
def fused_bundle(small_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model, built as if its scores were too large; its build has verified it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "_MOST_SCORES", 0)
        options = BuildOptions(tmp_path_factory.mktemp("fused") / "bundle", chunk=2)
        bundle, report = build_shared(plan_build(spec(), small_sources, options))
    assert report is not None
    assert report.state == "verified"
    return bundle


def operators(bundle: Bundle) -> set[str]:
    files = [bundle.path(graph.file) for graph in bundle.manifest.chunks("blocks")]
    return {node.op_type for file in files for node in onnx.load(file, load_external_data=False).graph.node}


@pytest.mark.parametrize("policy", [None, PRUNED], ids=["full", "pruned"])
def test_the_same_pictures_but_for_rounding(fused_bundle: Bundle, small_pipe: Pipeline, policy: Policy | None) -> None:
    with Pipeline.load(fused_bundle, threads=1) as pipe:
        pictures = [
            each(prompt_embeds=random_texts([5, 9]), seed=[1, 2], policy=policy, output_type="torch").images
            for each in (pipe, small_pipe)
        ]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-4)


def test_it_is_in_the_graphs_and_in_the_manifest(fused_bundle: Bundle, small_bundle: Bundle) -> None:
    assert "MultiHeadAttention" in operators(fused_bundle)
    assert "MultiHeadAttention" not in operators(small_bundle)
    assert (fused_bundle.manifest.fused_attention, small_bundle.manifest.fused_attention) == (True, False)


def test_digests_of_bundles_from_before_the_field(small_bundle: Bundle, fused_bundle: Bundle) -> None:
    """Such a bundle says nothing of it, and its digest covers nothing of it."""
    content = small_bundle.manifest.model_dump(mode="json", exclude={"digest", "fused_attention", "weight_precision"})
    assert small_bundle.manifest.digest == content_digest(content)
    assert open_bundle(fused_bundle.folder.parents[1]).manifest.digest == fused_bundle.manifest.digest
    turned = fused_bundle.manifest.model_copy(update={"fused_attention": False})
    assert turned.computed_digest() != fused_bundle.manifest.digest


def planned(model: str, size: str, **options: object) -> BuildPlan:
    sources = Sources(Path("transformer"), Path("vae"), here=False)
    return BuildPlan(find_model(model), sources, BuildOptions(Path("bundle"), size=size, **options))  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "size", "fused"),
    [
        ("infinity-shapes", "0.06M", False),
        ("infinity-2b", "0.25M", False),
        ("infinity-2b", "0.6M", True),
        ("infinity-2b", "1M", True),
        ("infinity-8b", "1M", True),
        ("var-d30", "256px", False),
    ],
)
def test_where_it_is_chosen(model: str, size: str, fused: bool) -> None:
    assert planned(model, size if model.startswith("infinity") else None).fused_attention is fused  # pyright: ignore
    if model.startswith("infinity"):
        assert not planned(model, size, kv_cache="static").fused_attention
        assert not planned(model, size, precision="bfloat16").fused_attention


def test_exported_graphs_are_not_mixed_up(
    small_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan_build(spec(), small_sources, BuildOptions(tmp_path / "bundle")) for _ in range(2)]
    plain = {stage.name: stage.key for stage in BuildStages(plans[0]).stages()}
    monkeypatch.setattr(planning, "_MOST_SCORES", 0)
    fused = {stage.name: stage.key for stage in BuildStages(plans[1]).stages()}
    assert {name for name in plain if plain[name] != fused[name]} == {"blocks"}


def test_memory_counts_no_scores(fused_bundle: Bundle) -> None:
    manifest = fused_bundle.manifest
    rows, schedules = 8, manifest.schedules()
    with_scores, without = (layer_bytes(manifest.model, schedules, rows, fused) for fused in (False, True))
    assert with_scores - without > score_bytes(manifest.model, schedules, rows) / 2
    large = find_model("infinity-2b")
    model = planned("infinity-2b", "1M").family.entry
    assert score_bytes(model, large.schedules, 2) > 3 * 2**30  # [2, 16, 4096, 10521] in float32
    assert layer_bytes(model, large.schedules, 2, True) < 1.5 * 2**30
    plain = manifest.model_copy(update={"fused_attention": False})
    assert estimate_memory(manifest, 4).total <= estimate_memory(plain, 4).total
    assert replace(estimate_memory(manifest, 4), kv_cache=0).total < estimate_memory(manifest, 4).total
