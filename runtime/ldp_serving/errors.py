"""Refusals: requests that a server does not take on, or gives up, although nothing is wrong with them."""

from __future__ import annotations

from ldp_runtime.errors import LdpError


class Refused(LdpError):
    """A request that is not taken on, or given up.

    Attributes:
        reason: stable name for programs and metrics.
        retry_s: seconds after which another try may succeed; None: the client should not try again.
    """

    reason = "refused"

    def __init__(self, message: str, *, hint: str | None = None, retry_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_s = retry_s


class QueueFull(Refused):
    """More pictures wait than the queue holds, or they would wait longer than the server's time limit."""

    reason = "queue_full"


class DeadlineMissed(Refused):
    """A deadline that is predicted to be missed; no work was done."""

    reason = "deadline"


class TimedOut(Refused):
    """A request that took longer than the server's time limit."""

    reason = "timeout"


class DeadlinePassed(TimedOut):
    """A request whose own deadline passed while it waited or was drawn."""

    reason = "deadline_passed"


class Loading(Refused):
    """The server has not loaded its models yet."""

    reason = "loading"


class Abandoned(Refused):
    """The client went away."""

    reason = "disconnected"


class Draining(Refused):
    """The server is about to stop."""

    reason = "draining"


class ReplicaLost(Refused):
    """The processes that drew a request died."""

    reason = "replica_lost"


class TooMany(Refused):
    """A client that asks more often, or for more at a time, than its key allows."""

    reason = "rate_limited"


class Rejected(LdpError):
    """A prompt or a picture that a hook does not let pass; the message is shown to the client."""


class Forked(LdpError):
    """The process was forked after its models were loaded; engine threads do not survive that."""
