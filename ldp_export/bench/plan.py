"""A checked comparison: everything that can be found wrong before work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldp_runtime.bundle import Bundle, open_bundle
from ldp_runtime.errors import ConfigError
from ldp_runtime.profiles import resolve_policy
from ldp_runtime.pruning.names import describe

from ldp_export.bench.hardware import default_threads
from ldp_export.bench.messages import Job
from ldp_export.models.registry import DEFAULT_MODEL, NamedModel, find_model
from ldp_export.models.sources import Sources, find_sources

DEFAULT_PROMPTS = (
    "a red circle",
    "a blue square and a yellow star",
    "two green rings",
    "a small white triangle to the left of a large purple circle",
)
DEFAULT_POLICIES = ("ld", "ld-skip-2")
EAGER, UNPRUNED = "eager", "engines"
_EMBEDS, _EMBED_TOKENS = 4, 12


@dataclass(frozen=True)
class Options:
    """What is asked for; see `run_bench`."""

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


@dataclass(frozen=True)
class BenchPlan:
    """Who is compared, on what.

    Attributes:
        sources: the checkpoint of the eager candidate, or None without one.
        prompts: texts, or None where seeded random features stand in.
        policies: of the pruned candidates, in the caller's words, each once.
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

    @property
    def prompt_count(self) -> int:
        return _EMBEDS if self.prompts is None else len(self.prompts)

    @property
    def embeds(self) -> dict[str, int] | None:
        """The stand-ins for prompts, where there is no text encoder."""
        if self.prompts is not None:
            return None
        return {"count": _EMBEDS, "tokens": _EMBED_TOKENS, "seed": self.seed}

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
        """One per candidate, by name."""
        jobs = {UNPRUNED: self._job("none", batch)}
        jobs |= {f"{UNPRUNED} + {policy}": self._job(policy, batch) for policy in self.policies}
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
        return {EAGER: eager} | jobs

    def _job(self, policy: str, batch: int) -> Job:
        return Job(
            kind="engines",
            bundle=str(self.bundle.folder),
            policy=policy,
            threads=self.threads,
            batch=batch,
            prompts=self.prompts,
            embed_count=_EMBEDS,
            embed_tokens=_EMBED_TOKENS,
            embed_seed=self.seed,
        )


def plan_bench(path: Path, options: Options) -> BenchPlan:
    """Checks the options against the bundle and finds the eager candidate's files; loads no weights.

    Raises:
        ConfigError: senseless numbers, an unknown policy, prompts for a bundle that reads none, no checkpoint, or a
            checkpoint that the bundle was not built from.
        IntegrityError, IncompatibleBundleError: the bundle cannot be used.
    """
    _check_numbers(options)
    bundle = open_bundle(path)
    schedule = bundle.manifest.schedule()
    policies: dict[str, str] = {}
    for text in options.policies:
        policy = resolve_policy(text, bundle.root, bundle.manifest)
        if policy is not None:  # "none" is always there: it is the candidate the others are compared with
            policy.check(schedule)
            policies.setdefault(describe(policy), text.strip())
    prompts = _prompts(options.prompts, bundle)
    sources = _sources(bundle, options) if options.eager else None
    return BenchPlan(
        bundle=bundle,
        sources=sources,
        prompts=prompts,
        policies=tuple(policies.values()),
        repeats=options.repeats,
        warmup=options.warmup,
        batch=tuple(dict.fromkeys(options.batch)),
        threads=options.threads or default_threads(),
        seed=options.seed,
    )


def _check_numbers(options: Options) -> None:
    threads = 1 if options.threads is None else options.threads
    least = {"repeats": (options.repeats, 1), "warmup": (options.warmup, 0), "threads": (threads, 1)}
    least |= {"seed": (options.seed, 0), "batch": (min(options.batch, default=0), 1)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ConfigError(f"{name} must be at least {bound}, got {value}")
    files = [name for name in ("weights", "vae", "text_encoder") if getattr(options, name) is not None]
    if files and not options.eager:
        raise ConfigError(f"{', '.join(files)} given, but the eager candidate that would read them is switched off")


def _prompts(prompts: Sequence[str] | None, bundle: Bundle) -> tuple[str, ...] | None:
    if not bundle.manifest.has_text_encoder:
        if prompts:
            raise ConfigError(
                "this bundle has no text encoder and reads no prompts",
                hint="leave the prompts out: seeded random text features are then used",
            )
        return None
    chosen = tuple(DEFAULT_PROMPTS if prompts is None else prompts)
    if not chosen or any(not prompt.strip() for prompt in chosen):
        raise ConfigError("there is an empty prompt, or none at all", hint="describe the picture in a few words")
    return chosen


def _sources(bundle: Bundle, options: Options) -> Sources:
    """The checkpoint the bundle was built from, proven by its hashes."""
    spec: NamedModel = find_model(DEFAULT_MODEL)  # of no matter where files are given
    if options.weights is None and options.vae is None:
        spec = _registered(bundle.manifest.model.name)
    found = find_sources(spec, options.weights, options.vae, options.text_encoder)
    if options.text_encoder is not None:
        found = replace(found, text_encoder=options.text_encoder)
    if bundle.manifest.has_text_encoder and found.text_encoder is None:
        raise ConfigError("the bundle has a text encoder, eager PyTorch needs one too", hint="give --text-encoder")
    if not bundle.manifest.has_text_encoder:
        found = replace(found, text_encoder=None)
    found.check()
    _check_hashes(bundle, found)
    return found


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
    for part, found in sources.hashes().items():
        if built.get(part) != found:
            problems.append(
                f"{part} {paths[part]}: {found[:16]}, the bundle was built from {built.get(part, '?')[:16]}"
            )
    if problems:
        raise ConfigError(
            "the bundle was not built from this checkpoint (SHA-256):\n  " + "\n  ".join(problems),
            hint="rebuild the bundle, give the files it was built from, or use --no-eager",
        )
