"""Page of the command line: every verb, from the help that the verb itself prints."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from textwrap import dedent

import click

from ldp_export.cli import main

_INTRODUCTION = """# Command line

Written by `make docs` from the commands' own help; edit `ldp_export/cli/`, not this page.
"""
#: Mark of a paragraph of help whose lines stay as they are.
_VERBATIM = "\b\n"


class _Recorder(click.HelpFormatter):
    """Formatter that keeps what a command writes as Markdown: a table for each group of options."""

    def __init__(self) -> None:
        super().__init__(width=100)
        self.parts: list[str] = []
        self._title = ""

    @contextmanager
    def section(self, name: str) -> Generator[None]:
        self._title = name
        yield

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        # A bar ends a cell, in code too, and not every renderer takes a backslash before it for an escape.
        lines = (f"| `{name.replace('|', ', ')}` | {_cell(text)} |" for name, text in rows)
        self.parts.append("\n".join([f"| {self._title} | |", "|---|---|", *lines]))


def text() -> str:
    """The page as Markdown: the whole program first, then each verb in the order of its help."""
    root = click.Context(main, info_name="ldp-export", **main.context_settings)
    parts = [_INTRODUCTION.rstrip(), *_described(main.help), _options(main, root)]
    for name in main.list_commands(root):
        command = main.get_command(root, name)
        assert command is not None
        parts += _command("##", name, command, root)
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(heading: str, name: str, command: click.Command, parent: click.Context) -> list[str]:
    """Parts of a command, and of its steps if it is a group of them."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    title = context.command_path.removeprefix("ldp-export ")
    parts = [f"{heading} {title}", f"    {usage}", *_described(command.help), _options(command, context)]
    parts += _described(command.epilog)
    if isinstance(command, click.Group):
        for step in command.list_commands(context):
            found = command.get_command(context, step)
            assert found is not None
            parts += _command(f"{heading}#", step, found, context)
    return parts


def _options(command: click.Command, context: click.Context) -> str:
    """Tables of a command's options. A group's own help goes on with its verbs, which have parts of their own here."""
    recorder = _Recorder()
    if isinstance(command, click.Group):
        click.Command.format_options(command, context, recorder)
    else:
        command.format_options(context, recorder)
    return "\n\n".join(recorder.parts)


def _described(help_text: str | None) -> list[str]:
    """Paragraphs of a help text as Markdown; those that keep their lines become code."""
    paragraphs = re.split(r"\n\s*\n", cleandoc(help_text or ""))
    return [_paragraph(paragraph) for paragraph in paragraphs if paragraph.strip()]


def _paragraph(paragraph: str) -> str:
    if not paragraph.startswith(_VERBATIM):
        return " ".join(paragraph.split())
    title, _, lines = paragraph.removeprefix(_VERBATIM).partition("\n")
    return f"{title}\n\n```text\n{dedent(lines).rstrip()}\n```"


def _cell(text: str) -> str:
    """Text within a table: one line, and no bar or angle bracket that Markdown would read as its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
