"""Replica: a process with the application and pipelines of its own, behind Ray's handle."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from typing import Any

from ldp_serving.front.app import create_app
from ldp_serving.front.run import ServeOptions, add_model, new_service
from ldp_serving.ray_app import relay

logger = logging.getLogger(__name__)


class Replica:
    """The server's application, loaded and warm once it is made.

    Raises:
        ConfigError, LdpError: a bundle cannot be served; see `Pipeline.load`.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._service = new_service(options)
        for bundle in options.bundles:
            add_model(self._service, options, bundle)
        self._service.is_loaded = True
        self._app = create_app(self._service)

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Any]:
        """ASGI messages that answer a request."""
        self.check_health()
        async for message in relay.messages(self._app, scope, body):
            yield message

    async def metrics(self) -> str:
        """Page of this replica's metrics."""
        return self._service.metrics.text().decode()

    def check_health(self) -> None:
        """Ends the process once an engine thread has ended, which never comes back.

        Ray starts another replica, and the gate asks again for what waited here: it would wait for ever.
        """
        if not self._service.is_healthy:
            logger.error("an engine thread has ended, and so does this replica")
            os._exit(1)

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close()
