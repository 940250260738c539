"""Service: what the application serves, and the state that it is in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ldp_serving.errors import Draining, Loading
from ldp_serving.front.body import BadRequest
from ldp_serving.front.keys import Keys
from ldp_serving.hooks import Hooks
from ldp_serving.metrics import Metrics
from ldp_serving.model import ServedModel


@dataclass
class Service:
    """Models of an application, and the state that they are in.

    Attributes:
        models: by name, the first is the default; filled once they are warm.
        has_page: people who open the server's address in a browser can draw there.
        send_s: seconds in which a client must read an event.
        failure: why the models could not be loaded, if so.
    """

    metrics: Metrics = field(default_factory=Metrics)
    models: dict[str, ServedModel] = field(default_factory=dict)
    keys: Keys = field(default_factory=Keys)
    hooks: Hooks = field(default_factory=Hooks)
    most_images: int = 10
    cors: Sequence[str] = ()
    log_prompts: bool = False
    has_page: bool = True
    send_s: float = 60.0
    is_loaded: bool = False
    is_draining: bool = False
    failure: BaseException | None = None
    files: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "ldp-files"))

    def add(self, model: ServedModel) -> None:
        self.models[model.name] = model
        self.metrics.follow(model)

    def model(self, name: str | None) -> ServedModel:
        """Model of this name, or the default.

        Raises:
            Loading, Draining: no model is ready.
            BadRequest: there is no such model (status 404).
        """
        if self.is_draining:
            raise Draining("the server is about to stop")
        if not self.is_loaded:
            raise Loading("the server is still loading", retry_s=5.0)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            offered = ", ".join(self.models)
            raise BadRequest(
                f"the model '{name}' is not served here; there is {offered}", "model", "model_not_found", 404
            )
        return self.models[name]

    @property
    def is_healthy(self) -> bool:
        return self.failure is None and (
            self.is_draining or all(model.scheduler.is_alive for model in self.models.values())
        )

    @property
    def is_ready(self) -> bool:
        return self.is_loaded and not self.is_draining and self.is_healthy

    @property
    def is_idle(self) -> bool:
        return all(m.scheduler.waiting + m.scheduler.in_flight == 0 for m in self.models.values())

    def drain(self) -> None:
        """Takes no more requests on."""
        self.is_draining = True
        for model in self.models.values():
            model.scheduler.drain()

    def give_up(self) -> None:
        """Ends what is left; each of its clients is told."""
        for model in self.models.values():
            model.scheduler.close()

    def close(self) -> None:
        """Gives up what is left, and releases the engines."""
        self.drain()
        self.give_up()
        for model in self.models.values():
            model.pipeline.close()
        self.files.shutdown(cancel_futures=True)
