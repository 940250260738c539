"""Run of a fleet on this machine, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil
import ray
from ray import serve

from ldp_serving.front.run import ServeOptions, listen
from ldp_serving.ray_app.application import new_application
from ldp_serving.ray_app.options import FleetOptions

#: Name of the application in Ray Serve.
NAME = "ldp"
#: Bytes of Ray's own store on this machine: answers on their way.
_STORE = 256 * 2**20


def serve_on_ray(options: ServeOptions, fleet: FleetOptions, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serves until SIGTERM or SIGINT; what runs then has `--drain` seconds, or less if a second signal comes.

    Args:
        ready: is called with the port once every replica is loaded and warm.

    Raises:
        ConfigError, LdpError: a bundle cannot be served, or the address cannot be bound.
    """
    application = new_application(options, fleet)
    with listen(options.host, options.port) as probe:  # Ray waits long for a port that is taken
        port: int = probe.getsockname()[1]
    _start_ray(options, fleet)
    stop, hurry = threading.Event(), threading.Event()
    # After Ray has started: it sets handlers of its own.
    before = {
        number: signal.signal(number, lambda *_: (hurry if stop.is_set() else stop).set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        serve.start(http_options={"host": options.host, "port": port})
        serve.run(application, name=NAME, route_prefix="/")
        ready(port)
        stop.wait()
        _drain(options.drain_s, hurry)
    finally:
        serve.shutdown()
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(seconds: float, hurry: threading.Event) -> None:
    """Takes nothing on, and waits for what runs: when Ray Serve shuts down, it cuts every connection at once."""
    serve.delete(NAME, _blocking=False)
    ends = time.monotonic() + seconds
    while NAME in serve.status().applications and time.monotonic() < ends and not hurry.wait(0.1):
        pass


def _start_ray(options: ServeOptions, fleet: FleetOptions) -> None:
    """Joins the cluster that the environment names, or starts one of this machine, without telemetry."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
        return
    cpus = max(psutil.cpu_count() or 1, fleet.most * fleet.threads(options))
    ray.init(num_cpus=cpus, object_store_memory=_STORE, include_dashboard=False, log_to_driver=False)
