"""A synthetic T5 checkpoint in the layout of the released flan-t5-xl: config, shards with an index, tokenizer.

Its random weights have the true sizes, to test the text encoder when no real checkpoint is available; see `synthetic`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from ldp_runtime.errors import ConfigError
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ldp_export.checkpoints.files.parts import CONFIG_FILE, TOKENIZER_FILE
from ldp_export.checkpoints.synthetic import SHARD_BYTES, write_shards
from ldp_export.models.t5 import T5Sizes

_ENCODER_NORMS, _DECODER_NORMS = 2, 3


def write_t5(sizes: T5Sizes, folder: Path, seed: int = 0, decoder: bool = True, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes the checkpoint: with its decoder as released, or the encoder alone.

    Raises:
        ConfigError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", hint="name a new folder")
    state = {name: torch.empty(shape, device="meta") for name, shape in _shapes(sizes, decoder)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_shards(state, folder, seed, shard_bytes)
    (folder / CONFIG_FILE).write_text(json.dumps(_config(sizes), indent=1))
    _tokenizer().save(str(folder / TOKENIZER_FILE))
    return folder


def _shapes(sizes: T5Sizes, decoder: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "shared.weight", (sizes.vocabulary, sizes.width)
    for stack in ("encoder", "decoder") if decoder else ("encoder",):
        for layer in range(sizes.layers):
            yield from _layer_shapes(sizes, f"{stack}.block.{layer}.layer", stack == "decoder", layer == 0)
        yield f"{stack}.final_layer_norm.weight", (sizes.width,)
    if decoder:
        yield "lm_head.weight", (sizes.vocabulary, sizes.width)


def _layer_shapes(sizes: T5Sizes, at: str, decoder: bool, first: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner, last = sizes.heads * sizes.head_dim, (_DECODER_NORMS if decoder else _ENCODER_NORMS) - 1
    for index, kind in enumerate(("SelfAttention", "EncDecAttention")[:last]):
        for name in "qkv":
            yield f"{at}.{index}.{kind}.{name}.weight", (inner, sizes.width)
        yield f"{at}.{index}.{kind}.o.weight", (sizes.width, inner)
        if first and index == 0:
            yield f"{at}.{index}.{kind}.relative_attention_bias.weight", (sizes.buckets, sizes.heads)
        yield f"{at}.{index}.layer_norm.weight", (sizes.width,)
    for name in ("wi_0", "wi_1"):
        yield f"{at}.{last}.DenseReluDense.{name}.weight", (sizes.ffn, sizes.width)
    yield f"{at}.{last}.DenseReluDense.wo.weight", (sizes.width, sizes.ffn)
    yield f"{at}.{last}.layer_norm.weight", (sizes.width,)


def _config(sizes: T5Sizes) -> dict[str, object]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": sizes.width,
        "d_kv": sizes.head_dim,
        "d_ff": sizes.ffn,
        "num_layers": sizes.layers,
        "num_decoder_layers": sizes.layers,
        "num_heads": sizes.heads,
        "vocab_size": sizes.vocabulary,
        "relative_attention_num_buckets": sizes.buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _tokenizer() -> Tokenizer:
    """Tokenizer of unigram pieces in SentencePiece's manner, one per letter, with T5's special tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_letters + string.digits + ".,-'"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer
