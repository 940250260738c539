"""Loading of T5 text encoders in the layout of `transformers`, which implements the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError
from ldp_runtime.system.small_files import is_plain_file, read_json, read_small
from tokenizers import Tokenizer
from torch import nn

from ldp_export.checkpoints.files.parts import CONFIG_FILE, TOKENIZER_FILE
from ldp_export.checkpoints.files.tensors import listing, read_state
from ldp_export.checkpoints.strict import count_numbered

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

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Text features [T, Ct] of the token ids [T] of one prompt."""
        return self.module(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).last_hidden_state[0]


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
    state = encoder_state(read_state(folder))
    module = encoder_skeleton(folder, state)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights = {name: state[key] for name in expected if (key := EMBEDDING if name == _TIED else name) in state}
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(state) - set(expected))
    if unexpected:
        raise CheckpointError(
            f"the text encoder {folder} holds {listing(unexpected, 5)}, which a T5 encoder of its config.json does not",
            hint="its weights are of another model than its config.json",
        )
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
    """Raises CheckpointError if the folder lacks its configuration or tokenizer, or is no T5's; reads no weights."""
    absent = [name for name in (CONFIG_FILE, TOKENIZER_FILE) if not is_plain_file(folder / name)]
    if absent:
        raise CheckpointError(
            f"the text encoder {folder} lacks {', '.join(absent)}",
            hint="give a folder with config.json, model.safetensors and tokenizer.json of a T5 encoder",
        )
    _read_config(folder)
    try:
        Tokenizer.from_str(read_small(folder / TOKENIZER_FILE).decode())
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} is no tokenizer: {str(error)[:200]}", hint="fetch it again"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Content of the folder's configuration; raises CheckpointError if it is damaged, or of another model than T5."""
    path = folder / CONFIG_FILE
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no configuration: {error}", hint="fetch it again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "t5":
        raise CheckpointError(
            f"the text encoder {folder} is of the model type {str(kind)[:80]!r}, expected 't5'",
            hint="its relatives compute other features: give the encoder that the transformer was trained with",
        )
    return config


def encoder_skeleton(folder: Path | str, state: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
    """Encoder of the folder's configuration, on the meta device.

    Args:
        state: tensors of the encoder, or None to look them up; a configuration of another depth makes no blocks.

    Raises:
        CheckpointError: the configuration is damaged or makes no encoder, or the tensors are of another depth.
    """
    from transformers import T5Config, T5EncoderModel

    content, keys = _read_config(Path(folder)), encoder_state(read_state(folder)) if state is None else state
    blocks = count_numbered(keys, r"encoder\.block\.([0-9]+)\.")
    try:
        config: Any = T5Config.from_dict(content)
        _check_numbers(config)
        if config.num_layers != blocks:
            raise ValueError(f"it says {config.num_layers} blocks, the weights are of {blocks}")
        config._attn_implementation = "eager"
        with torch.device("meta"):
            return T5EncoderModel(config)
    except Exception as error:  # transformers raises many types
        raise CheckpointError(
            f"{Path(folder) / CONFIG_FILE} makes no T5 encoder: {str(error)[:300]}",
            hint="fetch it again; it must belong to the weights beside it",
        ) from error


def _check_numbers(config: Any) -> None:
    """Raises ValueError for numbers that no shape of a tensor contradicts, but that no encoder can compute with."""
    whole = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size", *_POSITIONS)
    for name in whole:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ValueError(f"{name} is {value!r}")
    epsilon = config.layer_norm_epsilon
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ValueError(f"layer_norm_epsilon is {epsilon!r}")
    buckets, distance = (getattr(config, name) for name in _POSITIONS)
    if buckets < 4 or distance <= buckets // 4:
        raise ValueError(f"{_POSITIONS[0]} is {buckets}, {_POSITIONS[1]} is {distance}")


_POSITIONS = ("relative_attention_num_buckets", "relative_attention_max_distance")


#: First name of the table of token embeddings; files hold it under one or several of `_NAMES`.
EMBEDDING = "shared.weight"


_NAMES = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def encoder_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the encoder; the table of token embeddings, if there is one, is under its first name."""
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.") and key not in _NAMES}
    table = next((state[name] for name in _NAMES if name in state), None)
    return encoder if table is None else {EMBEDDING: table} | encoder
