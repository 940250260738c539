"""Application of Ray Serve: a gate, and replicas that grow in number while requests queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray import serve

from ldp_serving.front.run import ServeOptions, new_service, open_bundles
from ldp_serving.model import check_servable
from ldp_serving.ray_app.gate import Gate
from ldp_serving.ray_app.options import FleetOptions, read_arguments
from ldp_serving.ray_app.replica import Replica

#: Requests that Ray hands to one process at a time: more than it ever holds, so that its own queue answers overload.
_MOST_REQUESTS = 10_000


def build(arguments: dict[str, Any]) -> serve.Application:
    """Application of the arguments of `serve run`, named as the options of `ldp-export serve`.

    Raises:
        ConfigError: an argument is unknown or wrong, or a bundle cannot be served.
    """
    return new_application(*read_arguments(arguments))


def new_application(options: ServeOptions, fleet: FleetOptions) -> serve.Application:
    """Application of these options.

    Raises:
        ConfigError, IntegrityError: a bundle cannot be served, or the keys or hooks cannot be read.
    """
    _check(options)
    threads = fleet.threads(options)
    # Replicas may run in other folders, and each has the threads that Ray counts.
    own = replace(options, bundles=[path.absolute() for path in options.bundles], threads=threads)
    replica: Any = serve.deployment(
        Replica,
        ray_actor_options=fleet.resources(options),
        max_ongoing_requests=_MOST_REQUESTS,
        graceful_shutdown_timeout_s=options.drain_s,
        health_check_period_s=fleet.health_check_s,
        **_size(options, fleet),
    )
    gate: Any = serve.deployment(
        Gate,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST_REQUESTS,
        graceful_shutdown_timeout_s=options.drain_s,
    )
    return gate.bind(replica.bind(own))


def _check(options: ServeOptions) -> None:
    """Finds here what each replica would find: its errors arrive as Ray's, after several tries."""
    new_service(options)
    for bundle in open_bundles(options.bundles):
        check_servable(bundle.manifest, bundle.root, (options.policy, *options.allow_policy))


def _size(options: ServeOptions, fleet: FleetOptions) -> dict[str, Any]:
    """Number of replicas, fixed or by the requests that each has: more than a batch of them wait."""
    if fleet.max_replicas is None:
        return {"num_replicas": fleet.replicas}
    scaling = {"min_replicas": fleet.replicas, "initial_replicas": fleet.replicas, "max_replicas": fleet.max_replicas}
    return {"autoscaling_config": scaling | {"target_ongoing_requests": options.max_batch}}
