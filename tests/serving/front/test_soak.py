"""A short soak: mixed requests, cancels, disconnects, slow readers, malformed bodies and garbage, from a seed."""

from __future__ import annotations

import gc
import time
from typing import Any

import psutil
import pytest
from helpers.http_server import running
from ldp_runtime import Pipeline

from benchmarks.serving.soak import Soak, draw_alone, footprint


@pytest.mark.parametrize("interleave", ["never", "early"])
def test_soak(small_pipe: Pipeline, interleave: Any) -> None:
    expected = draw_alone(small_pipe)
    with running(small_pipe, interleave=interleave) as server:
        soak = Soak(server.server.port, expected, seed=3)
        soak.run(lambda count: count >= 8)  # whatever is allocated once is allocated now
        server.settle()
        before = settled(server)
        soak.run(lambda count: count >= 25)
        server.settle()
        after = settled(server)
    assert not soak.wrong
    assert sum(soak.seen.values()) - soak.seen["refused"] == 4 * (8 + 25)
    assert after["threads"] <= before["threads"]
    assert after["descriptors"] <= before["descriptors"] + 2
    assert after["rss_mib"] <= before["rss_mib"] + 64


def settled(server: Any) -> dict[str, int]:
    """Footprint once the connections of clients that left are closed."""
    ends = time.monotonic() + 30
    while server.server.server_state.connections and time.monotonic() < ends:
        time.sleep(0.05)
    assert not server.server.server_state.connections
    gc.collect()
    return footprint(psutil.Process())
