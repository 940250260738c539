"""Loading of T5 text encoders in the layout of `transformers`, which implements the architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError
from torch import nn

from ldp_export.checkpoints.tensor_files import read_state

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"


#: Second name under which the module holds its table of token embeddings.
_TIED = "encoder.embed_tokens.weight"


@dataclass(frozen=True)
class TextEncoder:
    """A T5 encoder and the tokenizer file that belongs to it."""

    module: nn.Module
    tokenizer: Path

    @property
    def channels(self) -> int:
        config: Any = self.module.config
        return config.d_model


def load_text_encoder(folder: Path | str) -> TextEncoder:
    """Loads, in float32, a folder in the layout of `transformers`: config.json, safetensors, tokenizer.json.

    Raises:
        CheckpointError: files are missing, or the weights do not fit the configuration.
    """
    encoder = map_text_encoder(folder)
    return TextEncoder(encoder.module.float(), encoder.tokenizer)


def map_text_encoder(folder: Path | str) -> TextEncoder:
    """Opens a folder like `load_text_encoder`, but memory-mapped and in the element types of its files."""
    folder = Path(folder)
    check_folder(folder)
    module, state = encoder_skeleton(folder), encoder_state(read_state(folder))
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = {name: state[key] for name in expected if (key := EMBEDDING if name == _TIED else name) in state}
    missing = sorted(set(expected) - set(weights))
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {expected[name]}"
        for name, tensor in weights.items()
        if tuple(tensor.shape) != expected[name]
    ]
    if missing or misshapen:
        raise CheckpointError(
            f"the text encoder {folder} lacks {missing[:10]} (wrong shapes: {misshapen[:10]})",
            hint="its weights are of another model than its config.json",
        )
    module.load_state_dict(weights, assign=True)
    return TextEncoder(module.eval().requires_grad_(False), folder / TOKENIZER_FILE)


def check_folder(folder: Path) -> None:
    """Raises CheckpointError if the folder lacks its configuration or tokenizer; reads no weights."""
    absent = [name for name in (CONFIG_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"the text encoder {folder} lacks {', '.join(absent)}",
            hint="give a folder with config.json, model.safetensors and tokenizer.json of a T5 encoder",
        )


def encoder_skeleton(folder: Path | str) -> nn.Module:
    """Encoder of the folder's configuration, on the meta device."""
    from transformers import T5Config, T5EncoderModel

    try:
        config: Any = T5Config.from_pretrained(folder)
        config._attn_implementation = "eager"
        with torch.device("meta"):
            return T5EncoderModel(config)
    except Exception as error:  # transformers raises many types
        raise CheckpointError(
            f"{folder} holds no T5 encoder that can be read: {error}",
            hint="name the folder of a T5 encoder: config.json, safetensors and tokenizer.json",
        ) from error


#: First name of the table of token embeddings; files hold it under one or several of `_NAMES`.
EMBEDDING = "shared.weight"


_NAMES = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def encoder_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the encoder; the table of token embeddings, if there is one, is under its first name."""
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.") and key not in _NAMES}
    table = next((state[name] for name in _NAMES if name in state), None)
    return encoder if table is None else {EMBEDDING: table} | encoder
