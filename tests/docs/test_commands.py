"""Commands that pages show: their verbs and options exist, and their arguments parse. Nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from helpers.markdown import GENERATED, code_blocks, inline_code, pages
from helpers.tree import ROOT

from ldp_export.cli import main

PROGRAM = "ldp-export"
#: Options that pages name and no verb declares.
OTHERS = {"--help", "--ignore-external-data"}


def shown_pages() -> list[Path]:
    """Pages that people write; the changelog names what was."""
    return [p for p in pages() if p.name != "CHANGELOG.md" and not any(p.is_relative_to(f) for f in GENERATED)]


def shell_lines(text: str) -> Iterator[str]:
    """Commands of a block: lines that end in a backslash go on, and its own variables stand for what they hold."""
    held = dict[str, str]()
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if assigned := re.fullmatch(r'\s*([A-Z]+)="(.*)"', line):
            held[assigned[1]] = assigned[2]
        if line.strip().startswith(PROGRAM + " "):
            yield re.sub(r"\$([A-Z]+)", lambda name: held.get(name[1], name[0]), line.strip())


def commands(page: Path) -> list[str]:
    """Whole commands: of blocks of code; in backticks those that have arguments, unless something is left out."""
    blocks = [line for block in code_blocks(page) if block.language != "python" for line in shell_lines(block.text)]
    named = (text for text in inline_code(page) if text.startswith(PROGRAM + " ") and "..." not in text)
    return [*blocks, *(text for text in named if len(text.split()) > 2)]


def verbs() -> dict[str, list[click.Command]]:
    """Commands of each verb: itself, or its steps."""
    root, found = click.Context(main, info_name=PROGRAM), dict[str, list[click.Command]]()
    for verb in main.list_commands(root):
        command = main.get_command(root, verb)
        assert command is not None
        steps = command.list_commands(root) if isinstance(command, click.Group) else []
        found[verb] = [command, *(command.get_command(root, step) for step in steps)]  # pyright: ignore
    return found


def complaint(line: str) -> str | None:
    """The reason why a command line cannot be parsed; None if it can."""
    words = shlex.split(line, comments=True)[1:]
    flags = {"-v", "--verbose", "-h", "--help"}
    while words and words[0] in flags:
        words.pop(0)
    if not words:
        return None
    verb, *arguments = words
    root = click.Context(main, info_name=PROGRAM, **main.context_settings)
    command = main.get_command(root, verb)
    if command is None:
        return f"there is no verb {verb}"
    if isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        root, step, arguments = click.Context(command, info_name=verb, parent=root), arguments[0], arguments[1:]
        command, verb = command.get_command(root, step), f"{verb} {step}"
        if command is None:
            return f"there is no step {verb}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | flags
    unknown = {word.partition("=")[0] for word in arguments if word.startswith("-")} - known
    if unknown:
        return f"{verb} has no {', '.join(sorted(unknown))}"
    if flags & {*arguments}:
        return None
    try:
        command.make_context(verb, arguments, parent=root)
    except click.ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("page", shown_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that a page shows are the file that its commands read."""
    monkeypatch.chdir(tmp_path)
    for block in code_blocks(page):
        if block.language == "toml":
            (tmp_path / "ldp.toml").write_text(block.text)
    wrong = {line: reason for line in commands(page) if (reason := complaint(line))}
    assert not wrong


@pytest.mark.parametrize("page", shown_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_prose_exist(page: Path) -> None:
    """Options in backticks belong to some verb; with the verb before them, to that one."""
    options = {
        verb: {
            word
            for one in commands
            for parameter in one.params
            for word in (*parameter.opts, *parameter.secondary_opts)
        }
        for verb, commands in verbs().items()
    }
    anywhere = set().union(*options.values())
    wrong = []
    for text in inline_code(page):
        verb, *words = text.removeprefix(PROGRAM + " ").split() or [""]
        if verb in options or verb.startswith("--"):
            known = options.get(verb, anywhere) | OTHERS
            wrong += [text for word in (verb, *words) if word.startswith("--") and word.partition("=")[0] not in known]
    assert not wrong


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('ldp-export generate bundles/shapes "a red circle" --policy ld --output circle.png   # a comment', None),
        ("ldp-export --help", None),
        ("ldp-export draw bundles/shapes", "there is no verb draw"),
        ("ldp-export evaluate draw runs/shapes", "there is no step evaluate draw"),
        ("ldp-export evaluate compare runs/shapes --colour red", "evaluate compare has no --colour"),
        ("ldp-export evaluate score", "Missing argument 'RUN'."),
        ("ldp-export build --colour red", "build has no --colour"),
        ("ldp-export inspect", "Missing argument 'BUNDLE'."),
        ("ldp-export build --chunk many", "Invalid value for '--chunk': 'many' is not a valid integer."),
    ],
)
def test_what_does_not_parse_is_found(line: str, reason: str | None) -> None:
    assert complaint(line) == reason


def test_the_readme_shows_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 3
