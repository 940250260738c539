"""Slots: a fixed number, side by side where asked, at the same addresses ever after."""

from __future__ import annotations

import random
import threading

import pytest
from ldp_runtime.engines.slots import Lease, SlotPool


def pool(limit: int) -> tuple[SlotPool[int], list[int]]:
    """A pool, and the sizes of its allocations so far; the memory of each is its number."""
    sizes: list[int] = []

    def allocate(count: int) -> int:
        sizes.append(count)
        return len(sizes) - 1

    return SlotPool(limit, allocate), sizes


def held(lease: Lease[int] | None) -> Lease[int]:
    assert lease is not None
    return lease


def test_no_more_than_there_are() -> None:
    slots, sizes = pool(3)
    first, second = held(slots.take(1)), held(slots.take(5))
    assert (first.count, second.count, slots.take(1)) == (1, 2, None)
    assert (sizes, slots.taken, slots.allocated) == ([1, 2], 3, 3)
    first.release()
    first.release()  # twice is once
    assert slots.taken == 2
    assert held(slots.take(1)).memory == 0


def test_what_is_forgotten_returns() -> None:
    slots, _ = pool(2)
    lease = slots.take(2)
    assert slots.taken == 2
    del lease
    assert slots.taken == 0


def test_a_lease_may_shrink_and_come_apart() -> None:
    slots, _ = pool(5)
    lease = held(slots.take(5))
    parts = lease.apart([1, 2])
    assert [(part.first, part.count) for part in parts] == [(0, 1), (1, 2)]
    assert (lease.count, slots.taken) == (0, 3)
    parts[1].keep(1)
    assert slots.taken == 2
    assert held(slots.take(5)).first == 2  # the longest run of free ones
    lease.release()
    parts[0].release()
    assert slots.taken == 1


def test_larger_allocations_take_the_place_of_unused_ones() -> None:
    slots, sizes = pool(4)
    single = held(slots.take(1))
    part = held(slots.take(4))
    assert part.count == 3  # one is in use elsewhere
    single.release()
    part.release()
    assert held(slots.take(4)).count == 4
    assert sizes == [1, 3, 4]
    assert slots.allocated == 4


@pytest.mark.parametrize("seed", range(20))
def test_addresses_come_to_rest(seed: int) -> None:
    """Whatever is asked for, an allocation grows a few times at most, and slots in use never overlap."""
    chance, (slots, sizes) = random.Random(seed), pool(6)
    leases: list[Lease[int]] = []
    for _ in range(2000):
        if leases and chance.random() < 0.5:
            leases.pop(chance.randrange(len(leases))).release()
        elif (lease := slots.take(chance.randint(1, 6))) is not None:
            leases.append(lease)
        used = [(lease.memory, lease.first + i) for lease in leases for i in range(lease.count)]
        assert len(used) == len(set(used)) == slots.taken <= slots.allocated <= 6
    assert len(sizes) <= 12


def test_any_thread_may_give_back() -> None:
    slots, _ = pool(8)
    leases = [held(slots.take(1)) for _ in range(8)]
    threads = [threading.Thread(target=lease.release) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slots.taken == 0
    assert held(slots.take(1)).count == 1
