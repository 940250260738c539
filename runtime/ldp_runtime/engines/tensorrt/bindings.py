"""What is bound where in one engine call: pure bookkeeping, checked before anything is sent to a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ldp_runtime.bundle.manifest import TensorEntry
from ldp_runtime.engines.tensorrt.library import ALIGNMENT
from ldp_runtime.errors import ConfigError


@dataclass(frozen=True)
class Binding:
    """One tensor of a call.

    Attributes:
        shape: of this call; element_size: bytes of an element.
        address: where it lies, or 0 where the session must provide a place: it is empty, or nobody wants it.
        aligned: whether the engine may use the address as it is; else the tensor goes through an aligned copy.
    """

    name: str
    shape: tuple[int, ...]
    element_size: int
    address: int

    @property
    def size(self) -> int:
        """Bytes."""
        count = self.element_size
        for side in self.shape:
            count *= side
        return count

    @property
    def aligned(self) -> bool:
        return self.address % ALIGNMENT == 0


def axis_sizes(entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor], graph: str) -> dict[str, int]:
    """Size of every dynamic axis in a call, from its inputs.

    Raises:
        ConfigError: an input is missing or unknown, has another type or rank, a fixed side of another size, is not
            contiguous, or two inputs disagree about an axis.
    """
    _same_names(entries, tensors, graph)
    sizes: dict[str, int] = {}
    for entry in entries:
        tensor = tensors[entry.name]
        _check_tensor(entry, tensor, graph)
        for side, size in zip(entry.shape, tensor.shape, strict=True):
            expected = sizes.setdefault(side, size) if isinstance(side, str) else side
            if size != expected:
                raise ConfigError(
                    f"the input {entry.name!r} of {graph!r} has the shape {tuple(tensor.shape)}, "
                    f"expected {expected} for {side}"
                )
    return sizes


def _same_names(entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor], graph: str) -> None:
    expected = {entry.name for entry in entries}
    if expected != set(tensors):
        missing, foreign = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
        raise ConfigError(f"the engine {graph!r} misses the inputs {missing} and does not know {foreign}")


def _check_tensor(entry: TensorEntry, tensor: torch.Tensor, graph: str) -> None:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != entry.dtype or tensor.dim() != len(entry.shape):
        raise ConfigError(
            f"{entry.name!r} of {graph!r} is {kind} {list(tensor.shape)}; the engine has {entry.dtype} "
            f"{list(entry.shape)}"
        )
    if not tensor.is_contiguous():
        raise ConfigError(f"{entry.name!r} of {graph!r} is not contiguous: engines bind memory as it lies")


def input_bindings(entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor]) -> list[Binding]:
    """Bindings of the inputs, checked by `axis_sizes` before. Empty tensors (no past yet) have no address."""
    return [_binding(entry.name, tensors[entry.name]) for entry in entries]


def output_bindings(
    entries: Sequence[TensorEntry], tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int], graph: str
) -> list[Binding]:
    """Bindings of all outputs; those without a place in `tensors` are computed all the same, into spare memory.

    Raises:
        ConfigError: an output is unknown, or its place does not fit.
    """
    foreign = sorted(set(tensors) - {entry.name for entry in entries})
    if foreign:
        raise ConfigError(f"the engine {graph!r} has no outputs {foreign}")
    bindings = []
    for entry in entries:
        given = tensors.get(entry.name)
        if given is None:
            shape = tuple(sizes[side] if isinstance(side, str) else side for side in entry.shape)
            bindings.append(Binding(entry.name, shape, getattr(torch, entry.dtype).itemsize, 0))
            continue
        _check_place(entry, given, sizes, graph)
        bindings.append(_binding(entry.name, given))
    return bindings


def _check_place(entry: TensorEntry, given: torch.Tensor, sizes: Mapping[str, int], graph: str) -> None:
    if entry.name == "image":  # the sides of a picture are a multiple of the latent's and have no axis of their own
        entry = entry.model_copy(update={"shape": (*entry.shape, *given.shape[len(entry.shape) :])})
    _check_tensor(entry, given, graph)
    expected = tuple(sizes[side] if isinstance(side, str) else side for side in entry.shape)
    if tuple(given.shape) != expected:
        raise ConfigError(f"the output {entry.name!r} of {graph!r} is {expected}; its place is {tuple(given.shape)}")


def _binding(name: str, tensor: torch.Tensor) -> Binding:
    return Binding(name, tuple(tensor.shape), tensor.element_size(), tensor.data_ptr() if tensor.numel() else 0)


def spare_offsets(bindings: Sequence[Binding]) -> tuple[dict[str, int], int]:
    """Where in one piece of spare memory the outputs without a place go, each by itself, and how large it must be.

    They must not share memory: a graph reads its new keys and values while it computes.
    """
    offsets: dict[str, int] = {}
    end = 0
    for binding in bindings:
        if binding.address == 0:
            offsets[binding.name] = end
            end += -(-max(1, binding.size) // ALIGNMENT) * ALIGNMENT
    return offsets, end
