"""What `gpu.py` is asked for, checked before any work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ldp_runtime.engines.torch_compiled.compiler import check_compiler
from ldp_runtime.errors import ConfigError, LdpError
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.pruning.stopping import StopAt
from ldp_runtime.pruning.tokens import TopK
from ldp_runtime.schedule import ScaleSchedule

from benchmarks.paths import RESULTS, result_file
from ldp_export.bench.given_shares import Shares, calibrated, told
from ldp_export.models.registry import InfinitySpec, find_model
from ldp_export.models.sizes import InfinityConfig

STUDY = RESULTS / "infinity-shapes-ablation.json"
TINY = InfinityConfig(depth=2, width=64, heads=4, ffn=256, bits=8, text_channels=32, text_tokens=64, pool_heads=2)


def shares(options: argparse.Namespace, spec: InfinitySpec) -> Shares:
    """What pruned candidates keep, and where it comes from."""
    if options.keep is not None:
        return told(options.keep, options.stop_scale)
    return calibrated(options.keep_from, ScaleSchedule.of_size(spec.size))


def specs(options: argparse.Namespace) -> list[InfinitySpec]:
    """Raises ConfigError for a name that is no Infinity model's."""
    if not options.tiny:
        found = [find_model(name) for name in options.models]
        if not all(isinstance(spec, InfinitySpec) for spec in found):
            raise ConfigError(f"this measures Infinity models, of {', '.join(options.models)} some are none")
        return [spec for spec in found if isinstance(spec, InfinitySpec)]
    small = find_model("infinity-shapes")
    assert isinstance(small, InfinitySpec)
    vae = replace(small.vae, bits=8, base_channels=32, channel_multipliers=(1, 1), stride=2)
    return [replace(small, name="tiny", transformer=TINY, vae=vae)]


def parse(arguments: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--models", nargs="+", default=["infinity-8b", "infinity-2b"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--keep", help="shares of the last scales, by hand")
    parser.add_argument("--stop-scale", type=int, help="with --keep: the unconditional branch stops after it")
    parser.add_argument("--keep-from", type=Path, default=STUDY, help="a calibrated profile, or a study of policies")
    parser.add_argument("--warmup", type=int, default=2, help="graphs are captured in the first of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.5, help="begin nothing new after this time")
    parser.add_argument(
        "--late",
        nargs="+",
        default=[],
        choices=("int8", "float8"),
        help="also last scales whose blocks multiply 8-bit numbers",
    )
    parser.add_argument("--profile", action="store_true", help="also a table of kernels, eager and compiled")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow blocks, to prove that the code runs")
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args(arguments)
    problem = refusal(options)
    if problem is not None:
        parser.error(problem)
    return options


def refusal(options: argparse.Namespace) -> str | None:
    """Why these options make no sense here, found before any work; None where they do."""
    if options.repeats < 1 or options.warmup < 0 or min(options.batch) < 1 or options.minutes <= 0:
        return "--repeats and --batch take at least 1, --warmup at least 0, --minutes more than 0"
    if options.device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU here; --device cpu --tiny proves that the code runs"
    if options.device == "cpu" and not options.tiny:
        return "--device cpu goes with --tiny: models of these sizes are for a GPU"
    if options.stop_scale is not None and options.keep is None:
        return "--stop-scale goes with --keep: a calibrated file brings both"
    try:
        check_compiler(torch.device(options.device))
        for spec in specs(options):
            policies(shares(options, spec), ScaleSchedule.of_size(spec.size))
    except LdpError as error:
        return error.message
    return None


def policies(shares: Shares, schedule: ScaleSchedule) -> dict[str, Policy]:
    """What is compared; the paper's headline mode leaves the last two scales out.

    Raises:
        ConfigError: shares or a stop scale that the schedule does not have.
    """
    keep, stop = shares.keep, shares.stop_scale
    found = {
        "unpruned": Policy(),
        "LD, no scale skipped": given(keep, stop),
        "LD, last two skipped": given((*keep[:-2], 0.0, 0.0), stop),
        "control: skip-1": Policy(skip_last=1),
        "control: skip-2": Policy(skip_last=2),
    }
    if stop is not None:
        found["control: stop guidance"] = Policy(guidance=StopAt(stop))
    for policy in found.values():
        policy.check(schedule)
    return found


def given(keep: tuple[float, ...], stop: int | None) -> Policy:
    """Keeps these shares of the last scales' tokens, at random; a share of 0 at the end skips a scale."""
    skipped = next((i for i, share in enumerate(reversed(keep)) if share > 0), len(keep))
    return Policy(TopK(keep, score="random", fill="zero"), None if stop is None else StopAt(stop), skipped)
