"""Bundles with static ranges or 8-bit weights: built, resumed, verified (fail closed), drawn in batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers.goldens import Golden
from helpers.samples import random_texts, spec, write_sources
from helpers.shared import build_shared
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.bundle.manifest import QuantizedScales, content_digest
from ldp_runtime.errors import ConfigError, VerificationError

from ldp_export.bench.plan import label
from ldp_export.builders import base
from ldp_export.builders.onnxruntime import Int8Builder
from ldp_export.building import stages
from ldp_export.building.build import BuildOptions, BuildPlan, build, plan_build
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.building.estimate import estimate_build
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import main
from ldp_export.families.infinity import InfinityFamily
from ldp_export.graphs.signature import MODEL_FILE
from ldp_export.models.registry import find_model
from ldp_export.progress import ProgressEvent
from ldp_export.quantization.ranges import RANGES_FILE, Ranges

STATIC = Int8Builder(quantized=QuantizedScales(precision="int8", share=0.85, ranges="static"))
WEIGHTS = Int8Builder(weights_in_8_bits=True)
QUANTIZED_SCALES = range(4, 7)
RTX = {"backend": "tensorrt-rtx"}


@pytest.fixture(scope="module")
def sources(small_sources: Sources) -> Sources:
    return Sources(small_sources.transformer, small_sources.vae)


def options(folder: Path, builder: Int8Builder, **changes: Any) -> BuildOptions:
    return BuildOptions(folder / "bundle", builder=builder, **changes)


@pytest.fixture(scope="module")
def static(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    chosen = options(tmp_path_factory.mktemp("static"), STATIC, chunk=1)
    return build_shared(plan_build(spec(), sources, chosen))[0]


@pytest.fixture(scope="module")
def weights(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_shared(plan_build(spec(), sources, options(tmp_path_factory.mktemp("weights"), WEIGHTS, chunk=1)))[0]


def test_verified_and_labelled(static: Bundle, weights: Bundle) -> None:
    assert static.state == weights.state == "verified"
    assert label(static.manifest) == "onnxruntime, int8 last scales with static ranges"
    assert label(weights.manifest) == "onnxruntime, int8 weights"
    assert static.manifest.quantized[0].ranges == "static"
    assert weights.manifest.weight_precision == "int8"
    assert not weights.manifest.quantized


def test_recipe_and_ranges_ship(static: Bundle) -> None:
    """Under the manifest's hashes; what was measured on one prompt does not."""
    recipe = json.loads(static.path("ranges/recipe.json").read_text())
    assert len(recipe["prompts"]) == 8
    assert len(recipe["prompts_sha256"]) == 64
    assert set(Ranges.load(static.path("ranges")).magnitudes) >= {"0.sa.mat_qkv", "1.ffn.fc2"}
    assert not [name for name in static.manifest.files if name.startswith("ranges_of")]


@pytest.mark.parametrize("policy", [None, "ld", "skip:count=1,stop_after=2"])
def test_images_of_a_call_share_quantized_scales(static: Bundle, policy: str | None) -> None:
    """An image is what it is alone, bit for bit."""
    texts = random_texts([5, 9])
    with Pipeline.load(static, threads=1, max_batch=2) as pipe:
        both = pipe(prompt_embeds=texts, seed=[3, 8], policy=policy, output_type="latent")
        alone = pipe(prompt_embeds=[texts[1]], seed=8, policy=policy, output_type="latent")
    torch.testing.assert_close(both.images[1], alone.images[0], atol=0, rtol=0)
    counts = {scale.images_in_call for scale in both.traces[0].scales if scale.scale in QUANTIZED_SCALES}
    assert 2 in counts


def test_weights_alone_are_smaller_and_near(weights: Bundle, small_bundle: Bundle) -> None:
    sizes = [
        sum(e.size for n, e in b.manifest.files.items() if n.startswith("blocks")) for b in (weights, small_bundle)
    ]
    assert sizes[0] < 0.6 * sizes[1]
    (text,) = random_texts([5])
    latents = []
    for bundle in (weights, small_bundle):
        with Pipeline.load(bundle, threads=1) as pipe:
            latents.append(pipe(prompt_embeds=[text], seed=1, output_type="latent").images[0])
    assert (latents[0] == latents[1]).float().mean() > 0.9


def damaged(folder: Path, change: Callable[[onnx.TensorProto], None]) -> None:
    path = folder / MODEL_FILE
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        change(tensor)
    onnx.save(model, path)


def rescaled(name: str, factor: float) -> Callable[[onnx.TensorProto], None]:
    def change(tensor: onnx.TensorProto) -> None:
        if tensor.name.endswith(name):
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))

    return change


@pytest.mark.parametrize(
    ("builder", "name", "factor", "message"),
    [
        (STATIC, "0.ffn.fc1.factor", 2, "scale 4, logits in 8 bits, RMS"),
        (STATIC, "weight_step", 1.25, "scale 4, logits in 8 bits, RMS"),
        (STATIC, "0.ffn.fc2.input_step", 0.05, "logits in 8 bits, RMS"),
        (WEIGHTS, "0.sa.proj.weight_step", 1.01, "scale 0, logits"),
    ],
)
def test_wrong_steps_are_rejected(
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    builder: Int8Builder,
    name: str,
    factor: float,
    message: str,
) -> None:
    """A step that is too large for what it was made for, and one that clips most of a layer's inputs."""
    insert = base.insert_8_bits

    def wrong(graph: Any, folder: Path, *rest: Any) -> int:
        count = insert(graph, folder, *rest)
        damaged(folder, rescaled(name, factor))
        return count

    monkeypatch.setattr("ldp_export.builders.onnxruntime.insert_8_bits", wrong)
    with pytest.raises(VerificationError, match=message):
        build(plan_build(spec(), sources, options(tmp_path, builder)))


def test_swapped_ranges_are_rejected(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of another layer of the same width: the reference has the right one."""
    insert = base.insert_8_bits

    def swapped(graph: Any, folder: Path, *rest: Any) -> int:
        ranges = dict(Ranges.load(graph.ranges).magnitudes)
        ranges["0.ca.proj"], ranges["0.ca.mat_q"] = ranges["0.ca.mat_q"] * 0.02, ranges["0.ca.proj"]
        other = tmp_path / "swapped"
        other.mkdir(exist_ok=True)
        Ranges(ranges).save(other)
        return insert(replace(graph, ranges=other), folder, *rest)

    monkeypatch.setattr("ldp_export.builders.onnxruntime.insert_8_bits", swapped)
    with pytest.raises(VerificationError, match="logits in 8 bits, RMS"):
        build(plan_build(spec(), sources, options(tmp_path, STATIC)))


def test_measuring_goes_on_where_it_was_stopped(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, drawn, ranges = ("one", "two", "three"), list[str](), InfinityFamily.ranges
    chosen = options(tmp_path, STATIC, quantize_prompts=prompts)

    def stopped(self: InfinityFamily, prompt: str, number: int) -> Ranges:
        if prompt == "three" and "three" not in drawn:
            drawn.append(prompt)
            raise KeyboardInterrupt
        drawn.append(prompt)
        return ranges(self, prompt, number)

    monkeypatch.setattr(InfinityFamily, "ranges", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(plan_build(spec(), sources, chosen))
    events: list[ProgressEvent] = []
    bundle, _ = build(plan_build(spec(), sources, chosen), events.append)
    assert drawn == ["one", "two", "three", "three"]
    assert [event.stage for event in events if event.state == "reused"] == ["ranges_of_prompt_0", "ranges_of_prompt_1"]
    assert json.loads(bundle.path("ranges/recipe.json").read_text())["prompts"] == list(prompts)


def test_other_prompts_measure_anew(sources: Sources, tmp_path: Path) -> None:
    keys = []
    for prompts in (("one",), ("two",), ("one",)):
        plan = plan_build(spec(), sources, options(tmp_path, STATIC, quantize_prompts=prompts))
        keys.append({stage.name: stage.key for stage in stages.BuildStages(plan).stages()})
    assert keys[0] == keys[2]
    changed = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert changed == {"ranges_of_prompt_0", "ranges", "reference", "last_blocks.engine"}


def test_damaged_ranges_do_not_open(static: Bundle, tmp_path: Path) -> None:
    shutil.copytree(static.folder, tmp_path / "bundle")
    file = tmp_path / "bundle" / "ranges" / RANGES_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match=RANGES_FILE):
        open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("builder", [STATIC, WEIGHTS])
@pytest.mark.parametrize("flavour", ["golden_2b", "golden_8b"])
def test_both_flavours(request: pytest.FixtureRequest, tmp_path: Path, builder: Int8Builder, flavour: str) -> None:
    golden: Golden = request.getfixturevalue(flavour)
    held = Sources(golden.weights / "transformer.safetensors", golden.weights / "vae.safetensors")
    model = spec(golden.transformer.config, golden.vae.config)
    chosen = options(tmp_path, builder, quantize_prompts=("a", "b"))
    bundle, report = build_shared(plan_build(model, held, chosen))
    assert bundle.state == "verified"
    assert report is not None
    with Pipeline.load(bundle, threads=1) as pipe:
        text = torch.randn(4, golden.transformer.config.text_channels, generator=torch.Generator().manual_seed(0))
        assert pipe(prompt_embeds=[text], seed=0, policy="ld", output_type="torch").images.isfinite().all()


def test_of_a_large_model_weights_are_rounded_as_they_are_loaded(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded by its first scales and block by block, as what cannot be run to the end."""
    monkeypatch.setattr(InfinityFamily, "_recorded_scales", 3)
    for builder in (WEIGHTS, STATIC):
        bundle, _ = build_shared(plan_build(spec(), sources, options(tmp_path / label_of(builder), builder)))
        assert bundle.state == "verified"


def label_of(builder: Int8Builder) -> str:
    return "weights" if builder.weights_in_8_bits else "static"


def test_what_it_takes_is_predicted(sources: Sources, tmp_path: Path) -> None:
    plain, rounded = (
        estimate_build(plan_build(spec(), sources, options(tmp_path, builder))) for builder in (Int8Builder(), WEIGHTS)
    )
    assert rounded.bundle < 0.9 * plain.bundle
    bundle, _ = build_shared(plan_build(spec(), sources, options(tmp_path, WEIGHTS)))
    actual = sum(entry.size for entry in bundle.manifest.files.values())
    assert actual == pytest.approx(rounded.bundle, rel=0.6)


def chosen(precision: str = "float32", model: Any = None, **changes: Any) -> Any:
    return choose_builder(BackendOptions(**changes), model or spec(), "0.06M", precision)


@pytest.mark.parametrize(
    ("message", "precision", "changes"),
    [
        ("belongs to --quantize", "float32", {"quantize_ranges": "static"}),
        (
            "holds ranges in its engines",
            "bfloat16",
            {"backend": "tensorrt-rtx", "quantize": "int8", "quantize_ranges": "measured"},
        ),
        ("too small for float16", "float16", {"backend": "tensorrt-rtx", "quantize": "int8"}),
        (
            "multiplies no 8-bit floats",
            "bfloat16",
            {"backend": "tensorrt-rtx", "quantize": "float8", "capabilities": "8.6"},
        ),
        ("rounds weights alone", "float32", {"quantize": "int8-weights", "quantize_share": 0.5}),
        ("too small for float16", "float16", {"quantize": "int8-weights"}),
        ("stores no weights in 8 bits", "float32", {"backend": "torch", "quantize": "int8-weights"}),
    ],
)
def test_refused(monkeypatch: pytest.MonkeyPatch, message: str, precision: str, changes: dict[str, Any]) -> None:
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: None)
    monkeypatch.setattr("ldp_export.building.choose_builder.check_compilers", lambda on_gpu: None)
    with pytest.raises(ConfigError, match=message):
        chosen(precision, **changes)


@pytest.mark.parametrize("changes", [{"quantize": "int8", "quantize_ranges": "static"}, {"quantize": "int8-weights"}])
def test_other_families_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Infinity's blocks only"):
        chosen(model=find_model("var-d16"), **changes)


def test_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: None)
    assert chosen(quantize="int8", quantize_ranges="static") == STATIC
    assert chosen(quantize="int8-weights") == WEIGHTS


def test_digests_of_bundles_from_before_static_ranges(small_bundle: Bundle) -> None:
    """Sets of quantized scales said nothing of their ranges then, and digests cover nothing of it."""
    older = small_bundle.manifest.model_copy(update={"quantized": (QuantizedScales(precision="int8", share=0.85),)})
    content = older.model_dump(mode="json", exclude={"digest", "fused_attention", "weight_precision"})
    assert content["quantized"][0].pop("ranges") == "measured"
    assert older.computed_digest() == content_digest(content)
    for change in ({"weight_precision": "int8"}, {"quantized": STATIC.quantized and (STATIC.quantized,)}):
        assert older.model_copy(update=change).computed_digest() != older.computed_digest()


def test_what_is_in_8_bits_is_shown(static: Bundle, weights: Bundle) -> None:
    made = [CliRunner().invoke(main, ["inspect", str(bundle.folder)]).output for bundle in (static, weights)]
    shown = [" ".join(output.split()) for output in made]  # a terminal wraps lines
    assert "int8, static" in shown[0]
    assert "weights of the blocks in int8" in shown[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_memory_of_drawing_prompts_is_predicted() -> None:
    """Keys and values of one picture of a large model: such a build is refused, not killed."""
    large = find_model("infinity-8b")
    held = Sources(Path("transformer"), Path("vae"), here=False)

    def memory(**changes: Any) -> int:
        builder = choose_builder(BackendOptions(capabilities="8.9", **RTX, **changes), large, "1M", "bfloat16")
        options = BuildOptions(Path("bundle"), builder=builder, precision="bfloat16", chunk=1)
        return estimate_build(BuildPlan(large, held, options)).host_memory

    square = 4 * 2 * 2 * 40 * 10_521 * 3584  # float32, keys and values, two branches, blocks, tokens, width
    assert memory() < square < memory(quantize="int8") < 2 * square


def test_prompts_are_encoded_if_there_is_a_text_encoder(tmp_path: Path) -> None:
    held = write_sources(tmp_path / "sources", text_encoder=True)
    found = [
        InfinityFamily(spec(), Sources(held.transformer, held.vae, encoder), None).ranges("a red circle", 0)
        for encoder in (None, held.text_encoder)
    ]
    assert not torch.equal(*(ranges.magnitudes["0.ca.proj"] for ranges in found))
