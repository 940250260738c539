"""Verb `ldp-export serve`: serves bundles over OpenAI's image API."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ldp_export.cli.arguments.serving import model_options


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Takes defaults from a TOML file: the options' names, with `_` or `-`; `bundles` lists the bundles.

    Raises:
        ConfigError: the file cannot be read, or holds an option that is not there.
    """
    import tomllib

    from ldp_runtime.errors import ConfigError

    if path is None:
        return None
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", hint="name a TOML file in UTF-8") from error
    named = {name.removeprefix("--"): p.name for p in ctx.command.params for name in (*p.opts, p.name or "")}
    unknown = [key for key in given if key not in named and key.replace("_", "-") not in named]
    if unknown:
        raise ConfigError(
            f"{path} holds unknown options: {', '.join(unknown)}", hint="they are named as in ldp-export serve --help"
        )
    values = {named.get(key) or named[key.replace("_", "-")]: value for key, value in given.items()}
    ctx.default_map = {**(ctx.default_map or {}), **values}  # pyright: ignore[reportAttributeAccessIssue]
    return path


@click.command(
    context_settings={"auto_envvar_prefix": "LDP", "help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  ldp-export serve bundles/infinity-shapes
  ldp-export serve bundles/2b --device cuda --api-key-file keys.txt
  ldp-export serve bundles/2b --device cuda --ray --replicas 4
  LDP_PORT=9000 ldp-export serve --config serve.toml

Each option can also be set as LDP_NAME (such as LDP_MAX_QUEUE), or in --config; what is nearer to the command wins.
""",
)
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than loopback need keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@model_options
@click.option("--max-connections", type=int, default=512, show_default=True)
@click.option("--drain", type=float, default=30.0, show_default=True, help="Seconds that SIGTERM leaves to what runs.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="NAME KEY [priority= rate= concurrency=] a line.")
@click.option("--insecure", is_flag=True, help="Allow other hosts than loopback without keys.")
@click.option("--cors-origin", multiple=True, help="Web origin that may call the server; repeatable.")
@click.option("--shadow-rate", type=float, default=0.0, show_default=True, help="Share of pictures compared unpruned.")
@click.option("--ray", is_flag=True, help="Serve with replicas on Ray Serve; see docs/guide/ray.md.")
@click.option("--replicas", type=int, default=1, show_default=True, help="With --ray: replicas, a pipeline each.")
@click.option("--max-replicas", type=int, help="With --ray: up to so many, while requests queue.  [default: no more]")
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log.")
@click.option("--page/--no-page", default=True, show_default=True, help="A page at / that draws in a browser.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="TOML file of these options.",
)
def command(bundles: tuple[Path, ...], **options: Any) -> None:
    """Serve BUNDLES over OpenAI's image API: previews while drawing, requests joined and cancelled between scales."""
    from ldp_runtime.errors import ConfigError
    from ldp_serving.front.run import ServeOptions, serve

    if not bundles:
        raise ConfigError("there is nothing to serve", hint="name a bundle, or `bundles` in --config")
    for name, full in (("timeout", "timeout_s"), ("drain", "drain_s"), ("cors_origin", "cors_origins")):
        options[full] = options.pop(name)
    on_ray, fleet = options.pop("ray"), {name: options.pop(name) for name in ("replicas", "max_replicas")}
    checked = ServeOptions([Path(bundle) for bundle in bundles], **options)
    if not on_ray and fleet != {"replicas": 1, "max_replicas": None}:
        raise ConfigError("--replicas and --max-replicas are for --ray", hint="add --ray, or leave them out")

    def ready(port: int) -> None:
        click.echo(f"ready on http://{checked.host}:{port}", err=True)

    with _requests_logged():
        if not on_ray:
            return serve(checked, ready)
        from ldp_serving.ray_app.options import FleetOptions
        from ldp_serving.ray_app.run import serve_on_ray

        return serve_on_ray(checked, FleetOptions(**fleet), ready)


@contextmanager
def _requests_logged() -> Generator[None]:
    """Sends the server's own log to stderr within a scope, a line a request."""
    handler, log = logging.StreamHandler(sys.stderr), logging.getLogger("ldp_serving")
    level, propagates = log.level, log.propagate
    handler.setFormatter(logging.Formatter('{"time":"%(asctime)s","level":"%(levelname)s","log":%(log)s}'))
    handler.addFilter(_as_json)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


def _as_json(record: logging.LogRecord) -> bool:
    """Writes a record's message as JSON; the log of requests is JSON already."""
    import json

    message = record.getMessage()
    record.log = message if getattr(record, "is_json", False) else json.dumps(message)
    return True
