"""Small random models, text encoders and bundles in the original file layouts, for tests that need no goldens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from ldp_runtime.bundle.files import Bundle
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from helpers.shared import build_shared
from ldp_export.building.build import BuildOptions, BuildPlan, plan_build
from ldp_export.checkpoints.files.tensors import save_state
from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.registry import InfinitySpec
from ldp_export.models.sizes import InfinityConfig, InfinityVaeConfig

TRANSFORMER = InfinityConfig(
    depth=2, width=64, heads=4, ffn=256, bits=8, text_channels=32, text_tokens=16, pool_heads=2, chunks=2
)
VAE = InfinityVaeConfig(bits=8, base_channels=32, channel_multipliers=(1, 1, 1), res_blocks=1, stride=4)
WORDS = ["a", "the", "red", "green", "blue", "circle", "square", "star", "small", "large", "on", "left", "of"]


@torch.no_grad()
def random_transformer(config: InfinityConfig = TRANSFORMER, seed: int = 0) -> InfinityTransformer:
    """Every parameter non-trivial, logits of a standard deviation around 2."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = InfinityTransformer(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.head.weight.mul_(3)
        model.word_embed.weight.mul_(3)
    return model.eval().requires_grad_(False)


def random_inputs(graph: InfinityBlocksGraph) -> dict[str, torch.Tensor]:
    """A call of two rows; all of the text is read."""
    generator, found = torch.Generator().manual_seed(0), {}
    for entry, example in zip(graph.signature.inputs, graph.signature.examples(), strict=True):
        is_mask = entry.dtype == "bool"
        found[entry.name] = torch.ones_like(example) if is_mask else torch.randn(example.shape, generator=generator)
    return found


@torch.no_grad()
def random_vae(config: InfinityVaeConfig = VAE, seed: int = 0) -> InfinityVae:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return InfinityVae(config).eval().requires_grad_(False)


def write_sources(
    folder: Path,
    transformer: InfinityConfig = TRANSFORMER,
    vae: InfinityVaeConfig = VAE,
    text_encoder: bool = False,
    seed: int = 0,
) -> Sources:
    """Random checkpoints in the original key layout."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(original_infinity_state(random_transformer(transformer, seed)), folder / "transformer.safetensors")
    save_state(original_infinity_vae_state(random_vae(vae, seed)), folder / "vae.safetensors")
    encoder = write_text_encoder(folder / "text_encoder", transformer.text_channels) if text_encoder else None
    return Sources(folder / "transformer.safetensors", folder / "vae.safetensors", encoder)


def write_text_encoder(folder: Path, channels: int) -> Path:
    """A one-layer T5 encoder and a word tokenizer with T5's special tokens."""
    from transformers import T5Config, T5EncoderModel

    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    config = T5Config(
        d_model=channels, d_kv=8, d_ff=64, num_layers=1, num_heads=2, vocab_size=len(vocabulary), is_gated_act=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5EncoderModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def spec(
    transformer: InfinityConfig = TRANSFORMER,
    vae: InfinityVaeConfig = VAE,
    size: str = "0.06M",
    guidance: float = 3.0,
    temperature: float = 0.5,
) -> InfinitySpec:
    patch = 2 if transformer.bits == 4 * vae.bits else 1
    return InfinitySpec(
        "sample", "a random model", transformer, vae, patch, size, guidance, temperature, top_k=900, top_p=0.97
    )


def plan(sources: Sources, output: Path, model: InfinitySpec | None = None, chunk: int | None = None) -> BuildPlan:
    return plan_build(model or spec(), sources, BuildOptions(output, chunk=chunk))


def build_bundle(sources: Sources, output: Path, model: InfinitySpec | None = None, chunk: int | None = None) -> Bundle:
    """A verified bundle (graphs exported, everything checked)."""
    return build_shared(plan(sources, output, model, chunk))[0]


def random_texts(
    lengths: Sequence[int], channels: int = TRANSFORMER.text_channels, seed: int = 0
) -> list[torch.Tensor]:
    """Text features [T, channels] of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, channels, generator=generator) for length in lengths]
