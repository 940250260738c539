"""Options and output shared by several verbs."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldp_runtime.pipeline.drawing import ScaleEvent
    from ldp_runtime.pipeline.pipeline import ScaleCallback
    from ldp_runtime.pruning.policy import Policy

    from ldp_export.progress import Progress, ProgressEvent

#: Appended to the help of commands that take policies. It names every option; a test compares it with the parser.
POLICY_HELP = """\b
Policies are NAME or NAME:option=value,...  ("none" for no value, lists as 5+6):
  none            the full model
  ld              recommended: LHEP scores, no loss of accepted pictures shown; see docs/ablation.md
  ld-fast         faster, at a measured loss
  ld-paper        LD-Pruning with the paper's thresholds, nothing skipped
  ld-skip-2       the paper's headline mode: the last two scales are not run
  lhep, top-p, top-k   a token rule alone
    Which tokens:
      rho=0.5                 LHEP: share of the detail energy that kept tokens must reach
      p=0.8                   top-p: the same of another score=
      share=0.4               top-k: share of tokens; or 0.5+0.4 for the last scales
      score=                  energy | distance | variance | error*; top-k also random
      fill=                   repeat | zero | linear*
      scales=5+6              which scales are thinned out; or the last that hold a detail=0.75 of all tokens
      energy_from=previous|computed, border=counted|ignored, haar=tokens|latents    (LHEP)
    When the unconditional branch stops (stop=none: never):
      delta=0.15              SATS: once the gap changes by less; stop_scales=4+5, gap=rms|l2
      stop=4                  after this scale; or first, before the thinned scales
      then=                   conditional | reuse
    skip_last=0               last scales not run
  or the name (or path) of a profile that `ldp-export calibrate` wrote.
* needs numbers fitted to the bundle: ldp-export calibrate BUNDLE --fit-only
"""
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _keep_expected(ctx: click.Context, _: click.Parameter, digest: str | None) -> None:
    ctx.meta[_EXPECTED] = digest


def _checked_bundle(ctx: click.Context, _: click.Parameter, bundle: Path | None) -> Path | None:
    """The bundle's path; with --expect-digest, that of the version that was checked, whatever CURRENT names later."""
    digest: str | None = ctx.meta.get(_EXPECTED)
    if digest is None:
        return bundle
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.errors import ConfigError

    if bundle is None:
        raise ConfigError("--expect-digest is given without a bundle", hint="name the bundle, or leave it out")
    return open_bundle(bundle, "sizes", digest).folder


_EXPECTED = "expected digest"


def bundle_argument(function: Any, required: bool = True) -> Any:
    """Adds the argument BUNDLE, and the option --expect-digest that refuses any other bundle than the one meant."""
    argument = click.argument("bundle", type=click.Path(path_type=Path), required=required, callback=_checked_bundle)
    expected = click.option(
        "--expect-digest",
        metavar="DIGEST",
        is_eager=True,
        expose_value=False,
        callback=_keep_expected,
        help="Refuse any bundle but the one of this digest (or its first 16 digits); `inspect` prints it.",
    )
    return argument(expected(function))


device_option = click.option("--device", default="cpu", show_default=True, help="Where the engines run: cpu or cuda.")
classes_option = click.option(
    "--class", "classes", type=int, multiple=True, help="Of class-conditional models, instead of a prompt; repeatable."
)
threads_option = click.option(
    "--threads", type=int, help="Threads of a CPU engine.  [default: its library's own choice]"
)


def weights_options(function: Any) -> Any:
    """Adds the options --weights, --vae and --text-encoder."""
    path = click.Path(path_type=Path)
    for name, text in (
        ("--text-encoder", "Folder of a T5 encoder: config.json, safetensors, tokenizer.json."),
        ("--vae", "BSQ VAE (or VAR's VQ VAE) in the original layout: .pth or safetensors."),
        ("--weights", "Infinity or VAR transformer in the original layout: .pth, safetensors, or a folder of shards."),
    ):
        function = click.option(name, type=path, help=text)(function)
    return function


def backend_options(function: Any) -> Any:
    """Adds --backend, --compute-capability, --profiles, --max-batch, --int8-decoder, --late-precision, --late-share."""
    kinds = click.Choice(["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"])
    for option in (
        click.option(
            "--late-share",
            "quantize_share",
            type=float,
            help="With --late-precision: the share of an image's tokens, counted from the last scale.  [default: 0.85]",
        ),
        click.option(
            "--late-precision",
            "quantize",
            type=click.Choice(["int8", "float8"]),
            help="Blocks multiply 8-bit numbers at the last scales, which cost most and decide least: int8 with "
            "onnxruntime on a CPU; int8 or float8 with torch on a GPU.",
        ),
        click.option(
            "--int8-decoder",
            is_flag=True,
            help="On a CPU (onnxruntime or torch): the decoder multiplies 8-bit integers, at some 40 to 50 dB.",
        ),
        click.option("--max-batch", type=int, help="Images of one call that compiled engines serve.  [default: 4]"),
        click.option(
            "--profiles", type=int, help="Buckets of scales that compiled engines are tuned for.  [default: 3]"
        ),
        click.option(
            "--compute-capability",
            "capabilities",
            help="GPUs that tensorrt-rtx builds for, as 8.6,8.9,12.0.  [default: this machine's]",
        ),
        click.option(
            "--backend",
            type=kinds,
            default="onnxruntime",
            show_default=True,
            help="What runs the graphs. torch compiles for this machine (its GPU, if there is one; Infinity's blocks "
            "then when they are loaded); tensorrt builds on its own GPU, tensorrt-rtx anywhere.",
        ),
    ):
        function = option(function)
    return function


def local_dir_option(function: Any) -> Any:
    """Adds the option --local-dir, for commands that read a model."""
    text = "Take --model's files from this folder, written by `ldp-export fetch --local-dir`; no network."
    return click.option("--local-dir", type=click.Path(path_type=Path), help=text)(function)


def precision_option(text: str, default: str | None = None) -> Any:
    """Option --precision. Its value is checked where it is used, so that its error is typed like the others."""
    return click.option("--precision", default=default, show_default=default is not None, help=text)


def conditions(prompts: tuple[str, ...], classes: tuple[int, ...]) -> list[str] | list[int]:
    """Prompts or classes to draw.

    Raises:
        ConfigError: both are given, or neither.
    """
    from ldp_runtime.errors import ConfigError

    if prompts and classes:
        raise ConfigError("prompts and classes are given together", hint="text models draw prompts, VAR draws --class")
    if not prompts and not classes:
        raise ConfigError("there is nothing to draw", hint="give prompts, or --class for a class-conditional model")
    return list(classes) if classes else list(prompts)


def prompt_lines(file: Path) -> list[str]:
    """Lines of a file of prompts (or classes), without the empty ones.

    Raises:
        ConfigError: the file cannot be read, or holds no prompt.
    """
    from ldp_runtime.errors import ConfigError

    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the prompts file {file}: {error}",
            hint="name a text file in UTF-8, a prompt (or class) a line",
        ) from error
    prompts = list(filter(None, lines))
    if not prompts:
        raise ConfigError(f"{file} holds no prompt", hint="write one prompt (or class) a line")
    return prompts


def check_policy(bundle: Path, policy: str) -> Policy | None:
    """Policy that a command line names, before an engine is opened; raises ConfigError for a text that is none."""
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.bundle.saved_policies import policy_of_command

    opened = open_bundle(bundle, integrity="sizes")
    return policy_of_command(policy, opened.root, opened.manifest)


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON: with --json, all lines that a command prints on stdout are JSON."""
    click.echo(json.dumps(value))


@contextmanager
def shown_scales(images: int, hidden: bool) -> Generator[ScaleCallback]:
    """Callback for the pipeline that draws a progress bar on stderr: the finished scales of all images."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bars:
        task = bars.add_task("drawing", total=None)

        def on_scale(event: ScaleEvent) -> None:
            bars.update(task, total=event.scales * images, advance=len(event.images))

        yield on_scale


@contextmanager
def shown_progress(as_json: bool) -> Generator[Progress]:
    """Callback that draws stages on stderr with rich, or prints each event as a line of JSON on stdout."""
    if as_json:
        yield lambda event: click.echo(json.dumps({"progress": event.__dict__}))
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    title = TextColumn("{task.description}", markup=False)  # libraries name layers as [/blocks.0]: no markup
    detail = TextColumn("{task.fields[detail]}", style="dim", markup=False)
    with Bars(SpinnerColumn(), title, BarColumn(), TimeElapsedColumn(), detail, console=console) as bars:
        task = bars.add_task("starting", total=None, detail="")

        def show(event: ProgressEvent) -> None:
            done = event.index + (event.state in ("finished", "reused"))
            words = f"[{event.index + 1}/{event.count}] {event.stage}"
            bars.update(task, description=words, total=event.count, completed=done, detail=event.detail[:60])
            if event.state == "finished":
                took = f"{event.seconds:.1f} s" if event.seconds else "done"
                console.print(f"  {event.stage}: {took}", markup=False)
            elif event.state == "reused":
                console.print(f"  {event.stage}: reused, nothing it depends on has changed", markup=False)

        yield show
