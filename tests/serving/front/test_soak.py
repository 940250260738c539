"""A short soak: mixed requests, cancels, disconnects, slow readers, malformed bodies and garbage, from a seed."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import psutil
import pytest
from helpers.http_server import running
from ldp_runtime import Pipeline

from benchmarks.serving.soak import Soak, draw_alone, footprint


@pytest.mark.parametrize("interleave", ["never", "previews"])
def test_soak(small_pipe: Pipeline, interleave: Any) -> None:
    expected = draw_alone(small_pipe)
    with running(small_pipe, interleave=interleave) as server:
        start_all_file_threads(server)
        soak = Soak(server.server.port, expected, seed=3)
        soak.run(lambda count: count >= 8)  # whatever is allocated once is allocated now
        server.settle()
        before = settled(server)
        soak.run(lambda count: count >= 25)
        server.settle()
        after = settled(server, before["threads"])
    assert not soak.wrong
    assert sum(soak.seen.values()) - soak.seen["refused"] == 4 * (8 + 25)
    assert after["threads"] <= before["threads"]
    assert after["descriptors"] <= before["descriptors"] + 2
    assert after["rss_mib"] <= before["rss_mib"] + 64


def start_all_file_threads(server: Any) -> None:
    """Starts every thread of the pool that makes files: it starts one only when all others are busy, maybe late."""
    pool = server.service.files
    met = threading.Barrier(pool._max_workers)
    for done in [pool.submit(met.wait, 30) for _ in range(pool._max_workers)]:
        done.result()


def settled(server: Any, threads: int | None = None) -> dict[str, int]:
    """Footprint once the connections of clients that left are closed.

    Args:
        threads: number that is waited for: a client's thread may still be ending after it was joined.
    """
    ends = time.monotonic() + 30
    while server.server.server_state.connections and time.monotonic() < ends:
        time.sleep(0.05)
    assert not server.server.server_state.connections
    gc.collect()
    process = psutil.Process()
    while threads is not None and process.num_threads() > threads and time.monotonic() < ends:
        time.sleep(0.05)
    return footprint(process)
