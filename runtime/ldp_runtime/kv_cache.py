"""The KV cache: one preallocated arena, sequence-major, so that any prefix is contiguous and binds by pointer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldp_runtime.errors import ConfigError


class KVCache:
    """Keys and values of all layers, [layers, 2, capacity, rows, heads, head_dim].

    Engines read the first `length` positions of a layer and write the new ones right behind them: nothing is appended
    by hand. Pruned tokens are never written, so positions are dense in what was computed.
    """

    def __init__(
        self,
        layers: int,
        capacity: int,
        rows: int,
        heads: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._arena = torch.empty(layers, 2, capacity, rows, heads, head_dim, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self._arena.shape[2]

    @property
    def rows(self) -> int:
        return self._arena.shape[3]

    def past(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values computed so far: two views [length, rows, heads, head_dim]."""
        return self._arena[layer, 0, : self.length], self._arena[layer, 1, : self.length]

    def slots(self, layer: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the next `tokens` positions belong: two views [tokens, rows, heads, head_dim]."""
        end = self.length + tokens
        if end > self.capacity:
            raise ConfigError(f"the KV cache holds {self.capacity} tokens, {end} were asked for")
        return self._arena[layer, 0, self.length : end], self._arena[layer, 1, self.length : end]

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """What all layers of a call read of the cache beside their past: nothing."""
        return {}

    def reads(self, layer: int) -> dict[str, torch.Tensor]:
        """Inputs of a layer, by their names."""
        key, value = self.past(layer)
        return {f"past_k_{layer}": key, f"past_v_{layer}": value}

    def writes(self, layer: int, tokens: int, wanted: bool) -> dict[str, torch.Tensor]:
        """Outputs of a layer, by their names; none for a call whose keys and values are not wanted later."""
        if not wanted:
            return {}
        key, value = self.slots(layer, tokens)
        return {f"new_k_{layer}": key, f"new_v_{layer}": value}

    def advance(self, tokens: int) -> None:
        """Counts the slots that an engine has just filled."""
        self.length += tokens

    def with_rows(self, rows: Sequence[int]) -> KVCache:
        """A new arena that holds these rows only, in this order; the caller drops the old one."""
        layers, _, capacity, _, heads, head_dim = self._arena.shape
        chosen = KVCache(layers, capacity, len(rows), heads, head_dim, self._arena.device, self._arena.dtype)
        chosen.length = self.length
        if list(rows) == list(range(len(rows))):  # the first rows, as when an unconditional branch stops: one copy
            chosen._arena[:, :, : self.length] = self._arena[:, :, : self.length, : len(rows)]
            return chosen
        index = torch.as_tensor(rows, device=self._arena.device)
        for layer in range(layers):  # layer by layer: the copy's temporary stays small
            for kind in range(2):
                torch.index_select(
                    self._arena[layer, kind, : self.length], 1, index, out=chosen._arena[layer, kind, : self.length]
                )
        return chosen

    @staticmethod
    def size_in_bytes(layers: int, capacity: int, rows: int, width: int, element_size: int = 4) -> int:
        return layers * 2 * capacity * rows * width * element_size
