"""Device addresses of the tensors of one engine call: their own, or others that the engine can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from ldp_runtime.engines.tensorrt.bindings import Binding, spare_offsets
from ldp_runtime.engines.tensorrt.library import ALIGNMENT
from ldp_runtime.errors import InternalError

#: Inputs of captured calls that are at most this large [bytes] are copied to a fixed address.
_STAGED = 2**20


#: Gives at least so many bytes for a purpose, always the same memory until more is asked for.
Memory = Callable[[str, int], torch.Tensor]


class Addresses:
    """Device addresses of the tensors of one call.

    - A tensor whose address is aligned is bound as it is.
    - Small inputs of a call to be captured are copied to fixed addresses, since a graph replays addresses. Large inputs
      (the text's keys and values, the past) stay, and their addresses help to identify the graph.
    - An output at the address of an input (a cache that is written in place) is bound there with it, however small.
    - Other tensors go through an aligned copy.
    - Outputs that nobody wants, and inputs without elements, get spare memory: an engine takes no null pointers.
    """

    def __init__(
        self,
        bound: Sequence[Binding],
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        captured: bool,
        memory: Memory,
    ) -> None:
        self.captured = captured
        shared = _shared(bound)
        self._addresses = _spare(bound, memory)
        self._copies: list[torch.Tensor] = []
        self._back: list[tuple[torch.Tensor, torch.Tensor]] = []
        for binding in bound:
            if binding.name in self._addresses or binding.address in shared:
                continue
            tensor = inputs.get(binding.name)
            if tensor is not None and captured and binding.size <= _STAGED:
                self._addresses[binding.name] = _stage(binding, tensor, memory)
            elif not binding.aligned:
                self._addresses[binding.name] = self._copy(tensor, outputs.get(binding.name))

    def address(self, binding: Binding) -> int:
        return self._addresses.get(binding.name, binding.address)

    def copy_back(self) -> None:
        """Copies outputs that were computed in aligned copies back to the caller's tensors."""
        for place, copy in self._back:
            place.copy_(copy)

    def _copy(self, given: torch.Tensor | None, place: torch.Tensor | None) -> int:
        if given is not None:
            copy = given.clone()
        else:
            assert place is not None
            copy = torch.empty_like(place)
            self._back.append((place, copy))
        self._copies.append(copy)  # alive until the call has been enqueued
        return copy.data_ptr()


def _shared(bound: Sequence[Binding]) -> set[int]:
    """Addresses that more than one tensor of a call has.

    Raises:
        InternalError: one is not aligned. In a copy, what one tensor writes would not reach the other.
    """
    shared = {a for a, count in Counter(b.address for b in bound if b.address).items() if count > 1}
    for binding in bound:
        if binding.address in shared and not binding.aligned:
            raise InternalError(
                f"{binding.name!r} is written in place, at an address that is no multiple of {ALIGNMENT}"
            )
    return shared


def _spare(bound: Sequence[Binding], memory: Memory) -> dict[str, int]:
    offsets, size = spare_offsets(bound)
    if not offsets:
        return {}
    start = memory("outputs that nobody wants", size).data_ptr()
    return {name: start + offset for name, offset in offsets.items()}


def _stage(binding: Binding, tensor: torch.Tensor, memory: Memory) -> int:
    place = memory(f"the input {binding.name!r} of captured calls", _STAGED)
    place[: binding.size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return place.data_ptr()
