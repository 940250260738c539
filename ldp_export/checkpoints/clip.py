"""Loading of Switti's two CLIP text towers, each a folder in the layout of `transformers`.

A folder holds config.json, safetensors and tokenizer.json, as its repository does; towers of pictures, and projections,
are left aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError
from ldp_runtime.system.small_files import is_plain_file, read_json, read_small
from ldp_runtime.tokenizer import PromptTokenizer
from tokenizers import Tokenizer

from ldp_export.checkpoints.files.parts import CONFIG_FILE, TOKENIZER_FILE
from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, map_strictly
from ldp_export.models.clip import ACTIVATIONS, ClipTextTower, ClipTowers
from ldp_export.models.sizes import ClipSizes

#: What a CLIP model has beside its text tower.
_ASIDE = re.compile(r"(vision_model\.|visual_projection\.|text_projection\.|logit_scale$|.*\.position_ids$)")
_TOWERS = "openai/clip-vit-large-patch14 first, then laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
_WHOLE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ClipTextEncoder:
    """Both text towers, and the tokenizer file that they share.

    Attributes:
        pooled_channels: channels of the pooled vector: those of the second tower.
    """

    module: ClipTowers
    tokenizer: Path
    channels: int
    pooled_channels: int

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Text features [T, Ct] of the token ids [T] of one prompt."""
        return self.module(ids[None])[0]


@torch.no_grad()
def encoded(encoder: ClipTextEncoder, text: str, most: int) -> torch.Tensor:
    """Features [T, Ct] of a text, which may be empty."""
    ids = PromptTokenizer(encoder.tokenizer, most).ids(text)
    return encoder.features(torch.tensor(ids))


def load_clip(folders: Sequence[Path]) -> ClipTextEncoder:
    """Loads both towers in float32.

    Args:
        folders: of CLIP-L and of OpenCLIP bigG, in this order.

    Raises:
        CheckpointError: files are missing, or the weights do not fit a configuration.
    """
    return _opened(folders, [fill_strictly(ClipTextTower, *_tower(folder)) for folder in folders])


def map_clip(folders: Sequence[Path]) -> ClipTextEncoder:
    """Opens both towers like `load_clip`, but memory-mapped and in the element types of their files."""
    return _opened(folders, [map_strictly(ClipTextTower, *_tower(folder)) for folder in folders])


def clip_skeleton(folders: Sequence[Path]) -> ClipTowers:
    """Both towers on the meta device; reads no weights. Raises CheckpointError, see `load_clip`."""
    with torch.device("meta"):
        return ClipTowers(*map(_sizes, folders))


def check_clip_folders(folders: Sequence[Path]) -> None:
    """Raises CheckpointError if there is one tower only, or one lacks its files or is none; reads no weights."""
    if len(folders) != 2:
        raise CheckpointError(
            f"Switti reads its text with two towers, given is {' and '.join(map(str, folders))}",
            hint=f"give both, --text-encoder and --text-encoder-2: {_TOWERS}",
        )
    for folder in folders:
        absent = [file for file in (CONFIG_FILE, TOKENIZER_FILE) if not is_plain_file(folder / file)]
        if absent:
            raise CheckpointError(
                f"the text tower {folder} lacks {' and '.join(absent)}",
                hint="give a folder with config.json, model.safetensors and tokenizer.json of its CLIP model",
            )
        _sizes(folder)
    tokenizers = [_tokenizer(folder / TOKENIZER_FILE) for folder in folders]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise CheckpointError(
            f"the tokenizers of {folders[0]} and {folders[1]} have different vocabularies",
            hint="both towers read the same tokens; fetch both again",
        )


def _opened(folders: Sequence[Path], towers: list[ClipTextTower]) -> ClipTextEncoder:
    check_clip_folders(folders)
    module = clip_skeleton(folders)
    module.clip_l, module.clip_bigg = towers
    widths = [tower.sizes.width for tower in towers]
    return ClipTextEncoder(module.eval().requires_grad_(False), folders[0] / TOKENIZER_FILE, sum(widths), widths[1])


def _tower(folder: Path) -> tuple[ClipSizes, State, str]:
    """Sizes and tensors of one tower, and its folder's name for messages."""
    state = tower_state(read_state(folder))
    sizes = _sizes(folder)
    layers = count_numbered(state, r"text_model\.encoder\.layers\.([0-9]+)\.")
    if layers != sizes.layers:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says {sizes.layers} layers, the weights are of {layers}",
            hint="fetch it again; it must belong to the weights beside it",
        )
    return sizes, state, str(folder)


def holds_clip(state: State) -> bool:
    """True for the tensors of a CLIP model or of its text tower."""
    return "text_model.embeddings.token_embedding.weight" in state


def tower_state(state: State) -> State:
    """Tensors of the text tower."""
    return {key: value for key, value in state.items() if not _ASIDE.match(key)}


def _sizes(folder: Path) -> ClipSizes:
    """Sizes of a tower from its configuration: that of a text model, or the text part of a whole CLIP model's."""
    path = folder / CONFIG_FILE
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no configuration: {error}", hint="fetch it again") from error
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in ("clip", "clip_text_model"):
        raise CheckpointError(
            f"the text tower {folder} is of the model type {str(kind)[:80]!r}, expected 'clip'",
            hint=f"give {_TOWERS}",
        )
    text = content.get("text_config") if kind == "clip" else content
    given = {**_DEFAULTS, **(text if isinstance(text, dict) else {})}
    return ClipSizes(
        *(_number(path, given, name) for name in _WHOLE),
        positions=_number(path, given, "max_position_embeddings"),
        activation=_activation(path, given),
        norm_eps=_epsilon(path, given),
    )


#: Values of a configuration that names them not: those of `CLIPTextConfig` in transformers.
_DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def _number(path: Path, given: dict[str, Any], name: str) -> int:
    value = given[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"{path} says {name} is {value!r}, expected a whole number", hint="fetch it again")
    return value


def _activation(path: Path, given: dict[str, Any]) -> str:
    value = given["hidden_act"]
    if value not in ACTIVATIONS:
        raise CheckpointError(f"{path} says hidden_act is {value!r}", hint=f"known are {', '.join(ACTIVATIONS)}")
    return value


def _epsilon(path: Path, given: dict[str, Any]) -> float:
    value = given["layer_norm_eps"]
    if not isinstance(value, float) or not 0 < value < 1:
        raise CheckpointError(f"{path} says layer_norm_eps is {value!r}", hint="a small number, as 1e-5")
    return value


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(read_small(path).decode())
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(f"{path} is no tokenizer: {str(error)[:200]}", hint="fetch it again") from error
