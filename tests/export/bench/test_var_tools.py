"""Comparing and calibrating a class-conditional model, its original loop included. No test asserts a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.shared import build_shared
from helpers.var_samples import Held, build_var_bundle
from ldp_calibration.fidelity import PSNR_CAP, psnr_db
from ldp_calibration.search.budget import Budget
from ldp_calibration.search.calibrate import calibrate
from ldp_calibration.search.report import make_saved, save_policy
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.saved_policies import resolve_policy, saved_folder
from ldp_runtime.errors import ConfigError

from ldp_export.bench.plan import plan_bench
from ldp_export.bench.random_weights import smaller
from ldp_export.bench.worker.choose import load_candidate
from ldp_export.bench.worker.options import BenchOptions
from ldp_export.bench.worker.var import EagerVar
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import main
from ldp_export.cli.bench import command
from ldp_export.models.registry import find_model
from ldp_export.models.sizes import VarConfig, VarVaeConfig

HELD = Held(
    VarConfig(2, 64, 2, 96, codes=60, channels=8, classes=9, grids=(1, 2, 4, 6)),
    VarVaeConfig(codes=60, channels=8, base_channels=32, channel_multipliers=(1, 1), res_blocks=1),
    seed=9,
)


@pytest.fixture(scope="module")
def sources(bundles: Path) -> Sources:
    return HELD.write(bundles / "bench_class_sources")


@pytest.fixture(scope="module")
def bundle(bundles: Path, sources: Sources) -> Bundle:
    return build_var_bundle(sources, bundles / "bench_class")


def test_all_candidates_draw_classes(bundle: Bundle, sources: Sources) -> None:
    """Through the command line: the original loop, its graphs in PyTorch, and the engines draw the same images."""
    arguments = [str(bundle.folder), "--class", "8", "--class", "0", "--policy", "skip:count=1", "--json"]
    arguments += ["--weights", str(sources.transformer), "--vae", str(sources.vae)]
    done = CliRunner().invoke(
        command, [*arguments, "--repeats", "1", "--warmup", "0", "--threads", "1"], catch_exceptions=False
    )
    result = json.loads(done.stdout)
    by_name = {candidate["name"]: candidate for candidate in result["candidates"]}
    assert list(by_name) == ["eager", "eager, hoisted", "engines", "engines + skip:count=1"]
    assert (result["settings"]["classes"], result["settings"]["prompts"]) == ([8, 0], None)
    assert not any("text" in note for note in result["notes"])
    assert result["precision_loss"]["images"] == 2
    assert result["precision_loss"]["psnr_db"] == PSNR_CAP
    for candidate in by_name.values():
        assert len(candidate["samples"]) == 2
        assert all(candidate["phases_ms"][phase] > 0 for phase in ("text", "blocks", "loop", "decode"))
        assert all(sum(sample["scales_ms"]) == pytest.approx(sample["blocks_ms"]) for sample in candidate["samples"])
    assert [s["tokens"] for s in by_name["eager"]["scales"]] == [1, 4, 16, 36]
    assert by_name["engines"]["flops"] == by_name["eager"]["flops"] == by_name["eager, hoisted"]["flops"]
    assert by_name["engines + skip:count=1"]["tokens_computed"] == 21
    assert by_name["engines + skip:count=1"]["psnr_db"] is not None


def test_baselines_hold_weights_as_the_bundle_does(sources: Sources, tmp_path: Path) -> None:
    """Otherwise they would read twice the bytes, and engines would look faster than they are."""
    spec, options = infer_spec(sources), BuildOptions(tmp_path / "bundle", precision="float16")
    bundle, _ = build_shared(plan_build(spec, sources, options))
    plan = plan_bench([bundle.folder], BenchOptions(weights=sources.transformer, vae=sources.vae, policies=()))
    jobs = plan.jobs(1)
    model = EagerVar(jobs["eager"]).model
    assert torch.float16 in {p.dtype for p in model.layers[0].parameters()}  # beside those that stay in float32
    eager, hoisted = (load_candidate(jobs[name]).draw([0], [3], "none").images for name in ("eager", "eager, hoisted"))
    assert psnr_db(eager[0].permute(1, 2, 0).numpy(), hoisted[0].permute(1, 2, 0).numpy()) > 40


def test_default_classes_are_spread_over_all(bundle: Bundle) -> None:
    plan = plan_bench([bundle.folder], BenchOptions(eager=False))
    assert plan.options.classes == (0, 2, 4, 6)
    assert (plan.options.prompts, plan.embeds, plan.prompt_count) == (None, None, 4)
    assert plan.groups(3)[1] == ((3, 0, 1), (3, 4, 5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": (9,)}, "no class 9"),
        ({"classes": (3, -1)}, "no class -1"),
        ({"classes": ()}, "class_labels is empty"),
        ({"prompts": ("a dog",)}, "reads no prompts"),
    ],
)
def test_senseless_conditions(bundle: Bundle, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_bench([bundle.folder], BenchOptions(eager=False, **options))


def test_classes_for_a_model_that_reads_texts(small_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="draws texts, not classes"):
        plan_bench([small_bundle.folder], BenchOptions(eager=False, classes=(1,)))


def test_thresholds_are_calibrated_on_classes(bundle: Bundle, tmp_path: Path) -> None:
    policies = ["ld-fast:p=0.9,stop=none", "ld-fast:p=0.95,fill=linear,scales=3,delta=9", "none:skip_last=1"]
    with Pipeline.load(bundle, threads=1) as pipe:
        found = calibrate(pipe, list(range(9)), Budget("psnr", 3.0), tmp_path / "measured.jsonl", policies=policies)
        assert found.chosen.policy in policies[:2]
        assert (found.search_prompts, found.held_out_prompts) == (5, 4)
        assert [point.policy for point in found.searched if point.policy.startswith("none:")]
        root = tmp_path / "bundle"
        save_policy(root, bundle.manifest, make_saved("careful", bundle.manifest, found))
        policy = resolve_policy("careful", root, bundle.manifest)
        assert policy is not None
        result = pipe(class_labels=[8], seed=1, policy=policy, output_type="latent")
        assert result.traces[0].tokens < result.traces[0].tokens_full


def test_classes_that_the_model_has_not_are_refused_before_calibrating(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    for content, words in (("3\n9\n", "no class 9"), ("3\ndog\n", "a class number a line")):
        file.write_text(content)
        arguments = ["calibrate", str(bundle.root), "--budget", "psnr>=20", "--prompts-file", str(file)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == ConfigError.exit_code
        assert words in done.output
    assert bundle.root is not None
    assert not saved_folder(bundle.root, bundle.manifest).exists()


def test_smaller_model_with_random_weights_keeps_its_proportions() -> None:
    whole = find_model("var-d36")
    spec = smaller(whole, 3, 128)
    assert spec.transformer == replace(whole.transformer, depth=3, width=128, heads=2, ffn=512)
    assert spec.vae.base_channels == 32
