"""What a bundle is verified against: runs of the reference model, recorded at build time.

A bundle carries them, so that `verify` needs neither the checkpoint nor the exporter. Every case is teacher-forced:
the bits are given, so each scale's logits are compared on equal inputs, from the empty past of scale 0 and its single
token to the largest scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from ldp_runtime.bundle import Defaults, InfinityEntry
from ldp_runtime.residual import LatentLayout
from ldp_runtime.sampling import SamplingFilter, logit_difference
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.text import PromptTokenizer
from safetensors.torch import load_file, save_file

from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.oracle import pruned_logits
from ldp_export.models.reference import ReferenceRun, ReferenceSettings, generate
from ldp_export.models.text_encoder import TextEncoder

CASES_FILE, TENSORS_FILE, ROUNDING_FILE = "cases.json", "tensors.safetensors", "rounding.json"
PROMPTS = ("a red circle", "a small blue square to the left of a large yellow star on a plain background")
#: Aspect ratios that are verified: square, and the most elongated one, whose grids are odd and whose past is long.
_RATIOS = (1.0, 3.0)
_TEXT_TOKENS = 12
#: Rows whose logits are saved: two guided runs and an unguided one in full, the pruned one's computed tokens.
_ROWS, _PRUNED_ROWS = 5, 1


@dataclass(frozen=True)
class Case:
    """One recorded run; its tensors are named `{name}.{what}`.

    `scales`: only the first ones were run, as a schedule of their own (None: all).

    Tensors: `features` [T, Ct] of a text (a class has its `label`), `bits_{k}` [h*w, bits] or `indices_{k}` [h*w],
    `logits_{k}` [rows, computed, V], `latent` [d, H, W], `image` [3, H, W] where there is one, `keep_{k}` [kept] at
    pruned scales, `ids` [T] where a text was encoded.
    """

    name: str
    aspect_ratio: float
    guidance: float
    pruned: bool = False
    prompt: str | None = None
    label: int | None = None
    seed: int | None = None
    margin: float | None = None
    scales: int | None = None

    def of(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The part of a schedule that the case runs."""
        return replace(schedule, grids=schedule.grids[: self.scales])


@dataclass(frozen=True)
class ReferenceCases:
    """Recorded runs.

    Attributes:
        rounding: largest errors that the precision alone causes, by kind of output ("logits", "image", "features"):
            the reference model computed in the precision by PyTorch, against itself in float32; of float32 itself,
            "logits" computed in another order. Where late scales are in 8 bits, "late_logits_{k}" of each scale too.
    """

    cases: tuple[Case, ...]
    tensors: dict[str, torch.Tensor]
    rounding: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CASES_FILE).write_text(json.dumps([asdict(case) for case in self.cases], indent=1))
        (folder / ROUNDING_FILE).write_text(json.dumps(self.rounding, indent=1))
        save_file({k: v.contiguous().clone() for k, v in self.tensors.items()}, folder / TENSORS_FILE)

    @staticmethod
    def load(folder: Path) -> ReferenceCases:
        cases = tuple(Case(**entry) for entry in json.loads((folder / CASES_FILE).read_text()))
        rounding = json.loads((folder / ROUNDING_FILE).read_text())
        return ReferenceCases(cases, load_file(folder / TENSORS_FILE), rounding)

    def tokens(self, case: Case, scales: int) -> list[torch.Tensor]:
        """Drawn tokens of every scale: bits as bool, or indices."""
        if case.label is not None:
            return [self.tensors[f"{case.name}.indices_{k}"] for k in range(scales)]
        return [self.tensors[f"{case.name}.bits_{k}"].bool() for k in range(scales)]

    def keep(self, case: Case, scales: int) -> list[torch.Tensor | None]:
        return [self.tensors.get(f"{case.name}.keep_{k}") for k in range(scales)]


@torch.no_grad()
def record_cases(
    transformer: InfinityTransformer,
    vae: BsqVae,
    encoder: TextEncoder | None,
    model: InfinityEntry,
    defaults: Defaults,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Runs the reference model: guided, unguided, elongated, pruned, and one prompt end to end."""
    tensors: dict[str, torch.Tensor] = {}
    cases: list[Case] = []
    texts = reference_texts(transformer, encoder, tensors)

    def add(case: Case, run: ReferenceRun | None) -> None:
        cases.append(case)
        if run is not None:
            _store(case.name, run, tensors)

    for i, ratio in enumerate(_RATIOS):
        schedule = ScaleSchedule.of_size(model.size, ratio)
        for guidance in (defaults.guidance, 1.0) if i == 0 else (defaults.guidance,):
            name = f"ratio{ratio:g}_guidance{guidance:g}"
            on_case(name)
            run, seed, margin = _clearest(transformer, texts[i], schedule, model.layout, defaults, guidance)
            add(Case(name, ratio, guidance, prompt=_prompt(encoder, i), seed=seed, margin=margin), run)
            tensors[f"{name}.features"] = texts[i]
            if i == 0:
                tensors[f"{name}.image"] = vae.decode(run.latent)[0]
            if (ratio, guidance) == (_RATIOS[0], defaults.guidance):
                pruned = Case(f"{name}_pruned", ratio, guidance, pruned=True)
                _store_pruned(pruned.name, transformer, texts[i], run, schedule, model.layout, tensors)
                add(pruned, None)
    return ReferenceCases(tuple(cases), tensors)


def _prompt(encoder: TextEncoder | None, index: int) -> str | None:
    return None if encoder is None else PROMPTS[index]


def reference_texts(
    transformer: InfinityTransformer, encoder: TextEncoder | None, tensors: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Features of the prompts, or seeded stand-ins where the bundle has no text encoder."""
    if encoder is None:
        generator = torch.Generator().manual_seed(0)
        shape = (_TEXT_TOKENS, transformer.config.text_channels)
        return [torch.randn(shape, generator=generator) for _ in PROMPTS]
    tokenizer = PromptTokenizer(encoder.tokenizer, transformer.config.text_tokens)
    texts = []
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt)
        features = encoder.module(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).last_hidden_state[0]
        tensors[f"text{i}.ids"], tensors[f"text{i}.features"] = ids, features
        texts.append(features)
    return texts


def _clearest(
    transformer: InfinityTransformer,
    text: torch.Tensor,
    schedule: ScaleSchedule,
    layout: LatentLayout,
    defaults: Defaults,
    guidance: float,
) -> tuple[ReferenceRun, int, float]:
    """Of a few seeds, the run whose closest decision is the clearest: rounding must not decide an end image."""
    runs = []
    for seed in range(3):
        rule = SamplingFilter(defaults.top_k, defaults.top_p)
        settings = ReferenceSettings(guidance, defaults.temperature, rule, seed)
        run = generate(transformer, [text], schedule, layout, settings)
        runs.append((run, seed, closest_decision(run, schedule, layout, seed, rule)))
    return max(runs, key=lambda entry: entry[2])


def closest_decision(
    run: ReferenceRun, schedule: ScaleSchedule, layout: LatentLayout, seed: int, rule: SamplingFilter
) -> float:
    """Smallest distance of any sampled bit's logit difference from the value at which the bit would flip."""
    from ldp_runtime.sampling import position_noise

    closest = float("inf")
    for logits, noise in zip(run.guided, position_noise(seed, schedule, layout.bits), strict=True):
        difference = logit_difference(logits)[0]
        undecided = difference.abs() < rule.decided_at
        to_noise = torch.where(undecided, (difference - noise).abs(), torch.tensor(float("inf")))
        to_limit = (difference.abs() - rule.decided_at).abs()
        closest = min(closest, float(to_noise.min()), float(to_limit.min()))
    return closest


def _store(name: str, run: ReferenceRun, tensors: dict[str, torch.Tensor]) -> None:
    for k, (bits, logits) in enumerate(zip(run.bits, run.raw_logits, strict=True)):
        tensors[f"{name}.bits_{k}"] = bits[0].to(torch.uint8)
        tensors[f"{name}.logits_{k}"] = logits
    tensors[f"{name}.latent"] = run.latent[0]


def _store_pruned(
    name: str,
    transformer: InfinityTransformer,
    text: torch.Tensor,
    run: ReferenceRun,
    schedule: ScaleSchedule,
    layout: LatentLayout,
    tensors: dict[str, torch.Tensor],
) -> None:
    """The oracle's logits under `fixed_masks`."""
    rows = torch.stack((text, transformer.unconditional_text(len(text))))
    keep = fixed_masks(schedule)
    logits = pruned_logits(transformer, rows, [bits[0] for bits in run.bits], keep, schedule, layout)
    tensors[f"{name}.features"] = text
    for k, bits in enumerate(run.bits):
        tensors[f"{name}.bits_{k}"] = bits[0].to(torch.uint8)
        tensors[f"{name}.logits_{k}"] = logits[k]
        indices = keep[k]
        if indices is not None:
            tensors[f"{name}.keep_{k}"] = indices


@torch.no_grad()
def forced_logits(
    transformer: InfinityTransformer, cases: ReferenceCases, case: Case, model: InfinityEntry
) -> list[torch.Tensor]:
    """Logits of a recorded case's scales on its own bits, in one call."""
    schedule = case.of(ScaleSchedule.of_size(model.size, case.aspect_ratio))
    text = cases.tensors[f"{case.name}.features"]
    rows = [text] if case.guidance == 1 else [text, transformer.unconditional_text(len(text))]
    bits = cases.tokens(case, len(schedule))
    return pruned_logits(transformer, torch.stack(rows), bits, [None] * len(schedule), schedule, model.layout)


def recorded_bytes(model: InfinityEntry, scales: int | None) -> int:
    """Size of what is saved: logits of four runs (six rows in all), bits, latents, images; or of the first scales."""
    if scales is not None:
        first = ScaleSchedule.of_size(model.size)
        pixels = first.tokens[scales - 1] * model.pixels_per_token**2
        return 2 * first.offsets[scales] * model.logits * 4 + 12 * pixels + _TEXT_TOKENS * model.text_channels * 4
    schedules = [ScaleSchedule.of_size(model.size, ratio) for ratio in _RATIOS]
    tokens = max(schedule.total_tokens for schedule in schedules)
    logits = (_ROWS + _PRUNED_ROWS) * tokens * model.logits * 4
    pixels = schedules[0].tokens[-1] * model.pixels_per_token**2
    return logits + 4 * tokens * model.bits + 24 * pixels + 3 * 4 * schedules[0].tokens[-1] * model.bits


def recording_memory(model: InfinityEntry) -> int:
    """Memory of the reference model's largest call: keys, values, attention scores and the widest layer of two rows."""
    schedule = max((ScaleSchedule.of_size(model.size, ratio) for ratio in _RATIOS), key=lambda s: s.total_tokens)
    tokens, total = max(schedule.tokens), schedule.total_tokens
    cache = 4 * 2 * 2 * model.depth * total * model.width
    scores = 4 * 2 * model.heads * total * total  # the masked oracle sees all scales at once
    return cache + scores + 4 * 2 * tokens * (model.ffn + 4 * model.width)


def fixed_masks(schedule: ScaleSchedule) -> Sequence[torch.Tensor | None]:
    """Seeded keep masks of the detail scales, for verification only."""
    generator = torch.Generator().manual_seed(1)
    keep: list[torch.Tensor | None] = [None] * len(schedule)
    for k in schedule.detail_scales():
        share = 0.4 if k + 1 < len(schedule) else 0.2
        count = max(1, round(share * schedule.tokens[k]))
        keep[k] = torch.randperm(schedule.tokens[k], generator=generator)[:count].sort().values
    return keep
