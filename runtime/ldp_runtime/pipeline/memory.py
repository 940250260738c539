"""Memory that a run will need, predicted before anything is allocated."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from ldp_runtime.arguments import number, shown
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.engines.cache_plan import CachePlan, ModelShape
from ldp_runtime.engines.torch_compiled.fused.text import padded
from ldp_runtime.errors import CapacityError, ConfigError
from ldp_runtime.pipeline.activations import decoder_bytes, layer_bytes, sampling_bytes
from ldp_runtime.system.control_groups import memory_left

if TYPE_CHECKING:
    import torch


#: Copies of weights that a backend holds: ONNX Runtime packs matrices once, and reads the rest from mapped files.
_WEIGHT_COPIES = {"onnxruntime": 1.0}
#: Of the others, which pack matrices into a layout of their own.
_OTHER_COPIES = 2.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Upper bounds of the bytes that a pipeline needs on the device of its engines.

    Attributes:
        weights: of the engines that stay in memory.
        text_encoder: of the text encoder; 0 if there is none.
        kv_cache: of all slots and arenas.
        activations: of the widest engine call.
        keeps_text_encoder: False if the text encoder is opened for each text, and leaves memory before the first scale.
    """

    weights: int
    text_encoder: int
    kv_cache: int
    activations: int
    keeps_text_encoder: bool = True

    @property
    def total(self) -> int:
        if self.keeps_text_encoder:
            return self.weights + self.text_encoder + self.kv_cache + self.activations
        return self.weights + self.kv_cache + max(self.text_encoder, self.activations)

    def __str__(self) -> str:
        names = ("weights", "text_encoder", "kv_cache", "activations")
        parts = [f"{name} {_gib(getattr(self, name))}" for name in names if getattr(self, name)]
        released = "" if self.keeps_text_encoder else "; the text encoder leaves memory once texts are encoded"
        return f"{_gib(self.total)} ({', '.join(parts)}{released})"


def cache_plan(manifest: Manifest, shape: ModelShape, max_batch: int, slots: int | None = None) -> CachePlan:
    """Memory of the KV caches for batches of so many images; see `Pipeline.load` for the slots."""
    return CachePlan.of(shape, manifest.schedules(), manifest.scales_alone, max_batch, slots or max_batch)


def estimate_memory(
    manifest: Manifest, max_batch: int, slots: int | None = None, keeps_text_encoder: bool = True
) -> MemoryEstimate:
    """Upper bound for `max_batch` images with guidance, over all aspect ratios of the bundle's size.

    The KV caches are what a pipeline has allocated once every slot and arena has been used. Activations are the greater
    of two: the widest layer of the largest scale with its attention, or the decoder's widest feature maps. The noise
    and the tensors of sampling come on top.
    """
    model, schedules = manifest.model, manifest.schedules()
    tokens, rows = max(max(s.tokens) for s in schedules), 2 * max_batch
    plan = cache_plan(manifest, ModelShape.of(manifest, manifest.has_fused_blocks), max_batch, slots)
    activations = max(
        layer_bytes(model, schedules, rows, manifest.fused_attention), decoder_bytes(model, schedules)
    ) + sampling_bytes(model, schedules, max_batch, manifest.noise)

    def keys_and_values(positions: int) -> int:
        return 2 * model.depth * positions * rows * model.width * plan.shape.element_size

    if manifest.backend.startswith("tensorrt") and manifest.kv_cache == "dynamic":
        # The engines also write the keys and values of the last scale, which are never read, to a buffer.
        activations += keys_and_values(tokens)
    activations += keys_and_values(model.prefix_tokens)
    if manifest.has_fused_blocks:  # CUDA graphs read the text from a fixed buffer; quantized scales have another one
        buffers, length = 1 + len(manifest.quantized), padded(manifest.limits.text_tokens)
        activations += buffers * keys_and_values(length)
    copies = _WEIGHT_COPIES.get(manifest.backend, _OTHER_COPIES)
    encoder = manifest.weight_bytes("text_encoder")
    return MemoryEstimate(
        weights=int(copies * (manifest.weight_bytes() - encoder)),
        text_encoder=int(copies * encoder),
        kv_cache=plan.size,
        activations=activations,
        keeps_text_encoder=keeps_text_encoder,
    )


def available_memory(device: torch.device | str) -> float:
    """Bytes that can still be allocated on the device; on the CPU, no more than its control groups leave."""
    kind = device if isinstance(device, str) else device.type
    if kind == "cuda":
        import torch

        # Memory that PyTorch reserves but does not use, as after closing a pipeline, is free to this process only.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(psutil.virtual_memory().available, memory_left())


def checked_memory(limit: object) -> int | None:
    """Bytes that may be needed; None leaves it to what is free.

    Raises:
        ConfigError: it is no number, or less than nothing.
    """
    if limit is None or limit == math.inf:
        return None if limit is None else sys.maxsize
    if number("memory_limit", limit, hint="in bytes") < 0:
        raise ConfigError(f"memory_limit must not be negative, got {shown(limit)}", hint="in bytes")
    return min(int(number("memory_limit", limit)), sys.maxsize)


def check_rows(manifest: Manifest, max_batch: int) -> None:
    """Raises ConfigError if `max_batch` images with guidance take more rows than the engines allow."""
    most = manifest.limits.rows
    if 2 * max_batch > most:
        raise ConfigError(
            f"max_batch={max_batch} takes {2 * max_batch} rows with guidance; these engines take {most}",
            hint=f"at most {most // 2} images a call; longer requests are drawn in several",
        )


def check_capacity(
    manifest: Manifest, max_batch: int, device: torch.device, memory_limit: int | None, slots: int | None = None
) -> MemoryEstimate:
    """The memory estimate of the first plan that fits: all engines in memory, or the text encoder only for its calls.

    Raises:
        CapacityError: both exceed `memory_limit` (bytes; None: the memory that is available now).
    """
    limit = available_memory(device) if memory_limit is None else memory_limit
    plans = [
        estimate_memory(manifest, max_batch, slots, keeps)
        for keeps in ((True, False) if manifest.has_text_encoder else (True,))
    ]
    for plan in plans:
        if plan.total <= limit:
            return plan
    raise CapacityError(
        f"{manifest.model.name} with max_batch={max_batch} needs up to {plans[-1]} on {device}; "
        f"{_gib(limit)} is allowed",
        hint=_fitting(manifest, max_batch, slots or max_batch, limit),
    )


def _fitting(manifest: Manifest, max_batch: int, slots: int, limit: float) -> str:
    """Hint at the most that fits: the same batch with fewer slots, or a smaller batch."""

    def fits(batch: int, count: int) -> bool:
        return estimate_memory(manifest, batch, count, keeps_text_encoder=False).total <= limit

    fewer = next((count for count in range(slots - 1, 0, -1) if fits(max_batch, count)), 0)
    smaller = next((batch for batch in range(max_batch - 1, 0, -1) if fits(batch, min(batch, slots))), 0)
    found = [*([f"slots={fewer}"] if fewer else []), *([f"max_batch={smaller}"] if smaller else [])]
    return f"{' or '.join(found)} fits" if found else "no batch size fits; use a larger machine or a smaller model"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
