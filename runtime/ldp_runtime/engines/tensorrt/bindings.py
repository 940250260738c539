"""Bindings of the tensors of one engine call: pure bookkeeping, checked before anything is sent to a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ldp_runtime.bundle.manifest import TensorEntry
from ldp_runtime.engines.tensorrt.library import ALIGNMENT
from ldp_runtime.engines.tensors import Sizes, check_contiguous, check_tensor, shape_at
from ldp_runtime.errors import InternalError


@dataclass(frozen=True)
class Binding:
    """One tensor of a call.

    Attributes:
        shape: shape in this call.
        element_size: bytes of an element.
        address: address of the tensor; 0 if it is empty or nobody wants it, and the session must provide memory.
        aligned: True if the engine may use the address as it is; otherwise the tensor goes through an aligned copy.
    """

    name: str
    shape: tuple[int, ...]
    element_size: int
    address: int

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        count = self.element_size
        for side in self.shape:
            count *= side
        return count

    @property
    def aligned(self) -> bool:
        return self.address % ALIGNMENT == 0


def input_bindings(entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor]) -> list[Binding]:
    """Bindings of the inputs, which `axis_sizes` has checked. Empty tensors (no past yet) have no address."""
    return [_binding(entry.name, tensors[entry.name]) for entry in entries]


def output_bindings(
    entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor], sizes: Sizes, graph: str
) -> list[Binding]:
    """Bindings of all outputs; those missing in `tensors` are computed all the same, into spare memory.

    Raises:
        InternalError: an output is unknown, or its tensor does not fit.
    """
    foreign = sorted(set(tensors) - {entry.name for entry in entries})
    if foreign:
        raise InternalError(f"the engine {graph!r} has no outputs {foreign}")
    bindings = []
    for entry in entries:
        tensor = tensors.get(entry.name)
        if tensor is None:
            shape = shape_at(entry, sizes)
            bindings.append(Binding(entry.name, shape, getattr(torch, entry.dtype).itemsize, 0))
            continue
        _check_place(entry, tensor, sizes, graph)
        bindings.append(_binding(entry.name, tensor))
    return bindings


def _check_place(entry: TensorEntry, given: torch.Tensor, sizes: Sizes, graph: str) -> None:
    if entry.name == "image":  # the sides of a picture are a multiple of the latent's and have no axis of their own
        entry = entry.model_copy(update={"shape": (*entry.shape, *given.shape[len(entry.shape) :])})
    check_tensor(given, entry, graph)
    check_contiguous(given, entry, graph)
    expected = shape_at(entry, sizes)
    if tuple(given.shape) != expected:
        raise InternalError(f"the output {entry.name!r} of {graph!r} is {expected}; its place is {tuple(given.shape)}")


def _binding(name: str, tensor: torch.Tensor) -> Binding:
    return Binding(name, tuple(tensor.shape), tensor.element_size(), tensor.data_ptr() if tensor.numel() else 0)


def spare_offsets(bindings: Sequence[Binding]) -> tuple[dict[str, int], int]:
    """Offsets of the outputs without a tensor in one piece of spare memory, and the size of that memory.

    These outputs must not share memory: a graph reads its new keys and values while it computes.
    """
    offsets: dict[str, int] = {}
    end = 0
    for binding in bindings:
        if binding.address == 0:
            offsets[binding.name] = end
            end += -(-max(1, binding.size) // ALIGNMENT) * ALIGNMENT
    return offsets, end
