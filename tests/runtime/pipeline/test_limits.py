"""Limits of requests: what is too much, or nothing at all, is refused before work; what is merely unusual is served."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from ldp_runtime import LHEP, SATS, ImageEvent, Pipeline, Policy, StopAt, TopK, TopP
from ldp_runtime.arguments import shown
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import Cancelled, ConfigError, LdpError, NonFiniteError
from ldp_runtime.pipeline.request import MAX_CHARACTERS
from ldp_runtime.pruning.policy import TokenRule

PROMPT = "a red circle"
TEXT = torch.ones(3, 32)


class Hostile:
    """An object whose every conversion fails in a way of its own."""

    def __float__(self) -> float:
        raise OverflowError("no number")

    def __index__(self) -> int:
        raise RuntimeError("no number")


def named(value: object) -> str:
    """A value as a test's name, the same in every process."""
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)


#: What is no whole number, or far beyond any.
NO_WHOLE_NUMBERS: list[Any] = [
    True, np.bool_(True), 1.0, 1.5, float("nan"), float("inf"), "1", 1j, [1], Hostile(), -(10**400), 10**400,
    np.array(1.0), torch.tensor(True), object(),
]  # fmt: skip
#: What is no finite number.
NO_NUMBERS: list[Any] = [
    True, np.bool_(False), "0.5", "77777777", float("nan"), -float("inf"), 1j, [], Hostile(), 10**400, b"1",
    object(),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_engine_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests of what is refused: the first engine call would be work."""
    if request.node.get_closest_marker("usefixtures"):
        monkeypatch.setattr(Pipeline, "_running", lambda *_: pytest.fail("work was begun"))


refused = pytest.mark.usefixtures("small_pipe")


@refused
@pytest.mark.parametrize("name", ["num_images_per_prompt", "seed", "top_k", "height", "width"])
@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS, ids=named)
def test_whole_numbers(small_pipe: Pipeline, name: str, value: Any) -> None:
    other = {"height": 64, "width": 64} if name in ("height", "width") else {}
    if value == [1] and name == "seed":
        value = [1.5]
    if isinstance(value, list) and name in other:
        value = [True]
    with pytest.raises(ConfigError):
        small_pipe(PROMPT, **(other | {name: value}))


@refused
@pytest.mark.parametrize("name", ["guidance_scale", "temperature", "top_p", "aspect_ratio"])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=named)
def test_numbers(small_pipe: Pipeline, name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        small_pipe(PROMPT, **{name: value})


MUCH: dict[str, dict[str, Any]] = {
    "a billion images": {"num_images_per_prompt": 10**9},
    "prompts and images of each": {"prompt": [PROMPT] * 600, "num_images_per_prompt": 2},
    "endless prompts": {"prompt": itertools.repeat(PROMPT)},
    "endless seeds": {"seed": itertools.count()},
    "endless guidance": {"guidance_scale": itertools.repeat(1.0)},
    "endless heights": {"height": itertools.repeat(64), "width": 64},
    "endless layers": {"cfg_insertion_layer": itertools.repeat(0)},
    "endless features": {"prompt": None, "prompt_embeds": itertools.repeat(TEXT)},
    "five million characters": {"prompt": "x" * 5_000_000},
    "as many in a negative prompt": {"negative_prompt": "x" * (MAX_CHARACTERS + 1)},
    "guidance beyond float32": {"guidance_scale": 1e300},
    "guidance whose complement is": {"guidance_scale": [-3.5e38] * 7},
    "a temperature that is zero in float32": {"temperature": 1e-300},
    "a temperature beyond float32": {"temperature": 1e300},
    "a seed of 65 bits": {"seed": 2**64},
    "seeds that count beyond 64 bits": {"seed": 2**64 - 1, "num_images_per_prompt": 2},
    "a policy of a hundred thousand characters": {"policy": "ld:" + "x" * 100_000},
}


@refused
@pytest.mark.parametrize("name", MUCH)
def test_too_much(small_pipe: Pipeline, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        small_pipe(**({"prompt": PROMPT} | MUCH[name]))
    assert len(str(caught.value)) < 1000


FEATURES: dict[str, Any] = {
    "sparse": TEXT.to_sparse(),
    "compressed": TEXT.to_sparse_csr(),
    "without memory": TEXT.to("meta"),
    "whole numbers": TEXT.long(),
    "truth values": TEXT.bool(),
    "complex": TEXT.to(torch.complex64),
    "eight bits": TEXT.to(torch.float8_e4m3fn),
    "quantized": torch.quantize_per_tensor(TEXT, 0.1, 0, torch.quint8),
    "beyond float32": TEXT.double() * 1e300,
    "NaN": TEXT * float("nan"),
    "an array": TEXT.numpy(),
    "four axes": TEXT[None, None],
    "no axis": torch.tensor(1.0),
}


@refused
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("argument", ["prompt_embeds", "negative_prompt_embeds"])
def test_features_that_are_none(small_pipe: Pipeline, name: str, argument: str) -> None:
    with pytest.raises(ConfigError):
        small_pipe(None if argument == "prompt_embeds" else PROMPT, **{argument: FEATURES[name]})


@refused
@pytest.mark.parametrize("callback", [3, "print", [], lambda: None, lambda one, two: None, object()])
@pytest.mark.parametrize("name", ["callback_on_scale", "callback_on_image"])
def test_callbacks_that_cannot_be_called(small_pipe: Pipeline, name: str, callback: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be a function"):
        small_pipe(PROMPT, **{name: callback})


OTHERS: dict[str, Callable[[Pipeline], object]] = {
    "a million warm-up images": lambda pipe: pipe.warmup(10**6),
    "half a warm-up image": lambda pipe: pipe.warmup(1.5),  # pyright: ignore[reportArgumentType]
    "no warm-up image": lambda pipe: pipe.warmup(0),
    "start of a text": lambda pipe: pipe.start("ab"),  # pyright: ignore[reportArgumentType]
    "start of a number": lambda pipe: pipe.start(3),  # pyright: ignore[reportArgumentType]
    "start of None": lambda pipe: pipe.start([None]),  # pyright: ignore[reportArgumentType]
    "decoding an array": lambda pipe: pipe.decode(np.zeros((1, 8, 16, 16))),  # pyright: ignore[reportArgumentType]
    "decoding whole numbers": lambda pipe: pipe.decode(torch.zeros(1, 8, 16, 16, dtype=torch.int64)),
    "decoding a sparse tensor": lambda pipe: pipe.decode(torch.zeros(1, 8, 16, 16).to_sparse()),
    "decoding a wall": lambda pipe: pipe.decode(torch.zeros(1, 8, 1, 1).expand(1, 8, 10**5, 10**5)),
    "decoding a million": lambda pipe: pipe.decode(torch.zeros(1, 8, 16, 16).expand(10**6, 8, 16, 16)),
    "drawing nothing": lambda pipe: pipe.draw([]),
    "drawing a number": lambda pipe: pipe.draw(3.5),  # pyright: ignore[reportArgumentType]
}


@refused
@pytest.mark.parametrize("name", OTHERS)
def test_other_calls(small_pipe: Pipeline, name: str) -> None:
    with pytest.raises(ConfigError):
        OTHERS[name](small_pipe)


LOADS: dict[str, dict[str, Any]] = {
    "a million threads": {"threads": 10**6},
    "half a thread": {"threads": 1.5},
    "a true thread": {"threads": True},
    "no thread": {"threads": 0},
    "half a batch": {"max_batch": 1.5},
    "a batch of NaN": {"max_batch": float("nan")},
    "a batch beyond all": {"max_batch": 10**30},
    "no images": {"max_images": 0},
    "memory that is a text": {"memory_limit": "8 GB"},
    "negative memory": {"memory_limit": -1},
    "memory that is NaN": {"memory_limit": float("nan")},
    "a device that is a number": {"device": 1.5},
    "a device that is none": {"device": None},
    "a word for False": {"allow_rejected": "no"},
    "an integrity that is a list": {"integrity": ["full"]},
}


@pytest.mark.parametrize("name", LOADS)
def test_options_of_load(small_bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.pipeline.pipeline.open_engines", lambda *_: pytest.fail("opened"))
    given: Any = small_bundle.root if "integrity" in LOADS[name] else small_bundle
    with pytest.raises(ConfigError):
        Pipeline.load(given, **LOADS[name])


@pytest.mark.parametrize("path", [None, 3, b"\xff", "a\0b", "x" * 5000, object()])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ConfigError):
        Pipeline.load(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Policy(LHEP),
        lambda: Policy(SATS()),
        lambda: Policy(guidance=LHEP()),
        lambda: Policy(skip_last=1.0),
        lambda: Policy(skip_last=True),
        lambda: LHEP("0.5"),
        lambda: LHEP(True),
        lambda: LHEP(float("nan")),
        lambda: LHEP(10**400),
        lambda: LHEP(scales=5),
        lambda: LHEP(scales=["5"]),
        lambda: LHEP(scales=itertools.count()),
        lambda: LHEP(fill=["repeat"]),
        lambda: LHEP(fitted={}),
        lambda: TopP(p=None),
        lambda: TopK([0.5, "a"]),
        lambda: TopK(itertools.repeat(0.5)),
        lambda: SATS(delta="0.1"),
        lambda: SATS(scales=3),
        lambda: SATS(gap=np.array(["rms", "l2"])),
        lambda: StopAt(1.5),
        lambda: StopAt(True),
        lambda: StopAt("last"),
    ],
)
def test_rules_of_other_types(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_numbers_of_other_libraries_make_the_same_rule() -> None:
    assert LHEP(np.float32(0.5), scales=[5, np.int64(6)]) == LHEP(0.5, scales=(5, 6))  # pyright: ignore[reportArgumentType]
    assert isinstance(LHEP(np.float64(0.5)), TokenRule)
    assert TopK([0.5, 0.25]) == TopK((0.5, 0.25))  # pyright: ignore[reportArgumentType]
    assert Policy(skip_last=np.int32(2)) == Policy(skip_last=2)  # pyright: ignore[reportArgumentType]


@refused
@pytest.mark.parametrize("name", ["/etc/hostname.json", "careful.json", "../careful", "profiles/careful", ".", ""])
def test_a_policy_of_a_request_is_no_path(
    small_pipe: Pipeline, name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a file is there cannot be told from the answer."""
    monkeypatch.chdir(tmp_path)
    answers = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="unknown policy") as caught:
            small_pipe(PROMPT, policy=name)
        answers.append(str(caught.value))
        (tmp_path / "careful.json").write_text("{}")
    assert answers[0] == answers[1]


def draw(pipe: Pipeline, **request: Any) -> bytes:
    return pipe(**({"prompt": PROMPT, "seed": 3} | request)).images[0].tobytes()


class TestServed:
    @pytest.mark.parametrize("negative", ["", "  \n", [""], ("",)])
    def test_an_empty_negative_prompt_is_none(self, small_pipe: Pipeline, negative: Any) -> None:
        assert draw(small_pipe, negative_prompt=negative) == draw(small_pipe)

    def test_an_empty_one_beside_others(self, small_pipe: Pipeline) -> None:
        together = small_pipe([PROMPT, PROMPT, PROMPT], negative_prompt=["green", "", "red"], seed=[3, 3, 3])
        alone = [draw(small_pipe, negative_prompt=negative) for negative in ("green", None, "red")]
        assert [image.tobytes() for image in together.images] == alone

    def test_seeds_of_64_bits(self, small_pipe: Pipeline) -> None:
        most = 2**64 - 1
        assert small_pipe(PROMPT, seed=most).seeds == (most,)
        assert draw(small_pipe, seed=np.uint64(most)) == draw(small_pipe, seed=[most], policy="none")
        assert draw(small_pipe, seed=2**63, policy="top-k:score=random") != draw(small_pipe, seed=2**63 + 1)

    def test_arguments_of_other_libraries(self, small_pipe: Pipeline) -> None:
        plain = draw(small_pipe, guidance_scale=3.0, temperature=0.5, top_k=2, top_p=0.5, height=64, width=64)
        dressed: dict[str, Any] = {
            "guidance_scale": np.float32(3), "temperature": torch.full((7,), 0.5), "top_k": np.int64(2),
            "top_p": np.float64(0.5), "height": np.uint16(64), "width": torch.tensor([64]), "seed": torch.tensor([3]),
            "prompt": (text for text in [PROMPT]), "num_images_per_prompt": np.int8(1),
        }  # fmt: skip
        assert draw(small_pipe, **dressed) == plain

    def test_features_in_other_layouts_and_types(self, small_pipe: Pipeline) -> None:
        text = torch.arange(96, dtype=torch.float32).view(3, 32) / 64
        expected = draw(small_pipe, prompt=None, prompt_embeds=text)
        negative = torch.complex(text, -text).conj().imag  # real numbers whose sign is a flag of the tensor
        assert negative.is_neg()
        others = (
            text.T.contiguous().T,
            text.double(),
            text.half(),
            text.requires_grad_(),
            negative,
            [text],
            text[None],
        )
        assert {draw(small_pipe, prompt=None, prompt_embeds=other) for other in others} == {expected}

    def test_the_longest_prompt(self, small_pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR):
            assert draw(small_pipe, prompt="red " * (MAX_CHARACTERS // 4))

    def test_as_many_images_as_load_allows(self, small_bundle: Bundle) -> None:
        with Pipeline.load(small_bundle, threads=1, max_images=3) as pipe:
            assert len(pipe(PROMPT, num_images_per_prompt=3).images) == 3
            with pytest.raises(ConfigError, match=r"at most 3|may have 3"):
                pipe([PROMPT, PROMPT], num_images_per_prompt=2)

    @pytest.mark.parametrize("guidance", [3e38, -1e38, 1e25, 1e6])
    def test_guidance_gives_no_nan(self, small_pipe: Pipeline, guidance: float) -> None:
        beyond = abs(guidance) > 1e37
        with pytest.raises(NonFiniteError, match="guidance") if beyond else nullcontext():
            pixels = small_pipe(PROMPT, seed=3, guidance_scale=guidance, output_type="torch").images
            assert pixels.isfinite().all()

    def test_numpy_images_lie_in_c_order(self, small_pipe: Pipeline) -> None:
        for count in (1, 2):
            images = small_pipe([PROMPT] * count, output_type="numpy").images
            assert images.flags.c_contiguous
            assert images.shape == (count, 64, 64, 3)


class TestImages:
    @pytest.mark.parametrize("output_type", ["pil", "numpy", "torch", "latent"])
    def test_each_is_told_of_when_it_is_decoded(self, small_pipe: Pipeline, output_type: str) -> None:
        told: list[ImageEvent] = []
        scales: list[int] = []
        count = small_pipe.max_batch + 1
        result = small_pipe(
            [PROMPT] * count,
            seed=3,
            output_type=output_type,
            callback_on_image=told.append,
            callback_on_scale=lambda event: scales.append(len(told)),
        )
        assert [event.index for event in told] == list(range(count))
        assert tuple(event.trace for event in told) == result.traces
        assert all(np.array_equal(np.asarray(e.image), np.asarray(i)) for e, i in zip(told, result.images, strict=True))
        assert set(scales) == {0, small_pipe.max_batch}  # the last image was begun after the others were told of

    def test_false_stops_the_call(self, small_pipe: Pipeline) -> None:
        with pytest.raises(Cancelled, match="after image 0"):
            small_pipe([PROMPT] * 2, callback_on_image=lambda event: False)


def test_values_are_shown_in_few_words() -> None:
    values: list[Any] = [
        "x" * 10**6,
        10**5000,
        [1] * 10**6,
        torch.zeros(10**6),
        np.zeros(10**6),
        b"x" * 10**6,
        Hostile(),
    ]
    assert max(len(shown(value)) for value in values) < 200
    assert issubclass(ConfigError, LdpError)
