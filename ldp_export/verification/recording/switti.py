"""Reference runs of Switti over all scales, or the first; the unconditional branch ends where guidance does.

Mixtures (`more_smooth`) are steep functions of the logits, so runs draw indices, which can be given again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.families.choose import guidance_weights
from ldp_runtime.guidance import last_guided_scale
from ldp_runtime.schedule import ScaleSchedule, relative_rope_table
from ldp_runtime.tokenizer import PromptTokenizer
from torch.nn import functional as F

from ldp_export.checkpoints.clip import ClipTextEncoder
from ldp_export.models.infinity import KeyValue, Rope
from ldp_export.models.switti import SwittiPrompt, SwittiTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.oracle import pruned_switti_logits
from ldp_export.reference.streamed import streamed_weights
from ldp_export.reference.switti import SwittiRun, SwittiSettings, SwittiText, generate
from ldp_export.verification.cases import Case, ReferenceCases, fixed_masks
from ldp_export.verification.recording.infinity import PROMPTS
from ldp_export.verification.recording.var import closest_decision

#: First scales that are run on the longest text.
_LONG_TEXT_SCALES = 2
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
    return [_encoded(transformer, encoder, f"text{i}", prompt, tensors) for i, prompt in enumerate((*PROMPTS, ""))]


def _encoded(
    transformer: SwittiTransformer,
    encoder: ClipTextEncoder,
    name: str,
    prompt: str,
    tensors: dict[str, torch.Tensor],
) -> SwittiText:
    """An encoded text; adds its ids and features to `tensors`."""
    limit = transformer.config.text_tokens
    ids = torch.tensor(PromptTokenizer(encoder.tokenizer, limit).ids(prompt))
    ids = ids if len(ids) <= limit else torch.cat((ids[: limit - 1], ids[-1:]))
    tensors[f"{name}.ids"], tensors[f"{name}.features"] = ids, encoder.features(ids)
    return _text(transformer, tensors[f"{name}.features"][None])


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
def record_first_scales(
    transformer: SwittiTransformer,
    vae: VarVae,
    encoder: ClipTextEncoder | None,
    model: SwittiEntry,
    defaults: Defaults,
    scales: int,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Records logits of the first scales on random indices, the latent of these indices, and its decoded image.

    Args:
        transformer: reference model; its weights may be views of files, in any element type.
    """
    tensors: dict[str, torch.Tensor] = {}
    case = Case(f"first{scales}_guidance{defaults.guidance:g}", 1.0, defaults.guidance, scales=scales)
    on_case(case.name)
    texts = _texts(transformer, encoder, tensors)
    _store_texts(case.name, texts[0], texts[-1], tensors)
    with streamed_weights(transformer):
        _store_random_run(case, transformer, vae, model, tensors, seed=2)
    schedule = case.of(model.schedule())
    latent = torch.zeros(1, model.latent_channels, *schedule.final_grid)
    for k, grid in enumerate(schedule.grids):
        codes = vae.codes(tensors[f"{case.name}.indices_{k}"]).T.view(1, -1, *grid)
        latent = latent + vae.residual(codes, schedule.final_grid, k, len(schedule))
    tensors |= {f"{case.name}.latent": latent[0], f"{case.name}.image": vae.decode(latent)[0]}
    return ReferenceCases((case,), tensors)


@torch.no_grad()
def with_longest_text(
    cases: ReferenceCases,
    transformer: SwittiTransformer,
    vae: VarVae,
    encoder: ClipTextEncoder | None,
    model: SwittiEntry,
    defaults: Defaults,
) -> ReferenceCases:
    """The recorded runs, and one of the first scales on a text of as many tokens as the model reads.

    The shortest text is the unconditional one, which every guided run has.
    """
    tensors, tokens = dict(cases.tensors), transformer.config.text_tokens
    case = Case(f"text of {tokens}", 1.0, defaults.guidance, scales=_LONG_TEXT_SCALES)
    if encoder is None:
        generator = torch.Generator().manual_seed(3)
        text, null = (_random_text(transformer, count, generator) for count in (tokens, _EMPTY_TOKENS))
    else:
        name = f"text{sum(tensor.endswith('.ids') for tensor in tensors)}"
        words = " ".join(PROMPTS) + f" {PROMPTS[1]}" * tokens
        text, null = _encoded(transformer, encoder, name, words, tensors), _encoded(transformer, encoder, "", "", {})
    _store_texts(case.name, text, null, tensors)
    with streamed_weights(transformer):
        _store_random_run(case, transformer, vae, model, tensors, seed=3)
    return replace(cases, cases=(*cases.cases, case), tensors=tensors)


def _store_random_run(
    case: Case,
    transformer: SwittiTransformer,
    vae: VarVae,
    model: SwittiEntry,
    tensors: dict[str, torch.Tensor],
    seed: int,
) -> None:
    """Adds random indices of a case's first scales to `tensors`, and the logits that they give."""
    generator = torch.Generator().manual_seed(seed)
    for k, tokens in enumerate(case.of(model.schedule()).tokens):
        tensors[f"{case.name}.indices_{k}"] = torch.randint(model.codes, (tokens,), generator=generator)
    logits = forced_switti_logits(transformer, vae, ReferenceCases((case,), tensors), case, model)
    tensors |= {f"{case.name}.logits_{k}": part for k, part in enumerate(logits)}


@torch.no_grad()
def forced_switti_logits(
    transformer: SwittiTransformer, vae: VarVae, cases: ReferenceCases, case: Case, model: SwittiEntry
) -> list[torch.Tensor]:
    """Logits of all scales of a recorded case, teacher-forced with its indices, in one call."""
    rows, schedule = switti_rows(model, case.guidance), case.of(model.schedule())
    texts, count = _case_texts(cases, case, guided=max(rows) == 2), len(schedule)
    logits = pruned_switti_logits(transformer, vae, texts, cases.tokens(case, count), cases.keep(case, count), schedule)
    return [part[:branches] for part, branches in zip(logits, rows, strict=False)]


def _case_texts(cases: ReferenceCases, case: Case, guided: bool) -> SwittiText:
    """Text of a recorded case, and the unconditional one beside it if it is guided."""
    text, null = (
        SwittiText(features[None], cases.tensors[f"{case.name}.{pooled}"][None], torch.ones(1, len(features)).bool())
        for features, pooled in (
            (cases.tensors[f"{case.name}.features"], "pooled"),
            (cases.tensors[f"{case.name}.negative"], "negative_pooled"),
        )
    )
    return text.beside(null) if guided else text


@dataclass(frozen=True)
class SwittiCalls:
    """Blocks of Switti, called one by one on rows of one text: see `BlockCalls`."""

    transformer: SwittiTransformer
    model: SwittiEntry
    texts: SwittiText

    @staticmethod
    def of_case(transformer: SwittiTransformer, model: SwittiEntry, cases: ReferenceCases, case: Case) -> SwittiCalls:
        """Calls on the texts of a recorded case."""
        guided = max(switti_rows(model, case.guidance)) == 2
        return SwittiCalls(transformer, model, _case_texts(cases, case, guided))

    @property
    def schedule(self) -> ScaleSchedule:
        return self.model.schedule()

    @property
    def keeps_past(self) -> bool:
        return self.model.keeps_past

    @property
    def depth(self) -> int:
        return self.model.depth

    def inputs(self, latent: torch.Tensor, scale: int) -> torch.Tensor:
        return F.interpolate(latent[None], size=self.schedule.grids[scale], mode="area")[0].flatten(1).T

    def prompt(self) -> SwittiPrompt:
        return self.transformer.encode_prompt(self.texts.features, self.texts.pooled, self.texts.mask)

    def rope(self, scale: int, at: torch.Tensor) -> Rope:
        config = self.transformer.config
        table = relative_rope_table(self.schedule, config.head_dim, config.rope_theta, config.rope_size)
        return table[scale][0][at], table[scale][1][at]

    def embed(self, inputs: torch.Tensor, scale: int) -> torch.Tensor:
        return self.transformer.embed(inputs.expand(len(self.texts.mask), -1, -1), scale)

    def own(self, i: int, x: torch.Tensor, prompt: SwittiPrompt, rope: Rope) -> KeyValue:
        block = self.transformer.layers[i]
        _, k, v = block.attn.project(block.attended_input(x, prompt.modulations[i]), rope)
        return k.to(v.dtype), v

    def block(
        self,
        i: int,
        x: torch.Tensor,
        prompt: SwittiPrompt,
        rope: Rope,
        past: KeyValue | None,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, KeyValue]:
        layer, text_kv = self.transformer.layers[i], prompt.text_kv[i]
        return layer(x, prompt.modulations[i], rope, text_kv, prompt.attention_mask, past, mask)

    def logits(self, x: torch.Tensor, prompt: SwittiPrompt) -> torch.Tensor:
        return self.transformer.logits(x, prompt.condition)
