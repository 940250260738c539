"""Model of Triton's Python backend: draws with the bundle that lies beside it.

`ldp-export package triton` copies this file into a model repository as it is. It needs `ldp_runtime` and `ldp_serving`.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]
from ldp_runtime.bundle.files import open_bundle

from ldp_serving.front.loading import load_model
from ldp_serving.hooks import Hooks, load_hooks
from ldp_serving.triton.answering import Answering
from ldp_serving.triton.counts import COUNTERS, Counts
from ldp_serving.triton.repository import BUNDLE
from ldp_serving.triton.settings import to_options


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle, warms it up and starts its scheduler; an error stops Triton from loading the model."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        options = to_options({name: entry["string_value"] for name, entry in parameters.items()}, device)
        self._counts = Counts()
        self._metrics = _metrics({"model": args["model_name"], "version": args["model_version"]})
        opened = open_bundle(Path(args["model_repository"], args["model_version"], BUNDLE))
        model = load_model(opened, options, self._counts, args["model_name"])
        hooks = Hooks() if options.hooks is None else load_hooks(options.hooks)
        self._answering = Answering(model, hooks, options.max_images, self._report)

    def execute(self, requests: list[Any]) -> None:
        """Takes requests on and returns; the responses follow as pictures are drawn."""
        for request in requests:
            tensors = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
            parameters = json.loads(request.parameters() or "{}")
            self._answering.take(tensors, parameters, _Reply(request.get_response_sender()))

    def finalize(self) -> None:
        """Gives up what is left, and releases the engines."""
        self._answering.close()

    def _report(self) -> None:
        for name, count in self._counts.take().items():
            self._metrics[name][1].increment(count)


class _Reply:
    """Responses through the sender of one request.

    Triton crashes if a sender is asked anything once its last response is on its way, so each waits for the other.
    """

    def __init__(self, sender: Any) -> None:
        self._sender, self._used = sender, threading.Lock()

    def send(self, fields: str, file: bytes, last: bool) -> None:
        tensors = [
            pb_utils.Tensor("event", np.array([fields.encode()], np.object_)),
            pb_utils.Tensor("image", np.array([file], np.object_)),
        ]
        self._send(pb_utils.InferenceResponse(tensors), last)

    def fail(self, message: str, status: int) -> None:
        self._send(pb_utils.InferenceResponse([], pb_utils.TritonError(message, _code(status))), last=True)

    def is_cancelled(self) -> bool:
        if not self._used.acquire(blocking=False):
            return False  # a response is being sent; whoever asks asks again
        try:
            return self._sender is not None and self._sender.is_cancelled()
        finally:
            self._used.release()

    def _send(self, response: Any, last: bool) -> None:
        with self._used:
            sender = self._sender
            if last:
                self._sender = None
            if sender is not None:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


def _code(status: int) -> Any:
    """Triton's code of an HTTP status."""
    error = pb_utils.TritonError
    codes = {404: error.NOT_FOUND, 429: error.UNAVAILABLE, 499: error.CANCELLED}
    codes |= {500: error.INTERNAL, 503: error.UNAVAILABLE, 504: error.UNAVAILABLE}
    return codes.get(status, error.INVALID_ARG)


def _metrics(labels: dict[str, str]) -> dict[str, tuple[Any, Any]]:
    """Triton's metrics by their names, each with the family that keeps it."""
    families = {
        name: pb_utils.MetricFamily(name=name, description=words, kind=pb_utils.MetricFamily.COUNTER)
        for name, words in COUNTERS.items()
    }
    return {name: (family, family.Metric(labels=labels)) for name, family in families.items()}
