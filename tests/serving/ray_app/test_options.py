"""Arguments of a fleet: texts of `serve run` become the options of the server; wrong ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from ldp_runtime.errors import ConfigError
from ldp_serving.front.run import ServeOptions
from ldp_serving.ray_app.options import FleetOptions, read_arguments


def test_texts_become_options() -> None:
    options, fleet = read_arguments(
        {"bundles": "a,b", "replicas": "2", "max-replicas": "4", "max_queue": "9", "max_images": "3"}
        | {"allow_policy": "none ld:rho=0.9,skip_last=1", "timeout": "2.5", "log_prompts": "true"}
    )
    assert options == ServeOptions(
        [Path("a"), Path("b")], max_queue=9, max_images=3, timeout_s=2.5, log_prompts=True,
        allow_policy=["none", "ld:rho=0.9,skip_last=1"],
    )  # fmt: skip
    assert fleet == FleetOptions(2, 4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "nothing to serve"),
        ({"bundles": "a", "polcy": "ld"}, "polcy"),
        ({"bundles": "a", "replicas": "two"}, "replicas"),
        ({"bundles": "a", "replicas": "0"}, "replicas"),
        ({"bundles": "a", "replicas": 3, "max_replicas": 2}, "max-replicas"),
        ({"bundles": "a", "max_queue": "0"}, "max_queue"),
        ({"bundles": "a", "host": "0.0.0.0"}, "keys"),
        ({"bundles": "a", "interleave": "always"}, "interleave"),
        ({"bundles": "a", "health_check_s": 0}, "health_check_s"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_arguments(arguments)


def test_replicas_share_the_cores() -> None:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    assert FleetOptions(1).threads(ServeOptions([])) == cores
    assert FleetOptions(1, cores).threads(ServeOptions([])) == 1
    assert FleetOptions(1, 8 * cores).threads(ServeOptions([])) == 1
    assert FleetOptions(2).threads(ServeOptions([], threads=3)) == 3


def test_a_replica_has_its_threads_or_a_gpu_of_its_own() -> None:
    assert FleetOptions(2).resources(ServeOptions([], threads=3)) == {"num_cpus": 3}
    assert FleetOptions(2).resources(ServeOptions([], threads=1, device="cuda")) == {"num_cpus": 1, "num_gpus": 1}
