"""Reference runs of Switti: texts and indices; the unconditional branch ends where guidance does.

Mixtures (`more_smooth`) are steep functions of the logits, so runs draw indices, which can be given again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.families.choose import guidance_weights
from ldp_runtime.guidance import last_guided_scale
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.clip import ClipTextEncoder
from ldp_export.models.switti import SwittiTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.oracle import pruned_switti_logits
from ldp_export.reference.switti import SwittiRun, SwittiSettings, SwittiText, generate
from ldp_export.verification.cases import Case, ReferenceCases, fixed_masks
from ldp_export.verification.recording.infinity import PROMPTS
from ldp_export.verification.recording.var import closest_decision

#: Seeds of which the clearest run is recorded, and the operations of a run from which on it is the first one's.
_SEEDS, _LONG_RUN = 3, 1e12
#: Tokens of the prompts that stand for texts, and of the unconditional one: a start and an end.
_TEXT_TOKENS, _EMPTY_TOKENS = (12, 5), 2


@torch.no_grad()
def record_switti_cases(
    transformer: SwittiTransformer,
    vae: VarVae,
    encoder: ClipTextEncoder | None,
    model: SwittiEntry,
    defaults: Defaults,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Records runs of the reference model: two texts with guidance, one without, and one pruned."""
    tensors: dict[str, torch.Tensor] = {}
    cases: list[Case] = []
    *texts, null = _texts(transformer, encoder, tensors)
    for i, guidance in ((0, defaults.guidance), (0, 0.0), (1, defaults.guidance)):
        name = f"text{i}_guidance{guidance:g}"
        if any(case.name == name for case in cases):
            continue
        on_case(name)
        run, seed, margin = _clearest(transformer, vae, texts[i], null, model, defaults, guidance)
        cases.append(Case(name, 1.0, guidance, prompt=encoder and PROMPTS[i], seed=seed, margin=margin))
        _store_texts(name, texts[i], null, tensors)
        rows = switti_rows(model, guidance)
        for k, (indices, logits) in enumerate(zip(run.indices, run.raw_logits, strict=True)):
            assert indices is not None
            tensors[f"{name}.indices_{k}"], tensors[f"{name}.logits_{k}"] = indices[0], logits[: rows[k]]
        tensors[f"{name}.latent"] = run.latent[0]
        tensors[f"{name}.image"] = vae.decode(run.latent)[0]
        if len(cases) == 1:
            pruned = Case(f"{name}_pruned", 1.0, guidance, pruned=True)
            _store_texts(pruned.name, texts[i], null, tensors)
            _store_pruned(pruned, transformer, vae, model, run, tensors)
            cases.append(pruned)
    return ReferenceCases(tuple(cases), tensors)


def _texts(
    transformer: SwittiTransformer, encoder: ClipTextEncoder | None, tensors: dict[str, torch.Tensor]
) -> list[SwittiText]:
    """Two texts and the empty one, encoded or of random features; adds encoded ones to `tensors`."""
    if encoder is None:
        generator = torch.Generator().manual_seed(0)
        return [_random_text(transformer, count, generator) for count in (*_TEXT_TOKENS, _EMPTY_TOKENS)]
    tokenizer, texts = PromptTokenizer(encoder.tokenizer, transformer.config.text_tokens), []
    for i, prompt in enumerate((*PROMPTS, "")):
        ids = torch.tensor(tokenizer.ids(prompt))
        tensors[f"text{i}.ids"], tensors[f"text{i}.features"] = ids, encoder.features(ids)
        texts.append(_text(transformer, tensors[f"text{i}.features"][None]))
    return texts


def _random_text(transformer: SwittiTransformer, tokens: int, generator: torch.Generator) -> SwittiText:
    """A text of random features that stands for an encoded one."""
    config = transformer.config
    return _text(transformer, torch.randn(1, tokens, config.text_channels, generator=generator))


def _text(transformer: SwittiTransformer, features: torch.Tensor) -> SwittiText:
    """A text of features [1, T, Ct], pooled by its last token."""
    pooled = features[:, -1, -transformer.config.pooled_channels :]
    return SwittiText(features, pooled, torch.ones(features.shape[:2], dtype=torch.bool))


def _store_texts(name: str, text: SwittiText, null: SwittiText, tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{name}.features"], tensors[f"{name}.pooled"] = text.features[0], text.pooled[0]
    tensors[f"{name}.negative"], tensors[f"{name}.negative_pooled"] = null.features[0], null.pooled[0]


def switti_rows(model: SwittiEntry, guidance: float) -> list[int]:
    """Rows of one image at each scale: two up to the last scale with guidance, then one."""
    scales = len(model.grids)
    last = last_guided_scale(guidance_weights(model, guidance, scales))
    return [2 if k <= last else 1 for k in range(scales)]


def _clearest(
    transformer: SwittiTransformer,
    vae: VarVae,
    text: SwittiText,
    null: SwittiText,
    model: SwittiEntry,
    defaults: Defaults,
    guidance: float,
) -> tuple[SwittiRun, int, float]:
    """Clearest run of a few seeds, its seed, and its closest decision: rounding must not decide the final image."""
    parameters = sum(p.numel() for p in transformer.parameters())
    long = 2 * 2 * parameters * transformer.config.schedule.total_tokens > _LONG_RUN
    runs = []
    for seed in range(1 if long else _SEEDS):
        settings = SwittiSettings(
            guidance,
            defaults.top_k,
            defaults.top_p,
            seed,
            first_guided=model.first_guided,
            first_unguided=model.first_unguided,
            last_temperature=defaults.temperature,
        )
        run = generate(transformer, vae, text, null, settings)
        runs.append((run, seed, closest_decision(run, transformer.config.schedule, settings)))
    return max(runs, key=lambda entry: entry[2])


def _store_pruned(
    case: Case,
    transformer: SwittiTransformer,
    vae: VarVae,
    model: SwittiEntry,
    run: SwittiRun,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Adds a pruned run to `tensors`: the oracle's logits under `fixed_masks`."""
    for k, (indices, kept) in enumerate(zip(run.indices, fixed_masks(transformer.config.schedule), strict=True)):
        assert indices is not None
        tensors[f"{case.name}.indices_{k}"] = indices[0]
        if kept is not None:
            tensors[f"{case.name}.keep_{k}"] = kept
    logits = forced_switti_logits(transformer, vae, ReferenceCases((case,), tensors), case, model)
    tensors |= {f"{case.name}.logits_{k}": part for k, part in enumerate(logits)}


@torch.no_grad()
def forced_switti_logits(
    transformer: SwittiTransformer, vae: VarVae, cases: ReferenceCases, case: Case, model: SwittiEntry
) -> list[torch.Tensor]:
    """Logits of all scales of a recorded case, teacher-forced with its indices, in one call."""
    text, null = (
        SwittiText(features[None], cases.tensors[f"{case.name}.{pooled}"][None], torch.ones(1, len(features)).bool())
        for features, pooled in (
            (cases.tensors[f"{case.name}.features"], "pooled"),
            (cases.tensors[f"{case.name}.negative"], "negative_pooled"),
        )
    )
    rows, count = switti_rows(model, case.guidance), len(model.grids)
    texts = text.beside(null) if max(rows) == 2 else text
    logits = pruned_switti_logits(transformer, vae, texts, cases.tokens(case, count), cases.keep(case, count))
    return [part[:branches] for part, branches in zip(logits, rows, strict=True)]
