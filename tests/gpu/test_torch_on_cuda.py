"""What lies between engine calls, on CUDA tensors; needs nothing but PyTorch."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import RAW_LOGITS, Golden
from ldp_runtime.engines.blocks import Blocks, BlocksChunk, PromptRows
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.engines.tensorrt.addresses import Addresses
from ldp_runtime.engines.tensorrt.bindings import Binding
from ldp_runtime.engines.tensorrt.library import ALIGNMENT
from ldp_runtime.numerics import FiniteWatch
from ldp_runtime.schedule import rope_table

from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.graphs.infinity import InfinityBlocksGraph


def two_scales(golden: Golden, device: str) -> list[torch.Tensor]:
    """Logits of the first three scales, with keys and values kept in an arena on `device`."""
    config, schedule = golden.transformer.config, golden.schedule
    graph = InfinityBlocksGraph(golden.transformer)
    signature = graph.signature
    engine = EagerEngine("blocks", graph, signature.input_names, signature.output_names, device)
    shape = ModelShape(config.depth, config.width, config.heads, 2 * config.bits)
    blocks = Blocks([BlocksChunk(engine, 0, config.depth, frozenset(signature.input_names))], shape)
    generator = torch.Generator().manual_seed(0)

    def draw(*sides: int) -> torch.Tensor:
        return torch.randn(sides, generator=generator).to(device)

    R, T, H, c = 2, 5, config.heads, config.head_dim
    inputs = {"modulation": draw(R, 6, config.width), "head_modulation": draw(R, 2, config.width)}
    inputs["text_mask"] = torch.ones(R, T, dtype=torch.bool, device=device)
    for i in range(config.depth):
        inputs |= {f"text_k_{i}": draw(R, H, T, c), f"text_v_{i}": draw(R, H, T, c)}
    prompt = PromptRows(draw(R, config.width), inputs)
    cache = DynamicKVCache(config.depth, schedule.offsets[3], R, H, c, device)
    table = rope_table(schedule, c)
    logits = []
    for k in range(3):
        places = {"cos": table[k][0].to(device), "sin": table[k][1].to(device)}
        latents = draw(R, schedule.tokens[k], config.bits)
        logits.append(
            blocks.run(latents, draw(R, config.width), places, prompt, cache, scale=k, watch=FiniteWatch()).cpu()
        )
    blocks.close()
    return logits


def test_blocks_on_cuda_are_blocks_on_the_cpu(golden_2b: Golden) -> None:
    pairs = zip(two_scales(golden_2b, "cuda"), two_scales(golden_2b, "cpu"), strict=True)
    for on_gpu, on_cpu in pairs:
        torch.testing.assert_close(on_gpu, on_cpu, atol=5 * RAW_LOGITS, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arena_binds_by_pointer(dtype: torch.dtype) -> None:
    """Widths are multiples of 128, so every position of the arena is aligned for an engine."""
    cache = DynamicKVCache(layers=2, capacity=30, rows=2, heads=2, head_dim=64, device="cuda", dtype=dtype)
    for tokens in (1, 4, 9):
        for layer in range(2):
            for slot in cache.slots(tokens)[layer]:
                assert slot.data_ptr() % ALIGNMENT == 0
                assert slot.is_contiguous()
        cache.advance(tokens)


def test_places_copy_on_the_device() -> None:
    memory: dict[str, torch.Tensor] = {}

    def give(purpose: str, size: int) -> torch.Tensor:
        return memory.setdefault(purpose, torch.zeros(max(1, size), dtype=torch.uint8, device="cuda"))

    given = torch.arange(64, dtype=torch.float32, device="cuda")[3:]  # 12 bytes off
    place = torch.zeros(64, device="cuda")[1:]
    a = Binding("a", (61,), 4, given.data_ptr())
    b = Binding("b", (63,), 4, place.data_ptr())
    places = Addresses([a, b], {"a": given}, {"b": place}, captured=False, memory=give)
    assert places.address(a) % ALIGNMENT == places.address(b) % ALIGNMENT == 0
    places._back[0][1].fill_(5)
    places.copy_back()
    assert bool((place == 5).all())
