"""Progress reports of long work: one small callback, drawn by the command line, ignored by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ProgressEvent:
    """Report that a stage starts, is reused from an earlier build, advances, or has finished.

    Attributes:
        stage: name of the stage.
        index: number of the stage among all stages, from 0.
        count: number of all stages.
        state: what happened to the stage.
        detail: the same in more words.
        seconds: time since the stage began, once it has finished.
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
