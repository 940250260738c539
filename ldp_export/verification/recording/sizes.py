"""Sizes of recorded reference runs, and how much of a model is recorded: arithmetic, without PyTorch."""

from __future__ import annotations

from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.architecture.var import VarEntry
from ldp_runtime.schedule import ScaleSchedule

#: Aspect ratios that are verified: the square, and the most elongated one, whose grids are odd and whose past is long.
RATIOS = (1.0, 3.0)


TEXT_TOKENS = 12


#: Rows of logits that are saved: five of two guided runs and an unguided one, in full. The computed tokens of the
#: pruned run count as one.
_ROWS, _PRUNED_ROWS = 5, 1


#: Kinds of tokens of a recorded shape, and of its past; see `shapes.py`.
KINDS = 8


def recorded_shape_bytes(model: InfinityEntry | SwittiEntry, shapes: int) -> int:
    """Bytes of so many recorded shapes: hidden states before every block, and the past that they share."""
    hidden = shapes * model.depth + 2 * model.cached_layers
    return hidden * 2 * KINDS * model.width * 4 + shapes * 16 * max(model.schedule().offsets)


def recorded_infinity_bytes(model: InfinityEntry, scales: int | None) -> int:
    """Bytes of the saved runs: logits of four runs (six rows in all), bits, latents, images; or of the first scales."""
    if scales is not None:
        first = ScaleSchedule.of_size(model.size)
        pixels = first.tokens[scales - 1] * model.pixels_per_token**2
        runs = 2 * first.offsets[scales] * model.logits * 4 + 12 * pixels + TEXT_TOKENS * model.text_channels * 4
        return runs + recorded_shape_bytes(model, len(first) - scales + 1)
    schedules = [ScaleSchedule.of_size(model.size, ratio) for ratio in RATIOS]
    tokens = max(schedule.total_tokens for schedule in schedules)
    logits = (_ROWS + _PRUNED_ROWS) * tokens * model.logits * 4
    pixels = schedules[0].tokens[-1] * model.pixels_per_token**2
    return logits + 4 * tokens * model.bits + 24 * pixels + 3 * 4 * schedules[0].tokens[-1] * model.bits


def recording_memory(model: InfinityEntry) -> int:
    """Bytes of the reference model's largest call: keys, values, attention scores and the widest layer of two rows."""
    schedule = max((ScaleSchedule.of_size(model.size, ratio) for ratio in RATIOS), key=lambda s: s.total_tokens)
    tokens, total = max(schedule.tokens), schedule.total_tokens
    cache = 4 * 2 * 2 * model.depth * total * model.width
    scores = 4 * 2 * model.heads * total * total  # the masked oracle sees all scales at once
    exact = 8 * 2 * total * (model.ffn + 6 * model.width)  # all scales at once, in float64
    return cache + scores + max(exact, 4 * 2 * tokens * (model.ffn + 4 * model.width))


def ranges_memory(model: InfinityEntry) -> int:
    """Bytes of a guided image that the reference model draws to the end: keys, values, scores, and the widest layer."""
    schedules = [ScaleSchedule.of_size(model.size, ratio) for ratio in model.aspect_ratios]
    tokens, total = max(max(s.tokens) for s in schedules), max(s.total_tokens for s in schedules)
    cache = 4 * 2 * 2 * model.depth * total * model.width
    return cache + 4 * 2 * tokens * max(model.heads * total, model.ffn + 4 * model.width)


#: Arithmetic operations that recording may take, for whole runs and for one call: minutes on two cores.
_WHOLE_RUNS, _ONE_CALL = 20e12, 4.5e12


#: Rows that whole runs compute in all; see `record_infinity_cases`.
_RUN_ROWS = 17


def scales_to_record(model: InfinityEntry | SwittiEntry, parameters: int) -> int | None:
    """Number of first scales to record for a model with so many parameters; None for all, in whole runs."""
    schedule = model.schedule()
    if 2 * parameters * _RUN_ROWS * schedule.total_tokens <= _WHOLE_RUNS:
        return None
    affordable = [k for k in range(2, len(schedule)) if 2 * parameters * 2 * schedule.offsets[k] <= _ONE_CALL]
    return max(affordable, default=2)


def recorded_switti_bytes(model: SwittiEntry, scales: int | None) -> int:
    """Bytes of Switti's saved runs: all scales, or the first ones and the shapes of the others."""
    if scales is None:
        return recorded_codebook_bytes(model)
    schedule = model.schedule()
    pixels = schedule.tokens[scales - 1] * model.pixels_per_token**2
    texts = 2 * TEXT_TOKENS * model.text_channels * 4
    runs = 2 * schedule.offsets[scales] * model.logits * 4 + 12 * pixels + texts
    return runs + recorded_shape_bytes(model, len(schedule) - scales + 1)


#: Tensors of the decoder's width at full resolution that decoding in float64 holds at once.
_DECODER_TENSORS = 9
#: Tokens that CLIP knows; the table of them is converted to float64 as a whole.
_CLIP_TOKENS = 49_408


def recording_switti_memory(model: SwittiEntry, decoder_channels: int, parameters: int, scales: int | None) -> int:
    """Bytes of recording: weights of the whole model (None) or of a block, and float64 of a layer or of the decoder."""
    schedule = model.schedule()
    pixels = schedule.tokens[(scales or 0) - 1] * model.pixels_per_token**2
    weights = 8 * max(6 * model.width**2, _CLIP_TOKENS * model.pooled_channels)
    tokens = schedule.offsets[len(schedule) if scales is None else scales]
    layer = 8 * 2 * tokens * (3 * model.ffn + 6 * model.width)
    held = 4 * parameters if scales is None else 4 * parameters // model.depth
    return held + max(weights + layer, 8 * _DECODER_TENSORS * decoder_channels * pixels)


def recorded_codebook_bytes(model: VarEntry | SwittiEntry | HartEntry) -> int:
    """Bytes of the runs of a codebook's model: logits of five rows and a pruned one, indices, latents, images."""
    schedule = model.schedule()
    h, w = schedule.final_grid
    logits = 4 * 6 * schedule.total_tokens * model.codes
    return logits + 4 * 8 * schedule.total_tokens + 3 * 4 * h * w * (model.latent_channels + 3 * model.vae_stride**2)
