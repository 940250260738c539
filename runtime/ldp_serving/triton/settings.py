"""Settings of a model in Triton: the parameters of its `config.pbtxt`, which an operator may edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from ldp_runtime.errors import ConfigError

from ldp_serving.front.loading import ModelOptions
from ldp_serving.limits import Interleave

#: Readers of the parameters, by name; those of the Python backend itself are in capitals.
_READERS: Mapping[str, Callable[[str], Any]] = {
    "threads": int,
    "max_batch": int,
    "max_in_flight": int,
    "max_queue": int,
    "max_images": int,
    "policy": str,
    "allow_policy": lambda text: tuple(text.split()),
    "timeout_s": float,
    "interleave": str,
    "hooks": str,
    "previews": int,
}


def to_parameters(options: ModelOptions) -> dict[str, str]:
    """Parameters that say these options; those that are not set are left out, and the device is the instance's."""
    values = options.of_model()
    del values["device"]
    values["allow_policy"] = " ".join(options.allow_policy)
    return {name: str(value) for name, value in values.items() if value is not None}


def to_options(parameters: Mapping[str, str], device: str) -> ModelOptions:
    """Options of a model's parameters.

    Args:
        device: on which Triton puts the instance.

    Raises:
        ConfigError: a parameter is unknown, or has a value that cannot be.
    """
    own = {name: text for name, text in parameters.items() if not name.isupper()}
    unknown = sorted(own.keys() - _READERS.keys())
    if unknown:
        raise ConfigError(
            f"config.pbtxt has unknown parameters: {', '.join(unknown)}", hint=f"there are {', '.join(_READERS)}"
        )
    values: dict[str, Any] = {}
    for name, text in own.items():
        try:
            values[name] = _READERS[name](text)
        except ValueError:
            raise ConfigError(
                f"the parameter {name} in config.pbtxt cannot be {text!r}", hint="a number, as `package` wrote it"
            ) from None
    if "interleave" in values and values["interleave"] not in get_args(Interleave):
        found, kinds = values["interleave"], ", ".join(get_args(Interleave))
        raise ConfigError(f"interleave must be one of {kinds}, got {found!r}", hint="leave it out")
    return ModelOptions(device=device, **values)
