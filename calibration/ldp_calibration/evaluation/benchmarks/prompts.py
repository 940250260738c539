"""Prompts of a benchmark: read from a file of the user's, and kept in the run that draws them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldp_runtime.arguments import shown
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.request import MAX_CHARACTERS
from ldp_runtime.system.small_files import parse_json, read_small

#: Most bytes of a file of prompts, and most prompts of it.
MOST_BYTES, MOST_PROMPTS = 64 * 2**20, 100_000
#: Characters that no text holds; tabs, and the line ends that JSON writes out, are none of them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Most lines that a message names.
_NAMED = 5


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt of a benchmark.

    Attributes:
        text: words to draw, or the number of a class.
        tag: kind of the prompt, by which results are told apart; None: none.
        facts: what scorers know of it besides, as JSON.
    """

    text: str
    tag: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The prompt as a line of JSON."""
        tag = {} if self.tag is None else {"tag": self.tag}
        return json.dumps({"prompt": self.text, **tag, **self.facts}, ensure_ascii=False, sort_keys=True)


def as_lines(prompts: Iterable[EvaluationPrompt]) -> bytes:
    """Prompts as the file of a run: equal prompts give equal bytes."""
    return "".join(f"{prompt.line}\n" for prompt in prompts).encode()


def lines_hash(prompts: Iterable[EvaluationPrompt]) -> str:
    return hashlib.sha256(as_lines(prompts)).hexdigest()


def read_prompts(file: Path) -> list[EvaluationPrompt]:
    """Prompts of a text file, one a line, or of a `.jsonl` file: `{"prompt": ..., "tag": ...}` a line.

    Empty lines at the end are nothing; anywhere else they are an error, since they hide a prompt that is missing.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or holds an empty line, a prompt twice, or none.
    """
    lines = _lines(file)
    prompts = _texts(file, lines) if file.suffix.lower() != ".jsonl" else _objects(file, lines)
    _check_distinct(file, prompts)
    return prompts


def _lines(file: Path) -> list[str]:
    """Lines of a file, without the empty ones at its end."""
    try:
        content = read_small(file, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the prompts file {file}: {error}", hint="name a text file, one prompt a line, or a .jsonl"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file} is not UTF-8: line {line} holds the byte {content[error.start]:#04x}",
            hint=f"save it as UTF-8, as with: iconv -f LATIN1 -t UTF-8 {file.name} (or -f UTF-16)",
        ) from error
    if "\0" in text:
        raise ConfigError(f"{file} holds zero bytes", hint="save it as UTF-8 text; UTF-16 has zero bytes")
    lines = [line.removesuffix("\r").strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    empty = [i for i, line in enumerate(lines, start=1) if not line]
    if empty:
        raise ConfigError(f"{file} has empty lines: {_listed(empty)}", hint="take them out, or write their prompts")
    if not lines:
        raise ConfigError(f"{file} holds no prompt", hint="write one prompt a line")
    if len(lines) > MOST_PROMPTS:
        raise ConfigError(f"{file} has {len(lines)} lines", hint=f"at most {MOST_PROMPTS} prompts are drawn in a run")
    return lines


def _texts(file: Path, lines: Sequence[str]) -> list[EvaluationPrompt]:
    for i, line in enumerate(lines, start=1):
        _check_text(file, i, line)
    return [EvaluationPrompt(line) for line in lines]


def _check_text(file: Path, line: int, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{file}, line {line}: a prompt of {len(text)} characters", hint=f"at most {MAX_CHARACTERS} are drawn"
        )
    if found := _CONTROL.search(text):
        raise ConfigError(
            f"{file}, line {line}: a prompt with the control character {ord(found[0]):#04x}",
            hint="take it out; lines end in \\n or \\r\\n, not in \\r alone",
        )


def _objects(file: Path, lines: Sequence[str]) -> list[EvaluationPrompt]:
    return [_object(file, i, line) for i, line in enumerate(lines, start=1)]


def _object(file: Path, number: int, line: str) -> EvaluationPrompt:
    hint = 'a line is an object such as {"prompt": "a red circle", "tag": "colours"}; the tag may be left out'
    try:
        prompt = _parsed(line)
        prompt = replace(prompt, text=prompt.text.strip())
        check_prompt(prompt)
    except ValueError as error:
        raise ConfigError(f"{file}, line {number}: {error}", hint=hint) from error
    _check_text(file, number, prompt.text)
    return prompt


def _parsed(line: str) -> EvaluationPrompt:
    """Prompt of a line of JSON; raises ValueError if it is none."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise ValueError("it is no object")
    text, tag = entry.pop("prompt", None), entry.pop("tag", None)
    if not isinstance(text, str):
        raise ValueError(f"its prompt is {shown(text)}")
    return EvaluationPrompt(text, tag, entry)


def check_prompt(prompt: EvaluationPrompt) -> None:
    """Raises ValueError for a prompt that cannot be drawn or written."""
    if not isinstance(prompt.text, str) or not prompt.text.strip():
        raise ValueError(f"its prompt is {shown(prompt.text)}")
    if prompt.tag is not None and (not isinstance(prompt.tag, str) or not prompt.tag.strip()):
        raise ValueError(f"its tag is {shown(prompt.tag)}")
    prompt.line.encode()  # halves of characters cannot be drawn, nor written


def from_lines(content: bytes) -> list[EvaluationPrompt]:
    """Prompts of the file of a run, as they were written. Raises ValueError for anything else."""
    return [_parsed(line) for line in content.decode().split("\n")[:-1]]


def _check_distinct(file: Path, prompts: Sequence[EvaluationPrompt]) -> None:
    """Raises ConfigError for a prompt that is there twice: it would count twice, and make intervals too narrow."""
    first: dict[str, int] = {}
    twice = [
        f"{i} (as {first[prompt.text]})"
        for i, prompt in enumerate(prompts, start=1)
        if first.setdefault(prompt.text, i) != i
    ]
    if twice:
        raise ConfigError(
            f"{file} holds prompts twice: lines {_listed(twice)}",
            hint="take them out: a prompt counts once, and --images draws it several times",
        )


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(map(str, items[:_NAMED])) + more
