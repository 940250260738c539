"""The K/V arena."""

from __future__ import annotations

import pytest
import torch
from ldp_runtime.engines.cache_plan import dynamic_elements
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


ROWS = [[0], [2], [0, 2], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize("rows", ROWS)
def test_kept_rows_move_together_in_place(rows: list[int]) -> None:
    cache, copies = filled(), filled()
    cache.keep_rows(rows)
    assert (cache.rows, cache.length, cache.capacity) == (len(rows), 5, 8)
    assert cache._memory.data_ptr() == cache._arena.data_ptr()
    for layer in range(2):
        for new, old in zip(cache.past()[layer], copies.past()[layer], strict=True):
            assert torch.equal(new, old[:, rows])
            assert new.is_contiguous()
        assert [slot.shape for slot in cache.slots(3)[layer]] == [(3, len(rows), 2, 4)] * 2


@pytest.mark.parametrize("first", [0, 40])
@pytest.mark.parametrize("rows", ROWS)
def test_copied_rows_lie_in_other_memory(rows: list[int], first: int) -> None:
    """Also in memory that others lie before, and with more positions."""
    cache, before = filled(), filled()
    size = dynamic_elements(2, 11, len(rows), 8)
    whole = torch.full((first + size + 7,), -1.0)
    other = DynamicKVCache(2, 11, len(rows), 2, 4, memory=whole[first : first + size])
    cache.copy_rows(rows, other)
    for layer in range(2):
        for new, old in zip(other.past()[layer], before.past()[layer], strict=True):
            assert torch.equal(new, old[:, rows])
        for slot in other.slots(6)[layer]:
            slot.zero_()
    for layer in range(2):
        for mine, old in zip(cache.past()[layer], before.past()[layer], strict=True):
            assert torch.equal(mine, old)
    assert (whole[:first] == -1).all()
    assert (whole[first + size :] == -1).all()


def test_capacity() -> None:
    cache = filled()
    assert cache.slots(3)[0][0].shape[0] == 3
    with pytest.raises(InternalError, match="holds 8 tokens, 9 were asked for"):
        cache.slots(4)


def test_elements() -> None:
    cache = filled()
    assert dynamic_elements(2, 8, 3, 2 * 4) == cache._arena.numel() == cache._memory.numel()
