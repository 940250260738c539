"""Engine that is opened when it is needed, and leaves memory when it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ldp_runtime.engines.base import Engine
from ldp_runtime.errors import ClosedError


class OnDemandEngine:
    """`Engine` that is opened by its next call, and stays until `release`.

    Args:
        opener: opens the engine; called again after each release.
    """

    def __init__(self, name: str, device: torch.device, opener: Callable[[], Engine]) -> None:
        self.name, self.device = name, device
        self._opener: Callable[[], Engine] | None = opener
        self._engine: Engine | None = None

    @property
    def is_open(self) -> bool:
        """True from a call until `release`."""
        return self._engine is not None

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if self._opener is None:
            raise ClosedError(f"the engine {self.name!r} is closed", hint="load the bundle again: Pipeline.load(...)")
        if self._engine is None:
            self._engine = self._opener()
        self._engine.run(inputs, outputs)

    def release(self) -> None:
        """Gives the engine's memory back until the next call."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def close(self) -> None:
        self.release()
        self._opener = None
