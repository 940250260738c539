"""Silencer for logs of other libraries, where they advise steps that this toolkit does not need."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def errors_only(*names: str) -> Generator[None]:
    """Raises the level of these loggers to ERROR within the context; "" is the root logger."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
