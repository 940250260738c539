"""Recipes: graphs from shapes and mapped files are the reference model's; chunks together are the whole; estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.graph_inputs import random_inputs
from helpers.samples import TRANSFORMER, random_transformer, spec, write_sources
from helpers.var_samples import VarGolden
from ldp_runtime.bundle.manifest import GraphEntry, Precision
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.prompt import chained

from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.checkpoints.files.tensors import save_state
from ldp_export.checkpoints.infinity import load_infinity_vae, map_infinity, original_infinity_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Family, loaded_graph
from ldp_export.families.choose import choose_family
from ldp_export.families.infinity import InfinityFamily
from ldp_export.graphs.infinity import InfinityPromptGraph
from ldp_export.graphs.signature import Axis, GraphSignature, tensor_entries
from ldp_export.hub.resolve import resolve_model
from ldp_export.models.registry import MODELS
from ldp_export.reference.streamed import streamed_weights
from ldp_export.verification.recording.infinity import forced_infinity_logits, record_first_scales
from ldp_export.verification.recording.sizes import scales_to_record

SIZES = {Axis.ROWS: 2, Axis.TOKENS: 3, Axis.PAST: 2, Axis.TEXT: 5, Axis.IMAGES: 1, Axis.HEIGHT: 4, Axis.WIDTH: 4}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("sources"))


def var_family() -> Family:
    sources = VarGolden().sources
    return choose_family(*resolve_model(None, sources.transformer, sources.vae, None))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_weight_of_every_graph_is_filled(sources: Sources, precision: Precision) -> None:
    """A skeleton takes the mapped weights strictly, and then runs with the shapes and types of its signature."""
    for family in (choose_family(spec(), sources), var_family()):
        for name in family.graph_names(1):
            graph = loaded_graph(family, name, precision)
            assert graph.signature == family.signature(name, precision)
            inputs = random_inputs(graph.signature, SIZES)
            given = [inputs[s.name].to(s.torch_dtype) for s in graph.signature.inputs]
            outputs = graph(*given)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            assert [o.dtype for o in outputs] == [s.torch_dtype for s in graph.signature.outputs], name
            assert all(o.isfinite().all() for o in outputs)


def entry_of(signature: GraphSignature, first: int, last: int) -> GraphEntry:
    tensors = tensor_entries(signature.inputs), tensor_entries(signature.outputs)
    return GraphEntry(kind="prompt", file="", inputs=tensors[0], outputs=tensors[1], first=first, last=last)


def test_chunks_of_the_prompt_are_the_prompt() -> None:
    model = random_transformer()

    def engine(graph: InfinityPromptGraph) -> Engine:
        return EagerEngine("prompt", graph, graph.signature.input_names, graph.signature.output_names)

    whole = InfinityPromptGraph(model)
    parts = [InfinityPromptGraph(model, i, i + 1) for i in range(TRANSFORMER.depth)]
    chain = chained([(entry_of(part.signature, part.first, part.last), engine(part)) for part in parts])
    inputs = random_inputs(whole.signature, SIZES)
    results = []
    for each in (engine(whole), chain):
        outputs = {s.name: torch.empty(s.at(SIZES)) for s in whole.signature.outputs}
        each.run(inputs, outputs)
        results.append(outputs)
    for name, expected in results[0].items():
        assert torch.equal(results[1][name], expected), name


def test_half_precision_files_run_in_float32_block_by_block(sources: Sources, tmp_path: Path) -> None:
    """First scales of a mapped bfloat16 checkpoint equal those of the same weights in float32, held in memory."""
    half = {k: v.bfloat16() for k, v in original_infinity_state(random_transformer()).items()}
    save_state(half, tmp_path / "half.safetensors")
    save_state(half, tmp_path / "full.safetensors", torch.float32)
    family, vae = InfinityFamily(spec(), sources, None), load_infinity_vae(sources.vae)
    recorded = []
    for name in ("half", "full"):
        mapped = map_infinity(tmp_path / f"{name}.safetensors", TRANSFORMER)
        cases = record_first_scales(mapped, vae, None, family.entry, family.spec.defaults, 3)
        assert {p.dtype for p in mapped.parameters()} == {torch.bfloat16 if name == "half" else torch.float32}
        recorded.append(cases)
    (case,) = recorded[0].cases
    for name, tensor in recorded[0].tensors.items():
        assert torch.equal(tensor, recorded[1].tensors[name]), name
    assert len(case.of(MODELS["infinity-2b"].schedules[0])) == 3
    with streamed_weights(mapped, "bfloat16"):
        rounded = forced_infinity_logits(mapped, recorded[1], case, family.entry)
    errors = [(a - recorded[1].tensors[f"{case.name}.logits_{k}"]).abs().max() for k, a in enumerate(rounded)]
    assert 0 < max(errors) < 0.2


def test_large_models_record_their_first_scales(sources: Sources) -> None:
    def scales(name: str) -> int | None:
        model = replace(MODELS[name])
        entry = InfinityFamily(model, sources, None).entry  # pyright: ignore[reportArgumentType]
        return scales_to_record(entry, model.parameters)

    assert scales("infinity-shapes") is None
    assert scales("infinity-125m") is None
    assert scales("infinity-8b") == 5
    assert scales("infinity-2b") == 6
