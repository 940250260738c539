"""How long work reports progress: one small callback, drawn by the command line, ignored by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProgressEvent:
    """A stage that starts, is reused from an earlier build, advances, or has finished.

    Attributes:
        stage: its name; index, count: its place among all stages.
        state: what happened; detail: in words; seconds: since the stage began (when finished).
    """

    stage: str
    index: int
    count: int
    state: Literal["started", "reused", "advanced", "finished"]
    detail: str = ""
    seconds: float = 0.0


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Reports nothing."""
