"""Draws a benchmark with Ray Data: actors with a pipeline each take shards of the prompts from one queue.

    python deploy/ray/draw_shards.py bundles/shapes --benchmark shapes --policy ld --output runs/shapes --actors 2

A shard is that of `ldp-export evaluate generate --shard i/n`, and so is the run: the same pictures and records,
whatever the number of shards and actors. Stopped at any moment it goes on where it was, on Ray or without. An actor
that dies is replaced, and its shard goes on. With RAY_ADDRESS the actors are those of a cluster, whose machines must
all have this package, and the bundle and the run at the same paths.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
from ldp_calibration.evaluation.benchmarks.choose import find_benchmark
from ldp_calibration.evaluation.draw import Painter, Shard, load_engines
from ldp_calibration.evaluation.policies import run_policies
from ldp_calibration.evaluation.run import Run, begin, new_settings
from ldp_runtime.bundle.files import Bundle, open_bundle


class Shards:
    """Actor: a pipeline, loaded once, that draws what is missing of one shard after the other."""

    def __init__(self, run: Run, bundle: Bundle, device: str, threads: int, count: int) -> None:
        self._painter = Painter(run, load_engines(bundle.folder, bundle.manifest.digest, device, threads))
        self._labels = [policy.label for policy in run.settings.policies]
        self._count = count

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        found = self._painter.draw_part(self._labels, Shard(row["item"], self._count))
        return {"shard": row["item"], "drawn": found.pictures, "there": found.there}


def draw(run: Run, bundle: Bundle, *, shards: int, actors: int, threads: int, device: str) -> Iterator[dict[str, Any]]:
    """Draws what a run lacks; says of each shard how many pictures were drawn and how many were there."""
    drawn = ray.data.from_items(list(range(shards)), override_num_blocks=shards).map(
        Shards,
        fn_constructor_args=(run, bundle, device, threads, shards),
        compute=ray.data.ActorPoolStrategy(size=min(actors, shards), max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        num_gpus=1 if device.startswith("cuda") else None,
    )
    yield from drawn.iter_rows()


def start(processors: int) -> None:
    """Joins the cluster that the environment names, or starts one of this machine, without telemetry."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        ray.init(num_cpus=max(processors, os.cpu_count() or 1), include_dashboard=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--policy", action="append", default=[])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=16, help="more than actors, so that none waits long for another")
    parser.add_argument("--actors", type=int, default=1, help="pipelines at a time")
    parser.add_argument("--threads", type=int, default=1, help="processors of an actor")
    parser.add_argument("--device", default="cpu", help="cuda: a GPU for each actor")
    given = parser.parse_args(arguments)
    bundle = open_bundle(given.bundle, "full")
    benchmark = find_benchmark(given.benchmark, bundle.manifest)
    policies = run_policies(given.policy, bundle.root, bundle.manifest, with_null=True)
    own = {"seed": given.seed, "images": given.images, "limit": given.limit, "device": given.device}
    run = begin(given.output.absolute(), new_settings(bundle.manifest, benchmark, policies, **own), benchmark.prompts)
    start(given.actors * given.threads)
    how = {"shards": given.shards, "actors": given.actors, "threads": given.threads, "device": given.device}
    for done in draw(run, bundle, **how):
        print("shard {shard}: {drawn} pictures drawn, {there} were there".format_map(done), flush=True)


if __name__ == "__main__":
    main()
