"""Options of a fleet, and their reading from the arguments of `serve run`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import psutil
from ldp_runtime.errors import ConfigError
from pydantic import TypeAdapter, ValidationError

from ldp_serving.front.run import ServeOptions

#: Fields of options that the command line names otherwise.
_FIELDS = {"timeout": "timeout_s", "drain": "drain_s", "cors_origin": "cors_origins"}
#: Fields of several values, which arguments hold as one text, and what separates them.
_LISTS = {"bundles": ",", "cors_origins": ",", "allow_policy": None}


@dataclass(frozen=True)
class FleetOptions:
    """Options of a fleet.

    Attributes:
        replicas: that are always there.
        max_replicas: most replicas, which are added while requests queue; None: no more.
        health_check_s: seconds between two checks of a replica; one that fails is replaced.

    Raises:
        ConfigError: a number is out of its range.
    """

    replicas: int = 1
    max_replicas: int | None = None
    health_check_s: float = 5.0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"--replicas must be at least 1, got {self.replicas}", hint="leave it out")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(
                f"--max-replicas must be at least --replicas ({self.replicas}), got {self.max_replicas}",
                hint="leave it out for a fleet of a fixed size",
            )
        if not self.health_check_s > 0:
            raise ConfigError(f"health_check_s must be positive, got {self.health_check_s:g}", hint="seconds")

    @property
    def most(self) -> int:
        """Most replicas that there may be."""
        return self.max_replicas or self.replicas

    def threads(self, options: ServeOptions) -> int:
        """CPUs of each replica on this machine: those asked for, or its share of the physical cores."""
        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        return options.threads or max(1, math.floor(cores / self.most))

    def resources(self, options: ServeOptions) -> dict[str, int]:
        """Resources that Ray keeps for each replica: its CPUs, and a GPU of its own where the engines run on one."""
        gpus = {"num_gpus": 1} if options.device.startswith("cuda") else {}
        return {"num_cpus": self.threads(options)} | gpus


def read_arguments(arguments: Mapping[str, Any]) -> tuple[ServeOptions, FleetOptions]:
    """Options of a server and of its fleet, from names and values, which may be texts.

    Raises:
        ConfigError: a name is unknown, or a value cannot be.
    """
    named = {name.replace("-", "_"): value for name, value in arguments.items()}
    given = {_FIELDS.get(name, name): value for name, value in named.items()}
    for name, separator in _LISTS.items():
        if isinstance(given.get(name), str):
            given[name] = given[name].split(separator)
    kinds: tuple[Any, ...] = (ServeOptions, FleetOptions)
    known = [{field.name for field in fields(kind)} for kind in kinds]
    unknown = sorted(given.keys() - known[0] - known[1])
    if unknown:
        raise ConfigError(
            f"unknown arguments: {', '.join(unknown)}", hint=f"there are {', '.join(sorted(known[0] | known[1]))}"
        )
    if not given.get("bundles"):
        raise ConfigError("there is nothing to serve", hint="name a bundle: bundles=bundles/infinity-shapes")
    return (_read(kinds[0], known[0], given), _read(kinds[1], known[1], given))


def _read(kind: Any, names: set[str], given: Mapping[str, Any]) -> Any:
    try:
        return TypeAdapter(kind).validate_python({name: value for name, value in given.items() if name in names})
    except ConfigError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"invalid {place}: {first['msg']}", hint="as of ldp-export serve --help") from None
