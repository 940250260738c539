"""Loading of weights into transformers' classes: every key is used, and every parameter is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from ldp_runtime.errors import ConfigError, IntegrityError, InternalError
from ldp_runtime.system.installation import install
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: Most keys that a message names, of each kind.
_NAMED = 20
Network = TypeVar("Network", bound=nn.Module)


class _NoMemory(TorchFunctionMode):
    """Mode in which parameters take no memory until their weights are assigned; computed buffers are as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def loaded(build: Callable[[], Network], tensors: Mapping[str, Tensor], what: str, unused: str = "") -> Network:
    """Network with the weights of a mapping, in float32, ready to score.

    Args:
        build: makes the network, which need not be initialised.
        what: name of the weights, for messages.
        unused: beginning of the names of parameters that scoring never reads, and which stay as they are.

    Raises:
        IntegrityError: weights are missing, too many, or of another shape; the message lists them.
    """
    with _NoMemory():
        network = build().eval()
    wanted = {k: v for k, v in network.state_dict().items() if not (unused and k.startswith(unused))}
    check_keys({k: v.shape for k, v in wanted.items()}, {k: v.shape for k, v in tensors.items()}, what)
    given = {name: tensor.float() for name, tensor in tensors.items()}
    network.load_state_dict(given, strict=False, assign=True)
    _fill_unused(network, unused)
    return network.requires_grad_(False)


def _fill_unused(network: nn.Module, unused: str) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_meta:
            continue
        if not (unused and name.startswith(unused)):
            raise InternalError(f"{name} has no value after loading: a buffer is not computed")
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, nn.Parameter(torch.ones(tensor.shape)))


def thirds(name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """Query, key and value of a tensor that stacks them along its rows. Raises IntegrityError if it does not."""
    if not tensor.ndim or len(tensor) % 3:
        raise odd_shape(name, tensor)
    return tensor.chunk(3)


def odd_shape(name: str, tensor: Tensor) -> IntegrityError:
    return IntegrityError(
        f"the weight {name} has the shape {_shape(tensor.shape)}, which cannot be taken apart",
        hint="get the published file anew",
    )


def check_keys(wanted: Mapping[str, Any], found: Mapping[str, Any], what: str) -> None:
    """Compares names and shapes of weights with those that a network has.

    Raises:
        IntegrityError: they differ; the message lists what is missing, what is too much, and what has another shape.
    """
    parts = [
        _listed("missing", [k for k in wanted if k not in found]),
        _listed("too many", [k for k in found if k not in wanted]),
        _listed(
            "of another shape",
            [f"{k} {_shape(found[k])} for {_shape(v)}" for k, v in wanted.items() if k in found and found[k] != v],
        ),
    ]
    problems = "; ".join(part for part in parts if part)
    if problems:
        raise IntegrityError(
            f"the weights {what} are not those of the network: {problems}",
            hint="get the published file anew, or look for a newer ldp-export: no weight is left out or made up",
        )


def _listed(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:_NAMED])}{more}" if keys else ""


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "()"


#: Oldest version of transformers whose classes have the names that weights are given here.
_OLDEST = (5, 10)


def transformers() -> Any:
    """Library of the networks' classes. Raises ConfigError if it is not installed, or too old."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("transformers is not installed", hint=install("scorers")) from error
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise ConfigError(
            f"transformers {transformers.__version__} names weights otherwise than {needed} and later",
            hint=f"pip install 'transformers>={needed}'",
        )
    return transformers
