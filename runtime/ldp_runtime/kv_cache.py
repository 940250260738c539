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

    def past(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values computed so far: of each layer two views [length, rows, heads, head_dim]."""
        return self._positions(0, self.length)

    def slots(self, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Where the next `tokens` positions belong: of each layer two views [tokens, rows, heads, head_dim].

        Raises:
            ConfigError: the cache has no room for them.
        """
        end = self.length + tokens
        if end > self.capacity:
            raise ConfigError(f"the KV cache holds {self.capacity} tokens, {end} were asked for")
        return self._positions(self.length, end)

    def _positions(self, first: int, end: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        # All views in one call: a slice a layer and kind would cost a tenth of a millisecond of every scale.
        views = self._arena[:, :, first:end].flatten(0, 1).unbind(0)
        return list(zip(views[::2], views[1::2], strict=True))

    def counters(self, tokens: int) -> dict[str, torch.Tensor]:
        """What all layers of a call read of the cache beside their past: nothing."""
        return {}

    def reads(self) -> list[dict[str, torch.Tensor]]:
        """Inputs of each layer, by their names."""
        return [{f"past_k_{i}": key, f"past_v_{i}": value} for i, (key, value) in enumerate(self.past())]

    def writes(self, tokens: int, wanted: bool) -> list[dict[str, torch.Tensor]]:
        """Outputs of each layer, by their names; none for a call whose keys and values are not wanted later."""
        if not wanted:
            return [{}] * self._arena.shape[0]
        return [{f"new_k_{i}": key, f"new_v_{i}": value} for i, (key, value) in enumerate(self.slots(tokens))]

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
