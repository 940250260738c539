"""Settings of a verb from the command line, the environment and a TOML file, in this order of precedence."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PRINT, PRINT_NAME = "--print-config", "print_config"
_CONFIG = "config"
#: Options that are no settings: each run has its own.
_NO_SETTINGS = {PRINT_NAME, _CONFIG, "help"}
#: Free texts; an environment variable of several values is split at spaces, so they have none.
_TEXTS = {"prompts", "prompt_options"}


def settings_options(function: Any) -> Any:
    """Adds --config and --print-config, for commands with many options."""
    verb = click.option(
        "--config",
        type=click.Path(path_type=Path),
        envvar="LDP_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_read_file,
        metavar="FILE.toml",
        help="Settings, in a table of the verb's name; docs/guide/settings.md.",
    )
    shown = click.option(PRINT, is_flag=True, help="Print the settings that would hold, as TOML, and stop.")
    return verb(shown(function))


def name_variables(command: click.Command) -> None:
    """Gives each option of a command with --config its environment variable, LDP_VERB_OPTION."""
    if not any(parameter.name == _CONFIG for parameter in command.params):
        return
    for key, option in _options(command).items():
        if option.envvar is None and option.name not in _TEXTS:
            option.envvar = f"LDP_{command.name}_{key}".upper().replace("-", "_")


def _options(command: click.Command) -> dict[str, click.Option]:
    """Settings of a command by their keys in a file: the long names of its options."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {
        max(option.opts, key=len).lstrip("-"): option
        for option in options
        if option.name not in _NO_SETTINGS and not option.hidden
    }


def _read_file(ctx: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Takes a file's settings as defaults of the command.

    Raises:
        ConfigError: the file cannot be read, or holds a key that is no option of the verb.
    """
    from ldp_runtime.errors import ConfigError

    if file is None:
        return
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        example = f"[{ctx.command.name}]"
        raise ConfigError(f"cannot read the settings {file}: {error}", hint=f"a TOML file with {example}") from error
    table, options = content.get(str(ctx.command.name), {}), _options(ctx.command)
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {ctx.command.name} is no table", hint=f"write [{ctx.command.name}] above its keys")
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(key.replace("_", "-"))
        if option is None:
            raise ConfigError(
                f"{file}: {ctx.command.name} has no setting {key!r}", hint=f"it has {', '.join(sorted(options))}"
            )
        defaults[str(option.name)] = [value] if option.multiple and not isinstance(value, list) else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def parse_partly(ctx: click.Context, args: list[str], parse: Callable[..., list[str]]) -> list[str]:
    """Parses arguments of which required ones may be missing, to show the settings."""
    required = [parameter for parameter in ctx.command.params if parameter.required]
    for parameter in required:
        parameter.required = False
    try:
        return parse(ctx, args)
    finally:
        for parameter in required:
            parameter.required = True


def as_toml(ctx: click.Context) -> str:
    """Settings in effect as TOML, with the source of each that is no default."""
    lines = [f"[{ctx.command.name}]"]
    for key, option in _options(ctx.command).items():
        name = str(option.name)
        value, source = ctx.params.get(name), ctx.get_parameter_source(name)
        if value is None or value == ():
            lines.append(f"# {key} is not set")
            continue
        is_default = source in (None, click.core.ParameterSource.DEFAULT)
        lines.append(f"{key} = {_toml(value)}" + ("" if is_default else f"  # {_words(option, source)}"))
    return "\n".join(lines)


def _words(option: click.Option, source: click.core.ParameterSource | None) -> str:
    if source is click.core.ParameterSource.ENVIRONMENT:
        return f"from {option.envvar}"
    return "from the file" if source is click.core.ParameterSource.DEFAULT_MAP else "from the command line"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(os.fspath(value) if isinstance(value, Path) else str(value), ensure_ascii=False)
