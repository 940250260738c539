"""Blocks that PyTorch compiles where they are loaded: the engine against the exported graph, and a bundle of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.engine_runs import check_draws_without_exporter, engines_of
from helpers.samples import TRANSFORMER, build_bundle, random_texts, random_transformer, spec, write_sources
from helpers.shared import build_shared
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import FUSED_WEIGHTS, GraphEntry
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.engines.torch_compiled.compiler import check_compiler
from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs
from ldp_runtime.engines.torch_compiled.fused.engine import FusedEngine
from ldp_runtime.engines.torch_compiled.fused.products import FLOAT8, INT8, Matrix, product, rounded, rounded_rows
from ldp_runtime.engines.torch_compiled.fused.text import padded
from ldp_runtime.errors import (
    EngineBuildError,
    IncompatibleBundleError,
    IntegrityError,
    InternalError,
    LdpError,
)
from ldp_runtime.pipeline.memory import estimate_memory

from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.builders.torch_compiled.fused import fused_weights, is_fusible, write_fused
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.families.choose import choose_family
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.signature import tensor_entries
from ldp_export.models.registry import find_model
from ldp_export.models.sizes import InfinityVaeConfig

#: Two correct float32 computations of these logits, whose standard deviation is about 2.
SAME = {"atol": 1e-5, "rtol": 1e-5}
Tensors = dict[str, torch.Tensor]
#: Of the largest call, and of the longest text.
SIZES = {"tokens": 16, "text_tokens": 2 * padded(1)}


def graph_entry(graph: InfinityBlocksGraph) -> GraphEntry:
    inputs, outputs = (tensor_entries(specs) for specs in (graph.signature.inputs, graph.signature.outputs))
    return GraphEntry(kind="blocks", file="", inputs=inputs, outputs=outputs, first=graph.first, last=graph.last)


def fused(graph: InfinityBlocksGraph, **options: Any) -> FusedEngine:
    return FusedEngine("blocks", fused_weights(graph), graph_entry(graph), **SIZES, **{"compiled": False, **options})


def eager(graph: InfinityBlocksGraph) -> EagerEngine:
    return EagerEngine("blocks", graph, graph.signature.input_names, graph.signature.output_names)


def call_of(
    graph: InfinityBlocksGraph,
    rows: int = 2,
    tokens: int = 6,
    past: int = 5,
    lengths: Sequence[int] = (),
    seed: int = 0,
    cache: DynamicKVCache | None = None,
) -> tuple[Tensors, Tensors]:
    """Random inputs, keys and values of the past in a cache; outputs behind them. Texts of these lengths, padded."""
    generator, text = torch.Generator().manual_seed(seed), max(lengths, default=7)
    cache = cache or DynamicKVCache(TRANSFORMER.depth, past + tokens, rows, TRANSFORMER.heads, TRANSFORMER.head_dim)
    cache.length = 0
    for pair in cache.slots(past):
        for slot in pair:
            slot.copy_(torch.randn(slot.shape, generator=generator))
    cache.advance(past)
    sizes = {"rows": rows, "tokens": tokens, "past": past, "text": text}
    inputs = {
        entry.name: torch.randn([sizes.get(str(d), d) for d in entry.shape], generator=generator)  # pyright: ignore
        for entry in graph.signature.inputs
        if not entry.name.startswith(("past_", "text_mask"))
    }
    mask = torch.arange(text) < torch.tensor(list(lengths) or [text] * rows)[:, None]
    outputs: Tensors = {"logits": torch.empty(rows, tokens, 2 * TRANSFORMER.bits)}
    for i, (read, written) in enumerate(zip(cache.reads(), cache.writes(tokens, True), strict=True)):
        if graph.first <= i < graph.last:
            inputs |= read
            outputs |= written
    if not graph.last_is_head:
        outputs["hidden_out"] = torch.empty(rows, tokens, TRANSFORMER.width)
    known = set(graph.signature.output_names)
    return {**inputs, "text_mask": mask}, {name: t for name, t in outputs.items() if name in known}


def computed(engine: FusedEngine | EagerEngine, inputs: Tensors, outputs: Tensors) -> Tensors:
    """What the engine gives, in tensors of its own."""
    engine.run(inputs, outputs)
    return {name: tensor.clone() for name, tensor in outputs.items()}


@pytest.fixture(scope="module")
def blocks() -> InfinityBlocksGraph:
    return InfinityBlocksGraph(random_transformer())


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (4, 1), (6, 5)])
def test_computes_what_the_exported_graph_computes(
    blocks: InfinityBlocksGraph, rows: int, tokens: int, past: int
) -> None:
    inputs, outputs = call_of(blocks, rows, tokens, past)
    expected = computed(eager(blocks), inputs, outputs)
    for tensor in outputs.values():
        tensor.fill_(torch.nan)
    found = computed(fused(blocks), inputs, outputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **SAME)


def test_texts_of_several_lengths_are_masked(blocks: InfinityBlocksGraph) -> None:
    engine = fused(blocks)
    for lengths in ((7, 3), (5, 5), (2, 6)):
        inputs, outputs = call_of(blocks, lengths=lengths)
        expected = computed(eager(blocks), inputs, outputs)["logits"]
        torch.testing.assert_close(computed(engine, inputs, outputs)["logits"], expected, **SAME)


def test_keys_and_values_may_go_elsewhere_or_nowhere(blocks: InfinityBlocksGraph) -> None:
    inputs, outputs = call_of(blocks)
    expected = computed(fused(blocks), inputs, outputs)
    elsewhere = {name: torch.full_like(tensor, torch.nan) for name, tensor in outputs.items()}
    for name, tensor in computed(fused(blocks), inputs, elsewhere).items():
        torch.testing.assert_close(tensor, expected[name], **SAME)
    nowhere = {"logits": torch.empty_like(outputs["logits"])}
    torch.testing.assert_close(computed(fused(blocks), inputs, nowhere)["logits"], expected["logits"], **SAME)


def test_the_past_is_left_alone(blocks: InfinityBlocksGraph) -> None:
    inputs, outputs = call_of(blocks)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    fused(blocks).run(inputs, outputs)
    assert all(torch.equal(inputs[name], tensor) for name, tensor in before.items())


def test_chunks_follow_each_other(blocks: InfinityBlocksGraph) -> None:
    inputs, outputs = call_of(blocks)
    whole = computed(fused(blocks), inputs, outputs)["logits"]
    first, second = (InfinityBlocksGraph(random_transformer(), i, i + 1) for i in range(2))
    hidden = torch.empty(2, 6, TRANSFORMER.width)
    for graph, given, result in ((first, {}, {"hidden_out": hidden}), (second, {"hidden": hidden}, outputs)):
        there = {**inputs, **given}
        named = {name: there[name] for name in graph.signature.input_names}
        slots = {name: tensor for name, tensor in outputs.items() if name in graph.signature.output_names}
        fused(graph).run(named, {**slots, **{n: t for n, t in result.items() if n in graph.signature.output_names}})
    torch.testing.assert_close(outputs["logits"], whole, **SAME)


def test_in_bfloat16_it_rounds_as_the_graph_does() -> None:
    from ldp_export.graphs.graph import convert_weights

    half = InfinityBlocksGraph(random_transformer(), precision="bfloat16")
    convert_weights(half)
    inputs, outputs = call_of(half)
    types = {entry.name: entry.torch_dtype for entry in (*half.signature.inputs, *half.signature.outputs)}
    inputs = {name: tensor.to(types[name]) for name, tensor in inputs.items()}
    apart = {name: torch.empty(tensor.shape, dtype=types[name]) for name, tensor in outputs.items()}
    expected = computed(eager(half), inputs, apart)["logits"]
    found = computed(fused(half), inputs, apart)["logits"]
    assert (found - expected).norm() / expected.norm() < 0.02


class Replayed(CudaGraphs):
    """Stands in for graphs on a CPU: copies a call's inputs to places of their own, as a graph does, and says which
    calls would have been the same graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def run(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor], places: Any = ()) -> Any:
        self.calls.append((tuple(tensor.shape for tensor in inputs), places))
        return call(*(tensor.clone() for tensor in inputs))


def test_graphs_serve_texts_of_about_a_length(blocks: InfinityBlocksGraph) -> None:
    """They are padded and masked; each text is read anew, from the same places."""
    graphs = Replayed()
    engine = fused(blocks, graphs=graphs)
    cache = DynamicKVCache(TRANSFORMER.depth, 11, 2, TRANSFORMER.heads, TRANSFORMER.head_dim)
    for seed, text in ((0, 3), (1, 9), (2, 3), (3, padded(1))):
        inputs, outputs = call_of(blocks, lengths=(text, text), seed=seed, cache=cache)
        expected = computed(eager(blocks), inputs, outputs)["logits"]
        for _ in range(2):
            torch.testing.assert_close(computed(engine, inputs, outputs)["logits"], expected, **SAME)
    assert len(set(graphs.calls)) == 1
    assert len(graphs.calls) == 8


def test_longer_texts_leave_the_graphs_of_shorter_ones(blocks: InfinityBlocksGraph) -> None:
    """Whose addresses stay: room for the longest text is made at once."""
    graphs = Replayed()
    engine = fused(blocks, graphs=graphs)
    cache = DynamicKVCache(TRANSFORMER.depth, 11, 2, TRANSFORMER.heads, TRANSFORMER.head_dim)
    for seed, text in enumerate((3, padded(1) + 1, 3, 2 * padded(1))):
        inputs, outputs = call_of(blocks, lengths=(text, 2), seed=seed, cache=cache)
        expected = computed(eager(blocks), inputs, outputs)["logits"]
        torch.testing.assert_close(computed(engine, inputs, outputs)["logits"], expected, **SAME)
    short, long, again, longest = graphs.calls
    assert short == again
    assert long == longest != short


def test_large_calls_and_other_places_are_no_same_graph(
    blocks: InfinityBlocksGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Replayed()
    engine = fused(blocks, graphs=graphs)
    for rows, tokens, past in ((2, 6, 5), (1, 6, 5), (2, 6, 4), (2, 6, 5)):
        call = call_of(blocks, rows, tokens, past)
        engine.run(*call)
        graphs.calls.append(call)  # held, lest the next cache lies in its place
    keys = [call for call in graphs.calls if not isinstance(call[0], dict)]
    assert len(set(keys)) == 4
    monkeypatch.setattr("ldp_runtime.engines.torch_compiled.fused.engine.GRAPHED_ROW_TOKENS", 11)
    graphs.calls.clear()
    engine.run(*call_of(blocks, rows=2, tokens=6))
    assert not graphs.calls


def test_more_rows_take_a_larger_place_for_the_text(blocks: InfinityBlocksGraph) -> None:
    graphs = Replayed()
    engine = fused(blocks, graphs=graphs)
    for rows in (1, 3, 2):
        inputs, outputs = call_of(blocks, rows)
        expected = computed(eager(blocks), inputs, outputs)["logits"]
        torch.testing.assert_close(computed(engine, inputs, outputs)["logits"], expected, **SAME)


@pytest.mark.parametrize(("kind", "least", "most"), [(INT8, 1e-3, 0.02), (FLOAT8, 0.01, 0.06)])
@pytest.mark.parametrize("shape", [(2, 5), (1, 1), (40, 2)])
def test_products_in_8_bits(kind: torch.dtype, least: float, most: float, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator) for s in ((*shape, 64), (48, 64), (48,)))
    exact = Matrix(weight, bias, bias.new_empty(0))
    found = product(x, rounded(exact, kind))
    assert found.shape == (*shape, 48)
    assert least < (found - product(x, exact)).norm() / (product(x, exact) - bias).norm() < most


def test_8_bits_hold_a_row_by_its_largest_value() -> None:
    """Integers in even steps, floats to three bits behind the leading one."""
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    values, step = rounded_rows(weight, INT8)
    assert values.abs().amax(dim=1).eq(127).all()
    assert ((values.float() * step - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    values, step = rounded_rows(weight, FLOAT8)
    torch.testing.assert_close(values.float() * step, weight, rtol=1 / 16, atol=float(step.max()) / 512)


def test_rows_in_8_bits_do_not_depend_on_each_other() -> None:
    x, weight, bias = torch.randn(6, 1, 64), torch.randn(48, 64), torch.randn(48)
    for kind in (INT8, FLOAT8):
        matrix = rounded(Matrix(weight, bias, bias.new_empty(0)), kind)
        loud = torch.cat((x, 100 * x))
        torch.testing.assert_close(product(loud, matrix)[:6], product(x, matrix), atol=1e-6, rtol=1e-6)


def test_file_of_weights(blocks: InfinityBlocksGraph, tmp_path: Path) -> None:
    write_fused(blocks, tmp_path)
    entry, path = graph_entry(blocks), tmp_path / FUSED_WEIGHTS
    engine = FusedEngine.load("blocks", path, entry, torch.device("cpu"), **SIZES, compiled=False)
    inputs, outputs = call_of(blocks)
    expected = computed(fused(blocks), inputs, outputs)["logits"]
    torch.testing.assert_close(computed(engine, inputs, outputs)["logits"], expected, atol=0, rtol=0)
    path.write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="weights of the graph 'blocks' cannot be read"):
        FusedEngine.load("blocks", path, entry, torch.device("cpu"), **SIZES, compiled=False)


def test_another_architecture_is_refused() -> None:
    graph = InfinityBlocksGraph(random_transformer(replace(TRANSFORMER, norm_eps=1e-5)))
    with pytest.raises(EngineBuildError, match="epsilon of 1e-06, this model with 1e-05"):
        fused_weights(graph)


def test_only_blocks_that_read_a_text_are_fused(tmp_path: Path) -> None:
    family = choose_family(spec(), write_sources(tmp_path), None)
    assert [name for name in family.graph_names(None) if is_fusible(family.signature(name, "float32"))] == ["blocks"]
    model = find_model("var-d16")
    family = choose_family(model, write_sources(tmp_path), None)
    assert not any(is_fusible(family.signature(name, "float32")) for name in family.graph_names(None))


def test_wrong_inputs_and_closed_engine(blocks: InfinityBlocksGraph) -> None:
    engine, (inputs, outputs) = fused(blocks), call_of(blocks)
    with pytest.raises(InternalError, match=r"'cos' of 'blocks' is float32 \[6, 3\]"):
        engine.run({**inputs, "cos": torch.zeros(6, 3)}, outputs)
    engine.close()
    with pytest.raises(LdpError, match="closed"):
        engine.run(inputs, outputs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_compiling_takes_is_asked_for() -> None:
    with pytest.raises(IncompatibleBundleError, match="no Triton"):
        check_compiler(torch.device("cuda"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """A model in two chunks: fused and compiled here, and as ONNX Runtime runs it."""
    folder = tmp_path_factory.mktemp("fused")
    vae = InfinityVaeConfig(bits=8, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, stride=2)
    transformer = replace(TRANSFORMER, chunks=1)
    sources, model = write_sources(folder, transformer, vae), spec(transformer, vae)
    options = BuildOptions(folder / "fused", builder=TorchBuilder(fused=True), chunk=1)
    return build_shared(plan_build(model, sources, options))[0], build_bundle(sources, folder / "onnx", model)


class TestBundle:
    def test_is_verified(self, pair: tuple[Bundle, Bundle]) -> None:
        bundle, _ = pair
        files = {name: Path(graph.file).name for name, graph in bundle.manifest.graphs.items()}
        assert bundle.state == "verified"
        assert bundle.manifest.has_fused_blocks
        assert files["blocks_0_1"] == files["blocks_1_2"] == FUSED_WEIGHTS
        assert files["prompt_0_1"] == files["decoder"] == "engine.pt2"

    @pytest.mark.parametrize("policy", [None, "ld", "skip:count=2"])
    def test_draws_what_onnx_runtime_draws(self, pair: tuple[Bundle, Bundle], policy: str | None) -> None:
        texts, drawn = random_texts([5, 9]), []
        for bundle in pair:
            with Pipeline.load(bundle, threads=1) as pipe:
                drawn.append(pipe(prompt_embeds=texts, seed=3, policy=policy, output_type="torch"))
        torch.testing.assert_close(drawn[0].images, drawn[1].images, atol=1e-4, rtol=0)
        assert [t.tokens for t in drawn[0].traces] == [t.tokens for t in drawn[1].traces]

    def test_last_scale_has_room_once(self, pair: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
        """Its keys and values are written, where no copy of the past is needed, and nothing is allocated for them."""
        made: list[DynamicKVCache] = []
        init = DynamicKVCache.__init__

        def note(cache: DynamicKVCache, *arguments: Any, **options: Any) -> None:
            init(cache, *arguments, **options)
            made.append(cache)

        monkeypatch.setattr(DynamicKVCache, "__init__", note)
        monkeypatch.setattr(torch.Tensor, "new_empty", _refuse_past(torch.Tensor.new_empty))
        with Pipeline.load(pair[0], threads=1) as pipe:
            made.clear()
            pipe(prompt_embeds=random_texts([4]), seed=0, output_type="latent")
            longest = max(schedule.tokens[-1] for schedule in pipe.manifest.schedules())
        assert [cache.spare for cache in made if cache.rows == 2] == [0, longest]  # arena, and slot of any picture

    def test_memory_is_predicted_with_it(self, pair: tuple[Bundle, Bundle]) -> None:
        with_room, without = (estimate_memory(bundle.manifest, 1) for bundle in pair)
        assert with_room.kv_cache > without.kv_cache

    def test_no_graphs_on_a_cpu(self, pair: tuple[Bundle, Bundle]) -> None:
        with Pipeline.load(pair[0], threads=1) as pipe:
            assert pipe.cuda_graphs is None
            assert isinstance(engines_of(pipe).blocks._chunks[0].engine, FusedEngine)

    def test_needs_no_exporter(self, pair: tuple[Bundle, Bundle]) -> None:
        check_draws_without_exporter(pair[0])

    def test_without_a_compiler(self, pair: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(IncompatibleBundleError, match=r"no C\+\+ compiler"):
            Pipeline.load(pair[0])


def _refuse_past(new_empty: Any) -> Any:
    """`new_empty` but for tensors of keys or values [positions, rows, heads, head_dim]."""

    def checked(tensor: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        found = cast(torch.Tensor, new_empty(tensor, *size, **options))
        assert found.shape[2:] != (TRANSFORMER.heads, TRANSFORMER.head_dim), "the past is copied"
        return found

    return checked
