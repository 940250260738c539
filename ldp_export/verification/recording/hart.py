"""Reference runs of HART: texts and indices, and calls of the residual's graph by itself.

Mixtures (`more_smooth`) are steep functions of the logits, so runs draw indices, which can be given again. Their
latents are those before the residual: its first step multiplies rounding by twenty thousand where it is near zero. So
the residual is recorded at the positions whose first step is clearest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.families.choose import guidance_weights
from ldp_runtime.families.hart import residual_weights

from ldp_export.checkpoints.files.parts import TOKENIZER_FILE
from ldp_export.checkpoints.qwen2vl import Qwen2TextEncoder
from ldp_export.models.hart import HartTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.hart import HartRun, HartSettings, HartText, generate
from ldp_export.reference.oracle import pruned_hart_logits
from ldp_export.verification.cases import RESIDUAL, Case, ReferenceCases, fixed_masks
from ldp_export.verification.recording.infinity import PROMPTS

#: Real tokens of the prompts that stand for texts, as shares of all rows: one is padded before, one behind.
_TOKENS = (0.6, 0.25)
#: Positions at which the residual is recorded.
_POSITIONS = 16


@torch.no_grad()
def record_hart_cases(
    transformer: HartTransformer,
    vae: VarVae,
    encoder: Qwen2TextEncoder | None,
    model: HartEntry,
    defaults: Defaults,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Records runs of the reference model: two texts with guidance, one without, one pruned; and a residual."""
    tensors: dict[str, torch.Tensor] = {}
    texts = random_texts(transformer) if encoder is None else _encoded(encoder, tensors)
    cases: list[Case] = []
    for i, guidance in ((0, defaults.guidance), (0, 0.0), (1, defaults.guidance)):
        name = f"text{i}_guidance{guidance:g}"
        if any(case.name == name for case in cases):
            continue
        on_case(name)
        settings = HartSettings(
            guidance, defaults.top_k, model.late_top_k, model.first_late, defaults.top_p, i, False, has_residual=False
        )
        run = generate(transformer, vae, split_text(texts[i][None]), settings, torch.empty(0))
        case = Case(name, 1.0, guidance, prompt=encoder and PROMPTS[i])
        cases.append(case)
        tensors[f"{name}.features"] = texts[i]
        rows = hart_rows(model, guidance)
        for k, (indices, logits) in enumerate(zip(run.indices, run.raw_logits, strict=True)):
            tensors[f"{name}.indices_{k}"], tensors[f"{name}.logits_{k}"] = indices[0], logits[:rows]
        tensors[f"{name}.latent"] = run.latent[0]
        tensors[f"{name}.image"] = vae.decode(run.latent)[0]
        if len(cases) == 1:
            tensors |= _residual(transformer, vae, run, guidance_weights(model, guidance, len(model.grids))[-1])
            pruned = Case(f"{name}_pruned", 1.0, guidance, pruned=True)
            tensors[f"{pruned.name}.features"] = texts[i]
            _store_pruned(pruned, transformer, vae, model, run, tensors)
            cases.append(pruned)
    return ReferenceCases(tuple(cases), tensors)


def random_texts(transformer: HartTransformer) -> list[torch.Tensor]:
    """Two texts of random features that stand for encoded ones [T, Ct + 1]: one padded before, one behind."""
    generator, config = torch.Generator().manual_seed(0), transformer.config
    texts = []
    for i, share in enumerate(_TOKENS):
        mask = torch.arange(config.text_tokens) < max(1, int(share * config.text_tokens))
        positions = (mask if i else mask.flip(0)).long().cumsum(0) - 1
        features = torch.randn(config.text_tokens, config.text_channels, generator=generator)
        texts.append(torch.cat((features, positions[:, None].float()), dim=1))
    return texts


def _encoded(encoder: Qwen2TextEncoder, tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Features of the recorded prompts [T, Ct + 1]; adds them and their token ids to `tensors`."""
    with TemporaryDirectory() as folder:
        for i, prompt in enumerate(PROMPTS):
            ids = encoder.ids(prompt, Path(folder) / TOKENIZER_FILE)
            tensors[f"text{i}.ids"], tensors[f"text{i}.features"] = ids, encoder.features(ids)
    return [tensors[f"text{i}.features"] for i in range(len(PROMPTS))]


def split_text(features: torch.Tensor) -> HartText:
    """Text features [n, T, Ct + 1] as a text: their positions are the last channel."""
    return HartText(features[..., :-1], features[..., -1].long())


def hart_rows(model: HartEntry, guidance: float) -> int:
    """Rows of one image: two where any scale has guidance."""
    return 2 if any(weight != 1 for weight in guidance_weights(model, guidance, len(model.grids))) else 1


def _residual(transformer: HartTransformer, vae: VarVae, run: HartRun, weight: float) -> dict[str, torch.Tensor]:
    """Inputs and output of the residual's graph, at the positions whose first step is clearest."""
    config, codes = transformer.config, vae.codes(run.indices[-1])[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(codes), config.residual_steps, config.channels, generator=generator)
    weights = torch.tensor(residual_weights(weight, guided=True))
    hidden = run.hidden[: len(weights)]
    condition = transformer.residual_condition(hidden, codes[None])
    net, time = transformer.diffloss.net, transformer.step_waves()[0]
    found = net(noise[None, :, 0], time, net.cond_embed(condition).float())[..., : config.channels]
    clearness = (noise[:, 0] - (weights[:, None, None] * found).sum(dim=0)).abs().amin(dim=1)
    kept = clearness.topk(min(_POSITIONS, len(codes))).indices.sort().values
    given = {
        "hidden": hidden[:, kept].contiguous(),
        "codes": codes[kept],
        "noise": noise[kept],
        "weights": weights,
    }
    tensors = {f"{RESIDUAL}.{key}": tensor for key, tensor in given.items()}
    return tensors | {f"{RESIDUAL}.residual": residual_of(transformer, tensors)}


@torch.no_grad()
def residual_of(transformer: HartTransformer, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Residual [n, channels] of the recorded inputs."""
    hidden, codes, noise, weights = (tensors[f"{RESIDUAL}.{key}"] for key in ("hidden", "codes", "noise", "weights"))
    return transformer.residual(transformer.residual_condition(hidden, codes[None]), noise, weights)


def _store_pruned(
    case: Case,
    transformer: HartTransformer,
    vae: VarVae,
    model: HartEntry,
    run: HartRun,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Adds a pruned run to `tensors`: the oracle's logits under `fixed_masks`."""
    for k, (indices, kept) in enumerate(zip(run.indices, fixed_masks(transformer.config.schedule), strict=True)):
        tensors[f"{case.name}.indices_{k}"] = indices[0]
        if kept is not None:
            tensors[f"{case.name}.keep_{k}"] = kept
    logits = forced_hart_logits(transformer, vae, ReferenceCases((case,), tensors), case, model)
    tensors |= {f"{case.name}.logits_{k}": part for k, part in enumerate(logits)}


@torch.no_grad()
def forced_hart_logits(
    transformer: HartTransformer, vae: VarVae, cases: ReferenceCases, case: Case, model: HartEntry
) -> list[torch.Tensor]:
    """Logits of all scales of a recorded case, teacher-forced with its indices, in one call."""
    text, count = split_text(cases.tensors[f"{case.name}.features"][None]), len(model.grids)
    texts = text.guided() if hart_rows(model, case.guidance) == 2 else text
    return pruned_hart_logits(transformer, vae, texts, cases.tokens(case, count), cases.keep(case, count))
