"""Hooks of an operator: one sees each prompt before any work, one each picture before it leaves."""

from __future__ import annotations

import importlib
from typing import Any

from ldp_runtime.errors import ConfigError


class Hooks:
    """Hooks that let everything pass; subclass them, and name an object of the class as `--hooks module:object`.

    Each may raise `Rejected`, whose message the client sees. They run on threads beside the engine, several at a time.
    """

    def check_prompt(self, prompt: str, key: str | None) -> None:
        """Sees a prompt (or a negative one) before the request waits.

        Args:
            key: name of the client's key, or None.
        """

    def check_picture(self, image: Any, key: str | None) -> None:
        """Sees a PIL image, partial ones included, before it is sent."""


def load_hooks(name: str) -> Hooks:
    """Object that `module:object` names.

    Raises:
        ConfigError: there is no such object, or it lacks a hook.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot load the hooks {name!r}: {error}", hint="name them as module:object") from error
    if not all(callable(getattr(found, hook, None)) for hook in ("check_prompt", "check_picture")):
        raise ConfigError(f"{name!r} has no check_prompt and check_picture", hint="subclass ldp_serving.hooks.Hooks")
    return found
