"""Pictures from prompts with models in training, through the package's own reference loop."""

from collections.abc import Sequence

import numpy as np
import torch
from common import LAYOUT, SCHEDULE, to_images
from ldp_runtime.sampling import SamplingFilter
from text import MAX_TOKENS, encode, tokenize
from tokenizers import Tokenizer
from transformers import T5EncoderModel

from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.reference.infinity import InfinitySettings, generate


@torch.no_grad()
def draw_prompts(
    transformer: InfinityTransformer,
    encoder: T5EncoderModel,
    tokenizer: Tokenizer,
    vae: InfinityVae,
    texts: Sequence[str],
    *,
    guidance: float | Sequence[float] = 3.0,
    temperature: float | Sequence[float] = 1.0,
    top_p: float = 0.97,
    seed: int = 0,
    batch: int = 25,
) -> np.ndarray:
    """One image for each text, uint8 [N, H, W, 3]."""
    device = next(transformer.parameters()).device
    images = []
    for start in range(0, len(texts), batch):
        ids, mask = tokenize(tokenizer, texts[start : start + batch], MAX_TOKENS, device)
        width = int(mask.sum(1).max())
        features = encode(encoder, ids[:, :width], mask[:, :width]).float()
        rows = [row[: int(length)] for row, length in zip(features, mask.sum(1), strict=True)]
        settings = InfinitySettings(guidance, temperature, SamplingFilter(top_p=top_p), seed + start)
        run = generate(transformer, rows, SCHEDULE, LAYOUT, settings, keep_trace=False)
        images.append(to_images(vae.decode(run.latent)))
    return np.concatenate(images)
