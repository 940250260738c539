"""HART's graphs, built by TensorRT-RTX without a GPU: text encoder, prompt, blocks, residual and decoder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.hart_samples import HartGolden, known_instruction, write_qwen2
from ldp_runtime.bundle.files import Bundle

from ldp_export.builders.tensorrt.builder import ENGINE_FILE, LAYERS_FILE
from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.families.choose import choose_family

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

#: GeForce RTX 30, 40 and 50.
TARGETS = "8.6,8.9,12.0"


def built(folder: Path) -> Bundle:
    golden = HartGolden()
    encoder = write_qwen2(folder / "encoder", width=golden.transformer.config.text_channels)
    sources = golden.sources.with_text((encoder,))
    spec = infer_spec(sources)
    chosen = choose_builder(BackendOptions("tensorrt-rtx", capabilities=TARGETS), spec, spec.size, "bfloat16")
    plan = plan_build(spec, sources, BuildOptions(folder / "bundle", builder=chosen, precision="bfloat16"))
    return build(plan)[0]


@no_gpu
@pytest.mark.slow
def test_whole_bundle(tmp_path: Path) -> None:
    """Every attention is a layer of its own, on three kinds of card; the residual attends to nothing, in float32."""
    with known_instruction():
        bundle = built(tmp_path)
    depth = bundle.manifest.model.depth
    layers = {
        name: Counter(json.loads((bundle.folder / name / LAYERS_FILE).read_text())) for name in bundle.manifest.graphs
    }
    assert bundle.state == "unverified"
    assert set(layers) == {"text_encoder", "prompt", "blocks", "residual", "decoder"}
    assert layers["blocks"]["ATTENTION_INPUT"] == depth
    assert layers["prompt"]["ATTENTION_INPUT"] == depth - 1  # of the last block only keys and values are needed
    assert layers["text_encoder"]["ATTENTION_INPUT"] == 2
    assert layers["residual"]["ATTENTION_INPUT"] == 0
    assert layers["residual"]["MATRIX_MULTIPLY"] > 0
    assert layers["decoder"]["CONVOLUTION"] > 0
    residual = (bundle.folder / "residual" / ENGINE_FILE).stat().st_size
    family = choose_family(infer_spec(HartGolden().sources), HartGolden().sources)
    assert residual > family.graph_bytes("residual", "float32")
