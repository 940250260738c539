"""Streamed writing of safetensors: the header first, then one tensor after the other.

Anonymous memory stays near one piece (`PIECE_BYTES`), whatever the file's size: sources are memory-mapped or created
only when they are written. The file is written under another name and then renamed, so it is complete or absent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from ldp_runtime.errors import CheckpointError
from ldp_runtime.numerics import all_finite
from ldp_runtime.system.disk import written_whole

PIECE_BYTES = 64 * 2**20


#: Data begins at a multiple of this, so that mapped tensors are aligned for every element type.
_ALIGNMENT = 64


#: Element types that are written, and their names in a file.
ELEMENT_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written.

    Attributes:
        shape: shape of the values that `read` returns.
        dtype: element type in which the values are stored.
        read: returns the values in any element type; called once, just before they are written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @staticmethod
    def of(name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> TensorSource:
        """Source of an existing tensor, such as a memory-mapped one; `dtype` applies to floating-point values only."""
        stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return TensorSource(name, tuple(tensor.shape), stored, lambda: tensor)


@dataclass(frozen=True)
class Place:
    """Range of a tensor in its file, in bytes."""

    offset: int
    length: int


def write_tensors(
    sources: Iterable[TensorSource], path: Path, on_tensor: Callable[[str], None] = lambda name: None
) -> dict[str, Place]:
    """Writes a safetensors file tensor by tensor, and returns the range of each in the file.

    Raises:
        CheckpointError: a value is NaN or infinite, or becomes so in the element type in which it is stored. Or a
            tensor has an element type that is not written.
    """
    sources = list(sources)
    check_types(sources)
    # Wide elements first, as the safetensors library orders them: each tensor is then aligned to its elements.
    ordered = sorted(sources, key=lambda source: (-source.dtype.itemsize, source.name))
    with written_whole(path) as scratch, scratch.open("wb") as file:
        places = _write_header(ordered, file)
        for source in ordered:
            on_tensor(source.name)
            _write_values(source, file)
    return places


def check_types(sources: Iterable[TensorSource]) -> None:
    """Raises CheckpointError for a tensor whose element type is not written, before anything is."""
    for source in sources:
        if source.dtype not in ELEMENT_TYPES:
            kind = str(source.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{source.name} is of {kind}, which no model here has: {', '.join(ELEMENT_TYPES.values())} are written",
                hint="the file is of another model, or was quantized; fetch the original weights",
            )


def _write_header(sources: list[TensorSource], file: BinaryIO) -> dict[str, Place]:
    header, end = {}, 0
    for source in sources:
        begin, end = end, end + source.bytes
        header[source.name] = {
            "dtype": ELEMENT_TYPES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    base = 8 + len(text)
    ranges = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: Place(base + begin, end - begin) for name, (begin, end) in ranges.items()}


def _write_values(source: TensorSource, file: BinaryIO) -> None:
    tensor = source.read().detach()
    if tuple(tensor.shape) != source.shape:
        raise ValueError(f"{source.name} was announced as {source.shape} and is {tuple(tensor.shape)}")
    for piece in _pieces(tensor):
        stored = piece.to(source.dtype).contiguous()
        wide = stored.float() if stored.dtype == torch.float8_e4m3fn else stored  # float8 has no NaN test of its own
        if stored.is_floating_point() and not all_finite(wide):
            raise _not_finite(source, piece)
        file.write(stored.reshape(-1).view(torch.uint8).numpy().data)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Slices of the tensor along its first dimension, of at most about `PIECE_BYTES` each."""
    if tensor.numel() * tensor.element_size() <= PIECE_BYTES or tensor.dim() == 0:
        return iter((tensor,))
    rows = max(1, PIECE_BYTES // (tensor[0].numel() * tensor.element_size()))
    return iter(tensor.split(rows))


def _not_finite(source: TensorSource, values: torch.Tensor) -> CheckpointError:
    if not all_finite(values):
        return CheckpointError(f"{source.name} holds NaN or infinity", hint="the file is damaged; fetch it again")
    largest = float(values.abs().max())
    kind = str(source.dtype).removeprefix("torch.")
    return CheckpointError(
        f"{source.name} holds values up to {largest:.3g}, which {kind} cannot hold", hint="choose bfloat16 or float32"
    )
