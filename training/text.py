"""The text side: a word-level tokenizer made from the captions, and a small T5 encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import scene_at
from ldp_calibration.shapes import CATEGORIES, caption, sample_prompt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import T5Config, T5EncoderModel

TEXT_CHANNELS = 256
MAX_TOKENS = 64
TRAIN_TOKENS = 28  # no caption is longer; one length keeps compiled shapes few


def make_tokenizer(captions: int = 20000, seed: int = 0) -> Tokenizer:
    """Words in order of first appearance after pad 0, </s> 1 and <unk> 2, as T5 numbers them; appends </s>."""
    rng = np.random.default_rng((seed, 2))
    texts = [caption(scene_at(number, seed), rng) for number in range(captions)]
    texts += [sample_prompt(category, rng).text for category in CATEGORIES for _ in range(200)]
    splitter = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def make_encoder(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_CHANNELS,
        d_kv=64,
        d_ff=512,
        num_layers=4,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, length] padded with 0, and the mask of real tokens [B, length]."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        if len(encoding.ids) > length:
            raise ValueError(f"a caption has {len(encoding.ids)} tokens, more than {length}: {encoding.tokens}")
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    return ids.to(device), (ids != 0).to(device)


def text_optimizer(model: nn.Module, rate: float) -> tuple[torch.optim.AdamW, tuple[float, float]]:
    """AdamW over all weights, and the peak rates of its two groups.

    The bias for relative positions learns thirty times as fast: it has to grow by whole units, and an encoder whose
    attention has meanwhile settled on content never learns what stands before or after a word.
    """
    tables = [weight for name, weight in model.named_parameters() if "relative_attention_bias" in name]
    others = [weight for name, weight in model.named_parameters() if "relative_attention_bias" not in name]
    peaks = (rate, 30 * rate)
    groups = [{"params": weights, "lr": peak} for weights, peak in zip((others, tables), peaks, strict=True)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.97), weight_decay=0.0), peaks


def encode(encoder: T5EncoderModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Features [B, T, channels]."""
    return encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state


def save_text_encoder(folder: Path, encoder: T5EncoderModel, tokenizer: Tokenizer) -> None:
    """The folder layout of transformers: model.safetensors, config.json, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
