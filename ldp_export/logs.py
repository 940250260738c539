"""Logs of other libraries, silenced where they advise what this toolkit does not need."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def errors_only(*names: str) -> Generator[None]:
    """Raises the level of these loggers for the duration; "" is the root logger."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
