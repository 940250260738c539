"""What 8-bit numbers in the blocks' matrix products cost, on the trained embedded model, emulated on a CPU.

    python -m benchmarks.study.quantized_scales               # four minutes; benchmarks/results/late-precision-cpu.json

Of the fused engine: bfloat16, and 8-bit integers or floats from a scale on, with a step for each row of both sides.
Teacher-forced: the share of bits that flip when the blocks are given the unrounded run's picture so far and the same
noise. Drawn freely: PSNR against the unrounded pictures of the same seeds. Rounding to bfloat16 alone stands beside.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, get_args

import numpy as np
import torch
from ldp_calibration.fidelity import psnr_db
from ldp_runtime.bundle.manifest import QuantizedPrecision, QuantizedScales
from ldp_runtime.guidance import guide
from ldp_runtime.pipeline.batch import ImageState
from ldp_runtime.sampling import sample_bits
from ldp_runtime.tokenizer import PromptTokenizer
from rich.progress import track

from benchmarks.gpu.draw import Toolkit
from benchmarks.gpu.models import Model
from benchmarks.paths import PROMPTS, RESULTS, result_file
from ldp_export.bench.hardware import hardware, software
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityPromptGraph
from ldp_export.hub.resolve import find_sources
from ldp_export.models.registry import DEFAULT_MODEL, InfinitySpec, find_model

#: Of the tokens, counted from the last scale: two of seven scales, then three, then all.
SHARES = (0.75, 0.85, 0.999)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=result_file, default=RESULTS / "late-precision-cpu.json")
    options = parser.parse_args(arguments)
    prompts = PROMPTS.read_text().splitlines()[: options.prompts]
    machine = {"hardware": hardware(), "software": software()}
    result = {
        "machine": machine,
        "prompts": len(prompts),
        "seeds": options.seeds,
        "rows": measure(prompts, options.seeds),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


@torch.no_grad()
def measure(prompts: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Of each way to round: shares of flipped bits, and PSNR in dB."""
    exact, half = (Toolkit(trained(kind), compiled=False, graphs=False) for kind in ("float32", "bfloat16"))
    pairs = [
        QuantizedScales(precision=precision, share=share)
        for precision in get_args(QuantizedPrecision)
        for share in SHARES
    ]
    ways = {None: half} | {
        quantized: Toolkit(half.model, compiled=False, graphs=False, quantized=quantized) for quantized in pairs
    }
    flips: dict[QuantizedScales | None, list[float]] = {quantized: [] for quantized in ways}
    fidelity: dict[QuantizedScales | None, list[float]] = {quantized: [] for quantized in ways}
    for features in track(features_of(exact.model.spec, prompts), "drawing"):
        for toolkit in (exact, *ways.values()):
            toolkit.model = replace(toolkit.model, features=features)
        for seed in range(seeds):
            picture, bits = draw(exact, seed)
            for quantized, toolkit in ways.items():
                _, theirs = draw(toolkit, seed, forced=bits)
                flips[quantized].append(float((torch.cat(theirs) != torch.cat(bits)).float().mean()))
                free, _ = draw(toolkit, seed)
                fidelity[quantized].append(psnr_db(decoded(exact, free), decoded(exact, picture)))
    schedule = exact.model.schedule
    return [
        {
            "precision": "bfloat16" if quantized is None else quantized.precision,
            "share": 1.0 if quantized is None else quantized.share,
            "scales": len(schedule) if quantized is None else len(schedule.detail_scales(quantized.share)),
            "flipped": mean(flips[quantized]),
            "psnr_db": mean(fidelity[quantized]),
            "worst_psnr_db": min(fidelity[quantized]),
        }
        for quantized in ways
    ]


def draw(
    toolkit: Toolkit, seed: int, forced: list[torch.Tensor] | None = None
) -> tuple[ImageState, list[torch.Tensor]]:
    """An image, its scales taken from `forced` bits where given, and the bits that the blocks would draw."""
    images = toolkit.images(1, seed, forced=forced)
    noise = toolkit.codec.noise(seed, toolkit.model.schedule)
    spec, bits = toolkit.model.spec, []

    def note(scale: int, logits: torch.Tensor) -> None:
        scores = guide(*toolkit.codec.scores(logits), spec.guidance) / spec.temperature
        bits.append(sample_bits(scores, noise[scale], toolkit.rule))

    (image,) = toolkit.run(images, on_logits=note)
    return image, bits


def trained(precision: Any) -> Model:
    """The embedded model."""
    spec = find_model(DEFAULT_MODEL)
    assert isinstance(spec, InfinitySpec)
    sources = find_sources(spec)
    transformer, vae = load_infinity(sources.transformer).eval(), load_infinity_vae(sources.vae).eval()
    for graph in (InfinityBlocksGraph, InfinityPromptGraph):
        convert_weights(graph(transformer, precision=precision))
    return Model(spec, transformer, vae, torch.device("cpu"), torch.empty(0), precision)


def features_of(spec: InfinitySpec, prompts: Sequence[str]) -> list[torch.Tensor]:
    """Text features [T, text_channels] of each prompt."""
    sources = find_sources(spec)
    assert sources.text_encoder is not None
    encoder = load_text_encoder(sources.text_encoder)
    tokenizer = PromptTokenizer(encoder.tokenizer, spec.transformer.text_tokens)
    ids = [tokenizer(prompt)[None] for prompt in prompts]
    return [encoder.module(input_ids=i, attention_mask=torch.ones_like(i)).last_hidden_state[0] for i in ids]


def decoded(toolkit: Toolkit, image: ImageState) -> np.ndarray:
    """Pixels in [0, 1]."""
    return (toolkit.decode(toolkit.model.vae, image.latent[None]) / 2 + 0.5).numpy()


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
