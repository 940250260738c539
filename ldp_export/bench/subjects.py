"""What is measured: eager PyTorch and the engines behind one question, "draw these prompts with these seeds"."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from ldp_runtime.bundle import TOKENIZER, InfinityEntry, Manifest, open_bundle
from ldp_runtime.pipeline import Pipeline
from ldp_runtime.pixels import to_output
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.text import PromptTokenizer

from ldp_export.bench.messages import Job
from ldp_export.models.checkpoints import load_transformer, load_vae
from ldp_export.models.reference import ReferenceSettings, generate
from ldp_export.models.text_encoder import load_text_encoder

Result = TypeVar("Result")
Texts = Sequence[str] | Sequence[torch.Tensor]


@dataclass(frozen=True)
class Drawing:
    """Images [B, 3, H, W] in [0, 1], seconds of the phases that can be told apart, and tokens per image."""

    images: torch.Tensor
    text_s: float
    blocks_s: float
    decode_s: float
    tokens: tuple[int, ...]
    row_tokens: tuple[int, ...]
    tokens_full: int


class Subject(Protocol):
    def draw(self, prompts: Sequence[int], seeds: Sequence[int]) -> Drawing: ...


def load_subject(job: Job) -> Subject:
    """Opens what the job names. The comparison has hashed all files already, so only sizes are compared here."""
    return EagerSubject(job) if job.kind == "eager" else EngineSubject(job)


def texts_of(job: Job, manifest: Manifest) -> Texts:
    """The job's prompts, or the seeded random features that stand in for them."""
    if job.prompts is not None:
        return job.prompts
    assert isinstance(manifest.model, InfinityEntry)
    generator = torch.Generator().manual_seed(job.embed_seed)
    shape = (job.embed_tokens, manifest.model.text_channels)
    return [torch.randn(shape, generator=generator) for _ in range(job.embed_count)]


class EngineSubject:
    """A bundle's engines, driven by the pipeline under one policy."""

    def __init__(self, job: Job) -> None:
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.pipeline = Pipeline.load(bundle, threads=job.threads, max_batch=job.batch)
        self.policy = job.policy
        self.texts = texts_of(job, bundle.manifest)

    def draw(self, prompts: Sequence[int], seeds: Sequence[int]) -> Drawing:
        texts = [self.texts[i] for i in prompts]
        words = [text for text in texts if isinstance(text, str)]
        features = [text for text in texts if isinstance(text, torch.Tensor)]
        result = self.pipeline(
            words or None,
            prompt_embeds=features or None,
            seed=list(seeds),
            policy=self.policy,
            output_type="torch",
        )
        traces = result.traces
        return Drawing(
            images=result.images,
            text_s=traces[0].text_s,  # one stage for all images of a batch
            blocks_s=sum(scale.blocks_s / scale.images_in_call for trace in traces for scale in trace.scales),
            decode_s=sum(trace.decode_s for trace in traces),
            tokens=tuple(trace.tokens for trace in traces),
            row_tokens=tuple(trace.row_tokens for trace in traces),
            tokens_full=traces[0].tokens_full,
        )


class _Stopwatch:
    """Adds up seconds per phase around the methods it is put on."""

    def __init__(self) -> None:
        self.seconds = {"text": 0.0, "blocks": 0.0, "decode": 0.0}

    def timed(self, phase: str, function: Callable[..., Result]) -> Callable[..., Result]:
        def run(*args: object, **options: object) -> Result:
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[phase] += time.perf_counter() - started

        return run

    def put_on(self, owner: object, phase: str, *methods: str) -> None:
        for name in methods:
            setattr(owner, name, self.timed(phase, getattr(owner, name)))


class EagerSubject:
    """The original generation loop in eager PyTorch, with its text encoder and VAE decoder."""

    def __init__(self, job: Job) -> None:
        assert job.weights is not None
        assert job.vae is not None
        bundle = open_bundle(Path(job.bundle), integrity="sizes")
        self.manifest = bundle.manifest
        self.texts = texts_of(job, self.manifest)
        self.model, self.vae = load_transformer(job.weights), load_vae(job.vae)
        self.encoder = self.tokenizer = None
        if job.text_encoder is not None and self.manifest.has_text_encoder:
            self.encoder = load_text_encoder(job.text_encoder).module
            self.tokenizer = PromptTokenizer(bundle.path(TOKENIZER), self.manifest.limits.text_tokens)
        self.watch = _Stopwatch()
        self.watch.put_on(self, "text", "features")
        self.watch.put_on(self.model, "text", "encode_prompt")
        self.watch.put_on(self.model, "blocks", "start_token", "embed", "logits")
        for block in self.model.blocks:
            self.watch.put_on(block, "blocks", "forward")
            self.watch.put_on(block.ca, "blocks", "text_kv")  # the original projects the text at every scale
        self.watch.put_on(self.vae, "decode", "decode")

    def features(self, text: str | torch.Tensor) -> torch.Tensor:
        """Text features [T, text_channels] of one prompt at its own length."""
        if isinstance(text, torch.Tensor):
            return text
        assert self.encoder is not None
        assert self.tokenizer is not None
        ids = self.tokenizer(text)[None]
        return self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]

    @torch.no_grad()
    def draw(self, prompts: Sequence[int], seeds: Sequence[int]) -> Drawing:
        """The whole batch shares the noise stream of its first seed, as in the original loop."""
        before = dict(self.watch.seconds)
        defaults, schedule = self.manifest.defaults, self.manifest.schedule()
        settings = ReferenceSettings(
            guidance=defaults.guidance,
            temperature=defaults.temperature,
            filter=SamplingFilter(defaults.top_k, defaults.top_p),
            seed=seeds[0],
        )
        assert isinstance(self.manifest.model, InfinityEntry)
        features = [self.features(self.texts[i]) for i in prompts]
        run = generate(self.model, features, schedule, self.manifest.model.layout, settings, keep_trace=False)
        images = to_output(self.vae.decode(run.latent), "torch")
        took = {phase: seconds - before[phase] for phase, seconds in self.watch.seconds.items()}
        tokens, rows = schedule.total_tokens, 1 if defaults.guidance == 1 else 2
        return Drawing(
            images=images,
            text_s=took["text"],
            blocks_s=took["blocks"],
            decode_s=took["decode"],
            tokens=(tokens,) * len(prompts),
            row_tokens=(tokens * rows,) * len(prompts),
            tokens_full=tokens,
        )
