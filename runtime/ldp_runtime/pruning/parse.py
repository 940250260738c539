"""Policies as text, such as `ld:rho=0.4,fill=zero`: on a command line, in a trace, in a saved policy.

    TEXT    = NAME [":" OPTION {"," OPTION}]
    NAME    = none | ld | ld-fast | ld-paper | ld-skip-2 | lhep | top-p | top-k
    OPTION  = KEY "=" VALUE        lists are written 5+6; none stands for no value

A name says what the policy begins with, an option changes one field of its parts. The token rule has rho (LHEP) or p
(top-p) or share (top-k), score, fill, scales, detail, energy_from, border, haar. The rule that stops the unconditional
branch has delta, stop_scales and gap (SATS), or stop (a scale, or first), and then. The policy has skip_last.
`delta=none` and `stop=none` let the branch run to the end; `scales=` thins no scale out.

Older spellings are read too: see `older`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ldp_runtime.errors import ConfigError, suggestion
from ldp_runtime.pruning import older
from ldp_runtime.pruning.policy import GuidanceRule, Policy, TokenRule
from ldp_runtime.pruning.stopping import SATS, StopAt
from ldp_runtime.pruning.tokens import LHEP, TopK, TopP

#: Policies by name. "ld-paper" is the paper's setting without skipped scales, "ld-skip-2" its headline mode. "ld"
#: scores by LHEP's energy too, and is non-inferior to the full model; "ld-fast" is faster, at a measured loss.
NAMED: dict[str, Policy] = {
    "none": Policy(),
    "ld": Policy(LHEP(0.75, fill="zero"), StopAt("first", then="reuse")),
    "ld-fast": Policy(TopP(0.8, score="distance", fill="zero"), StopAt("first", then="reuse")),
    "ld-paper": Policy(LHEP(), SATS()),
    "ld-skip-2": Policy(LHEP(), SATS(), skip_last=2),
    "lhep": Policy(LHEP()),
    "top-p": Policy(TopP()),
    "top-k": Policy(TopK()),
}
#: Names that stand for a token rule alone: what they begin with does not change.
_RULES: dict[type[TokenRule], str] = {LHEP: "lhep", TopP: "top-p", TopK: "top-k"}
POLICY_NAMES: tuple[str, ...] = (*NAMED, *older.NAMES)
#: Options of the guidance rules, by their fields.
STOPPING = {"delta": "delta", "stop_scales": "scales", "gap": "gap", "stop": "scale", "then": "then"}


@lru_cache(maxsize=64)
def parse_policy(text: str) -> Policy | None:
    """A policy from its text, such as "ld", "ld:rho=0.4,fill=zero" or "none:skip_last=2". "none" gives None.

    Raises:
        ConfigError: unknown name or option, or a value out of range.
    """
    policy = read_policy(text, NAMED)
    return None if policy == Policy() else policy


def read_policy(text: str, named: Mapping[str, Policy]) -> Policy:
    """A policy from its text, given the policies that names stand for; see `parse_policy`."""
    name, _, written = text.strip().partition(":")
    options: dict[str, str] = {}
    for option in filter(None, written.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"policy {name!r} has no option {option!r}", hint="options are written key=value")
        options[key] = value
    if name in older.NAMES:
        name, options = older.renamed(name, options)
    if name not in named:
        raise ConfigError(
            f"unknown policy {name!r}", hint=f"{suggestion(name, POLICY_NAMES)}one of {', '.join(POLICY_NAMES)}"
        )
    return _changed(name, named[name], older.respelled(options))


def _changed(name: str, policy: Policy, options: dict[str, str]) -> Policy:
    """The policy with its options; each is taken by the part that has it."""
    skip = options.pop("skip_last", None)
    stopping = {key: options.pop(key) for key in list(options) if key in STOPPING}
    tokens = _token_rule(name, policy.tokens, options)
    guidance = _guidance_rule(policy.guidance, stopping)
    return Policy(tokens, guidance, policy.skip_last if skip is None else _value("skip_last", skip, "int"))


def _token_rule(name: str, rule: TokenRule | None, options: dict[str, str]) -> TokenRule | None:
    if not options:
        return rule
    score = options.get("score", "energy")
    if isinstance(rule, LHEP) and score != "energy":  # a share of another score
        rule = TopP(rule.rho, score="distance", fill=rule.fill, scales=rule.scales, detail=rule.detail)
    elif isinstance(rule, TopP) and options.get("score") == "energy":
        rule = LHEP(rule.p, fill=rule.fill, scales=rule.scales, detail=rule.detail)
    if isinstance(rule, LHEP):
        options.pop("score", None)
    there, here = ("rho", "p") if isinstance(rule, TopP) else ("p", "rho")  # the share, as the two rules call it
    if isinstance(rule, LHEP | TopP) and there in options:
        options[here] = options.pop(there)
    fields = {} if rule is None else _fields(rule)
    unknown = [key for key in options if key not in fields]
    if rule is None or unknown:
        known = (*fields, *STOPPING, "skip_last")
        raise ConfigError(f"policy {name!r} has no option {unknown[0]!r}", hint=f"its options: {', '.join(known)}")
    thins_nothing = options.get("scales") == ""
    changes = {key: _value(key, text, fields[key]) for key, text in options.items() if key != "scales" or text}
    changed = dataclasses.replace(rule, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return None if thins_nothing else changed


def _guidance_rule(rule: GuidanceRule | None, options: dict[str, str]) -> GuidanceRule | None:
    if not options:
        return rule
    if "stop" in options and ("delta" in options or "stop_scales" in options):
        raise ConfigError("stop stands beside delta or stop_scales", hint="stop at a scale, or where the gap settles")
    if options.get("delta") in ("none", "None") or options.get("stop") in ("none", "None"):
        return None
    kind = StopAt if "stop" in options else SATS if {"delta", "gap", "stop_scales"} & set(options) else type(rule)
    if kind not in (SATS, StopAt):
        raise ConfigError("then says what follows a stop, and nothing stops", hint="add stop=first, or delta=0.15")
    if not isinstance(rule, kind):
        rule = kind() if rule is None else kind(then=rule.then)
    changes = {}
    for key, text in options.items():
        field = STOPPING[key]
        changes[field] = _value(key, text, _fields(rule)[field])
    return dataclasses.replace(rule, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _fields(rule: Any) -> dict[str, str]:
    """Fields that text can set, with their types; fitted numbers come from bundles and saved policies."""
    return {field.name: str(field.type) for field in dataclasses.fields(rule) if field.name != "fitted"}


def _value(key: str, text: str, kind: str) -> Any:
    try:
        if text in ("none", "None") and "None" in kind:
            return None
        if kind == "float | tuple[float, ...]":
            parts = tuple(float(part) for part in text.split("+") if part)
            return parts if "+" in text or len(parts) != 1 else parts[0]
        if kind.startswith("tuple"):
            return tuple(int(part) for part in text.split("+") if part)
        if kind.startswith("float"):
            return float(text)
        if kind.startswith("int | Literal"):
            return text if text == "first" else int(text)
        return int(text) if kind.startswith("int") else text
    except ValueError as error:
        raise ConfigError(f"{key}={text!r} is not of type {kind}", hint="see the help of the command") from error


def policy_text(policy: Policy | None) -> str:
    """The policy with every field written out, so that no name or default can change its meaning later."""
    policy = policy or Policy()
    if not _has_text(policy):
        return repr(policy)
    tokens = {} if policy.tokens is None else _written(policy.tokens)
    name = "none" if policy.tokens is None else _RULES[type(policy.tokens)]
    options = {**tokens, **_stopping(policy.guidance)}
    if policy.skip_last:
        options["skip_last"] = str(policy.skip_last)
    return name + _joined(options)


def describe(policy: Policy | None) -> str:
    """The policy in few words, for tables: the nearest name, and what differs from it. `parse_policy` reads it."""
    policy = policy or Policy()
    if not _has_text(policy):
        return repr(policy)
    texts = [text for name, base in NAMED.items() if (text := _from(name, base, policy)) is not None]
    return min(texts, key=lambda text: (text.count("="), len(text)))


def _from(name: str, base: Policy, policy: Policy) -> str | None:
    """The policy as changes of a named one; None where it has another token rule."""
    if type(base.tokens) is not type(policy.tokens):
        return None
    options: dict[str, str] = {}
    if policy.tokens is not None and base.tokens is not None:
        before = _written(base.tokens)
        options = {key: text for key, text in _written(policy.tokens).items() if before[key] != text}
    options |= _stopping_changes(base.guidance, policy.guidance)
    if policy.skip_last != base.skip_last:
        options["skip_last"] = str(policy.skip_last)
    return name + _joined(options)


def _stopping_changes(base: GuidanceRule | None, rule: GuidanceRule | None) -> dict[str, str]:
    """Options that make one guidance rule of another; those that a rule of another kind begins with are left out."""
    if rule is None:
        return {} if base is None else {"stop": "none"}
    before, decisive = base, ""
    if type(base) is not type(rule):
        before = type(rule)() if base is None else type(rule)(then=base.then)  # pyright: ignore[reportCallIssue]
        decisive = "stop" if isinstance(rule, StopAt) else "delta"  # which says what kind it is
    known = _stopping(before)
    return {key: text for key, text in _stopping(rule).items() if key == decisive or known[key] != text}


def _has_text(policy: Policy) -> bool:
    """False for rules that are nobody's but a caller's own, or scales that are thinned out nowhere."""
    return type(policy.tokens) in (type(None), *_RULES) and type(policy.guidance) in (type(None), SATS, StopAt)


def _stopping(rule: GuidanceRule | None) -> dict[str, str]:
    if rule is None:
        return {}
    keys = {field: key for key, field in STOPPING.items()}
    return {keys[field]: text for field, text in _written(rule).items()}


def _written(rule: Any) -> dict[str, str]:
    return {key: _text(getattr(rule, key)) for key in _fields(rule)}


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) + ("+" if len(value) == 1 else "")
    return "none" if value is None else str(value)


def _joined(options: Mapping[str, str]) -> str:
    return "".join(f"{':' if i == 0 else ','}{key}={text}" for i, (key, text) in enumerate(options.items()))
