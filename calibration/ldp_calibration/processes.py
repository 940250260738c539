"""Work in several processes: small models keep the cores busier with an engine each than one engine on all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ldp_runtime.errors import CapacityError


def in_processes(
    workers: int,
    begin: Callable[..., None],
    begun_with: tuple[Any, ...],
    work: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
) -> Iterator[Any]:
    """Results of `work` on each task, in the order in which they are done.

    Args:
        workers: number of processes. They end with this one, however it ends.
        begin: called once in each process, with `begun_with`.

    Raises:
        CapacityError: a process was killed, as a system without memory does.
        Exception: the first that `work` raises; tasks that are not begun are left out.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (begin, begun_with))
    try:
        for future in as_completed([pool.submit(work, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise CapacityError(
            "a process that draws was killed", hint="use fewer processes, or give more memory; run again: it resumes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None], begun_with: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*begun_with)


def _end_with_parent() -> None:
    """Ends this process once its parent has ended: a pool's processes wait for tasks of a killed parent for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
