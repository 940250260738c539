"""API keys: who may ask, how often, and for how much at a time."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError

from ldp_serving.errors import TooMany
from ldp_serving.front.body import BadRequest

#: Fewest characters of a key.
_SHORTEST = 16


@dataclass
class Key:
    """One client.

    Attributes:
        name: of the client, for logs and hooks.
        priority: of its requests; a higher one is drawn first.
        rate: pictures a minute, or None; a minute's worth may come at once.
        concurrency: pictures at a time, or None.
    """

    name: str
    digest: bytes = b""
    priority: int = 0
    rate: int | None = None
    concurrency: int | None = None
    clock: Callable[[], float] = time.monotonic
    _running: int = 0
    _left: float = field(init=False)
    _seen: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._seen = float(self.rate or 0), self.clock()

    @contextmanager
    def admitted(self, pictures: int) -> Generator[None]:
        """Counts a request while it runs.

        Raises:
            TooMany: the key allows no more for now.
        """
        if self.concurrency is not None and self._running + pictures > self.concurrency:
            raise TooMany(f"this key allows {self.concurrency} pictures at a time", retry_s=1.0)
        self._spend(pictures)
        self._running += pictures
        try:
            yield
        finally:
            self._running -= pictures

    def _spend(self, pictures: int) -> None:
        if self.rate is None:
            return
        now = self.clock()
        self._left = min(float(self.rate), self._left + (now - self._seen) * self.rate / 60)
        self._seen = now
        if pictures > self._left:
            wait = (pictures - self._left) * 60 / self.rate
            raise TooMany(f"this key allows {self.rate} pictures a minute", retry_s=wait)
        self._left -= pictures


class Keys:
    """All keys of a server; without any, everybody may ask."""

    def __init__(self, keys: list[Key] | None = None) -> None:
        self._keys = keys or []
        self._everybody = Key("anonymous")

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, authorization: str | None) -> Key:
        """Key of an `Authorization` header. Every key is compared, each in constant time.

        Raises:
            BadRequest: the header is missing, or no key is this one (status 401).
        """
        if not self._keys:
            return self._everybody
        scheme, _, given = (authorization or "").partition(" ")
        digest, found = hashlib.sha256(given.strip().encode()).digest(), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None or scheme.lower() != "bearer":
            raise BadRequest("incorrect API key: send it as 'Authorization: Bearer KEY'", None, "invalid_api_key", 401)
        return found


def read_keys(path: Path) -> Keys:
    """Keys of a file: `NAME KEY [priority=1] [rate=60] [concurrency=4]` a line; `#` begins a comment.

    Raises:
        ConfigError: the file cannot be read, or a line is not of this form; keys are never shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the keys in {path}: {error}", hint="name a text file in UTF-8") from error
    keys = [_key(path, number, line.split()) for number, line in enumerate(lines, 1) if line.split("#")[0].strip()]
    if not keys:
        raise ConfigError(f"{path} holds no key", hint="write NAME KEY, one a line")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise ConfigError(f"{path} names a client or a key twice", hint="give each client a name and a key of its own")
    return Keys(keys)


def _key(path: Path, number: int, words: list[str]) -> Key:
    form = "NAME KEY [priority=1] [rate=60] [concurrency=4]"
    if len(words) < 2:
        raise ConfigError(f"{path}:{number} is not a key", hint=f"write {form}")
    name, secret, *options = words
    if len(secret) < _SHORTEST:
        raise ConfigError(
            f"{path}:{number}: the key of {name} has {len(secret)} characters; at least {_SHORTEST} are needed",
            hint="python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
        )
    numbers: dict[str, Any] = {}
    for option in options:
        setting, _, value = option.partition("=")
        if setting not in ("priority", "rate", "concurrency") or not value.lstrip("-").isdigit():
            raise ConfigError(f"{path}:{number}: unknown setting {option!r}", hint=f"write {form}")
        numbers[setting] = int(value)
        if setting != "priority" and numbers[setting] < 1:
            raise ConfigError(f"{path}:{number}: {setting} must be at least 1", hint="leave it out for no limit")
    return Key(name, hashlib.sha256(secret.encode()).digest(), **numbers)
