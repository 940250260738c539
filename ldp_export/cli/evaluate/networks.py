"""Options of steps that look at pictures through networks, and the wish that they make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldp_calibration.evaluation.scorers.opening import Wish

_OPTIONS = (
    click.option("--weights", type=click.Path(path_type=Path), help="Folder of networks' weights and vocabularies."),
    click.option("--device", default="cpu", show_default=True, help="Where networks run: cpu or cuda."),
    click.option(
        "--precision",
        type=click.Choice(("float32", "float16", "bfloat16")),
        default="float32",
        show_default=True,
        help="Of networks; GenEval's detector computes in float32 always, as officially.",
    ),
    click.option("--batch", type=int, default=1, show_default=True, help="Pictures that a network sees together."),
)


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of networks to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wish_of(weights: Path | None, device: str, precision: str, batch: int, answers: Sequence[str] = ()) -> Wish:
    """Wish of the options. Raises ConfigError for a text of answers that is none."""
    from ldp_calibration.evaluation.scorers.opening import Wish
    from ldp_runtime.errors import ConfigError

    files = dict[str, Path]()
    for text in answers:
        policy, _, file = text.rpartition("=")  # a policy's text may hold the sign too
        if not policy or not file or policy in files:
            raise ConfigError(f"cannot read --answers {text!r}", hint="--answers ld=ld.txt, once for each policy")
        files[policy] = Path(file)
    return Wish(weights, device, precision, batch, files)
