"""Checks the tensors of one engine call against the graph's signature: axis sizes, types and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import TensorEntry
from ldp_runtime.errors import IntegrityError, InternalError

#: Size of each dynamic axis, by name.
Sizes = Mapping[str, int]


def axis_sizes(entries: Iterable[TensorEntry], tensors: Mapping[str, torch.Tensor], graph: str) -> dict[str, int]:
    """Sizes of all dynamic axes in a call, from its inputs.

    Raises:
        InternalError: an input is missing, unknown or not contiguous, or has another type, rank or size of a fixed
            side. Two inputs that disagree about an axis raise it too.
    """
    entries = list(entries)
    check_names(entries, tensors, graph)
    sizes: dict[str, int] = {}
    for entry in entries:
        tensor = check_tensor(tensors[entry.name], entry, graph)
        check_contiguous(tensor, entry, graph)
        for side, size in zip(entry.shape, tensor.shape, strict=True):
            if isinstance(side, str) and sizes.setdefault(side, size) != size:
                raise _wrong_side(tensor, entry, graph, sizes[side], side)
    return sizes


def check_names(entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor], graph: str) -> None:
    """Raises InternalError when the inputs are not those of the graph."""
    expected = {entry.name for entry in entries}
    if expected != set(tensors):
        missing, foreign = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise InternalError(f"the engine {graph!r} misses the inputs {missing} and does not know {foreign}")


def check_tensor(tensor: torch.Tensor, entry: TensorEntry, graph: str) -> torch.Tensor:
    """Checks a tensor and returns it: engines read memory as their signature says, whatever they are given.

    Raises:
        InternalError: the tensor has another type, rank, or size of a fixed side.
    """
    kind = _kind(tensor)
    if kind != entry.dtype or tensor.dim() != len(entry.shape):
        raise InternalError(
            f"{entry.name!r} of {graph!r} is {kind} {list(tensor.shape)}; the engine has {entry.dtype} "
            f"{list(entry.shape)}"
        )
    for side, size in zip(entry.shape, tensor.shape, strict=True):
        if isinstance(side, int) and size != side:
            raise _wrong_side(tensor, entry, graph, side, side)
    return tensor


def _wrong_side(tensor: torch.Tensor, entry: TensorEntry, graph: str, expected: int, side: int | str) -> InternalError:
    return InternalError(
        f"{entry.name!r} of {graph!r} is {_kind(tensor)} {list(tensor.shape)}, expected {expected} for {side}"
    )


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_contiguous(tensor: torch.Tensor, entry: TensorEntry, graph: str) -> None:
    """Raises InternalError for memory with gaps or in another order."""
    if not tensor.is_contiguous():
        raise InternalError(f"{entry.name!r} of {graph!r} is not contiguous: engines bind memory as it lies")


def shape_at(entry: TensorEntry, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a tensor in a call with these axis sizes.

    Raises:
        IntegrityError: the manifest gives it an axis that no input of its graph has.
    """
    unknown = [side for side in entry.shape if isinstance(side, str) and side not in sizes]
    if unknown:
        raise IntegrityError(
            f"the manifest gives {entry.name!r} the axis {unknown[0]!r}, which no input of its graph has",
            hint="copy the bundle again from where it was built, or rebuild it",
        )
    return tuple(side if isinstance(side, int) else sizes[side] for side in entry.shape)


def empty(entry: TensorEntry, sizes: Sizes, device: torch.device) -> torch.Tensor:
    """Uninitialised memory for an output."""
    return torch.empty(shape_at(entry, sizes), dtype=getattr(torch, entry.dtype), device=device)
