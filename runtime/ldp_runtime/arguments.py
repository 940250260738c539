"""Arguments of callers: numbers and lists of any library, checked and made plain before any work is done."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any

import numpy as np

from ldp_runtime.errors import ConfigError

#: Most characters of a caller's value that a message repeats.
_SHOWN = 120


def shown(value: Any) -> str:
    """A caller's value for a message, however long it is."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {list(value.shape)} of {value.dtype}"
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, int | float | complex | None):
        return _digits(value)
    text = repr(value[: _SHOWN // 4]) if isinstance(value, list | tuple) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _digits(value: complex | None) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a whole number of very many digits"


def whole_number(name: str, value: object, least: float, most: float, hint: str | None = None) -> int:
    """A whole number of any library, as Python's own.

    Raises:
        ConfigError: it is none (truth values and floats are not), or lies outside of [least, most].
    """
    number = _index(value)
    if number is None:
        raise ConfigError(f"{name} must be a whole number, got {shown(value)}", hint=hint)
    if number < least:
        raise ConfigError(f"{name} must be at least {least}, got {shown(number)}", hint=hint)
    if number > most:
        raise ConfigError(f"{name} must be at most {most}, got {shown(number)}", hint=hint)
    return number


def _holds_truth(value: object) -> bool:
    """True for arrays and tensors of truth values, whatever library they are of."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2] == "bool"


def _index(value: Any) -> int | None:
    if isinstance(value, bool | np.bool_) or _holds_truth(value):
        return None
    try:
        return operator.index(value)
    except Exception:
        return None


def number(name: str, value: Any, hint: str | None = None) -> float:
    """A finite number of any library, as Python's own.

    Raises:
        ConfigError: it is none (truth values and texts are not), or not finite.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes) or _holds_truth(value):
            raise TypeError
        plain = float(value)
    except Exception as error:
        raise ConfigError(f"{name} must be a number, got {shown(value)}", hint=hint) from error
    if not math.isfinite(plain):
        raise ConfigError(f"{name} must be finite, got {plain}", hint=hint)
    return plain


def is_list(value: object) -> bool:
    """True for what holds several values; a text is one value."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def listed(name: str, value: Any, most: int) -> list[Any]:
    """Values of a list, a tensor's rows, or an iterator; no more than `most` are taken from it.

    Raises:
        ConfigError: there are more, or it has no order, or it is none.
    """
    if not is_list(value) or isinstance(value, bytearray | memoryview | Mapping | Set):
        raise ConfigError(f"{name} must be a list, got {shown(value)}", hint="such as [1, 2]")
    if getattr(value, "ndim", 1) == 0:
        raise ConfigError(f"{name} must be a list, got {shown(value)} without an axis", hint="pass .item()")
    values = list(islice(iter(value), most + 1))
    if len(values) > most:
        raise ConfigError(f"{name} holds more than {most} values", hint="ask for fewer in one call")
    return values


def truth(name: str, value: object) -> bool:
    """True or False. Raises ConfigError for anything else: a text such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, got {shown(value)}", hint="without quotes")
    return bool(value)


def check_callable(name: str, value: object) -> None:
    """Raises ConfigError for what is neither None nor can be called with one event."""
    if value is None:
        return
    try:
        if not callable(value):
            raise TypeError("it cannot be called")
        inspect.signature(value).bind(None)
    except ValueError:
        return  # functions of other languages do not say what they take
    except TypeError as error:
        raise ConfigError(
            f"{name} must be a function of one event, got {shown(value)}: {error}", hint="such as `def see(event): ...`"
        ) from error
