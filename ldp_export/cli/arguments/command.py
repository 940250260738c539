"""Commands: groups of verbs, and the command of a verb, which groups its options and takes their older names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from ldp_runtime.errors import suggestion

from ldp_export.cli.arguments import settings

#: Title of the options without a group of their own.
_OTHERS = "Options"

Decorator = Callable[[Any], Any]


@dataclass(frozen=True)
class Renamed:
    """New name of an option; an old name works for one version, with a warning.

    Attributes:
        name: name of today, or "" where the option's values are arguments today.
        values: words of today for values that have changed.
    """

    name: str
    values: Mapping[str, str] = field(default_factory=dict)

    def translated(self, value: str) -> list[str]:
        """The option and its value in today's words."""
        value = self.values.get(value, value)
        return [self.name, value] if self.name else [value]


def grouped(title: str, *options: Decorator) -> Decorator:
    """Adds options that help shows together, under a title."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            count = len(getattr(function, "__click_params__", ()))
            function = option(function)
            for parameter in function.__click_params__[count:]:
                parameter.group = title
        return function

    return decorate


class Verbs(click.Group):
    """Group of commands, each in a module of its own that is imported when it is asked for.

    Args:
        package: name of the package that holds the modules.
        verbs: names of the commands, in the order of the help.
        kind: word for one of them, for errors.
    """

    def __init__(self, *arguments: Any, package: str, verbs: tuple[str, ...], kind: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._package, self._verbs, self._kind = package, verbs, kind

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return None
        return importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self._verbs and not args[0].startswith("-"):
            hint = suggestion(args[0], self._verbs)
            raise click.UsageError(f"there is no {self._kind} {args[0]!r}; {hint}See --help.", ctx)
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """A verb's command.

    Args:
        renamed: the options that have another name today, by their old names.
        meant: the options that are meant by names that people would guess, in words.
    """

    def __init__(
        self,
        *arguments: Any,
        renamed: Mapping[str, Renamed] | None = None,
        meant: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.meant = meant or {}
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])  # also where it is run by itself
        self.renamed = renamed or {}
        settings.name_variables(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        current = [*self._current(args)]
        if settings.PRINT in current:
            return settings.parse_partly(ctx, current, super().parse_args)
        try:
            return super().parse_args(ctx, current)
        except click.NoSuchOption as error:
            if error.option_name not in self.meant:
                raise
            options = self.meant[error.option_name]
            raise click.UsageError(f"there is no {error.option_name}; {options} say it", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params.pop(settings.PRINT_NAME, False):
            return click.echo(settings.as_toml(ctx))
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", _OTHERS), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _current(self, args: list[str]) -> Iterable[str]:
        """Arguments in today's names; a warning for each old one. What became an argument comes last."""
        rest, moved = list(args), list[str]()
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word == "--":
                rest, moved = [], [*moved, word, *rest]
            elif name not in self.renamed or not (equals or rest):
                yield word
            else:
                new = self.renamed[name]
                today = new.translated(value if equals else rest.pop(0))
                click.echo(f"warning: {name} is an old name that the next version drops: {' '.join(today)}", err=True)
                if new.name:
                    yield from today
                else:
                    moved += today
        yield from moved
