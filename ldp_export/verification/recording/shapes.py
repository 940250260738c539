"""Reference calls of Infinity at the shapes that cost most, block by block, for models whose late scales are not run.

A call computes thousands of tokens after thousands of others, but few of them are distinct. A handful of *kinds*, each
with its own input and position, occur in random order. So every row of an engine's output is compared. The reference
computes one token of each kind, which attends to each kind as often as it occurs. The past is that of real inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.families.infinity import next_input
from ldp_runtime.schedule import ScaleSchedule, rope_table

from ldp_export.models.infinity import InfinityBlock, InfinityPrompt, InfinityTransformer, KeyValue, modulate
from ldp_export.reference.arithmetic import ComputedIn, Unfavourable
from ldp_export.reference.streamed import streamed_weights
from ldp_export.verification.bounds import distance
from ldp_export.verification.cases import ReferenceCases, Shape, fixed_masks
from ldp_export.verification.recording.sizes import KINDS


def shapes_to_record(schedule: ScaleSchedule, recorded: int) -> list[Shape]:
    """Shapes of every scale behind the recorded ones, and of the last scale of a run that prunes with `fixed_masks`."""
    whole = [
        Shape(f"scale {k} alone", k, schedule.tokens[k], schedule.offsets[k]) for k in range(recorded, len(schedule))
    ]
    kept = [
        tokens if mask is None else len(mask)
        for tokens, mask in zip(schedule.tokens, fixed_masks(schedule), strict=True)
    ]
    last = len(schedule) - 1
    return [*whole, Shape(f"scale {last} alone, pruned", last, kept[last], sum(kept[:last]))]


@torch.no_grad()
def with_shapes(
    cases: ReferenceCases,
    transformer: InfinityTransformer,
    model: InfinityEntry,
    precision: Precision = "float32",
) -> ReferenceCases:
    """The recorded runs, and calls at the shapes that they do not reach.

    Args:
        cases: runs of the first scales.
        transformer: reference model; its weights may be views of files, in any element type.
        precision: precision of the bundle, whose rounding is recorded.
    """
    case = cases.cases[0]
    schedule = ScaleSchedule.of_size(model.size)
    text = cases.tensors[f"{case.name}.features"]
    rows = [text] if case.guidance == 1 else [text, transformer.unconditional_text(len(text))]
    latent, features = cases.tensors[f"{case.name}.latent"], torch.stack([row.float() for row in rows])
    calls = _Calls(transformer, model, features, latent, getattr(torch, precision))
    shapes = shapes_to_record(schedule, case.scales or len(schedule))
    tensors = calls.inputs(shapes)
    with ComputedIn(torch.float64):
        past = calls.past(shapes[-1].scale)
    tensors |= {name: value.float() for name, value in past.items()}
    with ComputedIn(torch.float64):
        exact = {shape.name: calls.run(shape, tensors, _weighted) for shape in shapes}
    with Unfavourable() if precision == "float32" else streamed_weights(transformer, precision):
        rough = {shape.name: calls.run(shape, tensors, _expanded) for shape in shapes}
    rounding = dict(cases.rounding)
    for shape in shapes:
        for name, value in exact[shape.name].items():
            rounding[f"{shape.name}.{name}"] = distance(rough[shape.name][name], value)
            tensors[f"{shape.name}.{name}"] = value
    stored = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return replace(cases, tensors=cases.tensors | stored, rounding=rounding, shapes=tuple(shapes))


#: Turns the past and its counts, and those of the call, into the past and the mask of `InfinityBlock.forward`.
Attended = Callable[["_Layer"], tuple[KeyValue, torch.Tensor | None]]


@dataclass(frozen=True)
class _Layer:
    """Memory of one block, which the kinds of a call attend to beside themselves.

    Attributes:
        past: keys and values of the kinds of the past [R, kinds, H, c].
        own: computes keys and values of the kinds of the call [R, kinds, H, c].
        past_kinds, kinds: kind of each token of the past [P] and of the call [L].
    """

    past: KeyValue
    own: Callable[[], KeyValue]
    past_kinds: torch.Tensor
    kinds: torch.Tensor


def _weighted(layer: _Layer) -> tuple[KeyValue, torch.Tensor | None]:
    """Each kind once, with the logarithm of its number added to its score."""
    counts = [torch.bincount(layer.past_kinds, minlength=KINDS), torch.bincount(layer.kinds)]
    return layer.past, torch.cat(counts).double().log().view(1, 1, 1, -1)


def _expanded(layer: _Layer) -> tuple[KeyValue, torch.Tensor | None]:
    """Each token by itself, so that sums are as long as an engine's; the block adds one of each kind."""
    others = torch.cat([torch.nonzero(layer.kinds == kind)[1:, 0] for kind in range(int(layer.kinds.max()) + 1)])
    rest = layer.kinds[others]
    k, v = (
        torch.cat((past[:, layer.past_kinds], own[:, rest]), 1)
        for past, own in zip(layer.past, layer.own(), strict=True)
    )
    return (k, v), None


@dataclass(frozen=True)
class _Calls:
    """Calls of a model on rows of one text.

    Attributes:
        features: text features [R, T, Ct].
        latent: latent of recorded scales [d, H, W], from which realistic inputs are taken.
        dtype: element type of keys and values.
    """

    transformer: InfinityTransformer
    model: InfinityEntry
    features: torch.Tensor
    latent: torch.Tensor
    dtype: torch.dtype

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.model.size)

    def inputs(self, shapes: Sequence[Shape]) -> dict[str, torch.Tensor]:
        """Inputs and positions of the kinds, and the kind of each token, of the call and of its past."""
        generator = torch.Generator().manual_seed(4)
        tensors = {}
        for shape in shapes:
            grid, layout = self.schedule.grids[shape.scale], self.model.layout
            inputs = next_input(self.latent[None], grid, layout)[0]
            at = torch.randperm(len(inputs), generator=generator)[: min(KINDS, shape.tokens)].sort().values
            tensors |= {f"{shape.name}.latents": inputs[at], f"{shape.name}.positions": at}
            for name, count, of in (("kinds", shape.tokens, len(at)), ("past_kinds", shape.past, KINDS)):
                kinds = torch.arange(count) % of
                tensors[f"{shape.name}.{name}"] = kinds[torch.randperm(count, generator=generator)]
        return tensors

    def past(self, scale: int) -> dict[str, torch.Tensor]:
        """Keys and values of every layer `past_k_I`, `past_v_I` [R, kinds, H, c], of tokens of the scale before."""
        grid = self.schedule.grids[scale - 1]
        inputs = next_input(self.latent[None], grid, self.model.layout)[0]
        at = torch.linspace(0, len(inputs) - 1, KINDS).long()
        prompt, rope, found = self._prompt(), self._rope(scale - 1, at), {}
        x = self.transformer.embed(inputs[at].expand(len(self.features), -1, -1), scale - 1)
        for i, block in enumerate(self.transformer.layers):
            x, (k, v) = block(x, prompt.modulation, rope, prompt.text)
            found |= {f"shapes.past_k_{i}": k, f"shapes.past_v_{i}": v}
        return found

    def run(self, shape: Shape, tensors: dict[str, torch.Tensor], attended: Attended) -> dict[str, torch.Tensor]:
        """Hidden states before each block but the first `hidden_I` [R, kinds, C], and `logits` [R, kinds, V]."""
        given = {name: tensors[f"{shape.name}.{name}"] for name in ("latents", "positions", "kinds", "past_kinds")}
        prompt, rope, found = self._prompt(), self._rope(shape.scale, given["positions"]), {}
        x = self.transformer.embed(given["latents"].expand(len(self.features), -1, -1), shape.scale)
        for i, block in enumerate(self.transformer.layers):
            if i:
                found[f"hidden_{i}"] = x
            past = (tensors[f"shapes.past_k_{i}"], tensors[f"shapes.past_v_{i}"])
            own = partial(_own, block, x, prompt, rope)
            (k, v), mask = attended(_Layer(past, own, given["past_kinds"], given["kinds"]))
            memory = (k.to(self.dtype), v.to(self.dtype))
            x, _ = block(x, prompt.modulation, rope, prompt.text, None, memory, mask)
        return found | {"logits": self.transformer.logits(x, prompt)}

    def _prompt(self) -> InfinityPrompt:
        return self.transformer.encode_prompt(self.features)

    def _rope(self, scale: int, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = rope_table(self.schedule, self.model.width // self.model.heads)[scale]
        return cos[at], sin[at]


def _own(
    block: InfinityBlock, x: torch.Tensor, prompt: InfinityPrompt, rope: tuple[torch.Tensor, torch.Tensor]
) -> KeyValue:
    """Keys and values of a block's tokens [R, kinds, H, c], as its self-attention computes them."""
    _, _, scale, _, shift, _ = (block.ada_gss[0].float() + prompt.modulation).split(1, dim=1)
    _, k, v = block.sa.project(modulate(x, scale, shift, block.eps), rope)
    return k.to(v.dtype), v
