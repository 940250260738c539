"""Reference runs of Infinity: over all scales, or over the first ones if a model is too large for whole runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.families.infinity import accumulate, bits_to_codes, next_input, tokens_to_latent
from ldp_runtime.sampling import SamplingFilter, logit_difference
from ldp_runtime.schedule import ScaleSchedule, rope_table
from ldp_runtime.token_layout import LatentLayout
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.t5 import TextEncoder
from ldp_export.models.infinity import InfinityPrompt, InfinityTransformer, KeyValue, Rope, modulate
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.reference.infinity import InfinityRun, InfinitySettings, generate
from ldp_export.reference.oracle import pruned_infinity_logits
from ldp_export.reference.streamed import streamed_weights
from ldp_export.verification.cases import Case, ReferenceCases, fixed_masks
from ldp_export.verification.recording.sizes import RATIOS, TEXT_TOKENS

PROMPTS = ("a red circle", "a small blue square to the left of a large yellow star on a plain background")


@torch.no_grad()
def record_infinity_cases(
    transformer: InfinityTransformer,
    vae: InfinityVae,
    encoder: TextEncoder | None,
    model: InfinityEntry,
    defaults: Defaults,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Records runs of the reference model: guided, unguided, elongated, pruned, and one prompt end to end."""
    tensors: dict[str, torch.Tensor] = {}
    cases: list[Case] = []
    texts = reference_texts(transformer, encoder, tensors)

    def add(case: Case, run: InfinityRun | None) -> None:
        cases.append(case)
        if run is not None:
            _store(case.name, run, tensors)

    for i, ratio in enumerate(RATIOS):
        schedule = ScaleSchedule.of_size(model.size, ratio)
        for guidance in dict.fromkeys((defaults.guidance, 1.0) if i == 0 else (defaults.guidance,)):
            name = f"ratio{ratio:g}_guidance{guidance:g}"
            on_case(name)
            run, seed, margin = _clearest(transformer, texts[i], schedule, model.layout, defaults, guidance)
            add(Case(name, ratio, guidance, prompt=_prompt(encoder, i), seed=seed, margin=margin), run)
            tensors[f"{name}.features"] = texts[i]
            if i == 0:
                tensors[f"{name}.image"] = vae.decode(run.latent)[0]
            if (ratio, guidance) == (RATIOS[0], defaults.guidance):
                pruned = Case(f"{name}_pruned", ratio, guidance, pruned=True)
                _store_pruned(pruned.name, guidance, transformer, texts[i], run, schedule, model.layout, tensors)
                add(pruned, None)
    return ReferenceCases(tuple(cases), tensors)


def _prompt(encoder: TextEncoder | None, index: int) -> str | None:
    return None if encoder is None else PROMPTS[index]


def reference_texts(
    transformer: InfinityTransformer, encoder: TextEncoder | None, tensors: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Features of the prompts, or seeded random ones if there is no text encoder; adds encoded texts to `tensors`."""
    if encoder is None:
        generator = torch.Generator().manual_seed(0)
        shape = (TEXT_TOKENS, transformer.config.text_channels)
        return [torch.randn(shape, generator=generator) for _ in PROMPTS]
    tokenizer = PromptTokenizer(encoder.tokenizer, transformer.config.text_tokens)
    texts = []
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt)
        texts.append(encoder.features(ids))
        tensors[f"text{i}.ids"], tensors[f"text{i}.features"] = ids, texts[i]
    return texts


def _clearest(
    transformer: InfinityTransformer,
    text: torch.Tensor,
    schedule: ScaleSchedule,
    layout: LatentLayout,
    defaults: Defaults,
    guidance: float,
) -> tuple[InfinityRun, int, float]:
    """Clearest run of a few seeds, its seed, and its closest decision: rounding must not decide the final image."""
    runs = []
    for seed in range(3):
        rule = SamplingFilter(defaults.top_k, defaults.top_p)
        settings = InfinitySettings(guidance, defaults.temperature, rule, seed)
        run = generate(transformer, [text], schedule, layout, settings)
        runs.append((run, seed, closest_decision(run, schedule, layout, seed, rule)))
    return max(runs, key=lambda entry: entry[2])


def closest_decision(
    run: InfinityRun, schedule: ScaleSchedule, layout: LatentLayout, seed: int, rule: SamplingFilter
) -> float:
    """Smallest distance of any sampled bit's logit difference to the value at which the bit would flip."""
    from ldp_runtime.noise import position_noise

    closest = sys.float_info.max  # files hold no infinity
    for logits, noise in zip(run.guided, position_noise(seed, schedule, layout.bits), strict=True):
        difference = logit_difference(logits)[0]
        undecided = difference.abs() < rule.decided_at
        to_noise = torch.where(undecided, (difference - noise).abs(), torch.tensor(float("inf")))
        to_limit = (difference.abs() - rule.decided_at).abs()
        closest = min(closest, float(to_noise.min()), float(to_limit.min()))
    return closest


def _store(name: str, run: InfinityRun, tensors: dict[str, torch.Tensor]) -> None:
    for k, (bits, logits) in enumerate(zip(run.bits, run.raw_logits, strict=True)):
        tensors[f"{name}.bits_{k}"] = bits[0].to(torch.uint8)
        tensors[f"{name}.logits_{k}"] = logits
    tensors[f"{name}.latent"] = run.latent[0]


def _rows(transformer: InfinityTransformer, text: torch.Tensor, guidance: float) -> torch.Tensor:
    """Text features [R, T, Ct] of the conditional branch and, with guidance, of the unconditional one."""
    rows = [text] if guidance == 1 else [text, transformer.unconditional_text(len(text))]
    return torch.stack(rows)


def _store_pruned(
    name: str,
    guidance: float,
    transformer: InfinityTransformer,
    text: torch.Tensor,
    run: InfinityRun,
    schedule: ScaleSchedule,
    layout: LatentLayout,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Adds a pruned run to `tensors`: the oracle's logits under `fixed_masks`."""
    rows = _rows(transformer, text, guidance)
    keep = fixed_masks(schedule)
    logits = pruned_infinity_logits(transformer, rows, [bits[0] for bits in run.bits], keep, schedule, layout)
    tensors[f"{name}.features"] = text
    for k, bits in enumerate(run.bits):
        tensors[f"{name}.bits_{k}"] = bits[0].to(torch.uint8)
        tensors[f"{name}.logits_{k}"] = logits[k]
        indices = keep[k]
        if indices is not None:
            tensors[f"{name}.keep_{k}"] = indices


@torch.no_grad()
def forced_infinity_logits(
    transformer: InfinityTransformer, cases: ReferenceCases, case: Case, model: InfinityEntry
) -> list[torch.Tensor]:
    """Logits of all scales of a recorded case, teacher-forced with its bits, in one call."""
    schedule = case.of(ScaleSchedule.of_size(model.size, case.aspect_ratio))
    text = cases.tensors[f"{case.name}.features"]
    rows = _rows(transformer, text, case.guidance)
    bits, keep = cases.tokens(case, len(schedule)), cases.keep(case, len(schedule))
    return pruned_infinity_logits(transformer, rows, bits, keep, schedule, model.layout)


@torch.no_grad()
def record_first_scales(
    transformer: InfinityTransformer,
    vae: InfinityVae,
    encoder: TextEncoder | None,
    model: InfinityEntry,
    defaults: Defaults,
    scales: int,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Records logits of the first scales on random bits, the latent of these bits, and its decoded image.

    Args:
        transformer: reference model; its weights may be views of files, in any element type.
    """
    tensors: dict[str, torch.Tensor] = {}
    case = Case(f"first{scales}_guidance{defaults.guidance:g}", 1.0, defaults.guidance, scales=scales)
    on_case(case.name)
    schedule, layout = case.of(ScaleSchedule.of_size(model.size)), model.layout
    text = reference_texts(transformer, encoder, tensors)[0]
    generator = torch.Generator().manual_seed(2)
    bits = [torch.rand(tokens, layout.bits, generator=generator) < 0.5 for tokens in schedule.tokens]
    with streamed_weights(transformer):
        rows = torch.stack((text, transformer.unconditional_text(len(text)).float()))
        logits = pruned_infinity_logits(transformer, rows, bits, [None] * scales, schedule, layout)
    latent = torch.zeros(1, layout.channels, *layout.latent_grid(schedule.final_grid))
    for (h, w), drawn in zip(schedule.grids, bits, strict=True):
        latent = accumulate(latent, tokens_to_latent(bits_to_codes(drawn, layout).view(1, h, w, -1), layout))
    tensors |= {f"{case.name}.bits_{k}": drawn.to(torch.uint8) for k, drawn in enumerate(bits)}
    tensors |= {f"{case.name}.logits_{k}": value for k, value in enumerate(logits)}
    tensors |= {
        f"{case.name}.features": text,
        f"{case.name}.latent": latent[0],
        f"{case.name}.image": vae.decode(latent)[0],
    }
    return ReferenceCases((case,), tensors)


@dataclass(frozen=True)
class InfinityCalls:
    """Blocks of Infinity, called one by one on rows of one text: see `BlockCalls`.

    Attributes:
        features: text features [R, T, Ct].
    """

    transformer: InfinityTransformer
    model: InfinityEntry
    features: torch.Tensor
    keeps_past = True

    @staticmethod
    def of_case(
        transformer: InfinityTransformer, model: InfinityEntry, cases: ReferenceCases, case: Case
    ) -> InfinityCalls:
        """Calls on the text of a recorded case, and on the unconditional one if it is guided."""
        rows = _rows(transformer, cases.tensors[f"{case.name}.features"], case.guidance)
        return InfinityCalls(transformer, model, rows.float())

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.model.size)

    @property
    def depth(self) -> int:
        return self.model.depth

    def inputs(self, latent: torch.Tensor, scale: int) -> torch.Tensor:
        return next_input(latent[None], self.schedule.grids[scale], self.model.layout)[0]

    def prompt(self) -> InfinityPrompt:
        return self.transformer.encode_prompt(self.features)

    def rope(self, scale: int, at: torch.Tensor) -> Rope:
        cos, sin = rope_table(self.schedule, self.model.width // self.model.heads)[scale]
        return cos[at], sin[at]

    def embed(self, inputs: torch.Tensor, scale: int) -> torch.Tensor:
        return self.transformer.embed(inputs.expand(len(self.features), -1, -1), scale)

    def own(self, i: int, x: torch.Tensor, prompt: InfinityPrompt, rope: Rope) -> KeyValue:
        block = self.transformer.layers[i]
        _, _, scale, _, shift, _ = (block.ada_gss[0].float() + prompt.modulation).split(1, dim=1)
        _, k, v = block.sa.project(modulate(x, scale, shift, block.eps), rope)
        return k.to(v.dtype), v

    def block(
        self,
        i: int,
        x: torch.Tensor,
        prompt: InfinityPrompt,
        rope: Rope,
        past: KeyValue | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, KeyValue]:
        return self.transformer.layers[i](x, prompt.modulation, rope, prompt.text, None, past, mask)

    def logits(self, x: torch.Tensor, prompt: InfinityPrompt) -> torch.Tensor:
        return self.transformer.logits(x, prompt)
