"""Strict loading: every key is used, every weight filled, every misfit named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from ldp_runtime.errors import CheckpointError
from ldp_runtime.numerics import all_finite
from torch import nn

from ldp_export.checkpoints.files.tensors import State, listing
from ldp_export.models.choose import Config
from ldp_export.models.sizes import ClipSizes, Qwen2Sizes

Model = TypeVar("Model", bound=nn.Module)
#: Sizes of a model, or of what reads its texts.
Sizes = Config | ClipSizes | Qwen2Sizes


def shape_of(state: State, key: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor; raises `CheckpointError` if it is missing or has another number of dimensions."""
    if key not in state:
        raise CheckpointError(
            f"the checkpoint lacks {key!r}, from which its sizes are read",
            hint="--weights takes a transformer of Infinity or VAR, --vae the BSQ VAE or VAR's, in the original layout",
        )
    shape = tuple(state[key].shape)
    if len(shape) != dims:
        raise CheckpointError(
            f"{key!r} has shape {shape}, expected {dims} dimensions",
            hint="is it the file of this part of the model? --weights takes the transformer, --vae the VAE",
        )
    return shape


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    """Number of different numbers that `pattern` captures in the keys, which must be 0, 1, 2 and so on; 0 for none.

    Raises:
        CheckpointError: a number is missing, or far too large.
    """
    texts = {m[1] for key in keys if (m := re.match(pattern, key))}
    wanted = {str(number) for number in range(len(texts))}
    if odd := sorted(texts - wanted):
        raise CheckpointError(
            f"{len(texts)} different numbers stand in keys like {pattern!r}, among them {listing(odd, 3)}",
            hint="they count from 0 without a gap in files of these models: keys are missing, or were renamed",
        )
    return len(texts)


def renamed(pairs: Iterable[tuple[str, torch.Tensor]], names: Iterable[str]) -> State:
    """Tensors under new names, given in the same order; raises CheckpointError if two would have one name."""
    state: State = {}
    for (key, value), name in zip(pairs, names, strict=True):
        if name in state:
            raise CheckpointError(
                f"the key {key!r} means {name!r}, which is there under another name already",
                hint="the file mixes two layouts; save it from one of them",
            )
        state[name] = value
    return state


#: Element types of weights that a build can use.
_WEIGHTS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def map_strictly(kind: Callable[..., Model], config: Sizes, state: State, origin: str) -> Model:
    """A model whose parameters are the tensors of `state` themselves; keys and shapes are checked strictly."""
    model = fitting_model(kind, config, state, origin)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def fill_strictly(kind: Callable[..., Model], config: Sizes, state: State, origin: str) -> Model:
    """A model filled strictly with the values of `state` in float32."""
    model = fitting_model(kind, config, state, origin)
    weights = {key: value.to(torch.float32) for key, value in state.items()}
    damaged = [key for key, value in weights.items() if not all_finite(value)]
    if damaged:
        raise CheckpointError(
            f"{origin} holds NaN or infinity in {listing(damaged)}", hint="the file is damaged; fetch it again"
        )
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def fitting_model(kind: Callable[..., Model], config: Sizes, state: State, origin: str) -> Model:
    """The empty model of `config` on the meta device, after comparing its keys and shapes with `state`."""
    with torch.device("meta"):
        model = kind(config)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    mistyped = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key in expected
        if key in state and state[key].dtype not in _WEIGHTS
    ]
    problems = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "of the wrong shape": misshapen,
        "of an element type that is not float64, float32, bfloat16 or float16": mistyped,
    }
    misfits = [f"{len(keys)} {what}: {listing(keys)}" for what, keys in problems.items() if keys]
    if misfits:
        raise CheckpointError(
            f"{origin} does not fit {config}:\n  " + "\n  ".join(misfits),
            hint="the file is of another model, or of another size than named",
        )
    return model
