"""What is measured: eager PyTorch and the engines behind one question, "draw these prompts with these seeds"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from ldp_calibration.cost import full_flops, trace_flops
from ldp_runtime.bundle import TOKENIZER, Bundle, GraphEntry, InfinityEntry, Manifest, Precision, open_bundle
from ldp_runtime.bundle_engines import open_engines
from ldp_runtime.engines.eager import EagerEngine
from ldp_runtime.pipeline import Pipeline
from ldp_runtime.pixels import to_output
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.text import PromptTokenizer
from ldp_runtime.trace import Trace
from torch import nn

from ldp_export.bench.messages import Job
from ldp_export.graphs.blocks import BlocksGraph
from ldp_export.graphs.decoder import DecoderGraph
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.prompt import PromptGraph
from ldp_export.graphs.text_encoder import TextEncoderGraph
from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.checkpoints import load_transformer, load_vae
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.reference import ReferenceSettings, generate
from ldp_export.models.text_encoder import load_text_encoder

Result = TypeVar("Result")
#: What images are drawn from: prompts, class labels, or text features [T, text_channels].
Conditions = Sequence[str] | Sequence[int] | Sequence[torch.Tensor]


@dataclass(frozen=True)
class Drawing:
    """Images [B, 3, H, W] in [0, 1], seconds of the phases that can be told apart, and tokens per image.

    `scales` holds an entry per scale: seconds of the blocks, seconds of the loop, mean tokens and rows of an image.
    """

    images: torch.Tensor
    text_s: float
    blocks_s: float
    decode_s: float
    tokens: tuple[int, ...]
    row_tokens: tuple[int, ...]
    tokens_full: int
    scales: tuple[tuple[float, float, float, float], ...]
    flops: float


class Subject(Protocol):
    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str) -> Drawing: ...


def load_subject(job: Job) -> Subject:
    """Opens what the job names. The comparison has hashed all files already, so only sizes are compared here."""
    if job.kind == "engines":
        return EngineSubject(job)
    if job.classes is not None:
        from ldp_export.bench.class_subjects import EagerClassSubject, HoistedClassSubject

        return EagerClassSubject(job) if job.kind == "eager" else HoistedClassSubject(job)
    return EagerSubject(job) if job.kind == "eager" else HoistedSubject(job)


def conditions_of(job: Job, manifest: Manifest) -> Conditions:
    """The job's prompts or classes, or the seeded random features that stand in for prompts."""
    if job.classes is not None:
        return job.classes
    if job.prompts is not None:
        return job.prompts
    assert isinstance(manifest.model, InfinityEntry)
    generator = torch.Generator().manual_seed(job.embed_seed)
    shape = (job.embed_tokens, manifest.model.text_channels)
    return [torch.randn(shape, generator=generator) for _ in range(job.embed_count)]


class EngineSubject:
    """A bundle's engines, driven by the pipeline."""

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.pipeline = self._open(bundle, job)
        self.aspect_ratio = job.aspect_ratio
        self.conditions = conditions_of(job, bundle.manifest)

    def _open(self, bundle: Bundle, job: Job) -> Pipeline:
        return Pipeline.load(bundle, device=job.device, threads=job.threads, max_batch=job.batch)

    def draw(self, prompts: Sequence[int], seeds: Sequence[int], policy: str = "none") -> Drawing:
        conditions = [self.conditions[i] for i in prompts]
        features = [each for each in conditions if isinstance(each, torch.Tensor)]
        others = [each for each in conditions if not isinstance(each, torch.Tensor)]
        options: dict[str, Any] = {"seed": list(seeds), "policy": policy, "output_type": "torch"}
        options["aspect_ratio"] = self.aspect_ratio
        pipe = self.pipeline
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
    """What the images of a call spent at each scale, and their mean tokens and rows."""
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


class Stopwatch:
    """Notes when the methods it is put on begin and end.

    On a GPU these are events in its stream: PyTorch has returned long before the GPU is done, and waiting for it would
    slow down the loop that is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two such times; on a GPU both must have passed."""
        return start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start

    def timed(self, phase: str, function: Callable[..., Result]) -> Callable[..., Result]:
        def run(*args: object, **options: object) -> Result:
            started = self.now()
            try:
                return function(*args, **options)
            finally:
                self.spans.append((phase, started, self.now()))

        return run

    def put_on(self, owner: object, phase: str, *methods: str) -> None:
        for name in methods:
            setattr(owner, name, self.timed(phase, getattr(owner, name)))

    def start(self) -> Laps:
        """The times of one call that begins now."""
        self.spans.clear()
        return Laps(self)


@dataclass(frozen=True)
class Laps:
    """A call of an original loop: when its start and each scale ended, and how many spans had been noted by then."""

    watch: Stopwatch
    ends: list[tuple[int, Any]] = field(default_factory=list)

    def end_scale(self, k: int) -> None:
        self.ends.append((len(self.watch.spans), self.watch.now()))

    def drawing(self, images: torch.Tensor, manifest: Manifest, schedule: ScaleSchedule, rows: int) -> Drawing:
        """Of images [B, 3, H, W], drawn with every token in `rows` branches."""
        if self.watch.device.type == "cuda":
            torch.cuda.synchronize(self.watch.device)
        count, tokens = len(images), schedule.total_tokens
        return Drawing(
            images=images,
            text_s=self._spent("text"),
            blocks_s=self._spent("blocks"),
            decode_s=self._spent("decode"),
            tokens=(tokens,) * count,
            row_tokens=(tokens * rows,) * count,
            tokens_full=tokens,
            scales=tuple(self._scales(schedule, rows)),
            flops=count * full_flops(manifest.model, schedule, rows == 2),
        )

    def _spent(self, phase: str, first: int = 0, end: int | None = None) -> float:
        return sum(self.watch.seconds(a, b) for name, a, b in self.watch.spans[first:end] if name == phase)

    def _scales(self, schedule: ScaleSchedule, rows: int) -> Iterator[tuple[float, float, float, float]]:
        for (first, start), (end, stop), own in zip(self.ends, self.ends[1:], schedule.tokens, strict=False):
            blocks = self._spent("blocks", first, end)
            yield blocks, max(0.0, self.watch.seconds(start, stop) - blocks), float(own), float(rows)


class EagerSubject:
    """The original generation loop in eager PyTorch, with its text encoder and VAE decoder."""

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.manifest, self.device = bundle.manifest, torch.device(job.device)
        self.schedule = bundle.manifest.schedule(job.aspect_ratio)
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
        settings = ReferenceSettings(
            guidance=defaults.guidance,
            temperature=defaults.temperature,
            filter=SamplingFilter(defaults.top_k, defaults.top_p),
            seed=seeds[0],
        )
        model = self.manifest.model
        assert isinstance(model, InfinityEntry)
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
    vae: BsqVae
    text_encoder: nn.Module | None


def _load_modules(job: Job, manifest: Manifest) -> _Modules:
    """The checkpoint's modules, weights in the types that the bundle holds them in (a text encoder's stay float32), so
    that no baseline reads twice the bytes; no text encoder where the bundle has none."""
    assert job.weights is not None
    assert job.vae is not None
    reads = job.text_encoder is not None and manifest.has_text_encoder
    encoder = load_text_encoder(job.text_encoder).module if reads and job.text_encoder is not None else None
    modules = _Modules(load_transformer(job.weights), load_vae(job.vae), encoder)
    if manifest.precision != "float32":
        for graph in (PromptGraph, BlocksGraph):
            convert_weights(graph(modules.transformer, precision=manifest.precision))
        convert_weights(DecoderGraph(modules.vae, manifest.precision))
    return modules


class HoistedSubject(EngineSubject):
    """The bundle's loop and graphs, the graphs in eager PyTorch: what leaving the loop alone is worth by itself."""

    def _open(self, bundle: Bundle, job: Job) -> Pipeline:
        graph_of = self._graphs(job, bundle.manifest)

        def open_eager(name: str, graph: GraphEntry) -> EagerEngine:
            inputs, outputs = ([entry.name for entry in entries] for entries in (graph.inputs, graph.outputs))
            return EagerEngine(name, graph_of(graph), inputs, outputs, job.device, job.threads)

        engines = open_engines(bundle, torch.device(job.device), job.threads, open_eager)
        tokenizer = None
        if bundle.manifest.has_text_encoder:
            tokenizer = PromptTokenizer(bundle.path(TOKENIZER), bundle.manifest.limits.text_tokens)
        return Pipeline(bundle.manifest, engines, tokenizer, job.batch, bundle.root)

    def _graphs(self, job: Job, manifest: Manifest) -> Callable[[GraphEntry], nn.Module]:
        return partial(_graph, _load_modules(job, manifest), manifest.precision)


def _graph(modules: _Modules, precision: Precision, graph: GraphEntry) -> nn.Module:
    if graph.kind == "text_encoder":
        assert modules.text_encoder is not None
        return TextEncoderGraph(modules.text_encoder)
    if graph.kind == "prompt":
        return PromptGraph(modules.transformer, precision=precision)
    if graph.kind == "decoder":
        return DecoderGraph(modules.vae, precision)
    return BlocksGraph(modules.transformer, graph.first, graph.last, precision)
