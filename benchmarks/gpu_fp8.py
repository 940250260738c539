"""What 8-bit floats in the blocks' matrix products cost, on the trained embedded model, emulated on a CPU.

    python benchmarks/gpu_fp8.py                      # a minute; benchmarks/results/gpu-fp8.json

Teacher-forced: the share of bits that flip when the blocks are given the unrounded run's picture so far and the same
noise. Drawn freely: PSNR against the unrounded pictures of the same seeds. Rounding to bfloat16 alone stands beside.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from gpu_draw import Toolkit
from gpu_models import Model
from ldp_calibration.fidelity import psnr_db
from ldp_runtime.guidance import guide
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import sample_bits
from ldp_runtime.scale_loop import ImageState
from ldp_runtime.text import PromptTokenizer

from ldp_export.graphs.blocks import BlocksGraph
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.prompt import PromptGraph
from ldp_export.models.checkpoints import load_transformer, load_vae
from ldp_export.models.registry import DEFAULT_MODEL, ModelSpec, find_model
from ldp_export.models.sources import find_sources
from ldp_export.models.text_encoder import load_text_encoder

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu-fp8.json")
    options = parser.parse_args(arguments)
    prompts = (HERE / "prompts.txt").read_text().splitlines()[: options.prompts]
    result = {"prompts": len(prompts), "seeds": options.seeds, **measure(prompts, options.seeds)}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


@torch.no_grad()
def measure(prompts: Sequence[str], seeds: int) -> dict[str, float]:
    """Shares of flipped bits, and mean PSNR in dB."""
    exact = Toolkit(trained("float32"), compiled=False, graphs=False)
    half = Toolkit(trained("bfloat16"), compiled=False, graphs=False)
    rounded = Toolkit(half.model, compiled=False, graphs=False, fp8=True)
    flips: dict[str, list[float]] = {"flipped": [], "flipped_bfloat16": []}
    fidelity: dict[str, list[float]] = {"psnr_db": [], "psnr_bfloat16_db": []}
    for features in features_of(exact.model.spec, prompts):
        for seed in range(seeds):
            for toolkit in (exact, half, rounded):
                toolkit.model = replace(toolkit.model, features=features)
            picture, bits = draw(exact, seed)
            for toolkit, share, psnr in zip((rounded, half), flips.values(), fidelity.values(), strict=True):
                _, theirs = draw(toolkit, seed, forced=bits)
                share.append(float((torch.cat(theirs) != torch.cat(bits)).float().mean()))
                free, _ = draw(toolkit, seed)
                psnr.append(psnr_db(decoded(exact, free), decoded(exact, picture)))
    return {name: mean(values) for name, values in {**flips, **fidelity}.items()}


def draw(
    toolkit: Toolkit, seed: int, forced: list[torch.Tensor] | None = None
) -> tuple[ImageState, list[torch.Tensor]]:
    """An image, its scales taken from `forced` bits where given, and the bits that the blocks would draw."""
    (image,) = toolkit.images(1, seed)
    image.forced_tokens = forced
    spec, bits = toolkit.model.spec, []

    def note(scale: int, logits: torch.Tensor) -> None:
        scores = guide(*toolkit.space.scores(logits), spec.guidance) / spec.temperature
        bits.append(sample_bits(scores, image.noise[scale], toolkit.rule))

    toolkit.run([image], Policy(), on_logits=note)
    return image, bits


def trained(precision: Any) -> Model:
    """The embedded model."""
    spec = find_model(DEFAULT_MODEL)
    assert isinstance(spec, ModelSpec)
    sources = find_sources(spec)
    transformer, vae = load_transformer(sources.transformer).eval(), load_vae(sources.vae).eval()
    for graph in (BlocksGraph, PromptGraph):
        convert_weights(graph(transformer, precision=precision))
    return Model(spec, transformer, vae, torch.device("cpu"), torch.empty(0), precision)


def features_of(spec: ModelSpec, prompts: Sequence[str]) -> list[torch.Tensor]:
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
