"""Load: open-loop arrivals against a server, at shares of the capacity that bisection finds.

Server and client are pinned to processors of their own. Arrivals do not wait for answers (Poisson, from a seed). Each
request asks for three partial images, and has the deadline of the SLO: completion within 4 times, first preview within
1 time the idle median. The same arrivals are sent to a server that lets newcomers wait (`batched`), to one that puts
their early scales between others' late ones, as is the default (`interleaved`), and to one that draws one picture at a
time. Goodput counts completions within the SLO; strict goodput asks for the first preview too.

    python -m benchmarks.serving.load BUNDLE --output benchmarks/results/serving-load-cpu.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.soak import PATH, await_ready, footprint
from ldp_export.bench.hardware import hardware

#: Completion and first preview, in idle medians.
SLO = (4.0, 1.0)
SHARES = (0.5, 0.9, 1.5)
GOODPUTS = ("goodput_per_s", "strict_goodput_per_s")
PARTIAL_IMAGES = 3
PROMPTS = ("a red circle", "two blue stars", "a yellow ring above a green square", "an orange triangle")


@dataclass(frozen=True)
class Answer:
    """One request: its status, and the seconds to its first preview and to its end (None: there was none)."""

    number: int
    status: int
    preview_s: float | None
    total_s: float
    events: int = 0


def ask(port: int, number: int, deadline_s: float | None, partial_images: int = PARTIAL_IMAGES) -> Answer:
    """Sends a request, reads the stream, and times it."""
    body: dict[str, Any] = {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        "stream": True,
        "partial_images": partial_images,
    }
    if deadline_s is not None:
        body["deadline_ms"] = int(1e3 * deadline_s)
    started, preview, completed = time.perf_counter(), None, 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", PATH, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        for line in answer if answer.status == 200 else ():
            if line.startswith(b"event: image_generation.partial") and preview is None:
                preview = time.perf_counter() - started
            completed += line.startswith(b"event: image_generation.completed")
        if answer.status != 200:
            answer.read()
        status = answer.status if answer.status != 200 or completed else 0
        return Answer(number, status, preview, time.perf_counter() - started, completed)
    except (OSError, http.client.HTTPException):
        return Answer(number, 0, preview, time.perf_counter() - started, completed)
    finally:
        connection.close()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival of a Poisson process."""
    generator, times, now = random.Random(seed), list[float](), 0.0
    while (now := now + generator.expovariate(rate)) < seconds:
        times.append(now)
    return times


def send(
    port: int, times: Sequence[float], deadline_s: float | None, partial_images: int = PARTIAL_IMAGES
) -> list[Answer]:
    """Sends a request at each of these times, whether or not others have been answered."""
    answers: list[Answer] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        answer = ask(port, number, deadline_s, partial_images)
        with lock:
            answers.append(answer)

    threads, started = [], time.perf_counter()
    for number, at in enumerate(times):
        time.sleep(max(0.0, at - (time.perf_counter() - started)))
        threads.append(threading.Thread(target=one, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return answers


def summary(answers: Sequence[Answer], times: Sequence[float], seconds: float, idle_s: float) -> dict[str, Any]:
    """Figures of a run."""
    done = [answer for answer in answers if answer.status == 200]
    totals = sorted(answer.total_s for answer in done)
    previews = sorted(answer.preview_s for answer in done if answer.preview_s is not None)
    good = [a for a in done if a.total_s <= SLO[0] * idle_s]
    early = [a for a in done if a.preview_s is not None and a.preview_s <= SLO[1] * idle_s]
    return {
        "offered_per_s": len(times) / seconds,
        "sent": len(times),
        "statuses": dict(Counter(str(answer.status) for answer in answers)),
        "lost": len(times) - len({answer.number for answer in answers}),
        "duplicated": sum(answer.events > 1 for answer in answers),
        "completed_per_s": len(done) / seconds,
        "goodput_per_s": len(good) / seconds,
        "strict_goodput_per_s": len({a.number for a in good} & {a.number for a in early}) / seconds,
        "preview_in_slo_share": len(early) / len(done) if done else None,
        "total_s": quantiles(totals),
        "preview_s": quantiles(previews),
    }


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and 95th percentile of sorted values."""
    if not values:
        return None
    at = min(len(values) - 1, int(0.95 * len(values)))
    return {"mean": statistics.fmean(values), "p50": statistics.median(values), "p95": values[at]}


class Served:
    """A server of its own, on its own processors.

    Args:
        processors: that it may use; the client takes the others.
    """

    def __init__(self, bundle: Path, port: int, processors: Sequence[int], options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "ldp_export", "serve", str(bundle), "--port", str(port)]
        command += ["--threads", str(len(processors)), *options]
        self.port = port
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        psutil.Process(self._process.pid).cpu_affinity(list(processors))

    def __enter__(self) -> Served:
        await_ready(self.port, self._process)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=90)

    def footprint(self) -> dict[str, int]:
        return footprint(psutil.Process(self._process.pid))

    def idle(self, count: int) -> float:
        """Median seconds of pictures that are drawn one after another."""
        for number in range(3):
            ask(self.port, number, None)
        return statistics.median(ask(self.port, number, None).total_s for number in range(count))

    def at(self, rate: float, seconds: float, idle_s: float, seed: int) -> dict[str, Any]:
        """Figures at one rate of arrival."""
        times = arrivals(rate, seconds, seed)
        before = self.footprint()
        figures = summary(send(self.port, times, SLO[0] * idle_s), times, seconds, idle_s)
        return figures | {"before": before, "after": self.footprint()}


def capacity(server: Served, idle_s: float, seconds: float, probes: int) -> float:
    """Highest rate of arrival, by bisection, at which 95 % of requests are completed within the SLO."""
    low, high = 0.3 / idle_s, 2.0 / idle_s
    for probe in range(probes):
        rate = (low + high) / 2
        figures = server.at(rate, seconds, idle_s, seed=1000 + probe)
        fine = figures["goodput_per_s"] >= 0.95 * figures["offered_per_s"]
        low, high = (rate, high) if fine else (low, rate)
        print(f"{rate:.2f}/s: {'held' if fine else 'not held'}", flush=True)
    return low


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each share of the capacity")
    parser.add_argument("--probe-seconds", type=float, default=20.0)
    parser.add_argument("--probes", type=int, default=6)
    parser.add_argument("--port", type=int, default=8456)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rate", type=float, help="capacity that is known already, a second: no bisection")
    options = parser.parse_args(arguments)
    cores = sorted(psutil.Process().cpu_affinity() or range(os.cpu_count() or 1))
    mine, servers = cores[-1:], cores[:-1] or cores
    psutil.Process().cpu_affinity(mine)
    result: dict[str, Any] = {"bundle": options.bundle.name, "server_cores": servers, "client_cores": mine, "slo": SLO}
    result |= {"hardware": hardware(), "seconds": options.seconds, "probes": options.probes}

    def measured(name: str, arguments: Sequence[str]) -> None:
        with Served(options.bundle, options.port, servers, arguments) as server:
            server.idle(3)
            result[name] = {}
            for i, share in enumerate(SHARES):
                result[name][str(share)] = server.at(share * rate, options.seconds, idle_s, seed=i)
                print(name, share, json.dumps(result[name][str(share)]), flush=True)
        good = {kind: [result[name][share][kind] for share in ("1.5", "0.9")] for kind in GOODPUTS}
        result[name]["150_over_90"] = {kind: most / max(some, 1e-9) for kind, (most, some) in good.items()}

    with Served(options.bundle, options.port, servers, ["--interleave", "never"]) as server:
        idle_s = result["idle_p50_s"] = server.idle(12)
        rate = options.rate or capacity(server, idle_s, options.probe_seconds, options.probes)
        result["capacity_per_s"] = rate
    measured("batched", ["--interleave", "never"])
    measured("interleaved", [])
    measured("one_at_a_time", ["--interleave", "never", "--max-batch", "1", "--max-in-flight", "1"])
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
