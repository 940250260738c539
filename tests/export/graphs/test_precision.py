"""Precision lies in the graph: which weights stay float32, and a reduced graph is its float32 twin but for casts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from helpers.graph_inputs import random_inputs
from helpers.samples import TRANSFORMER, VAE, random_transformer, random_vae, write_text_encoder
from helpers.var_samples import VAR_MODELS
from ldp_runtime.errors import CheckpointError, ExportError
from safetensors.torch import load_file

from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.graphs.graph import Graph, Precision, convert_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityDecoderGraph, InfinityPromptGraph
from ldp_export.graphs.onnx import check_twin, export_graph, onnx_model
from ldp_export.graphs.signature import Axis
from ldp_export.graphs.t5 import T5EncoderGraph
from ldp_export.graphs.var import VarBlocksGraph, VarDecoderGraph, VarPromptGraph
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae

Make = Callable[[Precision], Graph]
HELD = VAR_MODELS["one AdaLN for all blocks"]
SIZES = {
    Axis.ROWS: 2,
    Axis.TOKENS: 9,
    Axis.PAST: 5,
    Axis.TEXT: 6,
    Axis.IMAGES: 1,
    Axis.HEIGHT: 8,
    Axis.WIDTH: 8,
}


def skeletons(text_encoder: Path) -> dict[str, Make]:
    """Graphs whose weights lie on the meta device: shapes without values."""
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(TRANSFORMER), InfinityVae(VAE)
        classes, vq_vae = VarTransformer(HELD.transformer), VarVae(HELD.vae)
    encoder = load_text_encoder(text_encoder).module.to("meta")
    return {
        "blocks_0_1": lambda precision: InfinityBlocksGraph(transformer, 0, 1, precision),
        "blocks_1_2": lambda precision: InfinityBlocksGraph(transformer, 1, 2, precision),
        "prompt_0_1": lambda precision: InfinityPromptGraph(transformer, 0, 1, precision),
        "decoder": lambda precision: InfinityDecoderGraph(vae, precision),
        "text_encoder": lambda precision: T5EncoderGraph(encoder, precision),
        "class_blocks_0_1": lambda precision: VarBlocksGraph(classes, 0, 1, precision),
        "class_blocks_2_3": lambda precision: VarBlocksGraph(classes, 2, 3, precision),
        "class_prompt": lambda precision: VarPromptGraph(classes, precision),
        "vq_decoder": lambda precision: VarDecoderGraph(vq_vae, precision),
    }


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("t5"), TRANSFORMER.text_channels)


CLASS_GRAPHS = ["class_blocks_0_1", "class_blocks_2_3", "class_prompt", "vq_decoder"]


@pytest.mark.parametrize("name", ["blocks_0_1", "blocks_1_2", "prompt_0_1", "decoder", "text_encoder", *CLASS_GRAPHS])
def test_a_reduced_graph_is_its_float32_twin_but_for_casts(name: str, text_encoder: Path) -> None:
    """From shapes alone."""
    make = skeletons(text_encoder)[name]
    check_twin(reduced := make("bfloat16"), onnx_model(reduced), make("float32"))


def test_another_graph_is_no_twin(text_encoder: Path) -> None:
    graphs = skeletons(text_encoder)
    with pytest.raises(ExportError, match=r"'prompt_0_1' in bfloat16 is not its float32 twin .*node \d+ is"):
        check_twin(reduced := graphs["prompt_0_1"]("bfloat16"), onnx_model(reduced), graphs["decoder"]("float32"))


def test_islands(text_encoder: Path) -> None:
    """What the original keeps in float32 stays so; in float16, what a T5 adds to its residual stream too."""
    graphs = skeletons(text_encoder)

    def float32(name: str, precision: Precision) -> set[str]:
        graph = graphs[name](precision)
        kept = (key for key, dtype in graph.weight_types().items() if dtype == torch.float32 and graph.uses(key))
        return {key.removeprefix("model.") for key in kept}

    assert float32("blocks_1_2", "bfloat16") == {"head.weight", "head.bias"}
    assert float32("prompt_0_1", "float16") == {
        "text_norm.weight",
        "pos_start",
        "lvl_embed.weight",
        "shared_ada_lin.1.weight",
        "shared_ada_lin.1.bias",
        "head_nm.ada_lin.1.weight",
        "head_nm.ada_lin.1.bias",
    }
    assert {key for key in float32("decoder", "bfloat16") if "norm" not in key} == set()
    assert "decoder.norm_out.weight" in float32("decoder", "bfloat16")
    wo = "encoder.encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert wo not in float32("text_encoder", "bfloat16")
    assert wo in float32("text_encoder", "float16")
    assert float32("class_blocks_2_3", "bfloat16") == {"head.weight", "head.bias", "blocks.0.attn.scale_mul_1H11"}
    assert float32("class_prompt", "float16") == {
        "class_emb.weight",
        "pos_start",
        "lvl_embed.weight",
        *(f"blocks.{i}.ada_gss" for i in range(HELD.transformer.depth)),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 blocks graph, traced from shapes, with the weights of a model."""
    folder = tmp_path_factory.mktemp("exported")
    with torch.device("meta"):
        skeleton = InfinityTransformer(TRANSFORMER)
    weights = InfinityBlocksGraph(random_transformer()).state_dict()
    export_graph(InfinityBlocksGraph(skeleton, precision="bfloat16"), folder, weights)
    return folder


def test_weights_are_stored_in_the_precision_and_transposed(exported: Path) -> None:
    stored, weights = (
        load_file(exported / "weights.safetensors"),
        InfinityBlocksGraph(random_transformer()).state_dict(),
    )
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    shapes = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    for name in ("blocks.0.ffn.fc1.weight", "blocks.1.sa.mat_qkv.weight"):
        assert torch.equal(stored[name], weights[name].bfloat16().t())
        assert shapes[name] == tuple(stored[name].shape)
    assert stored["head.weight"].dtype == torch.float32
    large = [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in shapes]
    assert not large


def test_keys_and_values_have_the_precision(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx", load_external_data=False)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    reduced = {name for name, kind in types.items() if kind == onnx.TensorProto.BFLOAT16}
    assert reduced == {f"{what}_{k}_{i}" for what in ("text", "past", "new") for k in "kv" for i in range(2)}
    assert types["logits"] == types["latents"] == types["offset"] == onnx.TensorProto.FLOAT


#: Graphs of class-conditional models with their weights.
CLASS_MAKERS: dict[str, Make] = {
    "class_blocks": lambda precision: VarBlocksGraph(VarTransformer(HELD.transformer), precision=precision),
    "class_prompt": lambda precision: VarPromptGraph(VarTransformer(HELD.transformer), precision),
    "vq_decoder": lambda precision: VarDecoderGraph(VarVae(HELD.vae), precision),
}


@pytest.mark.parametrize(("precision", "limit"), [("bfloat16", 0.03), ("float16", 0.003)])
@pytest.mark.parametrize("name", ["blocks", "prompt", "decoder", "class_blocks", "class_prompt", "vq_decoder"])
def test_reduced_graphs_err_by_rounding_only(name: str, precision: Precision, limit: float) -> None:
    """Run by PyTorch in the precision, against float32: relative to the output's size, a few units of rounding."""

    def make(precision: Precision) -> Graph:
        if name == "decoder":
            return InfinityDecoderGraph(random_vae(), precision)
        if name in CLASS_MAKERS:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return CLASS_MAKERS[name](precision)
        model = random_transformer()
        return (
            InfinityBlocksGraph(model, precision=precision)
            if name == "blocks"
            else InfinityPromptGraph(model, precision=precision)
        )

    exact, reduced = make("float32"), make(precision)
    convert_weights(reduced)
    inputs = random_inputs(exact.signature, SIZES)
    if "labels" in inputs:
        inputs["labels"] = torch.tensor([0, HELD.transformer.classes])
    with torch.no_grad():
        expected = exact(*inputs.values())
        given = [inputs[spec.name].to(spec.torch_dtype) for spec in reduced.signature.inputs]
        got = reduced(*given)
    pairs = zip(expected, got, strict=True) if isinstance(expected, tuple) else [(expected, got)]
    errors = [float((a - b.float()).square().mean().sqrt() / a.square().mean().sqrt()) for a, b in pairs]
    assert 0 < max(errors) < limit
    exact_outputs = errors.count(0.0)
    assert exact_outputs == (name == "class_prompt")  # the start token, which the original keeps in float32


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    graph = InfinityBlocksGraph(random_transformer(), precision="float16")
    graph.blocks[0].ffn.fc1.bias[3] = 7e4  # pyright: ignore
    with pytest.raises(CheckpointError, match=r"fc1.bias holds values up to 7e\+04, which float16 cannot hold"):
        export_graph(graph, tmp_path)
    assert not list(tmp_path.iterdir())
