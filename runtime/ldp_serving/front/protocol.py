"""Connections: how many there may be, and how long a request's head may take to arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds in which a request's head must have arrived.
HEAD_S = 10.0

#: Most bytes of a request's head.
MOST_HEAD = 16 * 1024


def limited_protocol(most_connections: int) -> type[H11Protocol]:
    """Protocol of uvicorn that closes connections beyond `most_connections`, and those whose heads are slow."""

    class Limited(H11Protocol):
        _slow: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most_connections:
                transport.abort()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_idle():
                self._await_head()
            elif self._slow is not None:
                self._slow.cancel()
                self._slow = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self._slow is not None:
                self._slow.cancel()
            super().connection_lost(exc)

        def _is_idle(self) -> bool:
            return not self.cycle or self.cycle.response_complete

        def _await_head(self) -> None:
            if self._slow is None and not self.transport.is_closing():
                self._slow = self.loop.call_later(HEAD_S, self._too_slow)

        def _too_slow(self) -> None:
            self._slow = None
            if self._is_idle():
                self.transport.abort()

    return Limited
