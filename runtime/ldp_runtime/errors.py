"""Errors shown to users: one base class and its subclasses.

Each message says what was found, what was expected, and how to fix it.
"""

from __future__ import annotations

from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """Question for a hint, "did you mean 'ld'? ", if a known name is like the word; else an empty text."""
    import difflib

    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(repr(names[name]) for name in near)}? " if near else ""


class LdpError(Exception):
    """Base class of all errors raised on purpose; `exit_code` is the exit status of the command line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  hint: {hint}")
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """Stable name for programs: the class name."""
        return type(self).__name__


class ConfigError(LdpError, ValueError):
    """A request or option that cannot be served: unknown model, impossible size, bad threshold, empty prompt."""

    exit_code = 2


class CheckpointError(LdpError):
    """A checkpoint that is missing, truncated, or whose keys and shapes are not those of its architecture."""

    exit_code = 3


class ExportError(LdpError):
    """A model that could not be turned into a graph."""

    exit_code = 4


class EngineBuildError(LdpError):
    """A graph that could not be turned into an engine, or a build that ran out of disk or memory."""

    exit_code = 5


class VerificationError(LdpError):
    """Engines whose results differ from the reference model by more than the stated tolerance."""

    exit_code = 6


class IncompatibleBundleError(LdpError):
    """A bundle that this machine, these packages or this request cannot run."""

    exit_code = 7


class IntegrityError(LdpError):
    """A bundle whose files are missing, truncated, or not those that were built."""

    exit_code = 8


class CapacityError(LdpError):
    """Not enough memory or disk for a request: predicted before anything is allocated, or noticed during work."""

    exit_code = 9


class NonFiniteError(LdpError):
    """NaN or infinity in an engine's output; the message names the graph and the scale. No image is returned."""

    exit_code = 10


class BudgetError(LdpError):
    """A quality or speed budget that no policy meets; the message names the policy that came closest."""

    exit_code = 11


class HubError(LdpError):
    """A model hub that cannot be reached, refuses access, or lacks the requested files."""

    exit_code = 12


class ClosedError(LdpError):
    """A pipeline that was closed, or engines of one."""

    exit_code = 13


class ForkedError(LdpError):
    """A pipeline that was loaded before the process forked: its engines' threads stay with the parent."""

    exit_code = 14


class InternalError(LdpError):
    """A contract between parts of the toolkit that is broken; no input of a user can cause it."""

    exit_code = 70

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="a defect of ldp-export: please report it, with this message and its traceback")


class Cancelled(LdpError):
    """The caller stopped the run."""

    exit_code = 130
