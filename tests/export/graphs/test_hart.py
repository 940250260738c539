"""HART's graphs in reduced precision: casts alone tell them from their float32 twins, and the residual's has none."""

from __future__ import annotations

import pytest
from helpers.hart_samples import HartGolden

from ldp_export.checkpoints.infer import infer_spec
from ldp_export.families.choose import choose_family
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.onnx import differences, onnx_model
from ldp_export.models.hart import FLOAT32_ISLANDS


def graph(name: str, precision: str) -> Graph:
    golden = HartGolden()
    return choose_family(infer_spec(golden.sources), golden.sources).graph(name, precision)  # pyright: ignore


@pytest.mark.parametrize("name", ["prompt_0_3", "prompt_3_4", "blocks_3_4", "residual"])
def test_only_casts_differ(name: str) -> None:
    assert differences(onnx_model(graph(name, "bfloat16")), onnx_model(graph(name, "float32"))) == []


def test_what_stays_float32() -> None:
    """Norms, the head, the levels, and the whole residual."""
    assert all("float32" in str(kind) for kind in graph("residual", "float16").weight_types().values())
    for name in ("head.weight", "blocks.3.ln_wo_grad.weight", "head_nm.ada_lin.1.bias", "lvl_embed.mlp.0.weight"):
        assert FLOAT32_ISLANDS.match(name)
    for name in ("blocks.3.attn.proj.weight", "word_embed.weight", "context_embed.weight"):
        assert not FLOAT32_ISLANDS.match(name)
    kept = [name for name, kind in graph("blocks", "float16").weight_types().items() if "float32" in str(kind)]
    assert {"head.weight", "head_norm.weight", "blocks.0.ln_wo_grad.weight"} <= set(kept)


def test_chunks_pass_their_rows_on() -> None:
    first, second = graph("prompt_0_3", "float32").signature, graph("prompt_3_4", "float32").signature
    assert [name for name in first.output_names if name in second.input_names] == ["text_hidden_3"]
