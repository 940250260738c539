"""Options and output shared by several verbs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ldp_runtime.system.small_files import json_text

from ldp_export.cli.arguments.command import grouped

if TYPE_CHECKING:
    from ldp_runtime.pipeline.drawing import ScaleEvent
    from ldp_runtime.pipeline.pipeline import ScaleCallback
    from ldp_runtime.pruning.policy import Policy

    from ldp_export.progress import Progress, ProgressEvent

#: Longest path that is looked for among prompts.
_LONGEST_PATH = 200

#: Appended to the help of commands that take policies. It names every option; a test compares it with the parser.
POLICY_HELP = """\b
Policies are NAME or NAME:option=value,...  (none: no value; lists as 5+6)
  none            the full model
  ld              recommended: LHEP scores, no loss of accepted pictures shown
  ld-fast         faster, at a measured loss; see docs/results/method.md
  ld-paper        LD-Pruning with the paper's thresholds, nothing skipped
  ld-skip-2       the paper's headline mode: the last two scales are not run
  lhep, top-p, top-k   a token rule alone
    Which tokens:
      rho=0.5       LHEP: share of the detail energy that kept tokens reach
      p=0.8         top-p: the same of another score=
      share=0.4     top-k: share of tokens; or 0.5+0.4 for the last scales
      score=        energy | distance | variance | error*; top-k also random
      fill=         repeat | zero | linear*
      scales=5+6    which scales are thinned out; or detail=0.75: the last
                    that hold such a share of all tokens
      energy_from=previous|computed, border=counted|ignored,
      haar=tokens|latents     (LHEP)
    When the unconditional branch stops (stop=none: never):
      delta=0.15    SATS: once the gap changes by less; stop_scales=4+5,
                    gap=rms|l2
      stop=4        after this scale; or first, before the thinned scales
      then=         conditional | reuse
    skip_last=0     last scales not run
  or the name (or path) of a policy that `ldp-export calibrate` saved.
* needs numbers fitted to the bundle: ldp-export calibrate BUNDLE --fit-only
"""
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _keep_expected(ctx: click.Context, _: click.Parameter, digest: str | None) -> None:
    ctx.meta[_EXPECTED] = digest


def _checked_bundle(ctx: click.Context, _: click.Parameter, bundle: Path | tuple[Path, ...]) -> Any:
    """The bundle's path; with --expect-digest, that of the version that was checked, whatever CURRENT names later."""
    digest: str | None = ctx.meta.get(_EXPECTED)
    if digest is None:
        return bundle
    from ldp_runtime.bundle.files import open_bundle

    if isinstance(bundle, tuple):
        return (open_bundle(bundle[0], "sizes", digest).folder, *bundle[1:])
    return open_bundle(bundle, "sizes", digest).folder


_EXPECTED = "expected digest"


def bundle_argument(function: Any, several: bool = False) -> Any:
    """Adds the argument BUNDLE, and the option --expect-digest that refuses any other bundle than the one meant.

    Args:
        several: takes several bundles; the digest is of the first.
    """
    given: dict[str, Any] = {"type": click.Path(path_type=Path), "required": True, "callback": _checked_bundle}
    if several:
        argument = click.argument("bundles", metavar="BUNDLE...", nargs=-1, **given)
    else:
        argument = click.argument("bundle", **given)
    expected = click.option(
        "--expect-digest",
        metavar="DIGEST",
        is_eager=True,
        expose_value=False,
        callback=_keep_expected,
        help="Refuse any bundle but the one of this digest (or its first 16 digits); `inspect` prints it.",
    )
    return argument(expected(function))


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that are there.")
device_option = click.option("--device", default="cpu", show_default=True, help="Where the engines run: cpu or cuda.")
classes_option = click.option(
    "--class", "classes", type=int, multiple=True, help="Of class-conditional models, instead of a prompt; repeatable."
)
threads_option = click.option(
    "--threads", type=int, help="Threads of a CPU engine.  [default: the physical cores that this process may use]"
)


#: An option's help is a phrase; what it is of stands in the title of its group.
weights_options = grouped(
    "Checkpoint files",
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="Transformer of Infinity, VAR, Switti or HART in the original layout: .pth, safetensors, or a folder of "
        "shards.",
    ),
    click.option(
        "--vae",
        type=click.Path(path_type=Path),
        help="Its VAE in the original layout: .pth or safetensors.",
    ),
    click.option(
        "--text-encoder",
        type=click.Path(path_type=Path),
        help="Folder of its text encoder (config.json, safetensors, tokenizer.json): T5, Switti's CLIP-L, or HART's "
        "Qwen2-VL.",
    ),
    click.option(
        "--text-encoder-2",
        type=click.Path(path_type=Path),
        help="Folder of the second one, for models with two: Switti's OpenCLIP bigG.",
    ),
)

backend_options = grouped(
    "Engines",
    click.option(
        "--backend",
        type=click.Choice(["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]),
        default="onnxruntime",
        show_default=True,
        help="What runs the graphs. torch compiles for this machine (its GPU, if there is one; Infinity's blocks "
        "then when they are loaded); tensorrt builds on its own GPU, tensorrt-rtx anywhere.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Of matrix products.  [default: bfloat16 with TensorRT, and with torch on a GPU; else float32]",
    ),
    click.option(
        "--quantize",
        type=click.Choice(["int8", "float8", "int8-weights"]),
        help="Blocks multiply 8-bit numbers at the last scales, which cost most and decide least: int8 with "
        "onnxruntime on a CPU; int8 or float8 with torch on a GPU, tensorrt and tensorrt-rtx. int8-weights saves "
        "memory instead, at all scales: products stay as they are.",
    ),
    click.option(
        "--quantize-share",
        type=float,
        help="With --quantize: the share of an image's tokens, counted from the last scale.  [default: 0.85]",
    ),
    click.option(
        "--quantize-ranges",
        type=click.Choice(["measured", "static"]),
        help="With --quantize: ranges measured in each call, where images then run one by one, or by the build.  "
        "[default: static with TensorRT, else measured]",
    ),
    click.option(
        "--quantize-prompts",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="With static ranges: file of prompts to measure them on, one a line.  [default: eight of its own]",
    ),
    click.option(
        "--int8-decoder",
        is_flag=True,
        help="On a CPU (onnxruntime or torch): the decoder multiplies 8-bit integers, at some 40 to 50 dB.",
    ),
    click.option(
        "--kv-cache",
        type=click.Choice(["dynamic", "static"]),
        default="dynamic",
        show_default=True,
        help="Keys and values joined to a past of any length, or written into a cache of a fixed size "
        "(Infinity; not with --backend torch; docs/backends/kv-cache.md).",
    ),
)

compiled_options = grouped(
    "TensorRT",
    click.option(
        "--compute-capability",
        "capabilities",
        help="GPUs that tensorrt-rtx builds for, as 8.6,8.9,12.0.  [default: this machine's]",
    ),
    click.option("--profiles", type=int, help="Buckets of scales that engines are tuned for.  [default: 3]"),
    click.option("--max-batch", type=int, help="Images of one call that engines serve.  [default: 4]"),
    click.option("--discard-graphs", is_flag=True, help="Delete each exported graph once its engine is built."),
)


local_dir_option = click.option(
    "--local-dir",
    type=click.Path(path_type=Path),
    help="Take --model's files from this folder, written by `ldp-export fetch --local-dir`; no network.",
)


class AspectRatio(click.ParamType):
    """Height / width as a number, or W:H as screens are named: 16:9 is wide."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            if isinstance(value, str) and ":" in value:
                width, height = map(float, value.split(":"))
                ratio = height / width
            else:
                ratio = float(value)
            if not 0 < ratio < math.inf:
                raise ValueError
            return ratio
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is neither height / width as a number nor W:H as 16:9", param, ctx)


def aspect_ratio_option(default: float | None = None) -> Any:
    """Option --aspect-ratio, which takes the nearest that the model draws."""
    text = "W:H as 16:9 (wide), or height / width as 0.56; the nearest template is drawn."
    return click.option(
        "--aspect-ratio", type=AspectRatio(), default=default, show_default=default is not None, help=text
    )


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


def check_order(verb: str, bundle: Path, words: Sequence[str]) -> None:
    """Raises ConfigError if one of the other arguments is the bundle, and not the first."""
    from ldp_runtime.bundle.files import is_bundle
    from ldp_runtime.errors import ConfigError

    found = next((word for word in words if len(word) < _LONGEST_PATH and is_bundle(Path(word))), None)
    if found is not None and not is_bundle(bundle):
        words_first = f"ldp-export {verb} {shlex.quote(found)} {shlex.quote(str(bundle))}"
        raise ConfigError(f"{str(bundle)!r} is no bundle, but {found!r} is one", hint=f"swap them: {words_first}")


def check_size(height: int | None, width: int | None, aspect_ratio: float | None) -> None:
    """Raises ConfigError if sizes in pixels are not given together, or beside an aspect ratio."""
    from ldp_runtime.errors import ConfigError

    given = {name: value for name, value in (("--height", height), ("--width", width)) if value is not None}
    if len(given) == 1:
        (name, value), missing = given.popitem(), "--width" if height is not None else "--height"
        raise ConfigError(
            f"{name} {value} says nothing of the other side",
            hint=f"add {missing}, or ask for a shape with --aspect-ratio 16:9 (width:height)",
        )
    if given and aspect_ratio is not None:
        raise ConfigError("--height and --width are given beside --aspect-ratio", hint="leave one of the two out")


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
    click.echo(json_text(value))


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
        yield lambda event: click.echo(json_text({"progress": event.__dict__}))
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
