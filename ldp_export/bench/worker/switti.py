"""Eager candidates of Switti: the original's loop, and the bundle's graphs in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.bundle.files import TOKENIZER, open_bundle
from ldp_runtime.bundle.manifest import GraphEntry, Manifest, Precision
from ldp_runtime.pixels import to_output
from ldp_runtime.tokenizer import PromptTokenizer
from torch import nn

from ldp_export.bench.worker.candidates import GraphsCandidate, conditions_of, empty_text
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.timing import Drawing, Stopwatch
from ldp_export.checkpoints.clip import ClipTextEncoder, load_clip
from ldp_export.checkpoints.switti import load_switti
from ldp_export.checkpoints.var import load_var_vae
from ldp_export.graphs.clip import ClipTowersGraph
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.switti import SwittiBlocksGraph, SwittiPromptGraph
from ldp_export.graphs.var import VarDecoderGraph
from ldp_export.models.switti import SwittiTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.switti import SwittiSettings, SwittiText, generate


class EagerSwitti:
    """Switti's original generation loop in eager PyTorch, with its text towers and VAE decoder.

    The unconditional text is encoded once: the original does so at every call, which an engine need not match.
    """

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.manifest, self.device = bundle.manifest, torch.device(job.options.device)
        self.entry = bundle.manifest.model
        assert isinstance(self.entry, SwittiEntry)
        modules = _load_modules(job, self.manifest)
        self.model, self.vae = modules.transformer.to(self.device), modules.vae.to(self.device)
        self.encoder, self.tokenizer = None, None
        if modules.text_encoder is not None:
            self.encoder = modules.text_encoder.module.to(self.device)
            self.tokenizer = PromptTokenizer(bundle.path(TOKENIZER), self.manifest.limits.text_tokens)
        self.watch = Stopwatch(self.device)
        self.watch.put_on(self, "text", "features")
        self.watch.put_on(self.model, "text", "encode_prompt")
        self.watch.put_on(self.model, "blocks", "start_tokens", "embed", "logits")
        for block in self.model.layers:
            self.watch.put_on(block, "blocks", "forward")
        self.watch.put_on(self.vae, "decode", "decode")
        self.texts = conditions_of(job, self.manifest)
        with torch.no_grad():
            given = empty_text(self.manifest)
            self.null = self._text([given[0] if given else self._encoded("")])

    def features(self, text: str | int | torch.Tensor) -> torch.Tensor:
        """Text features [T, text_channels] of one prompt at its own length."""
        if isinstance(text, torch.Tensor):
            return text.to(self.device)
        assert isinstance(text, str)
        return self._encoded(text)

    def _encoded(self, text: str) -> torch.Tensor:
        assert self.encoder is not None
        assert self.tokenizer is not None
        return self.encoder(torch.tensor(self.tokenizer.ids(text), device=self.device)[None])[0]

    def _text(self, rows: Sequence[torch.Tensor]) -> SwittiText:
        """Texts of features [T, Ct] each, padded and masked, pooled by their last tokens."""
        assert isinstance(self.entry, SwittiEntry)
        features = nn.utils.rnn.pad_sequence([row.to(self.device) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        pooled = torch.stack([row[-1, -self.entry.pooled_channels :] for row in rows]).to(self.device)
        return SwittiText(features, pooled, torch.arange(features.shape[1], device=self.device) < lengths[:, None])

    @torch.no_grad()
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        """The whole batch shares the noise stream of its first seed, as in the original loop."""
        entry, defaults = self.entry, self.manifest.defaults
        assert isinstance(entry, SwittiEntry)
        settings = SwittiSettings(
            defaults.guidance,
            defaults.top_k,
            defaults.top_p,
            seeds[0],
            entry.first_guided,
            entry.first_unguided,
            defaults.temperature,
            entry.more_smooth,
            entry.first_smooth,
        )
        laps = self.watch.start()
        text = self._text([self.features(self.texts[i]) for i in prompts])
        laps.end_scale(-1)  # the scales begin
        run = generate(self.model, self.vae, text, self.null, settings, keep_trace=False, on_scale=laps.end_scale)
        images = to_output(self.vae.decode(run.latent).float(), "torch")
        return laps.drawing(images, self.manifest, self.manifest.schedule(), rows=2)


@dataclass(frozen=True)
class _Modules:
    transformer: SwittiTransformer
    vae: VarVae
    text_encoder: ClipTextEncoder | None


def _load_modules(job: Job, manifest: Manifest) -> _Modules:
    """Modules of the checkpoint, weights in the types that the bundle holds them in, as for Infinity."""
    files = job.options
    assert files.weights is not None
    assert files.vae is not None
    encoder = None
    if manifest.has_text_encoder:
        assert files.text_encoder is not None
        assert files.text_encoder_2 is not None
        encoder = load_clip((Path(files.text_encoder), Path(files.text_encoder_2)))
    modules = _Modules(load_switti(files.weights), load_var_vae(files.vae), encoder)
    if manifest.precision != "float32":
        for graph in (SwittiPromptGraph, SwittiBlocksGraph):
            convert_weights(graph(modules.transformer, precision=manifest.precision))
        convert_weights(VarDecoderGraph(modules.vae, manifest.precision))
    return modules


class SwittiGraphs(GraphsCandidate):
    """Graphs of a Switti bundle in eager PyTorch: see `GraphsCandidate`."""

    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        return partial(_graph, _load_modules(job, manifest), manifest.precision)


def _graph(modules: _Modules, precision: Precision, graph: GraphEntry) -> nn.Module:
    if graph.kind == "text_encoder":
        assert modules.text_encoder is not None
        return ClipTowersGraph(modules.text_encoder.module)
    if graph.kind == "prompt":
        return SwittiPromptGraph(modules.transformer, graph.first, graph.last, precision)
    if graph.kind == "decoder":
        return VarDecoderGraph(modules.vae, precision)
    return SwittiBlocksGraph(modules.transformer, graph.first, graph.last, precision)
