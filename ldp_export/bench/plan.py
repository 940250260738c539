"""Checks a comparison: everything that can be found wrong before work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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

from ldp_export.bench.random_weights import RandomWeights, read_random
from ldp_export.bench.worker.messages import Embeds, Job
from ldp_export.bench.worker.options import BenchOptions
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
class BenchPlan:
    """Plan of a comparison: its candidates, and what they draw.

    Attributes:
        bundles: bundles of one checkpoint, by the name of their unpruned engines among the candidates.
        options: the user's options, with prompts or classes, policies (each once) and threads filled in.
        sources: checkpoint of the eager candidate; None leaves that candidate out.
        policy_fields: text with every field of each policy, by the user's words.
        random: what is known of random weights, whose images mean nothing: no quality of policies or precisions is
            reported. None for a model that has learned something.
        has_given_policies: True if the policies are those of `random`.
    """

    bundles: Mapping[str, Bundle]
    options: BenchOptions
    sources: Sources | None = None
    policy_fields: Mapping[str, str] = field(default_factory=dict)
    random: RandomWeights | None = None
    has_given_policies: bool = False

    @property
    def bundle(self) -> Bundle:
        """The first bundle, with whose engines the others are compared."""
        return self.bundles[UNPRUNED]

    @property
    def policies(self) -> tuple[str, ...]:
        return self.options.policies or ()

    @property
    def prompt_count(self) -> int:
        options = self.options
        conditions = options.prompts if options.classes is None else options.classes
        return self._embed_count if conditions is None else len(conditions)

    @property
    def _embed_count(self) -> int:
        return _EMBEDS if self.random is None else _EMBEDS_OF_RANDOM

    @property
    def embeds(self) -> Embeds | None:
        """Stand-ins for prompts, if there is no text encoder."""
        if self.options.prompts is not None or self.options.classes is not None:
            return None
        return Embeds(self._embed_count, _EMBED_TOKENS, self.options.seed)

    def groups(self, batch: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompt indices and seeds of every call: image i draws prompt i (again from the first) with seed + i."""
        count = -(-self.prompt_count // batch) * batch
        starts = range(0, count, batch)
        return [
            (
                tuple(i % self.prompt_count for i in range(first, first + batch)),
                tuple(self.options.seed + i for i in range(first, first + batch)),
            )
            for first in starts
        ]

    def jobs(self, batch: int) -> dict[str, Job]:
        """Job of each candidate, by name; policies of the same engines have equal jobs."""
        jobs: dict[str, Job] = {}
        for kind, bundle in self.bundles.items():
            jobs[kind] = self._job(bundle, batch)
            jobs |= {f"{kind}{_PRUNED}{policy}": jobs[kind] for policy in self.policies}
        if self.sources is None:
            return jobs
        files = self.sources
        parts = dict(files.items())
        options = replace(self.options, weights=parts.pop("transformer"), **parts)
        eager = replace(jobs[UNPRUNED], kind="eager", options=options)
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
        return Job("engines", str(bundle.folder), batch, self.options, self.embeds)


def plan_bench(paths: Sequence[Path], options: BenchOptions) -> BenchPlan:
    """Checks the options against the bundles and finds the eager candidate's files; loads no weights.

    Args:
        paths: bundles of one checkpoint.

    Raises:
        ConfigError: senseless numbers, an unknown policy, or prompts or classes that the bundle does not read. A
            missing checkpoint, or one that the bundle was not built from, raises it too.
        IntegrityError, IncompatibleBundleError: the bundle cannot be used.
    """
    options.check()
    device = _device(options.device)
    bundle = open_bundle(paths[0])
    manifest, random = bundle.manifest, read_random(bundle)
    manifest.schedule(options.aspect_ratio)
    words = options.policies or (DEFAULT_POLICIES if random is None else random.policies)
    if options.policies == ():
        words = ()
    policies = _policies(words, bundle, options.aspect_ratio)
    bundles = {UNPRUNED: bundle} | _others(bundle, paths[1:])
    filled = replace(
        options,
        prompts=_prompts(options.prompts, bundle),
        classes=_classes(options.classes, options.prompts, manifest),
        policies=tuple(policies),
        batch=tuple(dict.fromkeys(options.batch)),
        threads=options.threads or default_threads(),
    )
    for candidate in bundles.values():
        check_runnable(candidate.manifest, device)
        check_rows(candidate.manifest, max(options.batch))
    sources = _sources(bundle, options, random) if options.eager else None
    return BenchPlan(bundles, filled, sources, policies, random, options.policies is None)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but PyTorch finds no CUDA GPU here", hint="leave --device out")
    return torch.device(name)


def _policies(texts: Sequence[str], bundle: Bundle, aspect_ratio: float) -> dict[str, str]:
    """Text with every field of each policy, by the user's words for it, each policy once."""
    schedule, words = bundle.manifest.schedule(aspect_ratio), dict[str, str]()
    for text in texts:
        policy = policy_of_command(text, bundle.root, bundle.manifest)
        if policy is not None:  # "none" is always there: it is the candidate the others are compared with
            policy.check(schedule)
            words.setdefault(policy_text(policy), text.strip())
    return {text: fields for fields, text in words.items()}


def label(manifest: Manifest) -> str:
    """Words that set a bundle's engines apart, for candidates' names."""
    words = [manifest.backend]
    if manifest.precision != "float32":
        words.append(manifest.precision)
    if manifest.weight_precision is not None:
        words.append(f"{manifest.weight_precision} weights")
    static = {"static": " with static ranges", "measured": ""}
    words += [f"{entry.precision} {entry.name} scales{static[entry.ranges]}" for entry in manifest.quantized]
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
                hint="compare bundles of one model: build them with the same --model or --weights, and --size",
            )
        name = label(other.manifest)
        if other.manifest.digest == bundle.manifest.digest or name in bundles:
            raise ConfigError(f"{path} is measured already, as {name!r}", hint="name each kind of engine once")
        bundles[name] = other
    return bundles


def _origin(manifest: Manifest) -> tuple[dict[str, str], ModelEntry]:
    """Hashes of the checkpoint, and the architecture."""
    return {part: source.sha256 for part, source in manifest.sources.items()}, manifest.model


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


def _sources(bundle: Bundle, options: BenchOptions, random: RandomWeights | None) -> Sources:
    """Checkpoint that the bundle was built from, proven by its hashes."""
    spec: NamedModel = find_model(DEFAULT_MODEL)  # any will do if files are given
    if options.weights is None and options.vae is None:
        if random is not None:
            return random.sources
        spec = _registered(bundle.manifest.model.name)
    given = (options.text_encoder, options.text_encoder_2)
    sources = find_sources(spec, options.weights, options.vae, *given)
    if any(path is not None for path in given):
        sources = sources.with_text(given)
    if bundle.manifest.has_text_encoder and not sources.text_encoders:
        raise ConfigError("the bundle has a text encoder, eager PyTorch needs one too", hint="give --text-encoder")
    if not bundle.manifest.has_text_encoder:
        sources = sources.with_text(())
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
