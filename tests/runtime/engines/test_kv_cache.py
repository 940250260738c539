"""The K/V arena."""

from __future__ import annotations

import pytest
import torch
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.errors import InternalError


def filled(tokens: tuple[int, ...] = (1, 4), rows: int = 3) -> DynamicKVCache:
    """Every stored number differs from every other."""
    cache, counter = DynamicKVCache(layers=2, capacity=8, rows=rows, heads=2, head_dim=4), 0
    for count in tokens:
        for layer in range(2):
            for slot in cache.slots(count)[layer]:
                slot.copy_(torch.arange(counter, counter + slot.numel()).view(slot.shape))
                counter += slot.numel()
        cache.advance(count)
    return cache


def test_prefixes_are_contiguous_views_of_one_arena() -> None:
    cache = filled()
    for layer in range(2):
        for past, slot in zip(cache.past()[layer], cache.slots(3)[layer], strict=True):
            assert past.shape == (5, 3, 2, 4)
            assert past.is_contiguous()
            assert slot.is_contiguous()
            assert slot.data_ptr() == past.data_ptr() + past.numel() * past.element_size()


def test_what_was_written_is_the_past() -> None:
    cache = DynamicKVCache(layers=1, capacity=3, rows=1, heads=1, head_dim=4)
    key, value = cache.slots(2)[0]
    key.fill_(1.0)
    value.fill_(2.0)
    assert cache.past()[0][0].shape[0] == 0  # not before `advance`
    cache.advance(2)
    assert [t.unique().tolist() for t in cache.past()[0]] == [[1.0], [2.0]]


@pytest.mark.parametrize("rows", [[0], [2], [0, 2], [2, 0], [1, 1]])
def test_chosen_rows_keep_their_contents(rows: list[int]) -> None:
    cache = filled()
    chosen = cache.with_rows(rows)
    assert (chosen.rows, chosen.length, chosen.capacity) == (len(rows), 5, 8)
    for layer in range(2):
        for new, old in zip(chosen.past()[layer], cache.past()[layer], strict=True):
            assert torch.equal(new, old[:, rows])
            assert new.is_contiguous()


def test_chosen_rows_are_copies() -> None:
    cache = filled()
    before = cache.past()[0][0].clone()
    cache.with_rows([0]).past()[0][0].zero_()
    assert torch.equal(cache.past()[0][0], before)


def test_capacity() -> None:
    cache = filled()
    assert cache.slots(3)[0][0].shape[0] == 3
    with pytest.raises(InternalError, match="holds 8 tokens, 9 were asked for"):
        cache.slots(4)


def test_size_in_bytes() -> None:
    cache = filled()
    assert DynamicKVCache.size_in_bytes(2, 8, 3, 2 * 4) == cache._arena.numel() * 4
