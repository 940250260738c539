"""Infinity's eager candidates: the original loop, and the graphs of a bundle in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from ldp_runtime.bundle.files import TOKENIZER, open_bundle
from ldp_runtime.bundle.manifest import GraphEntry, Manifest, Precision
from ldp_runtime.pixels import to_output
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.tokenizer import PromptTokenizer
from torch import nn

from ldp_export.bench.worker.candidates import GraphsCandidate, conditions_of
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.timing import Drawing, Stopwatch
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityDecoderGraph, InfinityPromptGraph
from ldp_export.graphs.t5 import T5EncoderGraph
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.reference.infinity import InfinitySettings, generate


class EagerInfinity:
    """The original generation loop in eager PyTorch, with its text encoder and VAE decoder."""

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.manifest, self.device = bundle.manifest, torch.device(job.options.device)
        self.schedule = bundle.manifest.schedule(job.options.aspect_ratio)
        self.texts = conditions_of(job, self.manifest)
        modules = _load_modules(job, self.manifest)
        self.model, self.vae = modules.transformer.to(self.device), modules.vae.to(self.device)
        self.encoder = self.tokenizer = None
        if modules.text_encoder is not None:
            self.encoder = modules.text_encoder.to(self.device)
            self.tokenizer = PromptTokenizer(bundle.path(TOKENIZER), self.manifest.limits.text_tokens)
        self.watch = Stopwatch(self.device)
        self.watch.put_on(self, "text", "features")
        self.watch.put_on(self.model, "text", "encode_prompt")
        self.watch.put_on(self.model, "blocks", "start_token", "embed", "logits")
        for block in self.model.blocks:
            self.watch.put_on(block, "blocks", "forward")
            self.watch.put_on(block.ca, "blocks", "text_kv")  # the original projects the text at every scale
        self.watch.put_on(self.vae, "decode", "decode")

    def features(self, text: str | int | torch.Tensor) -> torch.Tensor:
        """Text features [T, text_channels] of one prompt at its own length."""
        if isinstance(text, torch.Tensor):
            return text.to(self.device)
        assert isinstance(text, str)
        assert self.encoder is not None
        assert self.tokenizer is not None
        ids = self.tokenizer(text)[None].to(self.device)
        return self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]

    @torch.no_grad()
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        """The whole batch shares the noise stream of its first seed, as in the original loop."""
        defaults = self.manifest.defaults
        settings = InfinitySettings(
            guidance=defaults.guidance,
            temperature=defaults.temperature,
            filter=SamplingFilter(defaults.top_k, defaults.top_p),
            seed=seeds[0],
        )
        model = self.manifest.model
        laps = self.watch.start()
        features = [self.features(self.texts[i]) for i in prompts]
        laps.end_scale(-1)  # the scales begin
        run = generate(
            self.model, features, self.schedule, model.layout, settings, keep_trace=False, on_scale=laps.end_scale
        )
        images = to_output(self.vae.decode(run.latent).float(), "torch")
        return laps.drawing(images, self.manifest, self.schedule, 1 if defaults.guidance == 1 else 2)


@dataclass(frozen=True)
class _Modules:
    transformer: InfinityTransformer
    vae: InfinityVae
    text_encoder: nn.Module | None


def _load_modules(job: Job, manifest: Manifest) -> _Modules:
    """Modules of the checkpoint, weights in the types that the bundle holds them in; no baseline reads twice the bytes.

    A text encoder's weights stay float32. There is no text encoder if the bundle has none.
    """
    files = job.options
    assert files.weights is not None
    assert files.vae is not None
    reads = files.text_encoder is not None and manifest.has_text_encoder
    encoder = load_text_encoder(files.text_encoder).module if reads and files.text_encoder is not None else None
    modules = _Modules(load_infinity(files.weights), load_infinity_vae(files.vae), encoder)
    if manifest.precision != "float32":
        for graph in (InfinityPromptGraph, InfinityBlocksGraph):
            convert_weights(graph(modules.transformer, precision=manifest.precision))
        convert_weights(InfinityDecoderGraph(modules.vae, manifest.precision))
    return modules


class InfinityGraphs(GraphsCandidate):
    """Graphs of an Infinity bundle in eager PyTorch: see `GraphsCandidate`."""

    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        return partial(_graph, _load_modules(job, manifest), manifest.precision)


def _graph(modules: _Modules, precision: Precision, graph: GraphEntry) -> nn.Module:
    if graph.kind == "text_encoder":
        assert modules.text_encoder is not None
        return T5EncoderGraph(modules.text_encoder)
    if graph.kind == "prompt":
        return InfinityPromptGraph(modules.transformer, precision=precision)
    if graph.kind == "decoder":
        return InfinityDecoderGraph(modules.vae, precision)
    return InfinityBlocksGraph(modules.transformer, graph.first, graph.last, precision)
