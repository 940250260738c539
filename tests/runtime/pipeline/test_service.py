"""What a service leans on between and around its calls: previews, warm-up, memory, timings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.waiting import HANGS
from ldp_runtime import Pipeline, Policy, ScaleEvent
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.graph_cache import GraphCounters
from ldp_runtime.engines.on_demand import OnDemandEngine
from ldp_runtime.errors import CapacityError, ClosedError, ConfigError, NonFiniteError
from ldp_runtime.pipeline.memory import estimate_memory
from ldp_runtime.pruning.policy import GuidanceRule
from ldp_runtime.schedule import ScaleSchedule

PROMPTS = ["a red circle", "green star", "blue"]


class WatchedEngine:
    """A real engine; `before` is called with its name before each run."""

    def __init__(self, engine: Engine, before: Callable[[str], object]) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._before = engine, before

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        self._before(self.name)
        self._engine.run(inputs, outputs)

    def close(self) -> None:
        self._engine.close()


def watched(pipe: Pipeline, before: Callable[[str], object]) -> Pipeline:
    engines = engines_of(pipe)
    around = {name: getattr(engines, name) for name in ("text_encoder", "prompt", "decoder")}
    wrapped = {name: WatchedEngine(engine, before) for name, engine in around.items() if engine is not None}
    blocks = engines.blocks.wrapped(lambda engine: WatchedEngine(engine, before))
    return Pipeline(pipe.manifest, replace(engines, blocks=blocks, **wrapped), pipe._tokenizer, pipe.max_batch)


class TestPreviews:
    def test_a_stored_event_shows_its_own_scale(self, small_pipe: Pipeline) -> None:
        events: list[ScaleEvent] = []
        shown: list[bytes] = []

        def watch(event: ScaleEvent) -> None:
            events.append(event)
            shown.append(event.preview().tobytes())

        small_pipe(PROMPTS[0], seed=3, callback_on_scale=watch)
        assert [event.preview().tobytes() for event in events] == shown

    def test_another_thread_is_served_between_steps(self, small_pipe: Pipeline) -> None:
        """The engines belong to a thread for one step, not for the whole call."""
        shown: list[bytes] = []

        def watch(event: ScaleEvent) -> None:
            if event.scale == 2:
                thread = threading.Thread(target=lambda: shown.append(event.preview().tobytes()))
                thread.start()
                thread.join(timeout=HANGS)
                assert shown == [event.preview().tobytes()]

        small_pipe(PROMPTS[0], seed=3, callback_on_scale=watch)
        assert len(shown) == 1

    def test_a_preview_that_is_not_finite_is_not_shown(self, small_pipe: Pipeline) -> None:
        pipe = watched(small_pipe, lambda name: None)

        def watch(event: ScaleEvent) -> None:
            event.latents[0].fill_(float("nan"))
            event.preview()

        with pytest.raises(NonFiniteError, match="decoder"):
            pipe(PROMPTS[0], seed=3, callback_on_scale=watch)

    def test_a_callback_runs_in_the_callers_modes(self, small_pipe: Pipeline) -> None:
        seen: list[tuple[bool, bool, int]] = []
        before = torch.get_num_threads()

        def watch(event: ScaleEvent) -> None:
            seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()))

        try:
            torch.set_num_threads(3)
            small_pipe(PROMPTS[0], seed=3, callback_on_scale=watch)
            assert set(seen) == {(True, False, 3)}
            assert (torch.is_grad_enabled(), torch.get_num_threads()) == (True, 3)
        finally:
            torch.set_num_threads(before)


class TestDecode:
    def test_latents_of_any_float_type(self, small_pipe: Pipeline) -> None:
        latents = small_pipe(PROMPTS[0], seed=3, output_type="latent").images
        for dtype in (torch.float16, torch.float64):
            stored = latents.to(dtype)
            assert torch.equal(small_pipe.decode(stored, "torch"), small_pipe.decode(stored.float(), "torch"))

    def test_no_latents(self, small_pipe: Pipeline) -> None:
        latents = small_pipe(PROMPTS[0], seed=3, output_type="latent").images
        with pytest.raises(ConfigError, match=r"latents must be \[images, 8"):
            small_pipe.decode(latents[:0])


class TestEncoding:
    def test_warmup_runs_every_graph(self, small_pipe: Pipeline) -> None:
        ran: list[str] = []
        watched(small_pipe, ran.append).warmup()
        assert set(ran) == {"text_encoder", "prompt", "blocks", "decoder"}

    def test_warmup_goes_on_until_no_call_is_captured(
        self, small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second picture captures graphs, the third those whose memory has moved; the fourth replays them all."""
        counters, drawn = GraphCounters(), []

        def draw(pipe: Pipeline, batch: int) -> None:
            drawn.append(batch)
            counters.captures = (0, 7, 9, 9)[len(drawn) - 1]

        monkeypatch.setattr(Pipeline, "_draw_anything", draw)
        monkeypatch.setattr(Pipeline, "cuda_graphs", counters)
        small_pipe.warmup(batch=2)
        assert drawn == [2] * 4

    def test_inference_mode_of_the_caller_is_not_the_engines(self, small_pipe: Pipeline) -> None:
        """What they keep from call to call could not be changed by a call outside of it."""
        with torch.inference_mode():
            inside = small_pipe(PROMPTS[0], seed=3, output_type="latent").images
        assert not inside.is_inference()
        assert torch.equal(inside, small_pipe(PROMPTS[0], seed=3, output_type="latent").images)

    def test_a_shared_negative_prompt_is_encoded_once(self, small_pipe: Pipeline) -> None:
        ran: list[str] = []
        pipe = watched(small_pipe, ran.append)
        together = pipe(PROMPTS, negative_prompt="a large square", seed=1, output_type="latent")
        assert ran.count("text_encoder") == 3  # it is as long as the first prompt, whose call it shares
        alone = small_pipe(PROMPTS[1], negative_prompt="a large square", seed=2, output_type="latent")
        assert torch.equal(together.images[1], alone.images[0])

    @pytest.mark.parametrize(
        ("prompts", "calls"),
        [
            (["a red circle", "a blue square"], 1),
            (["a red circle", "a blue square", "a red circle"], 1),
            (["a red circle", "green star", "a blue square"], 2),
            (["blue", "green star", "a red circle"], 3),
        ],
    )
    def test_texts_of_as_many_tokens_share_a_call(
        self, small_bundle: Bundle, small_pipe: Pipeline, prompts: list[str], calls: int
    ) -> None:
        ran: list[str] = []
        with Pipeline.load(small_bundle, max_batch=3, threads=1) as loaded:
            together = watched(loaded, ran.append)(prompts, seed=[1, 2, 3][: len(prompts)], output_type="latent").images
        assert ran.count("text_encoder") == calls
        for prompt, seed, latent in zip(prompts, (1, 2, 3), together, strict=False):
            assert torch.equal(small_pipe(prompt, seed=seed, output_type="latent").images[0], latent)


class TestTextEncoderOnDemand:
    """Where memory is short, the text encoder is there for its calls only."""

    @pytest.fixture
    def limit(self, small_bundle: Bundle) -> int:
        return estimate_memory(small_bundle.manifest, 2, keeps_text_encoder=False).total

    def test_the_plan_is_chosen_by_the_memory(self, small_bundle: Bundle, limit: int) -> None:
        kept = estimate_memory(small_bundle.manifest, 2).total
        assert limit < kept
        with Pipeline.load(small_bundle, max_batch=2, memory_limit=kept, threads=1) as pipe:
            assert not isinstance(engines_of(pipe).text_encoder, OnDemandEngine)
        with pytest.raises(CapacityError, match="text encoder leaves memory"):
            Pipeline.load(small_bundle, max_batch=2, memory_limit=limit - 1)

    def test_same_pictures_and_nothing_left_in_memory(
        self, small_bundle: Bundle, small_pipe: Pipeline, limit: int
    ) -> None:
        with Pipeline.load(small_bundle, max_batch=2, memory_limit=limit, threads=1) as pipe:
            encoder = engines_of(pipe).text_encoder
            assert isinstance(encoder, OnDemandEngine)
            opened: list[bool] = []
            for seed in (3, 4):
                drawn = pipe(
                    PROMPTS,
                    negative_prompt="a large square",
                    seed=seed,
                    output_type="latent",
                    callback_on_scale=lambda _: opened.append(encoder.is_open),
                ).images
                expected = small_pipe(PROMPTS, negative_prompt="a large square", seed=seed, output_type="latent").images
                assert torch.equal(drawn, expected)
            assert opened
            assert not any(opened)

    def test_a_failed_text_leaves_nothing_in_memory(self, small_bundle: Bundle, limit: int) -> None:
        with Pipeline.load(small_bundle, max_batch=2, memory_limit=limit, threads=1) as pipe:
            encoder = engines_of(pipe).text_encoder
            assert isinstance(encoder, OnDemandEngine)
            opener = encoder._opener
            assert opener is not None
            encoder._opener = lambda: WatchedEngine(opener(), _exhausted)
            with pytest.raises(CapacityError):
                pipe(PROMPTS[0], seed=3)
            assert not encoder.is_open
            encoder._opener = opener
            assert pipe(PROMPTS[0], seed=3).images

    def test_closed(self, small_bundle: Bundle, limit: int) -> None:
        with Pipeline.load(small_bundle, max_batch=2, memory_limit=limit, threads=1) as pipe:
            encoder = engines_of(pipe).text_encoder
        assert encoder is not None
        with pytest.raises(ClosedError):
            encoder.run({}, {})


def _exhausted(_: str) -> None:
    raise MemoryError


class TestMemory:
    @pytest.mark.parametrize("graph", ["text_encoder", "blocks", "decoder"])
    @pytest.mark.parametrize("exhaust", [_exhausted, lambda _: torch.empty(1 << 60)], ids=["python", "pytorch"])
    def test_out_of_memory_anywhere(self, small_pipe: Pipeline, graph: str, exhaust: Callable[[str], object]) -> None:
        pipe = watched(small_pipe, lambda name: exhaust(name) if name == graph else None)
        with pytest.raises(CapacityError, match=r"out of memory while drawing 1 images.*\n.*max_batch"):
            pipe(PROMPTS[0], seed=3)

    def test_out_of_memory_while_decoding(self, small_pipe: Pipeline) -> None:
        latents = small_pipe(PROMPTS[0], seed=3, output_type="latent").images
        with pytest.raises(CapacityError, match="while decoding 1 images"):
            watched(small_pipe, _exhausted).decode(latents)

    @pytest.mark.parametrize(
        "words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
    )
    def test_out_of_memory_in_the_words_of_a_library(self, small_pipe: Pipeline, words: str) -> None:
        def exhaust(_: str) -> None:
            raise RuntimeError(words)

        with pytest.raises(CapacityError, match="out of memory while drawing"):
            watched(small_pipe, exhaust)(PROMPTS[0], seed=3)

    def test_out_of_memory_while_loading(self, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhaust(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("ldp_runtime.pipeline.pipeline.open_engines", exhaust)
        with pytest.raises(CapacityError, match="out of memory while loading the engines"):
            Pipeline.load(small_bundle)

    def test_other_errors_stay_what_they_are(self, small_pipe: Pipeline) -> None:
        def fail(event: ScaleEvent) -> None:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            small_pipe(PROMPTS[0], callback_on_scale=fail)


class SlowToWatch(GuidanceRule):
    """A rule that stops nothing, and takes a second of its own clock over every image of its first scale."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def watches(self, scale: int, schedule: ScaleSchedule) -> bool:
        self.now += 1.0 if scale == 0 else 0.0
        return False

    def stops_after(self, gaps: object, scale: int, schedule: ScaleSchedule) -> bool:
        return False


def test_each_image_of_a_batch_has_its_own_time(small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = SlowToWatch()
    monkeypatch.setattr("ldp_runtime.pipeline.recorder.time", rule)
    traces = small_pipe(PROMPTS, seed=1, policy=Policy(guidance=rule), output_type="latent").traces
    assert [trace.scales[0].residual_s for trace in traces] == [1.0] * len(PROMPTS)
