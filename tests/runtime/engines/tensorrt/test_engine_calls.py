"""What is bound where, which calls are captured, which engines are refused: all of it without a GPU."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import CURRENT, MANIFEST, Bundle
from ldp_runtime.bundle.manifest import Manifest, TargetEntry, TensorEntry
from ldp_runtime.engines.graph_cache import PATIENCE, GraphCache, full_scales
from ldp_runtime.engines.hardware import check_capability, require_gpu
from ldp_runtime.engines.tensorrt.addresses import Addresses
from ldp_runtime.engines.tensorrt.bindings import Binding, input_bindings, output_bindings, spare_offsets
from ldp_runtime.engines.tensorrt.engine import check_aliases, check_size, check_target, keep_kernels
from ldp_runtime.engines.tensorrt.library import ALIGNMENT, capability, load_library
from ldp_runtime.engines.tensors import axis_sizes
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError, InternalError
from ldp_runtime.schedule import ScaleSchedule

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

INPUTS = (
    TensorEntry(name="x", shape=("rows", "tokens", 8), dtype="float32"),
    TensorEntry(name="past", shape=("past", "rows", 4), dtype="bfloat16"),
)
OUTPUTS = (
    TensorEntry(name="y", shape=("rows", "tokens", 2), dtype="float32"),
    TensorEntry(name="new", shape=("tokens", "rows", 4), dtype="bfloat16"),
)


def inputs(rows: int = 2, tokens: int = 3, past: int = 5) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(rows, tokens, 8), "past": torch.zeros(past, rows, 4, dtype=torch.bfloat16)}


class TestBindings:
    def test_sizes_of_a_call(self) -> None:
        assert axis_sizes(INPUTS, inputs(2, 3, 5), "g") == {"rows": 2, "tokens": 3, "past": 5}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("past"), r"misses the inputs \['past'\]"),
            (lambda t: t.update(z=t["x"]), r"does not know \['z'\]"),
            (lambda t: t.update(x=t["x"].double()), r"'x' of 'g' is float64"),
            (lambda t: t.update(x=t["x"][0]), r"'x' of 'g' is float32 \[3, 8\]"),
            (lambda t: t.update(x=torch.zeros(2, 3, 9)), "expected 8"),
            (lambda t: t.update(past=torch.zeros(5, 3, 4, dtype=torch.bfloat16)), "expected 2 for rows"),
            (lambda t: t.update(x=torch.zeros(3, 2, 8).transpose(0, 1)), "not contiguous"),
        ],
    )
    def test_what_is_no_call(self, change: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
        tensors = inputs()
        change(tensors)
        with pytest.raises(InternalError, match=message):
            axis_sizes(INPUTS, tensors, "g")

    def test_addresses_are_the_tensors_own(self) -> None:
        tensors = inputs()
        x, past = input_bindings(INPUTS, tensors)
        assert (x.address, x.size) == (tensors["x"].data_ptr(), 2 * 3 * 8 * 4)
        assert (past.address, past.size) == (tensors["past"].data_ptr(), 5 * 2 * 4 * 2)
        assert input_bindings(INPUTS, inputs(past=0))[1].address == 0  # no past yet: nothing to point at

    def test_outputs_bind_where_they_belong(self) -> None:
        arena = torch.zeros(10, 2, 4, dtype=torch.bfloat16)
        sizes = {"rows": 2, "tokens": 3, "past": 5}
        y, new = output_bindings(OUTPUTS, {"new": arena[5:8]}, sizes, "g")
        assert new.address == arena.data_ptr() + 5 * 2 * 4 * 2
        assert (y.address, y.shape) == (0, (2, 3, 2))  # not wanted: computed all the same, elsewhere

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"z": torch.zeros(1)}, r"has no outputs \['z'\]"),
            ({"y": torch.zeros(2, 4, 2)}, r"is \(2, 3, 2\); its place is \(2, 4, 2\)"),
            ({"y": torch.zeros(2, 3, 2, dtype=torch.float16)}, "is float16"),
        ],
    )
    def test_places_that_do_not_fit(self, given: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(InternalError, match=message):
            output_bindings(OUTPUTS, given, {"rows": 2, "tokens": 3, "past": 5}, "g")

    @given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=12))
    def test_spare_outputs_never_share_memory(self, drawn: list[tuple[int, bool]]) -> None:
        bindings = [Binding(str(i), (size,), 1, 0 if spare else 4096) for i, (size, spare) in enumerate(drawn)]
        offsets, total = spare_offsets(bindings)
        assert set(offsets) == {b.name for b in bindings if b.address == 0}
        ends = 0
        for binding in bindings:
            if binding.name in offsets:
                assert offsets[binding.name] % ALIGNMENT == 0
                assert offsets[binding.name] >= ends
                ends = offsets[binding.name] + binding.size
        assert ends <= total


class TestPlaces:
    """On CPU tensors: the rules are the same wherever the memory lies."""

    @staticmethod
    def memory() -> Callable[[str, int], torch.Tensor]:
        held: dict[str, torch.Tensor] = {}

        def give(purpose: str, size: int) -> torch.Tensor:
            if purpose not in held or held[purpose].numel() < size:
                held[purpose] = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
                held[purpose] = held[purpose][-held[purpose].data_ptr() % ALIGNMENT :]
            return held[purpose]

        return give

    @staticmethod
    def aligned(size: int, shift: int = 0) -> torch.Tensor:
        room = torch.zeros(size + 2 * ALIGNMENT, dtype=torch.uint8)
        start = -room.data_ptr() % ALIGNMENT + shift
        return room[start : start + size]

    def test_aligned_tensors_stay(self) -> None:
        tensor = self.aligned(64)
        binding = Binding("a", (64,), 1, tensor.data_ptr())
        places = Addresses([binding], {"a": tensor}, {}, captured=False, memory=self.memory())
        assert places.address(binding) == tensor.data_ptr()

    def test_others_go_through_an_aligned_copy(self) -> None:
        given, place = self.aligned(64, shift=16).fill_(7), self.aligned(64, shift=32)
        a, b = Binding("a", (64,), 1, given.data_ptr()), Binding("b", (64,), 1, place.data_ptr())
        places = Addresses([a, b], {"a": given}, {"b": place}, captured=False, memory=self.memory())
        assert places.address(a) not in (given.data_ptr(), 0)
        assert places.address(b) not in (place.data_ptr(), 0)
        (kept, copy) = places._back[0]
        assert kept is place
        copy.fill_(9)  # what the engine does
        places.copy_back()
        assert bool((place == 9).all())

    def test_inputs_of_captured_calls_have_constant_addresses(self) -> None:
        memory, seen = self.memory(), set()
        for value in range(3):
            given = torch.full((5, 3), float(value))
            binding = Binding("a", (5, 3), 4, given.data_ptr())
            places = Addresses([binding], {"a": given}, {}, captured=True, memory=memory)
            seen.add(places.address(binding))
            content = memory("the input 'a' of captured calls", 1)[: binding.size].view(torch.float32)
            assert torch.equal(content.view(5, 3), given)
        assert len(seen) == 1

    def test_what_is_written_in_place_stays_in_place(self) -> None:
        """However small, and in captured calls too: a copy would be read by the one and written by the other."""
        cache = self.aligned(64)
        both = [Binding(name, (64,), 1, cache.data_ptr()) for name in ("cache_k_0", "present_k_0")]
        places = Addresses(both, {"cache_k_0": cache}, {"present_k_0": cache}, captured=True, memory=self.memory())
        assert {places.address(binding) for binding in both} == {cache.data_ptr()}
        shifted = self.aligned(64, shift=16)
        both = [Binding(name, (64,), 1, shifted.data_ptr()) for name in ("cache_k_0", "present_k_0")]
        with pytest.raises(InternalError, match=f"'cache_k_0' is written in place.*no multiple of {ALIGNMENT}"):
            Addresses(both, {"cache_k_0": shifted}, {"present_k_0": shifted}, captured=False, memory=self.memory())

    def test_nothing_is_bound_to_null(self) -> None:
        bound = [Binding("empty", (0, 4), 4, 0), Binding("unwanted", (8,), 4, 0)]
        places = Addresses(bound, {}, {}, captured=False, memory=self.memory())
        addresses = [places.address(binding) for binding in bound]
        assert 0 not in addresses
        assert len(set(addresses)) == 2


@pytest.mark.parametrize(
    ("aliases", "wrong"),
    [
        ({"present_k_0": "cache_k_0", "present_v_0": "cache_v_0"}, None),
        ({"present_k_0": "cache_k_0"}, "present_v_0 shares the memory of None instead of cache_v_0"),
        (
            {"present_k_0": "cache_v_0", "present_v_0": "cache_k_0"},
            "present_k_0 shares the memory of cache_v_0 instead",
        ),
        ({"logits": "x", "present_k_0": "cache_k_0"}, "logits shares the memory of x instead of None"),
    ],
)
def test_caches_that_an_engine_writes_elsewhere(aliases: dict[str, str], wrong: str | None) -> None:
    found = check_aliases(["logits", "present_k_0", "present_v_0"], aliases.get)
    assert found == wrong if wrong is None else wrong in (found or "")


class TestGraphCache:
    def test_a_call_is_captured_when_it_comes_back(self) -> None:
        cache: GraphCache[str] = GraphCache(100)
        for expected in (False, True):
            assert cache.find("a") is None
            assert cache.is_worth_capturing("a") is expected
        assert cache.keep("a", "graph a", 40) == []
        assert cache.find("a") == "graph a"
        counters = cache.counters
        assert (counters.plain, counters.captures, counters.replays, counters.evictions) == (2, 1, 1, 0)

    def test_bytes_are_bounded_and_the_oldest_goes(self) -> None:
        cache: GraphCache[str] = GraphCache(100)
        cache.keep("a", "A", 40)
        cache.keep("b", "B", 40)
        assert cache.find("a") == "A"  # used just now
        assert cache.keep("c", "C", 40) == ["B"]
        assert (cache.find("a"), cache.find("b"), cache.size) == ("A", None, 80)
        assert cache.keep("d", "D", 101) == ["D"]  # larger than all that may be kept: the others stay
        assert (len(cache), cache.size) == (2, 80)

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=40), st.integers(0, 120))
    def test_never_above_the_bound(self, calls: list[tuple[int, int]], limit: int) -> None:
        cache: GraphCache[int] = GraphCache(limit)
        for call, size in calls:
            if cache.find(call) is None and cache.is_worth_capturing(call):
                cache.keep(call, call, size)
            assert cache.size <= limit
        assert cache.counters.captures == len(cache) + cache.counters.evictions
        assert cache.counters.plain + cache.counters.replays == len(calls)

    def test_a_graph_in_use_is_not_dropped_for_another(self) -> None:
        """A newcomer is captured once a graph has been idle for long."""
        cache: GraphCache[str] = GraphCache(2)
        for call in "ab":
            cache.keep(call, call, 1)
        for _ in range(2 * PATIENCE - 1):
            cache.find("a")
            assert not cache.is_worth_capturing("c")
        assert cache.counters.refusals == 2 * PATIENCE - 2  # all but the first time that it was seen
        cache.find("a")
        assert cache.is_worth_capturing("c")
        assert cache.keep("c", "c", 1) == ["b"]

    @pytest.mark.parametrize(("kinds", "limit"), [(3, 4), (30, 4), (300, 16)])
    def test_few_calls_are_captures(self, kinds: int, limit: int) -> None:
        """Whatever calls come back, once the bound is reached."""
        chance, cache = random.Random(kinds), GraphCache[int](limit)
        while cache.size < min(kinds, limit):
            self.call(cache, chance.randrange(kinds))
        before = replace(cache.counters)
        for i in range(20_000):
            self.call(cache, chance.randrange(kinds) + kinds * (i // 5000))  # other calls from time to time
        calls, captures = (getattr(cache.counters, n) - getattr(before, n) for n in ("calls", "captures"))
        assert calls == 20_000
        assert captures <= calls / PATIENCE + limit
        assert captures < calls / 100

    @staticmethod
    def call(cache: GraphCache[int], call: int) -> None:
        if cache.find(call) is None and cache.is_worth_capturing(call):
            cache.keep(call, call, 1)

    def test_a_graph_that_is_too_large_is_captured_once(self) -> None:
        cache: GraphCache[str] = GraphCache(100)
        for _ in range(5):
            if cache.find("a") is None and cache.is_worth_capturing("a"):
                cache.keep("a", "A", 101)
        assert (cache.counters.captures, cache.counters.evictions, len(cache)) == (1, 1, 0)

    def test_full_scales(self) -> None:
        assert full_scales([ScaleSchedule.of_squares((1, 2, 4))]) == {(0, 1), (1, 4), (5, 16)}

    def test_no_bytes_no_graphs(self) -> None:
        cache: GraphCache[str] = GraphCache(0)
        assert not any(cache.is_worth_capturing("a") for _ in range(3))


class TestMachine:
    TARGET = TargetEntry(library="1.7.1.116", compute_capabilities=("8.6", "8.9"))

    def test_the_right_one(self) -> None:
        check_target("tensorrt-rtx", self.TARGET, "8.9", "1.7.1.116")

    def test_another_gpu(self) -> None:
        with pytest.raises(
            IncompatibleBundleError, match=r"8\.6, 8\.9; this one has 12\.0(.|\n)*--compute-capability 12\.0"
        ) as e:
            check_target("tensorrt-rtx", self.TARGET, "12.0", "1.7.1.116")
        assert e.value.exit_code == 7
        with pytest.raises(IncompatibleBundleError, match="--backend tensorrt on this machine"):
            check_capability("tensorrt", "8.0", ("9.0",))

    def test_another_version(self) -> None:
        with pytest.raises(
            IncompatibleBundleError, match=r"built by tensorrt-rtx 1\.7\.1\.116; 1\.8\.0\.5 is installed"
        ):
            check_target("tensorrt-rtx", self.TARGET, "8.9", "1.8.0.5")

    def test_a_manifest_without_targets(self) -> None:
        with pytest.raises(IncompatibleBundleError, match="does not say which GPUs"):
            check_target("tensorrt", None, "8.9", "11.0")

    @pytest.mark.parametrize("text", ["", "8", "8.", "89", "a.b", "8.90", "-8.9"])
    def test_no_capability(self, text: str) -> None:
        with pytest.raises(ConfigError, match="no compute capability"):
            capability(text)

    def test_a_cpu_is_no_gpu(self) -> None:
        with pytest.raises(IncompatibleBundleError, match="run on a GPU; the device asked for is 'cpu'"):
            require_gpu("tensorrt", torch.device("cpu"))

    @no_gpu
    def test_without_a_gpu(self) -> None:
        with pytest.raises(IncompatibleBundleError, match=r"need an NVIDIA GPU; .*(without CUDA|finds no GPU)"):
            require_gpu("tensorrt", torch.device("cuda"))

    def test_a_library_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(IncompatibleBundleError, match=r"'tensorrt', which is not installed(.|\n)*tensorrt-cu13"):
            load_library("tensorrt")

    def test_a_library_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "tensorrt.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "tensorrt", raising=False)
        with pytest.raises(IncompatibleBundleError, match=r"libcuda\.so\.1"):
            load_library("tensorrt")

    def test_a_library_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "tensorrt.py").write_text("__version__ = '10.16.1.11'")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "tensorrt", raising=False)
        with pytest.raises(IncompatibleBundleError, match=r"10\.16\.1\.11 is too old; tensorrt 11"):
            load_library("tensorrt")


class TestFiles:
    def test_truncated(self, tmp_path: Path) -> None:
        path = tmp_path / "engine.plan"
        with pytest.raises(IntegrityError, match="is missing"):
            check_size(path, 100)
        path.write_bytes(b"x" * 99)
        with pytest.raises(IntegrityError, match="has 99 bytes instead of 100"):
            check_size(path, 100)
        path.write_bytes(b"x" * 100)
        check_size(path, 100)

    def test_kernels_are_kept_for_the_next_run(self, tmp_path: Path) -> None:
        path = tmp_path / "kernels" / "blocks.kernels"
        for content in (b"old", b"new"):
            keep_kernels(path, content)
            assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]

    def test_where_nothing_can_be_written_a_service_still_ends(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache").write_text("a file")
        keep_kernels(tmp_path / "cache" / "blocks.kernels", b"kernels")
        assert "are not kept in" in caplog.text


@pytest.fixture
def compiled_bundle(small_bundle: Bundle, tmp_path: Path) -> Path:
    """The small bundle, whose manifest says that its engines are TensorRT-RTX's."""
    assert small_bundle.root is not None
    shutil.copytree(small_bundle.root, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    bundle = open_bundle(tmp_path / "bundle")
    content = json.loads(bundle.path(MANIFEST).read_text())
    content |= {"backend": "tensorrt-rtx", "target": {"library": "1.7.1.116", "compute_capabilities": ["8.9"]}}
    sealed = Manifest.model_validate(content).sealed()
    bundle.path(MANIFEST).write_text(sealed.model_dump_json())
    bundle.folder.rename(bundle.folder.parent / sealed.version)
    (tmp_path / "bundle" / CURRENT).write_text(sealed.version)
    return tmp_path / "bundle"


@no_gpu
class TestOnThisMachine:
    """Every entry names what is missing; none gives back nothing, none falls back to the CPU."""

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_load(self, compiled_bundle: Path, device: str) -> None:
        with pytest.raises(IncompatibleBundleError, match="GPU"):
            Pipeline.load(compiled_bundle, device=device)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_verify(self, compiled_bundle: Path, device: str) -> None:
        from ldp_export.verification.verify import verify_bundle

        with pytest.raises(IncompatibleBundleError, match="GPU"):
            verify_bundle(open_bundle(compiled_bundle), device)

    def test_damage_is_found_first(self, compiled_bundle: Path) -> None:
        path = open_bundle(compiled_bundle).path("blocks/model.onnx")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(IntegrityError, match=r"blocks/model\.onnx has"):
            Pipeline.load(compiled_bundle, device="cuda")
