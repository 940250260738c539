"""Ranges of the inputs of a model's linear layers, measured while the reference model draws prompts.

The layers of a block see other inputs at each scale, and one engine serves all quantized scales. A range is therefore
the largest magnitude over all scales of all prompts. On the embedded model a range of the last scales alone is no
better: the logits' RMS error there differs by at most 0.002. And the engine stays right at every scale, so that
`verify` can run it where a large model's runs were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import IntegrityError
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: File of the ranges in the folder of their stage.
RANGES_FILE = "ranges.safetensors"
#: Endings of the names of layers that the prompt graph computes, once per image and unquantized.
_OF_THE_PROMPT = ("mat_kv", "ada_lin.1")


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes [K] of the inputs' channels, by the layer's name among the blocks: "3.sa.mat_qkv"."""

    magnitudes: Mapping[str, torch.Tensor]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.magnitudes.items()}, folder / RANGES_FILE)

    @staticmethod
    def load(folder: Path) -> Ranges:
        """Reads what `save` wrote; raises IntegrityError if a layer's range is not of this world."""
        from safetensors.torch import load_file

        ranges = load_file(folder / RANGES_FILE)
        if wrong := sorted(
            name for name, tensor in ranges.items() if not bool((tensor.isfinite() & (tensor >= 0)).all())
        ):
            raise IntegrityError(
                f"{folder / RANGES_FILE}: the ranges of {', '.join(wrong[:3])} are negative, infinite or not a number",
                hint="build again with --force",
            )
        return Ranges(ranges)

    @staticmethod
    def merged(parts: Iterable[Ranges]) -> Ranges:
        """Ranges that hold what any of the parts holds."""
        largest: dict[str, torch.Tensor] = {}
        for name, tensor in (item for part in parts for item in part.magnitudes.items()):
            largest[name] = torch.maximum(largest[name], tensor) if name in largest else tensor
        return Ranges(largest)


def quantized_layers(blocks: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of the blocks whose products are quantized, by name."""
    return {
        name: layer
        for name, layer in blocks.named_modules()
        if isinstance(layer, nn.Linear) and not name.endswith(_OF_THE_PROMPT)
    }


@contextmanager
def watched(blocks: nn.Module) -> Generator[Callable[[], Ranges]]:
    """Watches, within its scope, the inputs of the blocks' layers; yields a function that returns their ranges."""
    watch = _Watch({id(layer.weight): name for name, layer in quantized_layers(blocks).items()})
    with watch:
        yield lambda: Ranges(dict(watch.largest))


class _Watch(TorchFunctionMode):
    """Notes the largest magnitudes of the inputs of some products by intercepting every PyTorch call.

    Weights are recognised by their parameter, because `streamed_weights` may replace the data meanwhile.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names, self.largest = names, dict[str, torch.Tensor]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and (name := self.names.get(id(args[1]))) is not None:
            seen = args[0].detach().flatten(0, -2).abs().amax(dim=0).float()
            self.largest[name] = torch.maximum(self.largest[name], seen) if name in self.largest else seen
        return func(*args, **(kwargs or {}))
