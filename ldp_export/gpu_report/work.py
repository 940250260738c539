"""Work of a step's process that is no verb of the command line: a look at the machine, and pictures with their memory.

The result is one line of JSON on standard output.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psutil
from ldp_runtime.errors import LdpError

#: Seed of all pictures, and what the embedded model draws.
_SEED, _TEXT = 7, "a red circle"
#: Tokens of the random text that a model without a text encoder reads.
_TEXT_TOKENS = 32
#: Policies of pictures; the first prunes nothing.
_POLICIES = ("none", "ld")
#: Seconds between two looks at the memory in use.
_EVERY = 0.01


def main() -> None:
    """Does what the arguments name. An error that has a type is told as a line of JSON."""
    kind, *arguments = sys.argv[1:]
    try:
        result = {"machine": _machine, "draw": _draw}[kind](*arguments)
    except LdpError as error:
        print(json.dumps({"error": {"message": error.message, "hint": error.hint}}))
        sys.exit(error.exit_code)
    print(json.dumps(result))


def _machine() -> dict[str, Any]:
    from ldp_export.inspection.doctor import examine

    return examine().to_json()


def _draw(bundle: str, weights: str, device: str) -> dict[str, Any]:
    """Draws by each policy, cold and then timed."""
    from ldp_runtime import Pipeline
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.pipeline.memory import estimate_memory

    opened, is_random = open_bundle(bundle), weights == "random"
    condition = _condition(opened.manifest.model.given_features(_TEXT_TOKENS) if is_random else None)
    used = _use_of(device)
    before, started = used(), time.perf_counter()
    with _Most(used) as most, Pipeline.load(opened, device=device, max_batch=1) as pipe:
        pipe.warmup()
        load_s = time.perf_counter() - started
        pictures = [_picture(pipe, condition, policy, is_random) for policy in _POLICIES]
        graphs = pipe.cuda_graphs if device.startswith("cuda") else None
    return {
        "pictures": pictures,
        "load_s": load_s,
        "predicted_bytes": estimate_memory(opened.manifest, 1).total,
        "used_bytes": max(0, most.bytes - before),
        "cuda_graphs": None if graphs is None else graphs.captures,
    }


def _condition(shape: tuple[int, int] | None) -> dict[str, Any]:
    """Text, or random features of this shape."""
    if shape is None:
        return {"prompt": _TEXT}
    import torch

    features = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED))
    return {"prompt_embeds": features}


def _picture(pipe: Any, condition: dict[str, Any], policy: str, is_random: bool) -> dict[str, Any]:
    pipe(**condition, seed=_SEED, policy=policy)
    started = time.perf_counter()
    result = pipe(**condition, seed=_SEED, policy=policy)
    seconds, (trace,) = time.perf_counter() - started, result.traces
    return {
        "policy": policy,
        "tokens": trace.tokens,
        "tokens_full": trace.tokens_full,
        "seconds": seconds,
        "png": None if is_random else _png(result.images[0]),
    }


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _use_of(device: str) -> Callable[[], int]:
    """Function that tells the bytes in use: of the whole device (once a context is there), or of this process."""
    if not device.startswith("cuda"):
        return lambda: psutil.Process().memory_info().rss
    import torch

    torch.zeros(1, device=device)

    def used() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    return used


class _Most:
    """Most bytes in use within a scope."""

    def __init__(self, used: Callable[[], int]) -> None:
        self._used, self._over = used, threading.Event()
        self.bytes = used()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            self.bytes = max(self.bytes, self._used())

    def __enter__(self) -> _Most:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bytes = max(self.bytes, self._used())
        self._over.set()
        self._thread.join()
