"""Soak: mixed requests to one pipeline for minutes; memory, threads and open files must stay flat.

    python -m benchmarks.soak BUNDLE --minutes 15

Requests of all kinds take turns: batches, policies, sizes, previews, cancelled and refused ones, from several threads.
The exit status is 1 if a count of the last third exceeds that of the second by more than the allowance.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from ldp_runtime import Pipeline, ScaleEvent
from ldp_runtime.errors import LdpError
from ldp_runtime.pipeline.request import sizes

#: Growth from the middle third to the last that is no leak: allocators and caches are never quite still.
ALLOWED_MB = 16.0
POLICIES = (
    None,
    "none",
    "ld",
    "ld-paper",
    "none:stop=2",
    "top-k:score=random",
    "top-p:score=variance,then=reuse,stop=first",
)


@dataclass(frozen=True)
class Counts:
    """What the process holds: resident memory (MB), threads, open files."""

    seconds: float
    memory_mb: float
    threads: int
    files: int


def counts(started: float) -> Counts:
    process = psutil.Process()
    gc.collect()
    files = process.num_fds() if os.name == "posix" else len(process.open_files())
    return Counts(time.monotonic() - started, process.memory_info().rss / 1e6, process.num_threads(), files)


def request(pipe: Pipeline, rng: random.Random) -> dict[str, Any]:
    """A request that may be served or refused."""
    count = rng.randint(1, pipe.max_batch + 2)
    given: dict[str, Any] = {"seed": rng.getrandbits(64), "policy": rng.choice(POLICIES)}
    if pipe.manifest.model.reads_text:
        words = ("a red circle", "a large blue star to the left of a green square", "two yellow rings", "")
        given["prompt"] = [rng.choice(words[: 3 + (rng.random() < 0.05)]) for _ in range(count)]
        given["negative_prompt"] = rng.choice((None, "", "green"))
    else:
        given["class_labels"] = [rng.randrange(pipe.manifest.model.classes) for _ in range(count)]
    drawn = rng.choice(sizes(pipe.manifest))
    given |= {"height": drawn[0], "width": drawn[1], "guidance_scale": rng.choice((1.0, 3.0, 1e38, float("nan")))}
    return given | {"output_type": rng.choice(("pil", "numpy", "torch", "latent"))}


def watcher(rng: random.Random) -> Callable[[ScaleEvent], bool | None] | None:
    """A callback that previews, stops or fails, or none."""
    kind, scale = rng.randrange(5), rng.randrange(6)

    def watch(event: ScaleEvent) -> bool | None:
        if event.scale != scale or kind > 2:
            return None
        if kind == 0:
            event.preview()
            return None
        if kind == 1:
            return False
        raise ZeroDivisionError("the caller's own")

    return None if kind == 4 else watch


def draw_until(end: float, pipe: Pipeline, seed: int, outcomes: Counter[str]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < end:
        try:
            pipe(**request(pipe, rng), callback_on_scale=watcher(rng))
            outcomes["drawn"] += 1
        except (LdpError, ZeroDivisionError) as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            outcomes[f"untyped {type(error).__name__}: {error}"] += 1


def soak(bundle: Path, minutes: float, workers: int) -> tuple[list[Counts], Counter[str]]:
    """Counts over time, every few seconds, and outcomes of the requests."""
    outcomes: Counter[str] = Counter()
    with Pipeline.load(bundle, threads=1, max_batch=2) as pipe:
        started = time.monotonic()
        end = started + 60 * minutes
        threads = [threading.Thread(target=draw_until, args=(end, pipe, i, outcomes)) for i in range(workers)]
        for thread in threads:
            thread.start()
        series = []
        while time.monotonic() < end:
            time.sleep(min(5.0, 2 * minutes))
            series.append(counts(started))
        for thread in threads:
            thread.join()
    return series, outcomes


def growth(series: list[Counts]) -> dict[str, float]:
    """Growth of the largest value from the middle third of the time to the last."""
    third = max(1, len(series) // 3)
    middle, last = series[-2 * third : -third] or series[:1], series[-third:]
    names = ("memory_mb", "threads", "files")
    return {name: max(getattr(c, name) for c in last) - max(getattr(c, name) for c in middle) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--workers", type=int, default=3, help="threads that send requests")
    parser.add_argument("--output", type=Path, help="counts over time, as JSON")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    series, outcomes = soak(options.bundle, options.minutes, options.workers)
    grown = growth(series)
    report = {"outcomes": dict(outcomes), "growth": grown, "series": [asdict(each) for each in series]}
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1))
    print(f"{sum(outcomes.values())} requests: {dict(outcomes.most_common())}")
    print(f"from {series[0]} to {series[-1]}; growth from the middle third to the last: {grown}")
    untyped = [what for what in outcomes if what.startswith("untyped")]
    sys.exit(bool(untyped or grown["memory_mb"] > ALLOWED_MB or grown["threads"] > 0 or grown["files"] > 0))


if __name__ == "__main__":
    main()
