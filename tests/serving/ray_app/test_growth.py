"""A fleet that grows: another replica is added while requests queue, and takes its share of them."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.fleet import running
from helpers.waiting import HANGS
from ldp_runtime.bundle.files import Bundle

pytestmark = pytest.mark.slow


def test_a_replica_is_added_while_requests_queue(
    small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first one holds its pictures back, so that requests queue until there is a second."""
    assert small_bundle.root is not None
    options = ("--replicas", "1", "--max-replicas", "2", "--threads", "1", "--max-batch", "2")
    with running(small_bundle.root, tmp_path_factory.mktemp("says"), *options) as fleet:

        def drawn(seed: int) -> int:
            body = json.dumps({"prompt": "a red circle", "seed": seed}).encode()
            asked = urllib.request.Request(f"{fleet.url}/v1/images/generations", body)
            asked.add_header("content-type", "application/json")
            with urllib.request.urlopen(asked, timeout=HANGS) as answer:
                return len(json.load(answer)["data"])

        assert len(fleet.replicas()) == 1
        fleet.hold()
        with ThreadPoolExecutor(16) as pool:
            waiting = [pool.submit(drawn, seed) for seed in range(8)]
            fleet.wait(lambda: len(fleet.replicas()) == 2)
            fleet.release()
            assert [future.result(HANGS) for future in waiting] == [1] * 8
            fleet.wait(lambda: all(pool.map(drawn, range(16))) and len(fleet.holders()) == 2)
