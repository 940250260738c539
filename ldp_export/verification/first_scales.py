"""Reference runs of models that are too large for whole ones: the first scales, teacher-forced, in one call.

The weights stay views of their files, and only one block's are converted at a time: the outputs of one block are the
inputs of the next, and each block is read once. The bits are drawn at random, since they are given to both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from ldp_runtime.bundle import Defaults, InfinityEntry
from ldp_runtime.residual import accumulate, bits_to_codes, tokens_to_latent
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.in_turn import weights_in_turn
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.oracle import pruned_logits
from ldp_export.models.text_encoder import TextEncoder
from ldp_export.verification.reference_cases import Case, ReferenceCases, reference_texts

#: Arithmetic operations that recording may take: minutes on two cores.
_WHOLE_RUNS, _ONE_CALL = 20e12, 4.5e12
#: Rows that whole runs compute: see `record_cases`.
_RUN_ROWS = 17


def scales_to_record(model: InfinityEntry, parameters: int) -> int | None:
    """How many first scales are recorded of a model with so many parameters; None: all, in whole runs."""
    schedule = ScaleSchedule.of_size(model.size)
    if 2 * parameters * _RUN_ROWS * schedule.total_tokens <= _WHOLE_RUNS:
        return None
    affordable = [k for k in range(2, len(schedule)) if 2 * parameters * 2 * schedule.offsets[k] <= _ONE_CALL]
    return max(affordable, default=2)


@torch.no_grad()
def record_first_scales(
    transformer: InfinityTransformer,
    vae: BsqVae,
    encoder: TextEncoder | None,
    model: InfinityEntry,
    defaults: Defaults,
    scales: int,
    on_case: Callable[[str], None] = lambda name: None,
) -> ReferenceCases:
    """Logits of the first scales, the latent they make, and its picture.

    Args:
        transformer: its weights may be views of files, in any element type.
    """
    tensors: dict[str, torch.Tensor] = {}
    case = Case(f"first{scales}_guidance{defaults.guidance:g}", 1.0, defaults.guidance, scales=scales)
    on_case(case.name)
    schedule, layout = case.of(ScaleSchedule.of_size(model.size)), model.layout
    text = reference_texts(transformer, encoder, tensors)[0]
    generator = torch.Generator().manual_seed(2)
    bits = [torch.rand(tokens, layout.bits, generator=generator) < 0.5 for tokens in schedule.tokens]
    with weights_in_turn(transformer):
        rows = torch.stack((text, transformer.unconditional_text(len(text)).float()))
        logits = pruned_logits(transformer, rows, bits, [None] * scales, schedule, layout)
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
