"""Converter from the `blocks` graph of an Infinity model to weights of fused blocks, which the runtime compiles."""

from __future__ import annotations

from pathlib import Path

import torch
from ldp_runtime.bundle.manifest import FUSED_WEIGHTS, QuantizedPrecision
from ldp_runtime.engines.torch_compiled.fused.pieces import EPS, BlockWeights
from ldp_runtime.engines.torch_compiled.fused.products import KINDS, Matrix
from ldp_runtime.engines.torch_compiled.fused.weights import FusedWeights, in_8_bits, named_tensors
from ldp_runtime.errors import EngineBuildError
from torch import nn

from ldp_export.checkpoints.files.writer import TensorSource, write_tensors
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.signature import GraphSignature
from ldp_export.models.infinity import InfinityBlock
from ldp_export.models.layers import Linear


def is_fusible(signature: GraphSignature) -> bool:
    """True if a graph is blocks of Infinity: the fused pieces share one modulation and attend to a text."""
    names = signature.input_names
    return "modulation" in names and "text_mask" in names


def fused_weights(graph: InfinityBlocksGraph) -> FusedWeights:
    """Weights of the graph, in its own element types; matrices are not copied.

    Raises:
        EngineBuildError: the fused pieces do not compute this architecture.
    """
    if graph.eps != EPS:
        raise EngineBuildError(
            f"the fused blocks normalise with an epsilon of {EPS}, this model with {graph.eps}",
            hint="build with --backend onnxruntime",
        )
    return FusedWeights(
        [block_weights(block) for block in graph.layers],
        graph.word_embed.weight.detach() if graph.first == 0 else None,
        matrix(graph.head) if graph.last_is_head else None,
    )


def block_weights(block: InfinityBlock) -> BlockWeights:
    """Weights of one transformer block; values that do not depend on the call are joined or converted once, here."""
    sa, ca, ffn = block.sa, block.ca, block.ffn
    bias = torch.cat((sa.q_bias, torch.zeros_like(sa.q_bias), sa.v_bias))
    return BlockWeights(
        modulation=block.ada_gss[0].detach().float(),
        qkv=Matrix(sa.mat_qkv.weight.detach(), bias.detach(), bias.new_empty(0)),
        temperature=sa.scale_mul_1H11.detach().float().clamp(max=sa.MAX_LOG_SCALE).exp().view(-1, 1),
        out=matrix(sa.proj),
        norm=block.ca_norm.weight.detach().float(),
        norm_bias=block.ca_norm.bias.detach().float(),
        query=matrix(ca.mat_q),
        text_out=matrix(ca.proj),
        up=matrix(ffn.fc1),
        down=matrix(ffn.fc2),
    )


def matrix(layer: Linear | nn.Linear) -> Matrix:
    return Matrix(layer.weight.detach(), layer.bias.detach(), layer.bias.detach().new_empty(0))


def write_fused(graph: InfinityBlocksGraph, folder: Path, bits: QuantizedPrecision | None = None) -> None:
    """Writes the engine's file into `folder`, with the blocks' matrices in the 8-bit format `bits` unless it is None.

    Raises:
        EngineBuildError: as `fused_weights`.
    """
    weights = fused_weights(graph)
    if bits is not None:
        weights = in_8_bits(weights, KINDS[bits])
    sources = [TensorSource.of(name, tensor) for name, tensor in named_tensors(weights)]
    write_tensors(sources, folder / FUSED_WEIGHTS)
