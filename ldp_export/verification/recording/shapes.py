"""Reference calls of blocks at the shapes that cost most, block by block, for models whose late scales are not run.

A call computes thousands of tokens after thousands of others, but few of them are distinct. A handful of *kinds*, each
with its own input and position, occur in random order. So every row of an engine's output is compared. The reference
computes one token of each kind, which attends to each kind as often as it occurs. The past is that of real inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.models.infinity import KeyValue, Rope
from ldp_export.reference.arithmetic import ComputedIn, Unfavourable
from ldp_export.reference.streamed import Streamable, streamed_weights
from ldp_export.verification.bounds import distance
from ldp_export.verification.cases import ReferenceCases, Shape, fixed_masks
from ldp_export.verification.recording.sizes import KINDS


class BlockCalls(Protocol):
    """Blocks of a reference model, called one by one on the rows of one text; weights may be views of files.

    Attributes:
        transformer: the model.
        schedule: all its scales, of a square image.
        keeps_past: True if scales see the keys and values of earlier ones.
        depth: number of blocks.
    """

    @property
    def transformer(self) -> Streamable: ...

    @property
    def schedule(self) -> ScaleSchedule: ...

    @property
    def keeps_past(self) -> bool: ...

    @property
    def depth(self) -> int: ...

    def inputs(self, latent: torch.Tensor, scale: int) -> torch.Tensor:
        """Inputs [L, channels] of a scale >= 1 from a latent [d, H, W]."""
        ...

    def prompt(self) -> Any:
        """Tensors that the blocks read of the text, computed in the arithmetic of the scope."""
        ...

    def rope(self, scale: int, at: torch.Tensor) -> Rope:
        """Rotations of tokens of a scale by their indices."""
        ...

    def embed(self, inputs: torch.Tensor, scale: int) -> torch.Tensor:
        """Inputs [L, channels] as hidden states [R, L, C], the same in every row."""
        ...

    def own(self, i: int, x: torch.Tensor, prompt: Any, rope: Rope) -> KeyValue:
        """Keys and values of block i's tokens [R, L, H, c], as its self-attention computes them."""
        ...

    def block(
        self, i: int, x: torch.Tensor, prompt: Any, rope: Rope, past: KeyValue | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, KeyValue]:
        """Hidden states after block i, and the keys and values of all that it attended to."""
        ...

    def logits(self, x: torch.Tensor, prompt: Any) -> torch.Tensor:
        """Logits [R, L, V] of hidden states after the last block."""
        ...


def shapes_to_record(schedule: ScaleSchedule, recorded: int, keeps_past: bool = True) -> list[Shape]:
    """Shapes of every scale behind the recorded ones, and of the last scale of a run that prunes with `fixed_masks`."""
    past = schedule.offsets if keeps_past else (0,) * len(schedule.offsets)
    whole = [Shape(f"scale {k} alone", k, schedule.tokens[k], past[k]) for k in range(recorded, len(schedule))]
    kept = [
        tokens if mask is None else len(mask)
        for tokens, mask in zip(schedule.tokens, fixed_masks(schedule), strict=True)
    ]
    last = len(schedule) - 1
    before = sum(kept[:last]) if keeps_past else 0
    return [*whole, Shape(f"scale {last} alone, pruned", last, kept[last], before)]


@torch.no_grad()
def with_shapes(cases: ReferenceCases, model: BlockCalls, precision: Precision = "float32") -> ReferenceCases:
    """The recorded runs, and calls at the shapes that they do not reach.

    Args:
        cases: runs of the first scales.
        model: the reference model on the text of the first case.
        precision: precision of the bundle, whose rounding is recorded.
    """
    case = cases.cases[0]
    calls = _Calls(model, cases.tensors[f"{case.name}.latent"], getattr(torch, precision))
    shapes = shapes_to_record(model.schedule, case.scales or len(model.schedule), model.keeps_past)
    tensors = calls.inputs(shapes)
    if model.keeps_past:
        with ComputedIn(torch.float64):
            past = calls.past(shapes[-1].scale)
        tensors |= {name: value.float() for name, value in past.items()}
    with ComputedIn(torch.float64):
        exact = {shape.name: calls.run(shape, tensors, _weighted) for shape in shapes}
    with Unfavourable() if precision == "float32" else streamed_weights(model.transformer, precision):
        rough = {shape.name: calls.run(shape, tensors, _expanded) for shape in shapes}
    rounding = dict(cases.rounding)
    for shape in shapes:
        for name, value in exact[shape.name].items():
            rounding[f"{shape.name}.{name}"] = distance(rough[shape.name][name], value)
            tensors[f"{shape.name}.{name}"] = value
    stored = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return replace(cases, tensors=cases.tensors | stored, rounding=rounding, shapes=tuple(shapes))


#: Turns the past and its counts, and those of the call, into the past and the mask of `BlockCalls.block`.
Attended = Callable[["_Layer"], tuple[KeyValue | None, torch.Tensor | None]]


@dataclass(frozen=True)
class _Layer:
    """Memory of one block, which the kinds of a call attend to beside themselves.

    Attributes:
        past: keys and values of the kinds of the past [R, kinds, H, c]; None for models that keep none.
        own: computes keys and values of the kinds of the call [R, kinds, H, c].
        past_kinds, kinds: kind of each token of the past [P] and of the call [L].
    """

    past: KeyValue | None
    own: Callable[[], KeyValue]
    past_kinds: torch.Tensor
    kinds: torch.Tensor


def _weighted(layer: _Layer) -> tuple[KeyValue | None, torch.Tensor | None]:
    """Each kind once, with the logarithm of its number added to its score."""
    counts = torch.bincount(layer.kinds)
    if layer.past is not None:
        counts = torch.cat((torch.bincount(layer.past_kinds, minlength=KINDS), counts))
    return layer.past, counts.double().log().view(1, 1, 1, -1)


def _expanded(layer: _Layer) -> tuple[KeyValue | None, torch.Tensor | None]:
    """Each token by itself, so that sums are as long as an engine's; the block adds one of each kind."""
    others = torch.cat([torch.nonzero(layer.kinds == kind)[1:, 0] for kind in range(int(layer.kinds.max()) + 1)])
    k, v = (own[:, layer.kinds[others]] for own in layer.own())
    if layer.past is not None:
        k, v = (torch.cat((past[:, layer.past_kinds], own), 1) for past, own in zip(layer.past, (k, v), strict=True))
    return (k, v), None


@dataclass(frozen=True)
class _Calls:
    """Calls of a model at recorded shapes.

    Attributes:
        latent: latent of recorded scales [d, H, W], from which realistic inputs are taken.
        dtype: element type of keys and values.
    """

    model: BlockCalls
    latent: torch.Tensor
    dtype: torch.dtype

    def inputs(self, shapes: Sequence[Shape]) -> dict[str, torch.Tensor]:
        """Inputs and positions of the kinds, and the kind of each token, of the call and of its past."""
        generator = torch.Generator().manual_seed(4)
        tensors = {}
        for shape in shapes:
            inputs = self.model.inputs(self.latent, shape.scale)
            at = torch.randperm(len(inputs), generator=generator)[: min(KINDS, shape.tokens)].sort().values
            tensors |= {f"{shape.name}.latents": inputs[at], f"{shape.name}.positions": at}
            for name, count, of in (("kinds", shape.tokens, len(at)), ("past_kinds", shape.past, KINDS)):
                kinds = torch.arange(count) % of
                tensors[f"{shape.name}.{name}"] = kinds[torch.randperm(count, generator=generator)]
        return tensors

    def past(self, scale: int) -> dict[str, torch.Tensor]:
        """Keys and values of every layer `past_k_I`, `past_v_I` [R, kinds, H, c], of tokens of the scale before."""
        model, found = self.model, {}
        inputs = model.inputs(self.latent, scale - 1)
        at = torch.linspace(0, len(inputs) - 1, KINDS).long()
        prompt, rope, x = model.prompt(), model.rope(scale - 1, at), model.embed(inputs[at], scale - 1)
        for i in range(model.depth):
            x, (k, v) = model.block(i, x, prompt, rope, None, None)
            found |= {f"shapes.past_k_{i}": k, f"shapes.past_v_{i}": v}
        return found

    def run(self, shape: Shape, tensors: dict[str, torch.Tensor], attended: Attended) -> dict[str, torch.Tensor]:
        """Hidden states before each block but the first `hidden_I` [R, kinds, C], and `logits` [R, kinds, V]."""
        given = {name: tensors[f"{shape.name}.{name}"] for name in ("latents", "positions", "kinds", "past_kinds")}
        model, found = self.model, {}
        prompt, rope = model.prompt(), model.rope(shape.scale, given["positions"])
        x = model.embed(given["latents"], shape.scale)
        for i in range(model.depth):
            if i:
                found[f"hidden_{i}"] = x
            past = (tensors[f"shapes.past_k_{i}"], tensors[f"shapes.past_v_{i}"]) if model.keeps_past else None
            own = partial(model.own, i, x, prompt, rope)
            memory, mask = attended(_Layer(past, own, given["past_kinds"], given["kinds"]))
            if memory is not None:
                memory = memory[0].to(self.dtype), memory[1].to(self.dtype)
            x, _ = model.block(i, x, prompt, rope, memory, mask)
        return found | {"logits": model.logits(x, prompt)}
