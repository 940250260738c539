"""Reading of a result that is to be compared: what a comparison needs is there, and every time is a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ldp_export.bench.older_results import OLDER_SCHEMA
from ldp_export.bench.result import SCHEMA, Scope, within

#: Most bytes of a result that is read.
_LARGEST = 256 << 20
#: Milliseconds: a finite number (no text, no truth value) of at most some thirty years.
Milliseconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)]
Counted = Annotated[int, Field(ge=0, strict=True)]


class _Part(BaseModel):
    """Part of a result; fields that no comparison reads are passed over."""

    model_config = ConfigDict(frozen=True)


class _Sample(_Part):
    group: Counted
    wall_ms: Annotated[Milliseconds, Field(gt=0)]
    text_ms: Milliseconds
    blocks_ms: Milliseconds


class _Candidate(_Part):
    name: str
    batch: Annotated[Counted, Field(ge=1)]
    samples: Annotated[list[_Sample], Field(min_length=1)]


class _Settings(_Part):
    scope: Scope


class _Result(_Part):
    schema_: Literal[SCHEMA, OLDER_SCHEMA] = Field(alias="schema")  # pyright: ignore[reportInvalidTypeForm]
    hardware: dict[str, Any]
    settings: _Settings
    model: dict[str, Any]
    candidates: Annotated[list[_Candidate], Field(min_length=1)]


def read_result(path: Path) -> Any:
    """Content of a result's file, which `check_result` has yet to see.

    Raises:
        ConfigError: there is no such file, or it is no JSON.
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError(f"a file of JSON of at most {_LARGEST >> 20} MiB is expected")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read the result {path}: {error}", hint="`ldp-export bench BUNDLE --output FILE` writes one"
        ) from error


def check_result(place: str, result: Any) -> None:
    """Raises ConfigError for what is no result, or one whose samples cannot be compared.

    Args:
        place: which of the results it is, for the message.
    """
    if not isinstance(result, dict) or result.get("schema") not in (SCHEMA, OLDER_SCHEMA):
        raise ConfigError(
            f"the {place} is no result of this version of `ldp-export bench`", hint="write one with --output FILE"
        )
    try:
        read = _Result.model_validate(result)
    except ValidationError as error:
        raise ConfigError(f"the {place} result is damaged: {complaint(error)}", hint="measure it again") from error
    names = [(candidate.name, candidate.batch) for candidate in read.candidates]
    if len(set(names)) < len(names):
        raise ConfigError(f"the {place} result is damaged: it holds a candidate twice", hint="measure it again")
    for candidate in read.candidates:
        if any(_time(sample, read.settings.scope) <= 0 for sample in candidate.samples):
            raise ConfigError(
                f"the {place} result is damaged: a call of {candidate.name!r} took no time", hint="measure it again"
            )


def _time(sample: _Sample, scope: Scope) -> float:
    return within(scope, sample.wall_ms, sample.text_ms, sample.blocks_ms)
