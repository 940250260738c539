"""Odd requests: refused with a typed error before work, or drawn as the same request in its plainest form."""

from __future__ import annotations

import collections
import fractions
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from ldp_runtime import LHEP, SATS, Pipeline, Policy, StopAt, TopK, TopP
from ldp_runtime.errors import ConfigError, LdpError

from fuzz import Outcome
from fuzz.samples import FAMILIES, ODD, Family, bundle

#: Channels and most tokens of a text of the samples.
WIDTH = {"infinity": 32, "switti": 112, "hart": 64}
#: Rows of every text of HART's sample, padding included.
ROWS = 20
CHANNELS, LONGEST = WIDTH["infinity"], 16
PROMPTS = (
    "a red circle",
    "the small blue star on the left of a large green square",
    "red",
    "a " * 40,
    "\u2603 na\u00efve",
)
POLICIES = (
    None, "none", "ld", "ld-paper", "ld-fast", "ld-skip-2", "ld:rho=0.4,fill=zero", "top-k:score=random",
    "top-p:score=variance,stop=first,then=reuse", "none:stop=2", "none:skip_last=2", "none:delta=0.15,gap=l2",
    "ld:scales=3+4", "top-k:share=0.5+0.4",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A good request of a family, and how many of its arguments are made odd."""

    family: Family
    odd: int
    seed: int


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        yield Case(rng.choice(("infinity", *FAMILIES)), rng.choice((0, 0, 1, 1, 1, 2)), rng.randrange(2**32))


def run(case: Case) -> Outcome:
    rng = random.Random(case.seed)
    plain = _good(rng, case.family)
    request = {name: _dressed(rng, name, value) for name, value in plain.items()}
    for _ in range(case.odd):
        name = rng.choice(_names(case.family))
        request[name] = _odd(rng, name)
    pipe = pipeline(case.family)
    threads = threading.active_count()
    try:
        result = pipe(**request)
    except ConfigError:
        return "right refused" if not case.odd else _still_right(case.family, threads)
    except LdpError:  # such as memory, or numbers that guidance takes beyond float32
        return _still_right(case.family, threads)
    if not _is_picture(result.images):
        return "wrong accepted"
    if not case.odd and not _same(case.family, result.images, reference(case.family)(**plain).images):
        return "wrong accepted"
    return _still_right(case.family, threads)


@lru_cache
def pipeline(family: Family) -> Pipeline:
    return Pipeline.load(bundle(family), threads=1, max_batch=2)


@lru_cache
def reference(family: Family) -> Pipeline:
    """Pipeline that sees good requests only."""
    return Pipeline.load(bundle(family), threads=1, max_batch=1)


@lru_cache
def _expected(family: Family) -> bytes:
    return _known(reference(family))


def _known(pipe: Pipeline) -> bytes:
    condition: Any = 1 if pipe.manifest.model.family == "var" else PROMPTS[0]
    return pipe.draw(condition, seed=5, policy="ld").images[0].tobytes()


def _still_right(family: Family, threads: int) -> Outcome:
    """A pipeline draws what it drew before, whatever it was asked meanwhile, and keeps no thread."""
    right = _known(pipeline(family)) == _expected(family) and threading.active_count() <= threads
    return "right" if right else "wrong accepted"


def _good(rng: random.Random, family: Family) -> dict[str, Any]:
    """A request that must be served, in its plainest form."""
    count = rng.choice((1, 1, 2, 3))
    request: dict[str, Any] = {"output_type": rng.choice(("pil", "numpy", "torch", "latent"))}
    if family == "var":
        request["class_labels"] = [rng.randrange(2) for _ in range(count)]
    elif rng.random() < 0.3:
        drawn = torch.Generator("cpu").manual_seed(rng.randrange(2**32))
        lengths = [ROWS if family == "hart" else rng.randint(1, LONGEST) for _ in range(count)]
        shapes = [(length, WIDTH[family]) for length in lengths]
        request["prompt_embeds"] = [torch.randn(shape, generator=drawn, dtype=torch.float32) for shape in shapes]
    else:
        request["prompt"] = [rng.choice(PROMPTS) for _ in range(count)]
    if family != "var" and rng.random() < 0.4:
        request["negative_prompt"] = rng.choice(("green", "", " ", ["red"] * count, [""] * count))
    optional = {
        # HART's residual multiplies what guidance makes of rounding.
        "guidance_scale": lambda: rng.choice((1.0, 0.0, 3.0, -2.0, 1.5 if family == "hart" else 1e6)),
        "temperature": lambda: rng.choice((0.5, 1.0, 2.0, 1e-3)),
        "top_k": lambda: rng.choice((0, 1, 2, 900, 2**40)),
        "top_p": lambda: rng.choice((0.0, 0.5, 0.97, 1.0)),
        "num_images_per_prompt": lambda: rng.choice((1, 2)),
        "policy": lambda: rng.choice(POLICIES),
        "aspect_ratio": lambda: rng.choice((1.0, 1.1 if family == "infinity" else 1.0)),  # the others draw squares
    }
    for name, value in optional.items():
        if rng.random() < 0.4:
            request[name] = value()
    request["seed"] = rng.choice((0, 7, 2**32, 2**63 - 10, 2**63, 2**64 - 10, rng.getrandbits(63)))
    if family == "hart" or (family != "infinity" and rng.random() < 0.3):  # its mixtures multiply rounding
        request["more_smooth"] = family == "var"
    if family == "hart" and "prompt_embeds" in request and rng.random() < 0.5:
        tokens = [rng.randint(1, ROWS) for _ in range(count)]
        request["prompt_attention_mask"] = [torch.arange(ROWS, device="cpu") < real for real in tokens]
    return request


def _dressed(rng: random.Random, name: str, value: Any) -> Any:
    """The same value as another library has it."""
    if isinstance(value, bool | str) or value is None or rng.random() < 0.5:
        return value
    if isinstance(value, int):
        return rng.choice((np.uint64, np.int64 if value < 2**63 else np.uint64, int))(value)
    if isinstance(value, float):
        kinds = (np.float64, fractions.Fraction) if name != "policy" else (float,)
        return rng.choice(kinds)(value)
    if name == "prompt_embeds":
        return rng.choice((tuple, iter, list))([each.clone().requires_grad_() for each in value])
    return rng.choice((tuple, iter, collections.deque))(value)


def _names(family: Family) -> list[str]:
    own = {
        "infinity": ("prompt", "prompt_embeds"),
        "var": ("class_labels", "more_smooth"),
        "switti": ("prompt", "prompt_embeds", "pooled_prompt_embeds", "more_smooth"),
        "hart": ("prompt", "prompt_embeds", "prompt_attention_mask", "more_smooth"),
    }
    return [*_ODD, *own[family]]


def _odd(rng: random.Random, name: str) -> Any:
    if rng.random() < 0.5 and not name.startswith("callback"):  # what those raise is the caller's own
        return rng.choice((*ODD, *_ANYTHING))
    return rng.choice(_ODD.get(name, _ANYTHING))


class _Hostile:
    """An object whose every conversion fails."""

    def __float__(self) -> float:
        raise OverflowError("no number")

    def __index__(self) -> int:
        raise RuntimeError("no number")


_ANYTHING: tuple[Any, ...] = (
    object(), _Hostile(), int, len, b"bytes", bytearray(b"x"), {1, 2}, {"a": 1}, range(3), itertools.count, 1j, 10**400,
    np.array(3), np.array([1, 2]), np.array([True]), np.nan, np.float32("inf"), np.bool_(True), torch.tensor(3),
    torch.tensor([1, 2]), torch.tensor(float("nan")), torch.tensor(True), torch.Generator("cpu"), Policy(), LHEP,
    slice(3), Ellipsis, [1, "a"], [[1], [2]], ["a", None], [2**70], "\ud800", "nan", "inf", "1e999",
)  # fmt: skip


def _features(**kind: Any) -> torch.Tensor:
    return torch.ones(3, CHANNELS, **{"dtype": torch.float32, "device": "cpu"} | kind)


_ODD: dict[str, tuple[Any, ...]] = {
    "prompt": ("", "  ", "x" * 32_000, "x" * 32_001, "x" * 5_000_000, ["a red circle"] * 1025, [], [""], ["a", 3]),
    "class_labels": (-1, 10**9, [], [0.0], [True], "1", [None], 2**64, [0] * 1025),
    "prompt_embeds": (
        _features(dtype=torch.float64), _features(dtype=torch.bfloat16), _features() * float("nan"),
        _features(dtype=torch.float64) * 1e300, _features(dtype=torch.int64), _features(dtype=torch.complex64),
        _features().to_sparse(), _features(device="meta"), _features()[:0], _features()[:, :-1], _features()[0],
        torch.ones(17, CHANNELS), torch.ones(2, 3, CHANNELS), torch.ones(CHANNELS, 3).T, torch.ones(1, 1, 3, CHANNELS),
        _features().numpy(), [], [None], torch.ones(1, CHANNELS).expand(3, CHANNELS),
    ),
    "negative_prompt": ("", [""], [], ["a", "b", "c", "d", "e"], "x" * 40_000, ["", 3], 3),
    "negative_prompt_embeds": (_features(), _features(device="meta"), 5, [], [_features()] * 7),
    "guidance_scale": (1e300, -1e300, 3e38, 1e37, 1e30, [1.0], [3.0] * 7, [1e300] * 7, [3.0] * 99, "7777777"),
    "temperature": (0, -1, 1e-320, 1e-38, 1e-30, 1e300, [0.5] * 7, [0.5, 0] * 4, float("inf")),
    "top_k": (-1, 1.0, 10**30, True, [1], "1"),
    "top_p": (-0.1, 1.1, 1, True, "0.5", float("nan"), [0.5]),
    "num_images_per_prompt": (0, -1, 10**9, 1025, 1.5, True, 2**70, "2"),
    "seed": (-1, 2**64, 2**64 - 1, 1.0, True, [1, 2, 3, 4, 5], [2**64], "1", itertools.count()),
    "policy": (
        "quick", "/etc/passwd", "../x.json", "profiles/x", "absent.json", "ld:", "ld:rho", "ld:rho=7", "ld:rho=nan",
        "ld:scales=99", "ld:scales=" + "1+" * 5000, "x" * 100_000, "none:skip_last=99", "none:skip_last=-1", "ld:,,,",
        "top-k:share=2", "none:stop=99", "ld:fill=linear", 3, LHEP(), SATS(), [Policy()], Policy(TopK(0.2), StopAt(3)),
        Policy(TopP(0.9), skip_last=1), Policy(LHEP(scales=(99,))), "LD", " ld ", "",
    ),
    "aspect_ratio": (0, -1, 1e300, 1e-300, [1.0], [1.0, 2.0, 0.5], "1:1", float("inf")),
    "height": (64, 0, -64, 64.0, 10**9, [64, 64], True, "64"),
    "width": (64, 0, -64, 64.0, 10**9, [64, 64], True, "64"),
    "output_type": ("PIL", "np", None, 3, ["pil"], "latent"),
    "cfg_insertion_layer": (0, [0], (0,), [1], [], "0", [0, 0], None, [-5], np.array([0])),
    "more_smooth": (1, 0, "no", None, [], True),
    "callback_on_scale": (3, "print", lambda: None, lambda event: True),
    "callback_on_image": (3, "print", [len], lambda event: None),
}  # fmt: skip


def _is_picture(images: Any) -> bool:
    """True for images without NaN, which are not all one value."""
    tensors = [torch.as_tensor(np.asarray(image)) for image in images]
    return bool(tensors) and all(bool(t.double().isfinite().all()) for t in tensors)


def _same(family: Family, images: Any, expected: Any) -> bool:
    """True for equal pictures; HART's, whose last scale is no code, may differ by rounding."""
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in zip(images, expected, strict=True)]
    if family != "hart":
        return all(np.array_equal(one, other) for one, other in pairs)
    return all(
        np.allclose(one.astype(np.float64), other, rtol=0, atol=2 if one.dtype == np.uint8 else 1e-2)
        for one, other in pairs
    )
