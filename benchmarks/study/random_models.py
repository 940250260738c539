"""Random models of both families in many sizes, as bundles: each size is exported once, weights are written anew.

What is random are the sizes, the spread of the weights, the temperature of attention and the size of the logits.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ldp_runtime.bundle.files import CONSTANTS, REFERENCE, VERSIONS, Bundle, open_bundle
from ldp_runtime.errors import VerificationError
from safetensors.torch import save_file

from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.checkpoints.files.tensors import save_state
from ldp_export.checkpoints.files.writer import TensorSource, write_tensors
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Family
from ldp_export.families.choose import choose_family
from ldp_export.graphs import onnx as exporting
from ldp_export.graphs.onnx import WEIGHTS_FILE
from ldp_export.models.infinity import InfinityConfig, InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae, InfinityVaeConfig
from ldp_export.models.registry import NamedModel
from ldp_export.models.var import VarConfig, VarTransformer
from ldp_export.models.var_vae import VarVae, VarVaeConfig

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Sizes of a random model, and the number of blocks per graph."""

    transformer: InfinityConfig | VarConfig
    chunk: int | None = None


def _infinity(depth: int, width: int, heads: int, bits: int, text: int, ffn: int) -> InfinityConfig:
    return InfinityConfig(
        depth, width, heads, ffn, bits, text_channels=text, text_tokens=20, levels=8, pool_heads=heads
    )


#: Sizes from one block to eight, and from 32 to 192 channels.
SIZES = {
    "infinity-1x96": Size(_infinity(1, 96, 8, 5, 48, 128)),
    "infinity-2x64": Size(_infinity(2, 64, 4, 8, 32, 256), 1),
    "infinity-4x128": Size(_infinity(4, 128, 2, 16, 64, 512), 2),
    "infinity-8x48": Size(_infinity(8, 48, 3, 12, 24, 96)),
    "var-5x128": Size(VarConfig(5, 128, 4, 512, 256, 8, 10, (1, 2, 4, 6, 9), shared_ada=True), 3),
    "var-1x40": Size(VarConfig(1, 40, 5, 80, 64, 4, 3, (1, 2, 3, 4, 5))),
    "var-3x192": Size(VarConfig(3, 192, 6, 384, 512, 16, 20, (1, 3, 5, 8))),
    "var-8x32": Size(VarConfig(8, 32, 2, 64, 128, 6, 5, (1, 2, 4, 7, 10), shared_ada=True), 4),
}


@dataclass(frozen=True)
class Draw:
    """What is random about the weights of a model.

    Attributes:
        spread: factor of every weight over PyTorch's own initialization.
        noise: standard deviation that is added to every weight.
        head: factor of the weights of the head.
        temperature: logarithm of attention's temperature.
    """

    seed: int
    spread: float
    noise: float
    head: float
    temperature: float
    guidance: float

    @staticmethod
    def of(seed: int) -> Draw:
        rng = random.Random(seed)
        spread, noise = rng.choice((0.5, 1.0, 1.0, 2.0)), rng.choice((0.02, 0.05, 0.1))
        return Draw(
            seed, spread, noise, rng.choice((1.0, 3.0, 8.0)), rng.uniform(0.5, 3.5), rng.choice((1.5, 2.0, 4.0))
        )


@torch.no_grad()
def write_weights(size: Size, draw: Draw, folder: Path) -> Sources:
    """Checkpoints in the original layout."""
    folder.mkdir(parents=True, exist_ok=True)
    config = size.transformer
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        if isinstance(config, VarConfig):
            models = VarTransformer(config), VarVae(VarVaeConfig(config.codes, config.channels, 32, (1, 2), 1))
        else:
            models = InfinityTransformer(config), InfinityVae(InfinityVaeConfig(config.bits, 32, (1, 1), 1, 2))
        transformer, vae = models
        for name, parameter in transformer.named_parameters():
            parameter.mul_(draw.spread).add_(torch.randn_like(parameter) * draw.noise)
            if name == "head.weight":
                parameter.mul_(draw.head)
            if name.endswith("scale_mul_1H11"):
                parameter.fill_(draw.temperature).add_(torch.randn_like(parameter) * 0.2)
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    states = _original(transformer), _original(vae)
    for name, state in zip(("transformer", "vae"), states, strict=True):
        save_state(state, folder / f"{name}.safetensors")
    return Sources(folder / "transformer.safetensors", folder / "vae.safetensors")


def _original(model: InfinityTransformer | InfinityVae | VarTransformer | VarVae) -> dict[str, torch.Tensor]:
    """Weights of a model under the names of the original files."""
    if isinstance(model, InfinityTransformer):
        return original_infinity_state(model)
    if isinstance(model, InfinityVae):
        return original_infinity_vae_state(model)
    if isinstance(model, VarVae):
        return model.state_dict()
    tokens = torch.tensor(model.config.schedule.tokens)
    return model.state_dict() | {"lvl_1L": torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]}


@dataclass
class Exported:
    """Graphs of one size as they were built, whose weights can be written anew.

    Attributes:
        bundle: the bundle that was built from the first weights.
        stored: names of each graph's weights in the order of their file, each with True if it is stored transposed.
    """

    bundle: Bundle
    stored: dict[str, dict[str, bool]] = field(default_factory=dict)

    def with_weights(self, family: Family, folder: Path, change: Callable[[str, Weights], Weights]) -> Bundle:
        """Copy of the bundle in `folder` with the weights of a model, changed by graph, and its reference runs.

        Args:
            change: called with a graph's name ("constants" for these) and its weights.
        """
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.bundle.folder, folder)
        for graph, names in self.stored.items():
            weights = change(graph, family.weights(graph))
            sources = [
                TensorSource.of(n, weights[n].t() if flip else weights[n], torch.float32) for n, flip in names.items()
            ]
            (folder / graph / WEIGHTS_FILE).unlink()
            write_tensors(sources, folder / graph / WEIGHTS_FILE)
        (folder / CONSTANTS).unlink()
        save_file(dict(change("constants", family.constants())), folder / CONSTANTS)
        return replace(self.bundle, folder=folder, root=None)

    def with_model(self, family: Family, folder: Path) -> Bundle:
        """Copy of the bundle with the weights and the reference runs of another model of its size."""
        bundle = self.with_weights(family, folder, lambda graph, weights: weights)
        shutil.rmtree(folder / REFERENCE)
        family.record("float32", None, lambda text: None).save(folder / REFERENCE)
        return bundle


def spec_of(sources: Sources, draw: Draw) -> NamedModel:
    spec = infer_spec(sources)
    options: dict[str, Any] = {"guidance": draw.guidance, "top_k": 40, "top_p": 0.95}
    return replace(spec, **options) if "grids" in vars(spec.transformer) else replace(spec, size="0.06M", **options)


def family_of(sources: Sources, draw: Draw) -> Family:
    return choose_family(spec_of(sources, draw), sources)


def build_exported(spec: NamedModel, sources: Sources, chunk: int | None, folder: Path, rows: int = 8) -> Exported:
    """Builds a bundle, and notes how its graphs store their weights."""
    options = BuildOptions(folder, chunk=chunk, builder=OnnxRuntimeBuilder(max_rows=rows))
    with _noted() as stored:
        try:
            bundle, _ = build(plan_build(spec, sources, options))
        except VerificationError:  # what this study looks for; it verifies again
            (version,) = (folder / VERSIONS).iterdir()
            bundle = open_bundle(version)
    return Exported(bundle, stored)


@contextmanager
def _noted() -> Generator[dict[str, dict[str, bool]]]:
    """Scope in which the names of stored weights are noted."""
    stored: dict[str, dict[str, bool]] = {}
    original = exporting.store_weights

    def store(model: Any, graph: Any, weights: Weights, transposed: set[str], folder: Path, say: Any) -> None:
        names = [name for name in model.graph.initializers if name in weights]
        stored[graph.signature.name] = {name: name in transposed for name in names}
        original(model, graph, weights, transposed, folder, say)

    # Folded weights would be part of the graph, which all models of a size share.
    with mock.patch.object(exporting, "store_weights", store), mock.patch.object(exporting, "_FOLD_LIMIT", 1):
        yield stored
