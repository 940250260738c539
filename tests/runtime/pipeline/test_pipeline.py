"""What services meet: requests, callbacks, failures, threads, limits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.samples import random_texts, write_text_encoder
from helpers.waiting import HANGS
from ldp_runtime import LHEP, Pipeline, ScaleEvent, parse_policy
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.blocks import Blocks
from ldp_runtime.errors import Cancelled, CapacityError, ConfigError, LdpError, NonFiniteError
from ldp_runtime.pipeline.memory import estimate_memory
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pruning.parse import policy_text
from PIL import Image

from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.t5 import load_text_encoder

PROMPT = "a red circle"


def pixels(pipe: Pipeline, **options) -> bytes:
    return pipe(**{"prompt": PROMPT, "seed": 3} | options).images[0].tobytes()


class TestRequests:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prompt": None}, "give a prompt"),
            ({"prompt_embeds": torch.zeros(3, 32)}, "not both"),
            ({"prompt": ""}, "prompt is empty"),
            ({"prompt": "  \n"}, "prompt is empty"),
            ({"prompt": [PROMPT, ""]}, "prompt is empty"),
            ({"prompt": []}, "non-empty list"),
            ({"prompt": [PROMPT, 3]}, "non-empty list"),
            ({"prompt": [PROMPT, "half a pair \ud83d"]}, "not valid Unicode"),
            ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 1"),
            ({"prompt": None, "prompt_embeds": torch.zeros(3, 31)}, r"\[tokens, 32\].*\[3, 31\]"),
            ({"prompt": None, "prompt_embeds": torch.zeros(17, 32)}, "1 to 16 tokens"),
            ({"prompt": None, "prompt_embeds": torch.zeros(0, 32)}, "1 to 16 tokens"),
            ({"prompt": None, "prompt_embeds": torch.zeros(32)}, r"\[tokens, 32\]"),
            ({"prompt": None, "prompt_embeds": []}, "is empty"),
            ({"prompt": None, "prompt_embeds": torch.full((3, 32), float("nan"))}, "NaN"),
            ({"prompt": None, "prompt_embeds": torch.zeros(())}, r"\[tokens, 32\]"),
            ({"prompt": None, "prompt_embeds": torch.zeros(3, 32).numpy()}, "must be tensors"),
            ({"prompt": 5}, "non-empty list"),
            ({"prompt": None, "prompt_embeds": 5}, "must be tensors, got int"),
            ({"num_images_per_prompt": 0}, "at least 1"),
            ({"num_images_per_prompt": 1.5}, "num_images_per_prompt must be a whole number, got 1.5"),
            ({"top_p": "a"}, "top_p must be a number, got 'a'"),
            ({"height": "64", "width": 64}, "height must be a whole number, got '64'"),
            ({"aspect_ratio": "wide"}, "aspect_ratio must be a number"),
            ({"seed": [1, 2]}, "2 seeds for 1 image"),
            ({"seed": -1}, "seeds must lie"),
            ({"seed": 2**64}, "seeds must lie"),
            ({"temperature": 0.0}, "temperature must be positive"),
            ({"temperature": [1.0, 1.0]}, "temperature has 2 values"),
            ({"guidance_scale": [3.0]}, "guidance_scale has 1 values"),
            ({"guidance_scale": float("nan")}, "finite"),
            ({"guidance_scale": "strong"}, "guidance_scale must be a number"),
            ({"top_k": -1}, "top_k"),
            ({"top_k": 2.5}, "top_k"),
            ({"top_p": 1.5}, "top_p"),
            ({"policy": "fast"}, "'fast'"),
            ({"policy": "ld:scales=9"}, "do not exist"),
            ({"policy": LHEP()}, "a policy is expected, got LHEP"),
            ({"output_type": "jpeg"}, "output_type"),
            ({"cfg_insertion_layer": [-2]}, "at the logits only"),
            ({"cfg_insertion_layer": [0, -2]}, "at the logits only"),
            ({"aspect_ratio": -1.0}, "aspect ratio"),
            ({"height": 64}, "together"),
            ({"height": 64, "width": 64, "aspect_ratio": 1.0}, "together"),
        ],
    )
    def test_what_cannot_be_served(self, small_pipe: Pipeline, options: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            small_pipe(**{"prompt": PROMPT} | options)

    def test_impossible_size_lists_the_possible_ones(self, small_pipe: Pipeline) -> None:
        with pytest.raises(ConfigError, match=r"cannot draw 128x130.*nearest in shape is 64x64") as caught:
            small_pipe(PROMPT, height=128, width=130)
        assert "64x64" in str(caught.value)
        assert "108x36" in str(caught.value)  # 3:1
        assert str(caught.value).count("x") > 15

    @pytest.mark.parametrize(("asked", "drawn"), [((65, 64), (64, 64)), ((62, 82), (60, 80)), ((100, 36), (108, 36))])
    def test_a_size_close_to_one_that_is_drawn(
        self,
        small_pipe: Pipeline,
        caplog: pytest.LogCaptureFixture,
        asked: tuple[int, int],
        drawn: tuple[int, int],
    ) -> None:
        schedule = small_pipe.manifest.schedule(asked[0] / asked[1])
        pixels = small_pipe.manifest.model.pixels_per_token
        assert tuple(side * pixels for side in schedule.final_grid) == drawn
        with caplog.at_level(logging.WARNING):
            result = small_pipe(PROMPT, height=asked[0], width=asked[1], seed=1, policy="skip:count=5")
        assert result.images[0].size == (drawn[1], drawn[0])
        assert (
            f"drawing {drawn[0]}x{drawn[1]} (height x width), the size nearest to {asked[0]}x{asked[1]}" in caplog.text
        )

    def test_bundle_without_text_encoder_takes_features_only(self, tiny_pipe: Pipeline) -> None:
        with pytest.raises(ConfigError, match=r"no text encoder.*prompt_embeds"):
            tiny_pipe(PROMPT)
        with pytest.raises(ConfigError, match="negative_prompt_embeds"):
            tiny_pipe(prompt_embeds=torch.zeros(3, 256), negative_prompt="blue")

    def test_defaults_are_the_bundles(self, small_pipe: Pipeline) -> None:
        given = pixels(small_pipe, guidance_scale=3.0, temperature=0.5, top_k=900, top_p=0.97, aspect_ratio=1.0)
        assert pixels(small_pipe) == given
        assert pixels(small_pipe, guidance_scale=[3.0] * 7) == given
        assert pixels(small_pipe, guidance_scale=4.0) != given

    def test_output_types_show_the_same_picture(self, small_pipe: Pipeline) -> None:
        results = {kind: small_pipe(PROMPT, seed=3, output_type=kind).images for kind in ("pil", "numpy", "torch")}
        assert isinstance(results["pil"][0], Image.Image)
        assert results["numpy"].shape == (1, 64, 64, 3)
        assert results["torch"].shape == (1, 3, 64, 64)
        assert 0 <= results["torch"].min() <= results["torch"].max() <= 1
        assert torch.equal(torch.from_numpy(results["numpy"]).permute(0, 3, 1, 2), results["torch"])
        shown = torch.frombuffer(bytearray(results["pil"][0].tobytes()), dtype=torch.uint8).view(64, 64, 3)
        difference = shown.permute(2, 0, 1).float() - results["torch"][0] * 255
        assert -1.001 <= difference.min() <= difference.max() <= 1e-3  # truncated, as in the originals


class TestText:
    def test_prompt_equals_its_features(self, small_pipe: Pipeline, small_sources: Sources) -> None:
        """The exported text encoder against the original, through whole images."""
        assert small_sources.text_encoder is not None
        encoder = load_text_encoder(small_sources.text_encoder)
        ids = torch.tensor([[3, 5, 8, 1]])  # a red circle </s>
        features = encoder.module(input_ids=ids).last_hidden_state[0]
        expected = small_pipe(prompt_embeds=features, seed=3, output_type="latent").images
        assert torch.equal(small_pipe(PROMPT, seed=3, output_type="latent").images, expected)

    def test_over_long_prompt_is_cut_with_a_warning(
        self, small_pipe: Pipeline, caplog: pytest.LogCaptureFixture
    ) -> None:
        longest = " ".join(["red"] * 15)  # with </s>, the 16 tokens that the model reads
        with caplog.at_level(logging.WARNING, logger="ldp_runtime"):
            expected = pixels(small_pipe, prompt=longest)
            assert not caplog.records
            assert pixels(small_pipe, prompt=longest + " blue star") == expected
        assert "18 tokens; the model reads the first 16" in caplog.text

    def test_negative_prompt_changes_the_picture(self, small_pipe: Pipeline) -> None:
        steered = pixels(small_pipe, negative_prompt="a large blue star")
        assert steered != pixels(small_pipe)
        assert steered != pixels(small_pipe, negative_prompt="green")

    def test_prompts_of_a_list_equal_single_prompts(self, small_pipe: Pipeline) -> None:
        prompts = [PROMPT, "a large blue star on the left", "green"]
        together = small_pipe(prompts, seed=5, policy="ld")
        for i, prompt in enumerate(prompts):
            alone = small_pipe(prompt, seed=5 + i, policy="ld")
            assert together.images[i].tobytes() == alone.images[0].tobytes()
        assert together.seeds == (5, 6, 7)

    def test_text_encoder_that_lacks_files(self, tmp_path: Path) -> None:
        folder = write_text_encoder(tmp_path / "encoder", 32)
        (folder / "tokenizer.json").unlink()
        with pytest.raises(LdpError, match=r"lacks tokenizer\.json"):
            load_text_encoder(folder)


class TestCallback:
    def test_sees_every_scale_and_previews(self, small_pipe: Pipeline) -> None:
        events: list[ScaleEvent] = []
        previews: list[Image.Image] = []

        def watch(event: ScaleEvent) -> None:
            events.append(event)
            previews.append(event.preview())

        result = small_pipe(PROMPT, seed=3, callback_on_scale=watch)
        assert [event.scale for event in events] == list(range(7))
        assert {event.scales for event in events} == {7}
        assert all(image.size == (64, 64) for image in previews)
        assert previews[-1].tobytes() == result.images[0].tobytes()
        assert previews[0].tobytes() != previews[-1].tobytes()
        assert tuple(event.traces[0] for event in events) == result.traces[0].scales

    def test_previews_of_a_batch_are_each_images_own(self, small_pipe: Pipeline) -> None:
        last: dict[int, bytes] = {}

        def watch(event: ScaleEvent) -> None:
            for place, image in enumerate(event.images):
                last[image] = event.preview(place).tobytes()

        result = small_pipe([PROMPT, "green star", "blue"], seed=1, policy="ld", callback_on_scale=watch)
        assert [last[i] for i in range(3)] == [image.tobytes() for image in result.images]

    @pytest.mark.parametrize("scale", [0, 3, 6])
    def test_false_stops_the_run(self, small_pipe: Pipeline, scale: int) -> None:
        before, seen = pixels(small_pipe), []

        def stop(event: ScaleEvent) -> bool:
            seen.append(event.scale)
            return event.scale < scale

        with pytest.raises(Cancelled, match=f"after scale {scale} of 7"):
            small_pipe(PROMPT, callback_on_scale=stop)
        assert seen == list(range(scale + 1))
        assert pixels(small_pipe) == before

    def test_errors_of_the_callback_pass_through(self, small_pipe: Pipeline) -> None:
        def fail(event: ScaleEvent) -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            small_pipe(PROMPT, callback_on_scale=fail)
        assert pixels(small_pipe)

    def test_callback_may_draw_with_the_same_pipeline(self, small_pipe: Pipeline) -> None:
        inner: list[bytes] = []

        def draw(event: ScaleEvent) -> None:
            if event.scale == 4:
                inner.append(pixels(small_pipe, prompt="green"))

        assert pixels(small_pipe, callback_on_scale=draw) == pixels(small_pipe)
        assert inner == [pixels(small_pipe, prompt="green")]


class FaultyEngine:
    """A real engine whose output `name` holds one bad number in call `call` (counted from 0), once."""

    def __init__(self, engine: Engine, name: str, call: int, value: float = float("nan")) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._output, self._call, self._value = engine, name, call, value

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        self._engine.run(inputs, outputs)
        if self._call == 0:
            outputs[self._output].view(-1)[-1] = self._value
        self._call -= 1

    def close(self) -> None:
        self._engine.close()


def with_engines(pipe: Pipeline, engines: Engines) -> Pipeline:
    return Pipeline(pipe.manifest, engines, pipe._tokenizer, pipe.max_batch)


def with_faulty_blocks(pipe: Pipeline, engine_of: type[FaultyEngine] = FaultyEngine, **fault) -> Pipeline:
    engines = engines_of(pipe)
    (chunk,) = engines.blocks._chunks
    broken = replace(chunk, engine=engine_of(chunk.engine, **fault))
    return with_engines(pipe, replace(engines, blocks=Blocks([broken], engines.blocks.shape)))


class TestFailures:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("scale", [0, 4, 6])
    def test_bad_logits_name_graph_and_scale(self, small_pipe: Pipeline, scale: int, value: float) -> None:
        broken = with_faulty_blocks(small_pipe, name="logits", call=scale, value=value)
        with pytest.raises(NonFiniteError, match=f"'blocks'.*scale {scale} "):
            broken(PROMPT, seed=3)
        assert pixels(broken) == pixels(small_pipe)  # the next run is as if nothing had happened

    @pytest.mark.parametrize(
        ("graph", "output"), [("text_encoder", "features"), ("prompt", "text_v_1"), ("decoder", "image")]
    )
    def test_other_graphs_are_named_too(self, small_pipe: Pipeline, graph: str, output: str) -> None:
        engines = engines_of(small_pipe)
        faulty = FaultyEngine(getattr(engines, graph), output, 0)
        broken = with_engines(small_pipe, replace(engines, **{graph: faulty}))
        with pytest.raises(NonFiniteError, match=f"'{graph}'"):
            broken(PROMPT, seed=3)
        assert pixels(broken) == pixels(small_pipe)

    def test_bad_keys_never_reach_an_image(self, small_pipe: Pipeline) -> None:
        """NaN in the cache spoils the logits of the next scale, where it is found."""
        broken = with_faulty_blocks(small_pipe, name="new_k_1", call=2)
        with pytest.raises(NonFiniteError, match="scale 3"):
            broken(PROMPT, seed=3)

    def test_out_of_memory_is_a_capacity_error(self, small_pipe: Pipeline) -> None:
        class Exhausted(FaultyEngine):
            def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
                if self._call == 0:
                    self._call -= 1
                    raise MemoryError("no memory for attention")
                super().run(inputs, outputs)

        broken = with_faulty_blocks(small_pipe, Exhausted, name="logits", call=0)
        with pytest.raises(CapacityError, match="max_batch"):
            broken(PROMPT)
        assert pixels(broken) == pixels(small_pipe)

    def test_closed(self, small_bundle: Bundle) -> None:
        with Pipeline.load(small_bundle, threads=1) as pipe:
            pipe.warmup()
        pipe.close()  # twice is fine
        for use in (lambda: pipe(PROMPT), pipe.warmup):
            with pytest.raises(LdpError, match="closed"):
                use()


class TestThreads:
    def test_one_pipeline_serves_many_threads(self, small_pipe: Pipeline) -> None:
        prompts = [PROMPT, "a large blue star", "green", "the star on the left of the red square"]
        policies = [None, "ld", "fixed:keep=0.3", "skip:count=1"]
        expected = [pixels(small_pipe, prompt=p, policy=q) for p, q in zip(prompts, policies, strict=True)]
        got: dict[int, list[bytes]] = {i: [] for i in range(4)}

        def work(i: int) -> None:
            for _ in range(3):
                got[i].append(pixels(small_pipe, prompt=prompts[i], policy=policies[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=HANGS)
        assert got == {i: [expected[i]] * 3 for i in range(4)}

    def test_close_waits_for_the_running_call(self, small_bundle: Bundle) -> None:
        pipe, started = Pipeline.load(small_bundle, threads=1), threading.Event()
        results: list[bytes] = []
        worker = threading.Thread(
            target=lambda: results.append(pixels(pipe, callback_on_scale=lambda _: started.set()))
        )
        worker.start()
        started.wait(timeout=HANGS)
        pipe.close()
        worker.join(timeout=HANGS)
        assert len(results) == 1


class TestCapacity:
    def test_names_a_batch_that_fits(self, small_bundle: Bundle) -> None:
        limit = estimate_memory(small_bundle.manifest, 2).total
        with pytest.raises(CapacityError, match="max_batch=2 fits"):
            Pipeline.load(small_bundle, max_batch=4, memory_limit=limit)
        Pipeline.load(small_bundle, max_batch=2, memory_limit=limit, threads=1).close()

    def test_says_when_nothing_fits(self, small_bundle: Bundle) -> None:
        with pytest.raises(CapacityError, match="no batch size fits"):
            Pipeline.load(small_bundle, memory_limit=1000)

    def test_grows_with_the_batch(self, small_bundle: Bundle) -> None:
        sizes = [estimate_memory(small_bundle.manifest, batch).total for batch in (1, 2, 4, 8)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]

    @pytest.mark.parametrize("options", [{"max_batch": 0}, {"threads": 0}, {"max_batch": 10_000}])
    def test_senseless_options(self, small_bundle: Bundle, options: dict) -> None:
        with pytest.raises(ConfigError):
            Pipeline.load(small_bundle, **options)

    def test_unknown_device(self, small_bundle: Bundle) -> None:
        with pytest.raises(LdpError):
            Pipeline.load(small_bundle, device="meta")


def test_trace_counts_and_is_json(small_pipe: Pipeline) -> None:
    import json

    trace = small_pipe(PROMPT, seed=3, policy="ld").traces[0]
    assert trace.seed == 3
    assert trace.policy == policy_text(parse_policy("ld"))
    assert trace.tokens == sum(scale.tokens for scale in trace.scales) < trace.tokens_full == 521
    assert trace.row_tokens >= trace.tokens
    written = json.loads(json.dumps(trace.to_json()))
    assert [scale["tokens"] for scale in written["scales"]] == [scale.tokens for scale in trace.scales]
    assert len(written["scales"][-1]["kept"]) == trace.scales[-1].tokens
    assert written["scales"][0]["kept"] is None


def test_embeddings_of_any_float_type(small_pipe: Pipeline) -> None:
    (text,) = random_texts([4])
    half = text.half()
    expected = small_pipe(prompt_embeds=half.float(), seed=1, output_type="latent").images
    assert torch.equal(small_pipe(prompt_embeds=half, seed=1, output_type="latent").images, expected)
