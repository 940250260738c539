"""Run of a server: binds, loads, warms up, serves, drains, and ends with status 0."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.errors import ConfigError

from ldp_serving.errors import Draining
from ldp_serving.front.app import create_app
from ldp_serving.front.keys import read_keys
from ldp_serving.front.loading import ModelOptions, load_model
from ldp_serving.front.protocol import MOST_HEAD, limited_protocol
from ldp_serving.front.service import Service
from ldp_serving.hooks import load_hooks
from ldp_serving.model import ServedModel
from ldp_serving.shadow import ShadowMetrics

logger = logging.getLogger(__name__)

#: Seconds that answers may take to leave once nothing is drawn any more.
_LAST_ANSWERS_S = 5


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """Options of a server; see `ldp-export serve --help`."""

    bundles: Sequence[Path]
    host: str = "127.0.0.1"
    port: int = 8000
    max_connections: int = 512
    drain_s: float = 30.0
    api_key_file: Path | None = None
    insecure: bool = False
    cors_origins: Sequence[str] = ()
    shadow_rate: float = 0.0
    log_prompts: bool = False
    page: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shadow_rate <= 1:
            raise ConfigError(f"--shadow-rate is a share, got {self.shadow_rate:g}", hint="0.01 draws one in a hundred")
        if self.drain_s < 0 or self.max_connections < 1:
            raise ConfigError("--drain and --max-connections count up from nothing", hint="leave them out")
        if not is_loopback(self.host) and self.api_key_file is None and not self.insecure:
            raise ConfigError(
                f"{self.host} can be reached from other machines, and there are no keys",
                hint="name an --api-key-file; or say --insecure if something else guards the server",
            )


def is_loopback(host: str) -> bool:
    """True if only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(options: ServeOptions, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it at once.

    Args:
        ready: is called with the port once everything is loaded and warm.

    Raises:
        ConfigError, LdpError: a bundle cannot be served, the address cannot be bound; see `Pipeline.load`.
    """
    open_bundles(options.bundles)
    service = new_service(options)
    listening = listen(options.host, options.port)
    server = Server(service, listening, options)
    loader = threading.Thread(target=_load, args=(service, options, server, ready), name="ldp-load")
    loader.start()
    try:
        server.run(sockets=[listening])
    finally:
        service.is_draining = True
        loader.join()
        service.close()
    if service.failure is not None:
        raise service.failure


def open_bundles(bundles: Sequence[Path]) -> list[Bundle]:
    """Bundles to be served, of which no engine is opened yet.

    Raises:
        ConfigError, IntegrityError, IncompatibleBundleError: see `open_bundle`; or two are of the same model.
    """
    opened = [open_bundle(path, integrity="sizes") for path in bundles]
    names = [bundle.manifest.model.name for bundle in opened]
    if len(set(names)) < len(names):
        raise ConfigError(f"two bundles are of the same model: {', '.join(names)}", hint="serve them on two ports")
    return opened


def new_service(options: ServeOptions) -> Service:
    """Service of these options, with no model yet."""
    service = Service(
        most_images=options.max_images,
        cors=options.cors_origins,
        log_prompts=options.log_prompts,
        has_page=options.page,
    )
    if options.api_key_file is not None:
        service.keys = read_keys(options.api_key_file)
    if options.hooks is not None:
        service.hooks = load_hooks(options.hooks)
    return service


def add_model(service: Service, options: ServeOptions, bundle: Path | Bundle) -> ServedModel:
    """Loads a bundle, warms it up, starts its scheduler, and lets the service offer it."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    counts = ShadowMetrics(service.metrics, opened.manifest.model.name, options.shadow_rate)

    def go_on() -> None:
        if service.is_draining:
            raise Draining("the server stopped while it was loading")

    model = load_model(opened, options, counts, on_picture=go_on, quote_prompts=options.log_prompts)
    counts.scheduler = model.scheduler
    service.add(model)
    return model


def _load(service: Service, options: ServeOptions, server: Server, ready: Callable[[int], None]) -> None:
    try:
        for path in options.bundles:
            started = time.monotonic()
            model = add_model(service, options, path)
            limits = model.scheduler.limits
            logger.info(
                "%s is loaded and warm after %.1f s: %.3f s a picture, up to %d in flight",
                model.name, time.monotonic() - started, model.scheduler.rates.picture_s, limits.max_in_flight,
            )  # fmt: skip
        service.is_loaded = True
        ready(server.port)
    except Draining:
        return
    except BaseException as error:
        service.failure = error
        server.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. The kernel closes connections whose client reads nothing for a minute.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", hint="another --port"
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    return listening


class Server(uvicorn.Server):
    """Uvicorn that drains on a signal: it is not ready at once, and ends when nothing runs or the time is over."""

    def __init__(self, service: Service, listening: socket.socket, options: ServeOptions) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=limited_protocol(options.max_connections),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MOST_HEAD,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
            )
        )
        self.port: int = listening.getsockname()[1]
        self._service, self._drain_s = service, options.drain_s
        self._drains: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Drains on SIGTERM and SIGINT, where signals can be caught; the process then ends with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining:
            self.should_exit = self.force_exit = True
        self._service.is_draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("listening on port %d, loading", self.port)

    async def on_tick(self, counter: int) -> bool:
        if self._service.is_draining and self._drains is None:
            self._drains = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """Takes nothing on, waits until nothing runs or the time is over, then ends."""
        logger.info("draining for up to %g s", self._drain_s)
        await asyncio.to_thread(self._service.drain)
        ends = time.monotonic() + self._drain_s
        while not self._service.is_idle and time.monotonic() < ends:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.give_up)
        self.should_exit = True
