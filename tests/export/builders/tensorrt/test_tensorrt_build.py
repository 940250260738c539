"""Real engines, built by TensorRT-RTX without a GPU, and what must be refused before or while they are built."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.goldens import Golden
from helpers.samples import spec
from helpers.schedules import all_schedules
from helpers.switti_samples import CASES as SWITTI_CASES
from helpers.switti_samples import SwittiGolden
from helpers.var_samples import VAR_MODELS
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.tensorrt.library import load_library
from ldp_runtime.errors import ConfigError, EngineBuildError, IncompatibleBundleError
from ldp_runtime.token_layout import LatentLayout

from ldp_export.builders.base import Compiler, ExportedGraph
from ldp_export.builders.cancellable import BuildProgress, run_cancellable
from ldp_export.builders.tensorrt import network
from ldp_export.builders.tensorrt.builder import (
    ENGINE_FILE,
    LAYERS_FILE,
    TensorRtBuilder,
    _save_timing_cache,
    polygraphy_profile,
)
from ldp_export.builders.tensorrt.network import blocks_of, check_layers, count_operators
from ldp_export.builders.tensorrt.targets import check_precision, check_targets, parse_capabilities
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.infinity import (
    InfinityBlocksGraph,
    InfinityDecoderGraph,
    InfinityPromptGraph,
    infinity_blocks_signature,
)
from ldp_export.graphs.onnx import export_graph
from ldp_export.graphs.signature import MODEL_FILE, GraphSignature, TensorSpec
from ldp_export.graphs.switti import SwittiBlocksGraph, SwittiPromptGraph
from ldp_export.graphs.var import VarBlocksGraph, VarDecoderGraph, VarPromptGraph
from ldp_export.models.registry import find_model

#: GeForce RTX 30, 40 and 50.
TARGETS = ("8.6", "8.9", "12.0")

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def builder(size: str = "0.06M", layout: LatentLayout | None = None, **changes: Any) -> TensorRtBuilder:
    layout = layout or spec().layout
    made = TensorRtBuilder("tensorrt-rtx", TARGETS, all_schedules(size), layout, buckets=1, max_rows=8, text_tokens=16)
    return replace(made, **changes)


def exported(graph: Graph, folder: Path) -> ExportedGraph:
    export_graph(graph, folder)
    return in_folder(graph.signature, folder)


def in_folder(signature: GraphSignature, folder: Path) -> ExportedGraph:
    """A graph that only its ONNX file is needed of."""

    def no_module() -> Any:
        raise AssertionError("TensorRT builds from the ONNX file")

    return ExportedGraph(signature, folder, no_module, folder)


def build(chosen: TensorRtBuilder, graph: ExportedGraph, folder: Path) -> Counter[str]:
    """The layers that the engine was built from."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen.build(graph, folder, lambda line: None)
    return Counter(json.loads((folder / LAYERS_FILE).read_text()))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory, golden_2b: Golden) -> ExportedGraph:
    """The blocks graph of the small 2B-like model in bfloat16."""
    return exported(InfinityBlocksGraph(golden_2b.transformer, precision="bfloat16"), tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="module")
def in_place(tmp_path_factory: pytest.TempPathFactory, golden_2b: Golden) -> ExportedGraph:
    """The last two blocks of that model, with a cache that is written in place."""
    capacity = max(schedule.total_tokens for schedule in all_schedules(golden_2b.config["pn"]))
    graph = InfinityBlocksGraph(golden_2b.transformer, 2, 4, precision="bfloat16").with_static_cache(capacity)
    return exported(graph, tmp_path_factory.mktemp("in-place"))


@pytest.fixture
def float32_blocks(tiny_bundle: Bundle, golden_2b: Golden) -> ExportedGraph:
    """The same graph in float32, from the bundle of ONNX graphs."""
    config = golden_2b.transformer.config
    return in_folder(infinity_blocks_signature(config, 0, config.depth), tiny_bundle.path("blocks"))


class TestEngines:
    """Each for SM86, SM89 and SM120 in one file."""

    @pytest.mark.parametrize(("precision", "buckets"), [("bfloat16", 2), ("float16", 1)])
    def test_the_embedded_model(self, precision: Any, buckets: int, tmp_path: Path) -> None:
        from ldp_export.checkpoints.infinity import load_infinity
        from ldp_export.hub.resolve import resolve_model

        shapes, sources = resolve_model("infinity-shapes", None, None, None, None, None)
        graph = InfinityBlocksGraph(load_infinity(sources.transformer, shapes.transformer), precision=precision)
        chosen = builder(shapes.size, shapes.layout, buckets=buckets, text_tokens=512)
        layers = build(chosen, exported(graph, tmp_path / "graph"), tmp_path / "engine")
        assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == 2 * shapes.transformer.depth
        weights = sum(p.numel() for p in graph.parameters()) * 2
        size = (tmp_path / "engine" / ENGINE_FILE).stat().st_size
        assert size > weights  # nothing was left out
        assert size < 2 * weights + 2**20 * (5 + 10 * buckets)  # and weights are there once, whatever the profiles

    def test_infinity_2b_in_small(self, blocks: ExportedGraph, golden_2b: Golden, tmp_path: Path) -> None:
        config = golden_2b.transformer.config
        chosen = builder(golden_2b.config["pn"], golden_2b.layout, text_tokens=config.text_tokens)
        layers = build(chosen, blocks, tmp_path / "blocks-engine")
        assert layers["ATTENTION_INPUT"] == layers["ROTARY_EMBEDDING"] == 2 * config.depth
        prompt = exported(InfinityPromptGraph(golden_2b.transformer, precision="bfloat16"), tmp_path / "prompt")
        assert build(chosen, prompt, tmp_path / "prompt-engine")["ATTENTION_INPUT"] == 1

    def test_infinity_8b_in_small(self, golden_8b: Golden, tmp_path: Path) -> None:
        """A chunk of blocks, and the decoder with its two profiles."""
        model = golden_8b.transformer
        chosen = builder(golden_8b.config["pn"], golden_8b.layout, text_tokens=model.config.text_tokens)
        chunk = exported(InfinityBlocksGraph(model, 1, 2, precision="float16"), tmp_path / "graph")
        assert build(chosen, chunk, tmp_path / "engine")["ATTENTION_INPUT"] == 2
        decoder = exported(InfinityDecoderGraph(golden_8b.vae, "float16"), tmp_path / "decoder")
        assert len(chosen.profiles(decoder.signature)) == 2
        assert build(chosen, decoder, tmp_path / "decoder-engine")["CONVOLUTION"] > 0

    def test_var_in_small(self, tmp_path: Path) -> None:
        """Blocks with one attention each: the last chunk, the class's graph with a shared AdaLN, and the decoder."""
        held = VAR_MODELS["one AdaLN for all blocks"]
        sources = held.write(tmp_path / "sources")
        model, vae = load_var(sources.transformer), load_var_vae(sources.vae)
        layout = LatentLayout(held.vae.channels)
        chosen = builder(
            layout=layout, capabilities=("8.9",), schedules=(held.transformer.schedule,), buckets=2, text_tokens=0
        )
        blocks = exported(VarBlocksGraph(model, 1, 3, "bfloat16"), tmp_path / "blocks")
        assert build(chosen, blocks, tmp_path / "blocks-engine")["ATTENTION_INPUT"] == 2
        prompt = exported(VarPromptGraph(model, "bfloat16"), tmp_path / "prompt")
        assert build(chosen, prompt, tmp_path / "prompt-engine")["MATRIX_MULTIPLY"] > 0
        decoder = exported(VarDecoderGraph(vae, "bfloat16"), tmp_path / "decoder")
        assert build(chosen, decoder, tmp_path / "decoder-engine")["CONVOLUTION"] > 0

    @pytest.mark.parametrize("name", SWITTI_CASES)
    def test_switti_in_small(self, name: str, tmp_path: Path) -> None:
        """Blocks with two attentions each, with a cache or without one; the prompt's graph attends to nothing."""
        golden = SwittiGolden(name)
        model, layout = golden.transformer, LatentLayout(golden.vae.config.channels)
        chosen = builder(layout=layout, schedules=(model.config.schedule,), text_tokens=model.config.text_tokens)
        chosen = replace(chosen, capabilities=("8.9",) if model.config.keeps_past else TARGETS)
        blocks = exported(SwittiBlocksGraph(model, precision="bfloat16"), tmp_path / "blocks")
        axes = [axis for profile in chosen.profiles(blocks.signature) for axis in profile.axes]
        assert ("past" in axes) == model.config.keeps_past
        layers = build(chosen, blocks, tmp_path / "blocks-engine")
        assert layers["ATTENTION_INPUT"] == layers["ROTARY_EMBEDDING"] == 2 * model.config.depth
        prompt = exported(SwittiPromptGraph(model, precision="bfloat16"), tmp_path / "prompt")
        assert build(chosen, prompt, tmp_path / "prompt-engine")["MATRIX_MULTIPLY"] > 0

    def test_in_place_cache(self, in_place: ExportedGraph, golden_2b: Golden, tmp_path: Path) -> None:
        """Each block updates two caches, and attends to the part of them that is filled."""
        chosen = builder(golden_2b.config["pn"], golden_2b.layout, text_tokens=512, capabilities=("8.9",))
        assert all("past" not in profile.axes for profile in chosen.profiles(in_place.signature))
        layers = build(chosen, in_place, tmp_path / "engine")
        assert layers["KV_CACHE_UPDATE"] == layers["ATTENTION_INPUT"] == 2 * blocks_of(in_place.signature) == 4

    def test_float32_is_taken_apart_and_builds(self, float32_blocks: ExportedGraph, tmp_path: Path) -> None:
        layers = build(builder(capabilities=("8.9",)), float32_blocks, tmp_path / "engine")
        assert layers["ATTENTION_INPUT"] == 2 * blocks_of(float32_blocks.signature)

    def test_key_names_what_the_engine_depends_on(self, blocks: ExportedGraph) -> None:
        chosen, signature = builder(), blocks.signature
        assert isinstance(chosen, Compiler)
        keys = [json.dumps(b.key(signature), sort_keys=True) for b in (chosen, builder(buckets=2), builder(max_rows=4))]
        keys.append(json.dumps(builder(capabilities=("8.9",)).key(signature), sort_keys=True))
        assert len(set(keys)) == 4
        assert load_library("tensorrt-rtx").version in keys[0]

    def test_polygraphy_profiles_are_code(self, blocks: ExportedGraph, golden_2b: Golden) -> None:
        chosen, config = builder(buckets=2), golden_2b.transformer.config
        ranges = polygraphy_profile(chosen.library, blocks.signature, chosen.profiles(blocks.signature)[1])
        assert ranges["past_k_0"].min == (0, 1, config.heads, config.head_dim)
        assert f"Profile().add('latents', min=(1, 1, {config.bits}), opt=(2, 256, {config.bits})" in repr(ranges)


class TestRefusals:
    @pytest.mark.parametrize(
        ("wanted", "precision", "message"),
        [
            (("9.0",), "bfloat16", r"cannot build for compute capability 9\.0 \(H100, H200\)(.|\n)*--backend tensorrt"),
            (("8.9", "10.0"), "float16", r"10\.0 \(B200\)"),
            (("6.1",), "float16", r"cannot build for compute capability 6\.1"),
            (("7.5",), "bfloat16", r"serves bfloat16 graphs from compute capability 8\.0 on, not on 7\.5"),
            (("7.5",), "float32", r"serves float32 graphs from compute capability 8\.0 on"),
            (("8.9",), "float8", "not in 'float8'"),
            ((), "bfloat16", "none was named"),
        ],
    )
    def test_hardware(self, wanted: tuple[str, ...], precision: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_targets("tensorrt-rtx", wanted, load_library("tensorrt-rtx").targets, precision)

    def test_hardware_that_is_served(self) -> None:
        for precision in ("float32", "float16", "bfloat16"):
            check_targets("tensorrt-rtx", TARGETS, load_library("tensorrt-rtx").targets, precision)
        check_precision("tensorrt", "7.5", "float16")
        assert parse_capabilities("12.0, 8.6,8.6") == ("8.6", "12.0")

    def test_the_library_says_so_too(
        self, blocks: ExportedGraph, float32_blocks: ExportedGraph, tmp_path: Path
    ) -> None:
        """What `check_targets` refuses for SM75 is what the builder cannot do: the table is no guess."""
        for graph, reason in ((blocks, "HW-specific datatypes: b16"), (float32_blocks, "FP32 GEMM is not supported")):
            with pytest.raises(EngineBuildError, match=reason):
                build(builder(capabilities=("7.5",)), graph, tmp_path / "engine")

    def test_an_input_that_the_parser_ignores(self, tmp_path: Path) -> None:
        """The lengths of an attention over a padded cache: the parser drops them with no more than a warning."""
        signature = padded_attention(tmp_path)
        with pytest.raises(EngineBuildError, match=r"ignores the inputs \['lengths'\]"):
            build(builder(), in_folder(signature, tmp_path), tmp_path / "engine")

    def test_lengths_that_would_go_unread(
        self, in_place: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An in-place cache whose attentions are not told its length, or not all of them."""
        chosen = builder(text_tokens=512, capabilities=("8.9",))
        another = replace(in_place.signature.outputs[-1], name="present_v_7")
        claimed = replace(in_place.signature, outputs=(*in_place.signature.outputs, another))
        with pytest.raises(EngineBuildError, match=r"attends to a part of \['present_v_2', 'present_v_3'\] only"):
            build(chosen, in_folder(claimed, in_place.folder), tmp_path / "engine")
        monkeypatch.setattr(network, "wire_lengths", lambda *_: frozenset())
        with pytest.raises(EngineBuildError, match=r"ignores the inputs \['lengths'\]"):
            build(chosen, in_place, tmp_path / "engine")

    def test_what_is_no_graph(self, tmp_path: Path, blocks: ExportedGraph) -> None:
        (tmp_path / MODEL_FILE).write_bytes(b"no model")
        with pytest.raises(EngineBuildError, match="cannot read the graph"):
            build(builder(), in_folder(blocks.signature, tmp_path), tmp_path / "engine")

    def test_operators_that_were_taken_apart(self, blocks: ExportedGraph) -> None:
        operators = count_operators(blocks.folder / MODEL_FILE)
        n = operators["Attention"]
        assert n == operators["RotaryEmbedding"] == 2 * blocks_of(blocks.signature)
        whole = Counter({"ATTENTION_INPUT": n, "ROTARY_EMBEDDING": n})
        check_layers(blocks.signature, operators, whole)
        for layer, operator in (("ATTENTION_INPUT", "Attention"), ("ROTARY_EMBEDDING", "RotaryEmbedding")):
            with pytest.raises(EngineBuildError, match=f"{n} {operator} operators, but its network {n - 1}"):
                check_layers(blocks.signature, operators, whole - Counter({layer: 1}))
        with pytest.raises(EngineBuildError, match=f"so {n} attentions"):
            check_layers(
                blocks.signature, operators - Counter({"Attention": 1}), whole - Counter({"ATTENTION_INPUT": 1})
            )

    def test_options(self) -> None:
        shapes = find_model("infinity-shapes")

        def choose(precision: str = "bfloat16", **options: Any) -> Any:
            return choose_builder(BackendOptions(**options), shapes, shapes.size, precision)

        with pytest.raises(ConfigError, match="--profiles belongs to TensorRT engines"):
            choose(profiles=3)
        with pytest.raises(ConfigError, match="7 scales can be served by 1 to 7 profiles, not by 8"):
            choose(backend="tensorrt-rtx", capabilities="8.9", profiles=8)
        with pytest.raises(ConfigError, match="--max-batch must be at least 1"):
            choose(backend="tensorrt-rtx", capabilities="8.9", max_batch=-1)
        with pytest.raises(ConfigError, match="'8' is no compute capability"):
            choose(backend="tensorrt-rtx", capabilities="8,9")
        chosen = choose(backend="tensorrt-rtx", capabilities="8.9,8.6", max_batch=2)
        assert (chosen.capabilities, chosen.buckets, chosen.max_rows) == (("8.6", "8.9"), 3, 4)
        assert chosen.target().compute_capabilities == ("8.6", "8.9")

    @no_gpu
    def test_without_a_gpu(self) -> None:
        shapes = find_model("infinity-shapes")
        with pytest.raises(IncompatibleBundleError, match=r"this machine has none(.|\n)*--compute-capability"):
            choose_builder(BackendOptions("tensorrt"), shapes, shapes.size, "bfloat16")
        with pytest.raises(ConfigError, match="none was named"):
            choose_builder(BackendOptions("tensorrt-rtx"), shapes, shapes.size, "bfloat16")


def padded_attention(folder: Path) -> GraphSignature:
    """Writes an attention over a padded cache whose true lengths are an input."""
    import onnx
    from onnx import TensorProto, helper

    heads, width = 2, 16
    kinds = {
        "q": ("rows", heads, "tokens", width),
        "k": ("rows", heads, "past", width),
        "v": ("rows", heads, "past", width),
    }
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in kinds.items()]
    inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ("rows",)))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, kinds["q"])
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"])
    graph = helper.make_graph([node], "padded", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), folder / MODEL_FILE)
    from ldp_export.graphs.signature import Axis

    axes = {"rows": Axis.ROWS, "tokens": Axis.TOKENS, "past": Axis.PAST}
    specs = [TensorSpec(n, tuple(axes.get(d, d) for d in s), "float16") for n, s in kinds.items()]  # type: ignore[misc]
    return GraphSignature("padded", (*specs, TensorSpec("lengths", (Axis.ROWS,), "int64")), (specs[0],))


def test_engines_for_this_machines_gpu_are_verified_on_it() -> None:
    assert builder(local=True).verified_on == "cuda"
    assert builder().verified_on is None


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library: Any = SimpleNamespace(has_timing_cache=True)
    config = SimpleNamespace(get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"measured"))
    (tmp_path / "file").write_text("where a folder should be")
    _save_timing_cache(library, config, tmp_path / "file" / "8.9.cache")
    assert "was not written" in caplog.text
    _save_timing_cache(library, config, tmp_path / "timing" / "8.9.cache")
    (written,) = (tmp_path / "timing").iterdir()
    assert (written.name, written.read_bytes()) == ("8.9.cache", b"measured")


def test_without_polygraphy_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "polygraphy" else real(name))
    shapes = find_model("infinity-shapes")
    with pytest.raises(IncompatibleBundleError, match="'polygraphy'"):
        choose_builder(BackendOptions("tensorrt-rtx", "8.9"), shapes, shapes.size, "bfloat16")


class TestCancelling:
    def test_stops_a_real_build(self, blocks: ExportedGraph, tmp_path: Path) -> None:
        class Enough(Exception):
            pass

        lines: list[str] = []

        def say(line: str) -> None:
            lines.append(line)
            raise Enough

        with pytest.raises(Enough):
            builder(buckets=7).build(blocks, tmp_path, say)
        assert lines
        assert not (tmp_path / LAYERS_FILE).exists()
        assert "engine-build" not in {thread.name for thread in threading.enumerate()}

    def test_ctrl_c(self) -> None:
        """The signal reaches the waiting thread, never the library's callbacks, and the work ends before it goes on."""
        progress, ended = BuildProgress(), threading.Event()

        def work() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            while not progress.is_stopped:
                progress.tell("still at it")
                time.sleep(0.01)
            ended.set()

        # A shell that runs tests in the background has them ignore the signal.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_cancellable(work, progress, lambda line: None)
        finally:
            signal.signal(signal.SIGINT, inherited)
        assert ended.is_set()

    def test_results_and_errors_come_back(self) -> None:
        assert run_cancellable(lambda: 3, BuildProgress(), lambda line: None) == 3

        def fail() -> None:
            raise EngineBuildError("no kernels")

        with pytest.raises(EngineBuildError, match="no kernels"):
            run_cancellable(fail, BuildProgress(), lambda line: None)

    def test_a_full_disk_is_an_error_of_the_disk(
        self, blocks: ExportedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An exception must not travel through the library: it is noted, and raised once the library is done."""
        import errno

        from ldp_export.builders.tensorrt import builder as tensorrt

        real = tensorrt._stream_writer

        def full(trt: Any, write: Callable[[bytes], int]) -> Any:
            def refuse(data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            return real(trt, refuse)

        monkeypatch.setattr(tensorrt, "_stream_writer", full)
        with pytest.raises(OSError, match="No space left"):
            builder(capabilities=("8.9",)).build(blocks, tmp_path, lambda line: None)
