"""Policies as text, such as `ld:rho=0.4,fill=zero`, on a command line, in a trace, in a saved policy."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.controls import FixedRatio, GivenShares, SkipLastScales, StopGuidanceAfter
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.policy import Policy

#: Policies by name. "ld" is what docs/ablation.md recommends; "ld-paper" is the paper's setting without skipped scales,
#: "ld-skip-2" the paper's headline mode.
_NAMED: dict[str, Policy] = {
    "none": Policy(),
    "ld": LatentDiscrepancy(rho=0.8, stop_threshold=9, after_stop="reuse", fill="zero", score="distance"),
    "ld-paper": LatentDiscrepancy(),
    "ld-skip-2": LatentDiscrepancy(skip_last=2),
    "skip": SkipLastScales(),
    "stop-guidance": StopGuidanceAfter(0),
    "fixed": FixedRatio(),
    "given": GivenShares(),
}


POLICY_NAMES: tuple[str, ...] = tuple(_NAMED)


@lru_cache(maxsize=64)
def parse_policy(text: str) -> Policy | None:
    """A policy from its name and options, such as "ld", "ld:rho=0.4,fill=zero" or "skip:count=2".

    Lists are written with plus signs: "ld:prune_scales=5+6". "none" gives None, the full model.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
    """
    name, _, options = text.strip().partition(":")
    if name not in _NAMED:
        raise ConfigError(f"unknown policy {name!r}", hint=f"one of {', '.join(_NAMED)}")
    base = _NAMED[name]
    fields = {f.name: f for f in _options(base)}
    changes: dict[str, object] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if key not in fields or not equals:
            raise ConfigError(f"policy {name!r} has no option {option!r}", hint=f"its options: {', '.join(fields)}")
        changes[key] = _parse_value(key, value, str(fields[key].type))
    if name == "none":
        return None
    return dataclasses.replace(base, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _parse_value(key: str, value: str, kind: str) -> object:
    try:
        if value in ("none", "None") and "None" in kind:
            return None
        if kind.startswith("tuple[float"):
            return tuple(float(part) for part in value.split("+") if part)
        if kind.startswith("tuple"):
            return tuple(int(part) for part in value.split("+") if part)
        if kind.startswith("float"):
            return float(value)
        return int(value) if kind.startswith("int") else value
    except ValueError as error:
        raise ConfigError(f"{key}={value!r} is not of type {kind}") from error


def describe(policy: Policy | None) -> str:
    """Policy as one line of text, for tables and traces; `parse_policy` reads it if the policy's class has a name."""
    if policy is None or type(policy) is Policy:
        return "none"
    named = next((name for name, base in _NAMED.items() if base == policy), None)
    if named is not None:
        return named
    written = [
        name + (":" + ",".join(changed) if changed else "")
        for name, base in _NAMED.items()
        if type(base) is type(policy)
        for changed in [_changes(policy, base)]
    ]
    return min(written, key=lambda text: text.count("=")) if written else repr(policy)


def _changes(policy: Policy, base: Policy) -> list[str]:
    return [
        f"{f.name}={_written(getattr(policy, f.name))}"
        for f in _options(base)
        if getattr(policy, f.name) != getattr(base, f.name)
    ]


def _options(base: Policy) -> list[dataclasses.Field[object]]:
    """Fields that text can set; fitted numbers come from bundles and saved policies."""
    return [f for f in dataclasses.fields(base) if f.name != "fitted"] if dataclasses.is_dataclass(base) else []


def _written(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
