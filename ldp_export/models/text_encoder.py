"""The T5 encoder that turns prompts into text features; `transformers` holds the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError
from torch import nn

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"


@dataclass(frozen=True)
class TextEncoder:
    """A T5 encoder in float32 and the tokenizer file that belongs to it."""

    module: nn.Module
    tokenizer: Path

    @property
    def channels(self) -> int:
        config: Any = self.module.config
        return config.d_model


def load_text_encoder(folder: Path | str) -> TextEncoder:
    """A folder in `transformers` layout: config.json, safetensors, tokenizer.json.

    Raises:
        CheckpointError: files are missing, or the weights do not fit the configuration.
    """
    from transformers import T5Config, T5EncoderModel
    from transformers.utils import logging as transformers_logging

    folder = Path(folder)
    absent = [name for name in (CONFIG_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"the text encoder {folder} lacks {', '.join(absent)}",
            hint="give a folder with config.json, model.safetensors and tokenizer.json of a T5 encoder",
        )
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = T5Config.from_pretrained(folder)
        loaded: Any = T5EncoderModel.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        module, report = loaded
    except Exception as error:  # transformers raises many types
        raise CheckpointError(f"cannot load the text encoder {folder}: {error}") from error
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
    # A full T5 checkpoint also holds a decoder, which nobody asked for; a missing weight would be left random.
    missing = sorted(report["missing_keys"])
    if missing or report.get("mismatched_keys"):
        raise CheckpointError(
            f"the text encoder {folder} lacks {missing[:10]} (wrong shapes: {report.get('mismatched_keys')})"
        )
    return TextEncoder(module.eval().requires_grad_(False), folder / TOKENIZER_FILE)
