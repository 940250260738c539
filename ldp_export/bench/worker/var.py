"""Eager candidates of class-conditional models: VAR's original loop, and the bundle's graphs in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.bundle.manifest import GraphEntry, Manifest
from ldp_runtime.pixels import to_output
from torch import nn

from ldp_export.bench.worker.candidates import GraphsCandidate
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.timing import Drawing, Stopwatch
from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.var import VarBlocksGraph, VarDecoderGraph, VarPromptGraph
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.var import VarSettings, generate


class EagerVar:
    """VAR's original generation loop in eager PyTorch, with its VAE decoder."""

    def __init__(self, job: Job) -> None:
        self.manifest = open_bundle(Path(job.bundle), integrity="sizes").manifest
        assert job.options.classes is not None
        self.classes = job.options.classes
        transformer, vae = _load_modules(job, self.manifest)
        self.model, self.vae = transformer.to(job.options.device), vae.to(job.options.device)
        self.watch = Stopwatch(torch.device(job.options.device))
        self.watch.put_on(self.model.class_emb, "text", "forward")
        self.watch.put_on(self.model, "blocks", "shared_modulation", "start_tokens", "logits")
        self.watch.put_on(self.model.word_embed, "blocks", "forward")
        for block in self.model.layers:
            self.watch.put_on(block, "blocks", "modulation", "forward")  # the original projects AdaLN at every scale
        self.watch.put_on(self.vae, "decode", "decode")

    @torch.no_grad()
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        """The whole batch shares the noise stream of its first seed, as in the original loop."""
        defaults = self.manifest.defaults
        settings = VarSettings(
            defaults.guidance, defaults.top_k, defaults.top_p, seeds[0], temperature=defaults.temperature
        )
        labels, laps = [self.classes[i] for i in prompts], self.watch.start()
        laps.end_scale(-1)  # the scales begin
        run = generate(self.model, self.vae, labels, settings, keep_trace=False, on_scale=laps.end_scale)
        images = to_output(self.vae.decode(run.latent), "torch")
        schedule = self.manifest.schedule()  # VAR draws squares
        return laps.drawing(images, self.manifest, schedule, rows=2)  # also where guidance is off


class VarGraphs(GraphsCandidate):
    """Graphs of a VAR bundle in eager PyTorch: see `GraphsCandidate`."""

    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        transformer, vae = _load_modules(job, manifest)
        precision = manifest.precision

        def graph_of(graph: GraphEntry) -> nn.Module:
            if graph.kind == "prompt":
                return VarPromptGraph(transformer, precision=precision)
            if graph.kind == "decoder":
                return VarDecoderGraph(vae, precision)
            return VarBlocksGraph(transformer, graph.first, graph.last, precision)

        return graph_of


def _load_modules(job: Job, manifest: Manifest) -> tuple[VarTransformer, VarVae]:
    """Modules of the checkpoint, weights in the types that the bundle holds them in, as for Infinity."""
    assert job.options.weights is not None
    assert job.options.vae is not None
    transformer, vae = load_var(job.options.weights), load_var_vae(job.options.vae)
    if manifest.precision != "float32":
        for graph in (VarPromptGraph, VarBlocksGraph):
            convert_weights(graph(transformer, precision=manifest.precision))
        convert_weights(VarDecoderGraph(vae, manifest.precision))
    return transformer, vae
