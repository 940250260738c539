"""Candidates of a measurement: eager PyTorch and the engines behind one call, "draw these prompts with these seeds"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ldp_calibration.cost import trace_flops
from ldp_runtime.bundle.files import TOKENIZER, Bundle, open_bundle
from ldp_runtime.bundle.manifest import GraphEntry, Manifest
from ldp_runtime.bundle.saved_policies import policy_of_command
from ldp_runtime.pipeline.open_engines import open_engines
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.tokenizer import PromptTokenizer
from torch import nn

from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.timing import Drawing

#: Conditions of images: prompts, class labels, or text features [T, text_channels].
Conditions = Sequence[str] | Sequence[int] | Sequence[torch.Tensor]


class Candidate(Protocol):
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str) -> Drawing: ...


def conditions_of(job: Job, manifest: Manifest) -> Conditions:
    """Prompts or classes of the job, or the seeded random features that stand in for prompts."""
    if job.options.classes is not None:
        return job.options.classes
    if job.options.prompts is not None:
        return job.options.prompts
    assert job.embeds is not None
    generator = torch.Generator().manual_seed(job.embeds.seed)
    shape = manifest.model.given_features(job.embeds.tokens)
    return [torch.randn(shape, generator=generator) for _ in range(job.embeds.count)]


def empty_text(manifest: Manifest) -> list[torch.Tensor]:
    """Random features that stand in for the empty text, where a bundle needs one and cannot encode it; else none."""
    if manifest.model.learns_unconditional or manifest.has_text_encoder:
        return []
    return [torch.randn(2, manifest.model.text_channels, generator=torch.Generator().manual_seed(0))]


class EngineCandidate:
    """A bundle's engines, driven by the pipeline."""

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.pipeline = self._open(bundle, job)
        self.aspect_ratio = job.options.aspect_ratio
        self.conditions = conditions_of(job, bundle.manifest)

    def _open(self, bundle: Bundle, job: Job) -> Pipeline:
        return Pipeline.load(bundle, device=job.options.device, threads=job.options.threads, max_batch=job.batch)

    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        conditions = [self.conditions[i] for i in prompts]
        features = [condition for condition in conditions if isinstance(condition, torch.Tensor)]
        others = [condition for condition in conditions if not isinstance(condition, torch.Tensor)]
        pipe = self.pipeline
        chosen = policy_of_command(policy, pipe.root, pipe.manifest)
        options: dict[str, Any] = {"seed": list(seeds), "policy": chosen, "output_type": "torch"}
        options["aspect_ratio"] = self.aspect_ratio
        if empty := empty_text(pipe.manifest):
            options["negative_prompt_embeds"] = empty
        result = pipe(prompt_embeds=features, **options) if features else pipe.draw(others, **options)
        traces = result.traces
        return Drawing(
            images=result.images,
            text_s=traces[0].text_s,  # one stage for all images of a batch
            blocks_s=sum(scale.blocks_s / scale.images_in_call for trace in traces for scale in trace.scales),
            decode_s=sum(trace.decode_s for trace in traces),
            tokens=tuple(trace.tokens for trace in traces),
            row_tokens=tuple(trace.row_tokens for trace in traces),
            tokens_full=traces[0].tokens_full,
            scales=_scales(traces),
            flops=sum(trace_flops(self.pipeline.manifest.model, trace) for trace in traces),
        )


def _scales(traces: Sequence[Trace]) -> tuple[tuple[float, float, float, float], ...]:
    """Seconds of blocks and loop that the images of a call took at each scale, and their mean tokens and rows."""
    n = len(traces)
    return tuple(
        (
            sum(scale.blocks_s / scale.images_in_call for scale in same),
            sum(scale.select_s / scale.images_in_call + scale.residual_s for scale in same),
            sum(scale.tokens for scale in same) / n,
            sum(scale.rows for scale in same) / n,
        )
        for same in ([t.scales[k] for t in traces if k < len(t.scales)] for k in range(traces[0].scales_full))
        if same
    )


class GraphsCandidate(EngineCandidate, ABC):
    """The bundle's loop and graphs, with the graphs in eager PyTorch.

    It shows the gain of the bundle's loop over the original one, without the gain of the engines.
    """

    def _open(self, bundle: Bundle, job: Job) -> Pipeline:
        graph_of = self._graphs(job, bundle.manifest)

        def open_eager(name: str, graph: GraphEntry) -> EagerEngine:
            inputs, outputs = ([entry.name for entry in entries] for entries in (graph.inputs, graph.outputs))
            return EagerEngine(name, graph_of(graph), inputs, outputs, job.options.device, job.options.threads)

        engines = open_engines(bundle, torch.device(job.options.device), job.options.threads, open_eager)
        tokenizer = None
        if bundle.manifest.has_text_encoder:
            padded = bundle.manifest.model.fixed_text_tokens > 0
            tokenizer = PromptTokenizer(bundle.path(TOKENIZER), bundle.manifest.limits.text_tokens, padded=padded)
        return Pipeline(bundle.manifest, engines, tokenizer, job.batch, bundle.root)

    @abstractmethod
    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        """Function from a graph's entry to its module with loaded weights."""
