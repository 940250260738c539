"""What `gpu.py` compares: one technique more from bar to bar, then the policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from ldp_calibration.cost import scale_flops
from ldp_runtime.bundle.manifest import QuantizedPrecision, QuantizedScales
from ldp_runtime.pruning.policy import Policy

from benchmarks.gpu.draw import Eager, Toolkit
from benchmarks.gpu.models import Model
from ldp_export.building.choose_builder import QUANTIZED_SHARE
from ldp_export.models.sizes import InfinityConfig


@dataclass(frozen=True)
class Candidate:
    """A bar.

    Attributes:
        policy: None is the original loop.
        compiled, graphs, late: see `Toolkit`.
        headline: measured as often as asked for; the others, which only show what a technique adds, twice.
    """

    name: str
    policy: Policy | None = None
    compiled: bool = True
    graphs: bool = True
    quantized: QuantizedScales | None = None
    headline: bool = True

    @property
    def technique(self) -> tuple[bool, bool, QuantizedScales | None]:
        return self.compiled, self.graphs, self.quantized


def candidates(policies: Mapping[str, Policy], batch: int) -> list[Candidate]:
    """In the order of what is worth most, should the time be up; those of one technique behind each other."""
    compiled = [Candidate(f"compiled, {name}", policy) for name, policy in policies.items()]
    targets = [c for c in compiled if "control" not in c.name]
    controls = [c for c in compiled if "control" in c.name]
    full = policies["unpruned"]
    steps = [
        Candidate("text once, K/V in place", full, compiled=False, graphs=False, headline=False),
        Candidate("compiled, no CUDA graphs", full, graphs=False, headline=False),
    ]
    return [Candidate("eager"), *targets, *controls, *(steps if batch == 1 else [])]


def late_candidates(policies: Mapping[str, Policy], precision: QuantizedPrecision) -> list[Candidate]:
    """What has targets, its last scales in 8 bits."""
    quantized = QuantizedScales(precision=precision, share=QUANTIZED_SHARE)
    chosen = {name: policy for name, policy in policies.items() if "control" not in name}
    return [
        Candidate(f"{precision} last scales, {name}", policy, quantized=quantized) for name, policy in chosen.items()
    ]


class Bench:
    """A model, and what draws with it, made when it is first asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._eager = Eager(model)
        self._toolkit: Toolkit | None = None
        self._technique: tuple[bool, bool, QuantizedScales | None] | None = None

    def toolkit(self, candidate: Candidate) -> Toolkit:
        """The toolkit of a technique. There is one at a time: arenas, graphs and rounded weights are large."""
        if self._toolkit is None or self._technique != candidate.technique:
            self.clear()
            on_gpu, self._technique = self.model.device.type == "cuda", candidate.technique
            self._toolkit = Toolkit(
                self.model,
                compiled=candidate.compiled,
                graphs=candidate.graphs and on_gpu,
                quantized=candidate.quantized,
            )
        return self._toolkit

    def draw(self, candidate: Candidate, batch: int) -> dict[str, Any]:
        """Draws once: tokens times rows that the blocks computed, and their operations in TFLOP."""
        config, schedule = self.model.spec.transformer, self.model.schedule
        if candidate.policy is None:
            self._eager.draw(batch)
            calls = [[(tokens, 2) for tokens in schedule.tokens]] * batch
        else:
            _, traces = self.toolkit(candidate).draw(batch, candidate.policy)
            calls = [[(scale.tokens, scale.rows) for scale in trace] for trace in traces]
        return {
            "row_tokens": sum(tokens * rows for image in calls for tokens, rows in image),
            "blocks_tflop": sum(blocks_flops(config, image) for image in calls) / 1e12,
        }

    @torch.no_grad()
    def disagreement(self, candidate: Candidate) -> list[float]:
        """How far the blocks' logits are from the original loop's, given its bits: by scale, relative to their norm."""
        toolkit, found = self.toolkit(candidate), []
        eager = self._eager.run(1, keep_trace=True)
        images = toolkit.images(1, forced=[bits[0] for bits in eager.bits])

        def compare(scale: int, logits: torch.Tensor) -> None:
            raw = eager.raw_logits[scale]
            found.append(float((logits - raw).norm() / raw.norm()))

        toolkit.run(images, on_logits=compare)
        return found

    def counts(self, candidate: Candidate) -> dict[str, Any]:
        """Graphs and compilations so far, and the time that graphs took."""
        if candidate.policy is None:
            return {}
        graphs = self.toolkit(candidate).graphs
        found = (
            {"graphs": 0, "graphs_s": 0.0}
            if graphs is None
            else {"graphs": graphs.counters.captures, "graphs_s": graphs.seconds}
        )
        return found | {"compilations": torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)}

    def clear(self) -> None:
        """Gives back all but the model."""
        if self._toolkit is not None:
            self._toolkit.clear()
        self._toolkit = None
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def blocks_flops(config: InfinityConfig, calls: list[tuple[int, int]]) -> int:
    """Operations of all blocks for one image, from tokens and rows of each scale."""
    pasts = accumulate((tokens for tokens, _ in calls), initial=0)
    return sum(scale_flops(config, tokens, past, rows) for (tokens, rows), past in zip(calls, pasts, strict=False))
