"""Replicas: throughput on Ray Serve of one replica against two, on the same arrivals.

Arrangements are compared in rounds: each round starts every one anew, in another order, and sends it the same
arrivals (Poisson, from a seed), more than any of them can draw, so that what is completed a second is what they can.
What does not fit their queues is refused at once. `one` has one replica of one thread, `two` two of one thread, `wide`
one replica whose engine has the threads of both. The client, Ray's proxy and the gate run on the same processors.

    python -m benchmarks.serving.replicas BUNDLE --output benchmarks/results/serving-replicas-cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.load import arrivals, ask, quantiles, send
from benchmarks.serving.soak import await_ready
from ldp_export.bench.hardware import hardware, software
from ldp_export.versions import installed

ARRANGEMENTS = {
    "one": ("--replicas", "1", "--threads", "1"),
    "two": ("--replicas", "2", "--threads", "1"),
    "wide": ("--replicas", "1", "--threads", "2"),
}
#: Pairs whose rates are compared.
RATIOS = (("two", "one"), ("wide", "one"), ("two", "wide"))
#: Options that every arrangement has.
OPTIONS = ("--policy", "ld", "--previews", "0", "--max-queue", "16")


@contextmanager
def fleet(bundle: Path, port: int, options: tuple[str, ...]) -> Generator[psutil.Process]:
    """First process of a fleet that is warm; it is gone afterwards."""
    command = [sys.executable, "-m", "ldp_export", "serve", str(bundle), "--ray", "--port", str(port)]
    process = subprocess.Popen([*command, *OPTIONS, *options], stderr=subprocess.DEVNULL)
    try:
        await_ready(port, process)
        for number in range(4):
            ask(port, number, None, 0)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=180)


def idle(port: int, count: int = 9) -> float:
    """Median seconds of pictures that are drawn one after another."""
    return statistics.median(ask(port, number, None, 0).total_s for number in range(count))


def spent(fleet: psutil.Process) -> float:
    """Processor seconds of a fleet, Ray's own processes among them."""
    return sum(sum(process.cpu_times()[:2]) for process in (fleet, *fleet.children(recursive=True)))


def measured(fleet: psutil.Process, port: int, times: list[float]) -> dict[str, Any]:
    """Figures of one arrangement on these arrivals."""
    load, before, started = hardware()["load_average"], spent(fleet), time.perf_counter()
    answers = send(port, times, None, 0)
    seconds = time.perf_counter() - started
    done = sorted(answer.total_s for answer in answers if answer.status == 200)
    return {
        "completed": len(done),
        "seconds": seconds,
        "completed_per_s": len(done) / seconds,
        "processor_s": spent(fleet) - before,
        "statuses": dict(Counter(str(answer.status) for answer in answers)),
        "total_s": quantiles(done),
        "load_average_before": load,
    }


def ratios(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of the rates within each round: the median, the least and the most."""
    found: dict[str, Any] = {}
    for one, other in RATIOS:
        paired = [entry[one]["completed_per_s"] / entry[other]["completed_per_s"] for entry in rounds]
        found[f"{one}/{other}"] = {"median": statistics.median(paired), "least": min(paired), "most": max(paired)}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, each time")
    parser.add_argument(
        "--offered", type=float, default=4.0, help="arrivals while one picture is drawn by an idle replica"
    )
    parser.add_argument("--port", type=int, default=8457)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    result: dict[str, Any] = {"bundle": given.bundle.name, "arrangements": ARRANGEMENTS, "options": OPTIONS}
    result |= {"hardware": hardware(), "software": software() | installed(("ray",)), "arrivals_s": given.seconds}
    with fleet(given.bundle, given.port, ARRANGEMENTS["one"]):
        result["idle_p50_s"] = idle(given.port)
    result["offered_per_s"] = given.offered / result["idle_p50_s"]
    rounds: list[dict[str, Any]] = []
    names = list(ARRANGEMENTS)
    for number in range(given.rounds):
        entry: dict[str, Any] = {}
        times = arrivals(result["offered_per_s"], given.seconds, seed=number)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with fleet(given.bundle, given.port, ARRANGEMENTS[name]) as running:
                entry[name] = measured(running, given.port, times)
            print(number, name, json.dumps(entry[name]), flush=True)
        rounds.append(entry)
    result |= {"ratios": ratios(rounds), "rounds": rounds}
    print(json.dumps(result["ratios"], indent=1))
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
