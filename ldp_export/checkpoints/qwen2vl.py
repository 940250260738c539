"""Loading of HART's text encoder: the text stack of Qwen2-VL, a folder in the layout of `transformers`.

A folder holds config.json, safetensors, tokenizer.json and tokenizer_config.json as its repository does. Beside them
lies a file of HART's own repository (`INSTRUCTION_SOURCE`), with the instruction that stands before every prompt. It
is not part of this package: it is read as data, never executed, and must be the known one.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError
from ldp_runtime.system.small_files import is_plain_file, read_json, read_small
from ldp_runtime.tokenizer import PromptTokenizer
from tokenizers import Tokenizer

from ldp_export.checkpoints.files.parts import CONFIG_FILE, INSTRUCTION_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE
from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, map_strictly, renamed
from ldp_export.models.qwen2vl import Qwen2Text
from ldp_export.models.sizes import Qwen2Sizes

#: Where the instruction is published, and what its text is known by: its length, and the SHA-256 of its UTF-8.
INSTRUCTION_SOURCE = (
    "https://raw.githubusercontent.com/mit-han-lab/hart/453235fc9dc88f23a14eab7bc159d9ae15175fd1"
    "/hart/utils/constants.py"
)
_NAME, INSTRUCTION_LENGTH = "llm_system_prompt", 705
INSTRUCTION_SHA256 = "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"

#: Tensors beside the text stack: the tower of pictures, and the head that predicts tokens.
_ASIDE = re.compile(r"(visual\.|model\.visual\.|lm_head\.)")
_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|model\.)")
_FILES = (CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG, INSTRUCTION_FILE)
_WHOLE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_GIVE = "give the folder of mit-han-lab/Qwen2-VL-1.5B-Instruct"


@dataclass(frozen=True)
class Qwen2TextEncoder:
    """Text stack with its instruction, and the rules by which texts become its rows.

    Attributes:
        before: embedded instruction [n, C].
        padding: id of the padding token.
        tokenizer: content of a tokenizer.json that says on which side texts of one length are padded.
        rows: rows of every text.
    """

    module: Qwen2Text
    before: torch.Tensor
    padding: int
    tokenizer: bytes
    rows: int

    @property
    def channels(self) -> int:
        return self.module.sizes.width

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Text features [T, Ct + 1] of the padded token ids [T] of one prompt."""
        return self.module(ids[None], self.before, self.padding)[0]

    def ids(self, prompt: str, place: Path) -> torch.Tensor:
        """Padded token ids [T] of a prompt.

        Args:
            place: file that the tokenizer may be written to.
        """
        place.write_bytes(self.tokenizer)
        return PromptTokenizer(place, self.rows, padded=True)(prompt)


def load_qwen2(folder: Path, rows: int) -> Qwen2TextEncoder:
    """Loads the text stack in float32.

    Raises:
        CheckpointError: files are missing, the weights do not fit, or the instruction is not the known one.
    """
    return _opened(folder, fill_strictly(Qwen2Text, *_stack(folder)), rows)


def map_qwen2(folder: Path, rows: int) -> Qwen2TextEncoder:
    """Opens the text stack like `load_qwen2`, but memory-mapped and in the element types of its files."""
    return _opened(folder, map_strictly(Qwen2Text, *_stack(folder)), rows)


def qwen2_skeleton(folder: Path, rows: int) -> Qwen2TextEncoder:
    """The text stack on the meta device; reads no weights. Raises CheckpointError, see `load_qwen2`."""
    with torch.device("meta"):
        module = Qwen2Text(_sizes(folder))
    return _opened(folder, module, rows)


def check_qwen2_folder(folder: Path) -> None:
    """Raises CheckpointError if a folder lacks a file beside the weights, or one is of another model."""
    absent = [name for name in _FILES if not is_plain_file(folder / name)]
    if absent:
        raise CheckpointError(
            f"the text encoder {folder} lacks {' and '.join(absent)}",
            hint=f"{_GIVE}, and put {INSTRUCTION_SOURCE} into it as {INSTRUCTION_FILE}",
        )
    _sizes(folder)
    read_instruction(folder / INSTRUCTION_FILE)
    _padded_tokenizer(folder, 2)


def read_instruction(path: Path) -> str:
    """Instruction in the original's file, which is parsed and not executed.

    Raises:
        CheckpointError: the file assigns no such text, or another one than is known.
    """
    try:
        tree = ast.parse(read_small(path).decode())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {str(error)[:200]}", hint=f"it is {INSTRUCTION_SOURCE}"
        ) from error
    for node in tree.body:
        names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        if names == [_NAME] and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return _known(path, value.value)
    raise CheckpointError(f"{path} assigns no text to {_NAME}", hint=f"it must be {INSTRUCTION_SOURCE}")


def _known(path: Path, text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    if len(text) != INSTRUCTION_LENGTH or digest != INSTRUCTION_SHA256:
        raise CheckpointError(
            f"the instruction in {path} has {len(text)} characters and SHA-256 {digest[:16]}, expected "
            f"{INSTRUCTION_LENGTH} and {INSTRUCTION_SHA256[:16]}",
            hint=f"the model was trained behind that of {INSTRUCTION_SOURCE}",
        )
    return text


def holds_qwen2(state: State) -> bool:
    """True for the tensors of Qwen2's text stack, alone or in a model with pictures."""
    return any(_PREFIX.sub("", key, count=1) == "layers.0.self_attn.q_proj.bias" for key in state)


def text_stack_state(state: State) -> State:
    """Tensors of the text stack, by their names in it."""
    kept = {key: value for key, value in state.items() if not _ASIDE.match(key)}
    return renamed(kept.items(), (_PREFIX.sub("", key, count=1) if _PREFIX.match(key) else key for key in kept))


def _opened(folder: Path, module: Qwen2Text, rows: int) -> Qwen2TextEncoder:
    check_qwen2_folder(folder)
    instruction = read_instruction(folder / INSTRUCTION_FILE)
    plain = _tokenizer(folder / TOKENIZER_FILE)
    ids = torch.tensor(plain.encode(instruction, add_special_tokens=False).ids, dtype=torch.int64)
    tokenizer, padding = _padded_tokenizer(folder, rows)
    module = module.eval().requires_grad_(False)
    before = module.embed_tokens(ids.to(module.norm.weight.device))
    return Qwen2TextEncoder(module, before, padding, tokenizer, rows)


def _stack(folder: Path) -> tuple[Qwen2Sizes, State, str]:
    state, sizes = text_stack_state(read_state(folder)), _sizes(folder)
    layers = count_numbered(state, r"layers\.([0-9]+)\.")
    if layers != sizes.layers:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says {sizes.layers} layers, the weights are of {layers}",
            hint="fetch it again; it must belong to the weights beside it",
        )
    return sizes, state, str(folder)


def _sizes(folder: Path) -> Qwen2Sizes:
    """Sizes from a configuration: that of a text model, or the text part of a model with pictures."""
    path = folder / CONFIG_FILE
    content = _json(path)
    kind = content.get("model_type")
    if kind not in ("qwen2", "qwen2_vl"):
        raise CheckpointError(
            f"the text encoder {folder} is of the model type {str(kind)[:80]!r}, expected 'qwen2' or 'qwen2_vl'",
            hint=_GIVE,
        )
    nested = content.get("text_config")
    given: dict[str, Any] = {**content, **(nested if isinstance(nested, dict) else {})}
    rope = given.get("rope_parameters")
    theta = given.get("rope_theta", rope.get("rope_theta") if isinstance(rope, dict) else None)
    numbers = [_number(path, given, name) for name in (*_WHOLE, "vocab_size")]
    return Qwen2Sizes(
        *numbers,
        rope_theta=_positive(path, "rope_theta", 10000.0 if theta is None else theta),
        norm_eps=_positive(path, "rms_norm_eps", given.get("rms_norm_eps", 1e-6)),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no configuration: {error}", hint="fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no configuration", hint="fetch it again")
    return content


def _number(path: Path, given: dict[str, Any], name: str) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"{path} says {name} is {value!r}, expected a whole number", hint="fetch it again")
    return value


def _positive(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise CheckpointError(f"{path} says {name} is {value!r}, expected a positive number", hint="fetch it again")
    return float(value)


def _tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(read_small(path).decode())
    except Exception as error:  # tokenizers raises plain exceptions
        raise CheckpointError(f"{path} is no tokenizer: {str(error)[:200]}", hint="fetch it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _padded_tokenizer(folder: Path, rows: int) -> tuple[bytes, int]:
    """Tokenizer whose file says how texts are padded, and the id of the padding token.

    The side is the tokenizer's own setting, and the right one where it says nothing.
    """
    tokenizer, path = _tokenizer(folder / TOKENIZER_FILE), folder / TOKENIZER_CONFIG
    settings = _json(path)
    token, side = settings.get("pad_token"), settings.get("padding_side", "right")
    name = token.get("content") if isinstance(token, dict) else token
    padding = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if padding is None or side not in ("left", "right"):
        raise CheckpointError(
            f"{path} says the padding token is {str(name)[:80]!r} on side {str(side)[:80]!r}, of which one is unknown",
            hint="fetch it again; it must belong to the tokenizer.json beside it",
        )
    tokenizer.enable_padding(direction=side, pad_id=padding, pad_token=name, length=rows)
    return tokenizer.to_str().encode(), padding
