"""The encoder's part of a T5 checkpoint, which may hold a decoder too."""

from __future__ import annotations

import torch

#: One table of tokens; files hold it under one of these names, or under several.
EMBEDDING = "shared.weight"
_NAMES = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def encoder_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors, the table of tokens among them under its first name where there is one."""
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.") and key not in _NAMES}
    table = next((state[name] for name in _NAMES if name in state), None)
    return encoder if table is None else {EMBEDDING: table} | encoder
