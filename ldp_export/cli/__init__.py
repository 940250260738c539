"""Command line: one thin module per verb. Heavy modules are imported only where they are used, so help is instant."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager

import click
from ldp_runtime.errors import Cancelled, CapacityError, ConfigError, InternalError, LdpError
from ldp_runtime.system.disk import is_full
from ldp_runtime.system.installation import install
from ldp_runtime.system.telemetry import without_telemetry

from ldp_export import __version__
from ldp_export.cli.arguments.command import Verbs

_VERBS = (
    "build",
    "generate",
    "serve",
    "package",
    "explain",
    "calibrate",
    "verify",
    "inspect",
    "upgrade",
    "bench",
    "bench-compare",
    "evaluate",
    "models",
    "fetch",
    "convert",
    "doctor",
)


#: Exit status of a program whose reader has gone, as shells give it: 128 + SIGPIPE.
_BROKEN_PIPE = 141
#: Extra of this package that installs a library, by the library's import name.
_EXTRAS = {
    "onnx": "build",
    "onnx_ir": "build",
    "onnxscript": "build",
    "transformers": "build",
    "huggingface_hub": "build",
    "onnxruntime": "cpu",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "opentelemetry": "serve",
    "ray": "ray",
    "scipy": "eval",
    "matplotlib": "eval",
    "torchmetrics": "eval",
}


class _Program(Verbs):
    """Group of all verbs, which turns typed errors into exit codes."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            with _terminated_as_interrupted():
                return super().invoke(ctx)
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ctx.exit(_BROKEN_PIPE)
        except (LdpError, KeyboardInterrupt, OSError, ImportError) as error:
            typed = _typed(error)
            if typed is None:
                raise
        _say(typed)
        return ctx.exit(typed.exit_code)


@contextmanager
def _terminated_as_interrupted() -> Generator[None]:
    """Ends a command on SIGTERM as on Ctrl-C: workers are stopped, half-written files are removed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # no signals here, or the embedding program's own wish
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would stop the clean-up
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _typed(error: BaseException) -> LdpError | None:
    """Error as an `LdpError`, if the user can do something about it; None for a defect of this program."""
    if isinstance(error, LdpError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Cancelled("stopped")
    if isinstance(error, OSError) and error.filename is not None:
        logging.getLogger(__name__).info("where it happened", exc_info=True)
        message = f"cannot read or write {error.filename}: {error.strerror}"
        return ConfigError(message, hint="mend the path or its permissions")
    if is_full(error):
        return CapacityError("the disk is full", hint="free some space, or name another place, and run it again")
    if isinstance(error, ImportError) and (extra := _EXTRAS.get((error.name or "").partition(".")[0])):
        return ConfigError(f"{error.name} is not installed", hint=install(extra))
    return None


def _say(error: LdpError) -> None:
    """Prints the error for people on stderr and, with --json, also for programs on stdout."""
    if isinstance(error, InternalError):
        traceback.print_exception(error)
    if "--json" in sys.argv:
        entry = {"code": error.code, "message": error.message, "hint": error.hint}
        click.echo(json.dumps({"error": entry}))
    click.secho(f"error: {error.message}", fg="red", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


@click.command(
    cls=_Program,
    package=__name__,
    verbs=_VERBS,
    kind="verb",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  ldp-export build --output bundles/shapes
  ldp-export generate bundles/shapes "a red circle" --output circle.png
  ldp-export bench bundles/shapes --policy ld --policy none:skip_last=1
""",
)
@click.version_option(__version__, prog_name="ldp-export")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, on stderr.")
def main(verbose: bool) -> None:
    """Run compiled engines and LD-Pruning for next-scale (VAR, Infinity) image models.

    Builds a bundle of engines from a checkpoint, verifies it, draws with it, and measures it against eager PyTorch.
    """
    without_telemetry()
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
