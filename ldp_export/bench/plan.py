"""Checks a comparison: everything that can be found wrong before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import policy_of_command
from ldp_runtime.engines.hardware import default_threads
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.memory import check_rows
from ldp_runtime.pipeline.open_engines import check_runnable
from ldp_runtime.pipeline.request import check_labels
from ldp_runtime.pruning.parse import policy_text

from ldp_export.bench.result import Scope
from ldp_export.bench.worker.messages import Job
from ldp_export.checkpoints.sources import Sources
from ldp_export.hub.resolve import find_sources
from ldp_export.models.registry import DEFAULT_MODEL, NamedModel, find_model

DEFAULT_PROMPTS = (
    "a red circle",
    "a blue square and a yellow star",
    "two green rings",
    "a small white triangle to the left of a large purple circle",
)
DEFAULT_POLICIES = ("ld", "ld-fast", "ld-skip-2")
EAGER, EAGER_GRAPHS, UNPRUNED = "eager", "eager, hoisted", "engines"
#: Separates the engines from the policy in a candidate's name.
_PRUNED = " + "
#: Number of random features that stand in for prompts, their number if weights are random too (all then cost the same),
#: and tokens of each.
_EMBEDS, _EMBEDS_OF_RANDOM, _EMBED_TOKENS = 4, 2, 12
_CLASSES = 4


@dataclass(frozen=True)
class Options:
    """Options of a comparison; see `run_bench`."""

    prompts: Sequence[str] | None = None
    policies: Sequence[str] = DEFAULT_POLICIES
    repeats: int = 10
    warmup: int = 3
    batch: Sequence[int] = (1,)
    threads: int | None = None
    seed: int = 0
    eager: bool = True
    weights: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    others: Sequence[Path] = ()
    device: str = "cpu"
    scope: Scope = "prompt-to-image"
    random_weights: bool = False
    shares_from: str | None = None
    classes: Sequence[int] | None = None
    aspect_ratio: float = 1.0
    share_engines: bool = False


@dataclass(frozen=True)
class BenchPlan:
    """Plan of a comparison: its candidates, and what they draw.

    Attributes:
        sources: checkpoint of the eager candidate; None leaves that candidate out.
        prompts: texts, or None where seeded random features stand in.
        policies: policies of the pruned candidates, in the caller's words, each once.
        others: further bundles of the same checkpoint, by the label that sets them apart.
        random_weights: True if images mean nothing, so that no quality of policies or precisions is reported.
        shares_from: source of given keep shares, in words.
        scope: scope of the report's times and ratios.
        classes: labels of a class-conditional model, which reads no prompts; else None.
        aspect_ratio: height / width of the images, as the model draws it.
        share_engines: True if engines are loaded once for all their policies, and not once for each.
    """

    bundle: Bundle
    sources: Sources | None
    prompts: tuple[str, ...] | None
    policies: tuple[str, ...]
    repeats: int
    warmup: int
    batch: tuple[int, ...]
    threads: int
    seed: int
    others: Mapping[str, Bundle] = field(default_factory=dict)
    device: str = "cpu"
    scope: Scope = "prompt-to-image"
    random_weights: bool = False
    shares_from: str | None = None
    classes: tuple[int, ...] | None = None
    aspect_ratio: float = 1.0
    share_engines: bool = False
    policy_fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt_count(self) -> int:
        conditions = self.prompts if self.classes is None else self.classes
        return self.embed_count if conditions is None else len(conditions)

    @property
    def embed_count(self) -> int:
        return _EMBEDS_OF_RANDOM if self.random_weights else _EMBEDS

    @property
    def embeds(self) -> dict[str, int] | None:
        """Stand-ins for prompts, if there is no text encoder."""
        if self.prompts is not None or self.classes is not None:
            return None
        return {"count": self.embed_count, "tokens": _EMBED_TOKENS, "seed": self.seed}

    def groups(self, batch: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompt indices and seeds of every call: image i draws prompt i (again from the first) with seed + i."""
        count = -(-self.prompt_count // batch) * batch
        starts = range(0, count, batch)
        return [
            (
                tuple(i % self.prompt_count for i in range(first, first + batch)),
                tuple(self.seed + i for i in range(first, first + batch)),
            )
            for first in starts
        ]

    def jobs(self, batch: int) -> dict[str, Job]:
        """Job of each candidate, by name; policies of the same engines have equal jobs."""
        jobs: dict[str, Job] = {}
        for kind, bundle in {UNPRUNED: self.bundle, **self.others}.items():
            jobs[kind] = self._job(bundle, batch)
            jobs |= {f"{kind}{_PRUNED}{policy}": jobs[kind] for policy in self.policies}
        if self.sources is None:
            return jobs
        encoder = self.sources.text_encoder
        eager = replace(
            jobs[UNPRUNED],
            kind="eager",
            weights=str(self.sources.transformer),
            vae=str(self.sources.vae),
            text_encoder=None if encoder is None else str(encoder),
        )
        if self.bundle.manifest.kv_cache == "static":  # its graphs are for engines only: eager PyTorch has none of them
            return {EAGER: eager} | jobs
        return {EAGER: eager, EAGER_GRAPHS: replace(eager, kind="hoisted")} | jobs

    def unpruned(self, name: str) -> str:
        """Name of the candidate that prunes nothing and is otherwise the same, with which pruning is compared."""
        return UNPRUNED if name in (EAGER, EAGER_GRAPHS) else name.partition(_PRUNED)[0]

    def policy(self, name: str) -> str:
        """A candidate's policy, in the caller's words."""
        return name.partition(_PRUNED)[2] or "none"

    def _job(self, bundle: Bundle, batch: int) -> Job:
        return Job(
            kind="engines",
            device=self.device,
            bundle=str(bundle.folder),
            threads=self.threads,
            batch=batch,
            prompts=self.prompts,
            embed_count=self.embed_count,
            embed_tokens=_EMBED_TOKENS,
            embed_seed=self.seed,
            classes=self.classes,
            aspect_ratio=self.aspect_ratio,
        )


def plan_bench(path: Path, options: Options) -> BenchPlan:
    """Checks the options against the bundle and finds the eager candidate's files; loads no weights.

    Raises:
        ConfigError: senseless numbers, an unknown policy, or prompts or classes that the bundle does not read. A
            missing checkpoint, or one that the bundle was not built from, raises it too.
        IntegrityError, IncompatibleBundleError: the bundle cannot be used.
    """
    check_options(options)
    bundle = open_bundle(path)
    schedule = bundle.manifest.schedule(options.aspect_ratio)
    policies: dict[str, str] = {}
    for text in options.policies:
        policy = policy_of_command(text, bundle.root, bundle.manifest)
        if policy is not None:  # "none" is always there: it is the candidate the others are compared with
            policy.check(schedule)
            policies.setdefault(policy_text(policy), text.strip())
    prompts, classes = _prompts(options.prompts, bundle), _classes(options.classes, options.prompts, bundle.manifest)
    others = _others(bundle, options.others)
    device = torch.device(options.device)
    for candidate in (bundle, *others.values()):
        check_runnable(candidate.manifest, device)
        check_rows(candidate.manifest, max(options.batch))
    sources = _sources(bundle, options) if options.eager else None
    return BenchPlan(
        bundle=bundle,
        sources=sources,
        prompts=prompts,
        policies=tuple(policies.values()),
        policy_fields={words: fields for fields, words in policies.items()},
        repeats=options.repeats,
        warmup=options.warmup,
        batch=tuple(dict.fromkeys(options.batch)),
        threads=options.threads or default_threads(),
        seed=options.seed,
        others=others,
        device=options.device,
        scope=options.scope,
        random_weights=options.random_weights,
        shares_from=options.shares_from,
        classes=classes,
        aspect_ratio=options.aspect_ratio,
        share_engines=options.share_engines,
    )


def label(manifest: Manifest) -> str:
    """Words that set a bundle's engines apart, for candidates' names."""
    words = [manifest.backend]
    if manifest.precision != "float32":
        words.append(manifest.precision)
    words += [f"{entry.precision} {entry.name} scales" for entry in manifest.quantized]
    if manifest.graphs["decoder"].quantized:
        words.append("int8 decoder")
    return ", ".join(words)


def _others(bundle: Bundle, paths: Sequence[Path]) -> dict[str, Bundle]:
    """Further bundles by label, proven to be of the same checkpoint and schedule."""
    bundles: dict[str, Bundle] = {}
    for path in paths:
        other = open_bundle(path)
        if _origin(other.manifest) != _origin(bundle.manifest):
            raise ConfigError(
                f"{path} was built from another checkpoint or schedule than {bundle.root or bundle.folder}",
                hint="compare bundles of one model: build them with the same --model or --weights, and --pn",
            )
        name = label(other.manifest)
        if other.manifest.digest == bundle.manifest.digest or name in bundles:
            raise ConfigError(f"{path} is measured already, as {name!r}", hint="name each kind of engine once")
        bundles[name] = other
    return bundles


def _origin(manifest: Manifest) -> tuple[dict[str, str], ModelEntry]:
    """Hashes of the checkpoint, and the architecture."""
    return {part: source.sha256 for part, source in manifest.sources.items()}, manifest.model


def check_options(options: Options) -> None:
    """Raises ConfigError for what makes no sense with any bundle."""
    threads = 1 if options.threads is None else options.threads
    least = {"repeats": (options.repeats, 1), "warmup": (options.warmup, 0), "threads": (threads, 1)}
    least |= {"seed": (options.seed, 0), "batch": (min(options.batch, default=0), 1)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"{name} must be at least {bound}, got {value}")
    if options.scope not in get_args(Scope):
        raise ConfigError(f"unknown scope {options.scope!r}", hint=f"one of {', '.join(get_args(Scope))}")
    if options.device not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {options.device!r}", hint="cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but PyTorch finds no CUDA GPU here", hint="leave --device out")
    files = [name for name in ("weights", "vae", "text_encoder") if getattr(options, name) is not None]
    if files and not options.eager:
        raise ConfigError(f"{', '.join(files)} given, but the eager candidate that would read them is switched off")


def _classes(
    classes: Sequence[int] | None, prompts: Sequence[str] | None, manifest: Manifest
) -> tuple[int, ...] | None:
    """Given labels, or some spread over all classes; None for a model that reads texts."""
    model = manifest.model
    if model.reads_text:
        if classes:
            raise ConfigError(f"{model.name} draws texts, not classes", hint="give --prompt instead of --class")
        return None
    if prompts:
        raise ConfigError(f"{model.name} draws classes and reads no prompts", hint="give --class instead of --prompt")
    if classes is None:
        count = min(_CLASSES, model.classes)
        return tuple(i * model.classes // count for i in range(count))
    check_labels(model, classes)
    return tuple(classes)


def _prompts(prompts: Sequence[str] | None, bundle: Bundle) -> tuple[str, ...] | None:
    if not bundle.manifest.model.reads_text:
        return None
    if not bundle.manifest.has_text_encoder:
        if prompts:
            raise ConfigError(
                "this bundle has no text encoder and reads no prompts",
                hint="leave the prompts out: seeded random text features are then used",
            )
        return None
    texts = tuple(DEFAULT_PROMPTS if prompts is None else prompts)
    if not texts or any(not prompt.strip() for prompt in texts):
        raise ConfigError("there is an empty prompt, or none at all", hint="describe the picture in a few words")
    return texts


def _sources(bundle: Bundle, options: Options) -> Sources:
    """Checkpoint that the bundle was built from, proven by its hashes."""
    spec: NamedModel = find_model(DEFAULT_MODEL)  # any will do if files are given
    if options.weights is None and options.vae is None:
        spec = _registered(bundle.manifest.model.name)
    sources = find_sources(spec, options.weights, options.vae, options.text_encoder)
    if options.text_encoder is not None:
        sources = replace(sources, text_encoder=options.text_encoder)
    if bundle.manifest.has_text_encoder and sources.text_encoder is None:
        raise ConfigError("the bundle has a text encoder, eager PyTorch needs one too", hint="give --text-encoder")
    if not bundle.manifest.has_text_encoder:
        sources = replace(sources, text_encoder=None)
    sources.check()
    _check_hashes(bundle, sources)
    return sources


def _registered(name: str) -> NamedModel:
    try:
        return find_model(name)
    except ConfigError as error:
        raise ConfigError(
            f"the bundle's model {name!r} is none of the registry, so its checkpoint cannot be found",
            hint="give --weights and --vae (and --text-encoder), or leave eager PyTorch out with --no-eager",
        ) from error


def _check_hashes(bundle: Bundle, sources: Sources) -> None:
    built, paths, problems = bundle.manifest.sources, dict(sources.items()), []
    for part, digest in sources.hashes().items():
        was = built[part].sha256 if part in built else "?"
        if was != digest:
            problems.append(f"{part} {paths[part]}: {digest[:16]}, the bundle was built from {was[:16]}")
    if problems:
        raise ConfigError(
            "the bundle was not built from this checkpoint (SHA-256):\n  " + "\n  ".join(problems),
            hint="rebuild the bundle, give the files it was built from, or use --no-eager",
        )
