"""Synthetic checkpoints: random weights under the true key names and in the released file layouts.

They test builds, loaders and latencies at true size when no real checkpoint is available. Such a model draws noise:
it shows shapes, memory and time, but nothing about image quality. Each tensor is created when it is written, so memory
is bounded by the largest tensor, whatever the model's size.
"""

from __future__ import annotations

import json
import re
import zlib
from functools import partial
from pathlib import Path

import torch
from ldp_runtime.errors import ConfigError

from ldp_export.checkpoints.files.writer import TensorSource, write_tensors
from ldp_export.checkpoints.original import original_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.models.registry import NamedModel

SHARD_BYTES = 4 * 2**30


def write_checkpoint(spec: NamedModel, folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> Sources:
    """Writes the transformer and the VAE in float32, as released.

    A transformer larger than one shard is split into shards with an index file.

    Raises:
        ConfigError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    transformer, vae = original_state(spec.transformer), original_state(spec.vae)
    write_tensors(_sources(vae, seed), folder / "vae.safetensors")
    size = sum(4 * tensor.numel() for tensor in transformer.values())
    if size <= shard_bytes:
        path = folder / "transformer.safetensors"
        write_tensors(_sources(transformer, seed), path)
    else:
        path = folder / "transformer"
        write_shards(transformer, path, seed, shard_bytes)
    return Sources(path, folder / "vae.safetensors")


def _sources(state: dict[str, torch.Tensor], seed: int) -> list[TensorSource]:
    """Tensors to be written: random values for those on the meta device, the others unchanged."""
    return [
        TensorSource(name, tuple(like.shape), like.dtype, partial(_values, name, like, seed))
        for name, like in state.items()
    ]


def _values(name: str, like: torch.Tensor, seed: int) -> torch.Tensor:
    """Values of a tensor; they depend only on the seed and on the tensor's name and shape."""
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    if name.endswith("lfq.mask"):
        return 2 ** torch.arange(like.numel() - 1, -1, -1, dtype=torch.int64)
    if not like.is_meta:
        return like
    if name.endswith(("zero_k_bias", "attn_bias_for_masking", "ema_vocab_hit_SV")):
        return torch.zeros(like.shape)
    if name.endswith("scale_mul_1H11"):
        return torch.full(like.shape, 1.4)
    if re.search(r"(norm(\d|_out)?(\.norm)?|ln_wo_grad|in_ln)\.weight$", name):
        return torch.randn(like.shape, generator=generator).mul_(0.1).add_(1)
    # Biases and other vectors are small; matrices are scaled so that activations keep their size.
    spread = 0.02 if like.dim() < 2 else like[0].numel() ** -0.5
    return torch.randn(like.shape, generator=generator).mul_(spread)


def write_shards(state: dict[str, torch.Tensor], folder: Path, seed: int, shard_bytes: int) -> None:
    """Writes `model-0000i-of-0000n.safetensors` and the index file in the layout of the hub's libraries.

    Args:
        state: tensors by name; those on the meta device get random values of their shape.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        size = 4 * tensor.numel()
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    folder.mkdir(exist_ok=True)
    shard_of: dict[str, str] = {}
    for i, names in enumerate(groups, start=1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(_sources({name: state[name] for name in names}, seed), folder / file)
        shard_of |= dict.fromkeys(names, file)
    total = sum(4 * tensor.numel() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
