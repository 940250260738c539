"""Engines that PyTorch compiled ahead of time (AOTInductor packages): compiled engines wherever PyTorch runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.out_of_memory import capacity_errors
from ldp_runtime.engines.tensors import check_tensor
from ldp_runtime.engines.torch_compiled.threads import default_torch_threads, torch_threads
from ldp_runtime.errors import ClosedError, IntegrityError, LdpError
from ldp_runtime.numerics import exact_convolutions


class TorchCompiledEngine:
    """Engine of one `.pt2` package. Check its target first (`target.check_target`): loading runs machine code.

    On a GPU its calls are not captured as CUDA graphs. PyTorch 2.11's packages refuse that with their locks; without
    locks (`run_single_threaded`) they broke down on an H200.

    Args:
        graph: inputs and outputs of the package, in the order of its signature.
        threads: threads of a CPU engine's calls; None: see `default_torch_threads`.

    `run` raises ConfigError when a tensor does not fit the signature, and CapacityError when memory runs out.

    Raises:
        IntegrityError: the file is no package that PyTorch can load.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        graph: GraphEntry,
        device: torch.device | str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self._inputs = graph.inputs
        self._outputs = tuple(entry.name for entry in graph.outputs)
        # Read now: between engine calls, the pipeline sets the calling thread's number to one.
        self._threads = (threads or default_torch_threads()) if self.device.type == "cpu" else None
        self._call: Callable[..., Any] | None = _load(name, path, self.device)

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if self._call is None:
            raise ClosedError(f"the engine {self.name!r} is closed", hint="load the bundle again: Pipeline.load(...)")
        arguments = [check_tensor(inputs[entry.name], entry, self.name) for entry in self._inputs]
        with torch_threads(self._threads), exact_convolutions(self.device), named_failures(self.name, inputs):
            results = self._call(*arguments)
            results = (results,) if isinstance(results, torch.Tensor) else results
            for name, result in zip(self._outputs, results, strict=True):
                if name in outputs:
                    outputs[name].copy_(result)

    def close(self) -> None:
        self._call = None


@contextmanager
def named_failures(graph: str, inputs: Mapping[str, torch.Tensor]) -> Generator[None]:
    """Turns PyTorch's errors in a call into a CapacityError, or an LdpError that names the graph and its inputs."""
    try:
        with capacity_errors(f"running the graph {graph!r}"):
            yield
    except (RuntimeError, ValueError) as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in list(inputs.items())[:4]}
        raise LdpError(
            f"the graph {graph!r} failed with inputs {shapes}: {error}",
            hint="ldp-export verify BUNDLE says if the engines are sound on this machine; if so, report it",
        ) from error


def _load(name: str, path: Path, device: torch.device) -> Callable[..., Any]:
    from torch._inductor import aoti_load_package

    try:
        return aoti_load_package(path, device_index=device.index or 0 if device.type == "cuda" else -1)
    except Exception as error:  # the loader raises many types
        text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise IntegrityError(
            f"PyTorch cannot load the compiled graph {name!r} from {path}: {text}", hint="rebuild the bundle here"
        ) from error
