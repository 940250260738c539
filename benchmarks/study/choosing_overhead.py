"""What choosing costs: milliseconds per scale that policies themselves take, at the 0.25M schedule, and their share.

    python -m benchmarks.study.choosing_overhead bundles/infinity-shapes

The bundle's engines are driven over the grids of the 0.25M schedule (2,521 tokens), which the small model was not
trained for: the picture is nonsense, the work is not. Blocks as small as these are the hardest case: in a larger model
the share of choosing is smaller. Times are medians over draws, on the CPU, warm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldp_runtime.bundle.files import TOKENIZER, open_bundle
from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.pipeline.open_engines import open_engines
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pruning.policy import GuidanceRule, Policy, ScaleView, Selection, TokenRule
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import Grid, ScaleSchedule
from ldp_runtime.tokenizer import PromptTokenizer

from benchmarks.paths import RESULTS, result_file
from benchmarks.report.read import GRAMMAR
from ldp_export.bench.hardware import hardware, software

RESULT = RESULTS / "choosing-overhead-cpu.json"
POLICIES = ("ld-paper", "ld", "ld-fast", "ld-paper:energy_from=computed")


class Stopwatch:
    """Seconds by scale that a policy's answers took."""

    def __init__(self) -> None:
        self.seconds, self.scale = defaultdict[int, float](float), 0

    def time(self, question: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        answer = question(*args)
        self.seconds[self.scale] += time.perf_counter() - started
        return answer


class TimedTokens(TokenRule):
    """A token rule under a stopwatch."""

    def __init__(self, rule: TokenRule, watch: Stopwatch) -> None:
        self.rule, self.watch = rule, watch

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return self.rule.prunes(schedule)

    def select(self, view: ScaleView) -> Selection | None:
        self.watch.scale = view.scale
        return self.watch.time(self.rule.select, view)

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        return self.watch.time(self.rule.fill_residual, view)


class TimedGuidance(GuidanceRule):
    """A guidance rule under a stopwatch."""

    def __init__(self, rule: GuidanceRule, watch: Stopwatch) -> None:
        self.rule, self.watch = rule, watch

    def watches(self, scale: int, schedule: ScaleSchedule) -> bool:
        self.watch.scale = scale
        return self.rule.watches(scale, schedule)

    def remember(
        self,
        before: torch.Tensor | None,
        conditional: torch.Tensor,
        unconditional: torch.Tensor,
        kept: torch.Tensor | None,
        grid: Grid,
    ) -> torch.Tensor | None:
        return self.watch.time(self.rule.remember, before, conditional, unconditional, kept, grid)

    def missing(self, conditional: torch.Tensor, recalled: torch.Tensor, scale: int) -> torch.Tensor | None:
        self.watch.scale = scale
        return self.watch.time(self.rule.missing, conditional, recalled, scale)

    def stops_after(self, gaps: Sequence[GuidanceGap | None], scale: int, schedule: ScaleSchedule) -> bool:
        return self.watch.time(self.rule.stops_after, gaps, scale, schedule)


def timed(policy: Policy, watch: Stopwatch) -> Policy:
    """The policy with a stopwatch on the questions of both rules."""
    tokens = None if policy.tokens is None else TimedTokens(policy.tokens, watch)
    guidance = None if policy.guidance is None else TimedGuidance(policy.guidance, watch)
    return Policy(tokens, guidance, policy.skip_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--draws", type=int, default=7)
    parser.add_argument("--result", type=result_file, default=RESULT)
    options = parser.parse_args()
    opened = open_bundle(options.bundle)
    model = opened.manifest.model.model_copy(update={"size": "0.25M"})
    manifest = opened.manifest.model_copy(update={"model": model})
    tokenizer = PromptTokenizer(opened.path(TOKENIZER), manifest.limits.text_tokens)
    with Pipeline(manifest, open_engines(opened, torch.device("cpu"), None), tokenizer, 1, None) as pipe:
        found = {text: overhead(pipe, opened.root, text, options.draws) for text in POLICIES}
    machine = {"hardware": hardware(), "software": software()}
    result = {"grammar": GRAMMAR, "model": model.name, "size": "0.25M", **machine, "policies": found}
    options.result.write_text(json.dumps(result, indent=1))
    for text, entry in found.items():
        scales = ", ".join(f"{k}: {ms:.2f}" for k, ms in entry["milliseconds_per_scale"].items())
        print(f"{text}: {entry['share']:.2%} of {entry['run_milliseconds']:.0f} ms; ms per scale {scales}")


def overhead(pipe: Pipeline, root: Path | None, text: str, draws: int) -> dict[str, Any]:
    """Medians over draws of one policy."""
    policy = resolve_policy(text, root, pipe.manifest)
    assert policy is not None
    runs, choices = [], []
    for draw in range(draws + 1):
        watch = Stopwatch()
        started = time.perf_counter()
        pipe("a red circle", seed=draw, policy=timed(policy, watch))
        runs.append(time.perf_counter() - started)
        choices.append(dict(watch.seconds))
    scales = sorted({k for choice in choices for k, seconds in choice.items() if seconds > 2e-5})
    per_scale = {k: float(np.median([c.get(k, 0.0) for c in choices[1:]])) * 1e3 for k in scales}
    run = float(np.median(runs[1:])) * 1e3
    return {
        "milliseconds_per_scale": per_scale,
        "run_milliseconds": run,
        "share": sum(per_scale.values()) / run,
    }


if __name__ == "__main__":
    main()
