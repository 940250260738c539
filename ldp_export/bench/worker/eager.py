"""Engine that runs a PyTorch module: for parity tests and as the eager candidate of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ldp_runtime.engines.torch_compiled.threads import torch_threads
from ldp_runtime.errors import InternalError
from torch import nn


class EagerEngine:
    """Runs `module(*inputs) -> tuple` with inputs and outputs in the given order of names.

    Args:
        threads: threads of a call on a CPU; None leaves PyTorch's number on the calling thread, which is one in a
            pipeline.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        input_names: Sequence[str],
        output_names: Sequence[str],
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self._module: nn.Module | None = module.to(self.device)
        self._threads = threads if self.device.type == "cpu" else None
        self._input_names, self._output_names = list(input_names), list(output_names)

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if self._module is None:
            raise InternalError(f"the engine {self.name!r} is closed")
        with torch_threads(self._threads):
            results = self._module(*(inputs[name] for name in self._input_names))
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(self._output_names, results, strict=True):
            if name in outputs:
                outputs[name].copy_(result)

    def close(self) -> None:
        self._module = None
