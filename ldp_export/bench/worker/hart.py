"""Eager candidates of HART: the original's loop, and the bundle's graphs in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.bundle.manifest import GraphEntry, Manifest, Precision
from ldp_runtime.pixels import to_output
from torch import nn

from ldp_export.bench.worker.candidates import GraphsCandidate, conditions_of
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.timing import Drawing, Stopwatch
from ldp_export.checkpoints.hart import load_hart
from ldp_export.checkpoints.var import load_var_vae
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.hart import HartBlocksGraph, HartResidualGraph, hart_prompt_graph
from ldp_export.graphs.var import VarDecoderGraph
from ldp_export.models.hart import HartTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.hart import HartSettings, HartText, generate, residual_noise


class EagerHart:
    """HART's original generation loop in eager PyTorch, with its VAE decoder; texts come as features."""

    def __init__(self, job: Job) -> None:
        self.manifest = open_bundle(Path(job.bundle), integrity="sizes").manifest
        self.device = torch.device(job.options.device)
        self.entry = cast(HartEntry, self.manifest.model)
        model, vae = _load_modules(job, self.manifest)
        self.model, self.vae = model.to(self.device), vae.to(self.device)
        self.watch = Stopwatch(self.device)
        self.watch.put_on(self.model, "text", "context")
        self.watch.put_on(self.model, "blocks", "embed", "logits", "residual")
        for block in self.model.layers:
            self.watch.put_on(block, "blocks", "forward")
        self.watch.put_on(self.vae, "decode", "decode")
        self.texts = conditions_of(job, self.manifest)

    @torch.no_grad()
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        """The whole batch shares the noise stream of its first seed, as in the original loop."""
        entry, defaults, config = self.entry, self.manifest.defaults, self.model.config
        settings = HartSettings(
            defaults.guidance,
            defaults.top_k,
            entry.late_top_k,
            entry.first_late,
            defaults.top_p,
            seeds[0],
            entry.more_smooth,
        )
        laps = self.watch.start()
        texts = [self.texts[i] for i in prompts]
        features = torch.stack([text for text in texts if isinstance(text, torch.Tensor)]).to(self.device)
        text = HartText.of(features, torch.ones(features.shape[:2], device=self.device))
        tokens = config.schedule.tokens[-1]
        noise = residual_noise(seeds[0], len(prompts), tokens, config.channels, config.residual_steps)
        laps.end_scale(-1)  # the scales begin
        run = generate(
            self.model,
            self.vae,
            text,
            settings,
            noise.to(self.device),
            keep_trace=False,
            on_scale=laps.end_scale,
        )
        images = to_output(self.vae.decode(run.latent).float(), "torch")
        return laps.drawing(images, self.manifest, self.manifest.schedule(), rows=2)  # also where guidance is off


class HartGraphs(GraphsCandidate):
    """Graphs of a HART bundle in eager PyTorch: see `GraphsCandidate`."""

    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        return partial(_graph, *_load_modules(job, manifest), manifest.precision)


def _load_modules(job: Job, manifest: Manifest) -> tuple[HartTransformer, VarVae]:
    """Modules of the checkpoint, weights in the types that the bundle holds them in, as for Infinity."""
    assert job.options.weights is not None
    assert job.options.vae is not None
    transformer, vae = load_hart(job.options.weights), load_var_vae(job.options.vae)
    if manifest.precision != "float32":
        for graph in (HartBlocksGraph, HartResidualGraph):
            convert_weights(graph(transformer, precision=manifest.precision))
        convert_weights(VarDecoderGraph(vae, manifest.precision))
    return transformer, vae


def _graph(transformer: HartTransformer, vae: VarVae, precision: Precision, graph: GraphEntry) -> nn.Module:
    if graph.kind == "prompt":
        return hart_prompt_graph(transformer, graph.first, graph.last, precision)
    if graph.kind == "residual":
        return HartResidualGraph(transformer, precision)
    if graph.kind == "decoder":
        return VarDecoderGraph(vae, precision)
    return HartBlocksGraph(transformer, graph.first, graph.last, precision)
