"""The two forms of the KV cache: the same pictures, bit by bit, from engines that join and that write in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.requests import image
from helpers.samples import random_texts, spec
from helpers.shared import build_shared
from helpers.var_samples import VarGolden
from ldp_runtime import LHEP, SATS, Pipeline, Policy
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.kv_cache import StaticKVCache
from ldp_runtime.errors import ConfigError, InternalError
from ldp_runtime.pipeline.memory import estimate_memory

from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources

PRUNED = Policy(LHEP(0.6), SATS(9.0))


@pytest.fixture(scope="module")
def in_place_bundle(small_bundle: Bundle, small_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model again, one block a graph, beside the stages that do not differ."""
    output = tmp_path_factory.mktemp("in-place") / "bundle"
    shutil.copytree(small_bundle.folder.parents[1], output)
    bundle, report = build_shared(plan_build(spec(), small_sources, BuildOptions(output, chunk=1, kv_cache="static")))
    assert report is not None  # the build has compared it with the reference runs
    return bundle


@pytest.fixture(scope="module")
def in_place(in_place_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(in_place_bundle, threads=1) as pipe:
        yield pipe


@pytest.mark.parametrize("policy", [None, PRUNED], ids=["full", "pruned"])
def test_the_same_pictures(policy: Policy | None, in_place: Pipeline, small_pipe: Pipeline) -> None:
    """Two images, which share calls at first and are apart once they keep different tokens."""
    drawn = [
        pipe(prompt_embeds=random_texts([5, 9]), seed=[1, 2], policy=policy, output_type="latent")
        for pipe in (in_place, small_pipe)
    ]
    assert torch.equal(drawn[0].images, drawn[1].images)
    for trace in drawn[0].traces:
        assert (trace.tokens < trace.tokens_full, trace.stopped_after is not None) == (policy is PRUNED,) * 2
        assert trace.scales[-1].rows == (1 if policy is PRUNED else 2)
    assert drawn[0].traces[0].scales[-1].images_in_call == (1 if policy is PRUNED else 2)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_batches_in_slots(in_place: Pipeline, small_pipe: Pipeline, slots: int) -> None:
    """Images begin in their slots and move apart within them; with fewer slots, some begin later."""
    texts, policies = random_texts([5, 9, 4]), (PRUNED, Policy(), Policy(skip_last=2))
    few = Pipeline(in_place.manifest, engines_of(in_place), None, 3, slots=slots)
    requests = [image(few, prompt_embeds=t, policy=p, seed=3) for t, p in zip(texts, policies, strict=True)]
    drawing = few.start(requests)
    while not drawing.is_done:
        assert drawing.step() is not None
        assert few._memory.slots_taken <= slots
    assert few._memory.slots_taken == 0
    for request, (latent, _) in zip(requests, drawing.results(), strict=True):
        single = small_pipe(prompt_embeds=request.condition.rows, policy=request.policy, seed=3, output_type="latent")  # pyright: ignore
        assert torch.equal(single.images[0], latent)
    expected = estimate_memory(few.manifest, 3, slots).kv_cache
    assert few._memory.size == few._memory.plan.size == expected


def test_the_form_is_in_the_manifest(in_place_bundle: Bundle, small_bundle: Bundle) -> None:
    manifest = in_place_bundle.manifest
    largest = max(manifest.schedule(ratio).total_tokens for ratio in manifest.model.aspect_ratios)
    assert (manifest.kv_cache, manifest.cache_tokens) == ("static", largest)
    assert (small_bundle.manifest.kv_cache, small_bundle.manifest.cache_tokens) == ("dynamic", None)


def test_a_request_beyond_the_cache(in_place: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = in_place.manifest.model.model_copy(update={"size": "0.25M"})
    monkeypatch.setattr(in_place, "manifest", in_place.manifest.model_copy(update={"model": larger}))
    with pytest.raises(ConfigError, match=r"may compute \d+ tokens; the static cache of this bundle holds \d+"):
        in_place(prompt_embeds=random_texts([5])[0])


class TestRefusals:
    def test_torch(self, small_sources: Sources, tmp_path: Path) -> None:
        options = BuildOptions(tmp_path / "bundle", builder=TorchBuilder(), kv_cache="static")
        with pytest.raises(ConfigError, match="the torch backend has no static cache"):
            plan_build(spec(), small_sources, options)

    def test_var(self, tmp_path: Path) -> None:
        sources = VarGolden().sources
        with pytest.raises(ConfigError, match="class-conditional models have no static cache"):
            plan_build(infer_spec(sources), sources, BuildOptions(tmp_path / "bundle", kv_cache="static"))


class TestCache:
    @staticmethod
    def cache() -> StaticKVCache:
        memory = StaticKVCache.allocate(layers=2, capacity=8, rows=4, heads=2, head_dim=4)
        for layer in memory:
            for tensor in layer.values():
                tensor.fill_(torch.nan)  # what an earlier image left
        cache = StaticKVCache(memory, 3)
        for tensors in cache.reads():
            for tensor in tensors.values():
                assert not tensor.any()  # memory with NaN would pass through weights of zero
                tensor.copy_(torch.rand(tensor.shape))
        cache.advance(5)
        return cache

    def test_is_read_where_it_is_written(self) -> None:
        cache = self.cache()
        for wanted in (True, False):
            read, written = cache.reads()[1], cache.writes(3, wanted)[1]
            assert [t.data_ptr() for t in read.values()] == [t.data_ptr() for t in written.values()]
            assert (list(read), list(written)) == (["cache_k_1", "cache_v_1"], ["present_k_1", "present_v_1"])

    def test_counters(self) -> None:
        counters = {name: tensor.tolist() for name, tensor in self.cache().counters(3).items()}
        assert counters == {"written": [5, 5, 5], "lengths": [8, 8, 8]}
        with pytest.raises(InternalError, match="holds 8 tokens, 9 were asked for"):
            self.cache().counters(4)

    @pytest.mark.parametrize("rows", [[0], [0, 1], [2], [0, 2], [1, 2]])
    def test_kept_rows(self, rows: list[int]) -> None:
        cache = self.cache()
        before = [{name: tensor.clone() for name, tensor in layer.items()} for layer in cache.reads()]
        places = [tensor.data_ptr() for tensor in cache.reads()[1].values()]
        cache.keep_rows(rows)
        assert (cache.rows, cache.length, cache.capacity) == (len(rows), 5, 8)
        for layer, old in zip(cache.reads(), before, strict=True):
            for name, tensor in layer.items():
                assert torch.equal(tensor, old[name][rows])
                assert tensor.is_contiguous()
        assert [tensor.data_ptr() for tensor in cache.reads()[1].values()] == places

    def test_images_move_apart_in_place(self) -> None:
        cache = self.cache()
        before = [{name: tensor.clone() for name, tensor in layer.items()} for layer in cache.reads()]
        memory = cache._memory
        halves = [[{k: t[half : half + 2] for k, t in layer.items()} for layer in memory] for half in (0, 2)]
        for part, rows in zip(cache.apart([[1], [0, 2]], halves), ([1], [0, 2]), strict=True):
            assert (part.rows, part.length) == (len(rows), 5)
            for layer, old in zip(part.reads(), before, strict=True):
                for name, tensor in layer.items():
                    assert torch.equal(tensor, old[name][rows])
