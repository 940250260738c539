"""Golden and random class-conditional models, in the original files' layout."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ldp_runtime.bundle.files import Bundle

from helpers.golden_weights import golden_folder
from helpers.goldens import FOLDER
from helpers.shared import build_shared
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.models.sizes import VarConfig, VarVaeConfig
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.var import VarSettings

#: Two correct float32 implementations of the original differ by up to this in raw logits.
VAR_LOGITS = 3e-5


class VarGolden:
    """The original's vectors: two classes drawn in one batch from one stream of noise."""

    folder = FOLDER / "var_d16like"

    @cached_property
    def sources(self) -> Sources:
        weights = golden_folder(self.folder.name)
        return Sources(weights / "var.safetensors", weights / "vae.safetensors")

    @cached_property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def labels(self) -> list[int]:
        return self.config["labels"]

    @cached_property
    def transformer(self) -> VarTransformer:
        return load_var(self.sources.transformer)

    @cached_property
    def vae(self) -> VarVae:
        return load_var_vae(self.sources.vae)

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        with np.load(self.folder / f"{name}.npz") as file:
            return {key: torch.from_numpy(value) for key, value in file.items()}

    def settings(self, name: str) -> VarSettings:
        run = self.config["runs"][name]
        return VarSettings(run["cfg"], run["top_k"], run["top_p"], run["g_seed"], run["more_smooth"])


@dataclass(frozen=True)
class Held:
    """A random checkpoint. `phi_names`: how the original names the convolutions ("shared", "one", "each")."""

    transformer: VarConfig
    vae: VarVaeConfig
    seed: int
    phi_names: str = "shared"

    def write(self, folder: Path) -> Sources:
        """`.pth` files as released: flat, with the buffers that carry nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng():  # layers draw their first values from PyTorch's own generator
            torch.manual_seed(self.seed)
            made, decoder = VarTransformer(self.transformer), VarVae(self.vae)
        transformer = _randomised(made, generator)
        for key in [key for key in transformer if key.endswith("v_bias")]:
            transformer[key.removesuffix("v_bias") + "zero_k_bias"] = torch.zeros_like(transformer[key])
        tokens = torch.tensor(self.transformer.schedule.tokens)
        level = torch.repeat_interleave(torch.arange(len(tokens)), tokens)
        transformer["lvl_1L"] = level[None]
        transformer["attn_bias_for_masking"] = torch.where(level[:, None] >= level, 0.0, -torch.inf)[None, None]
        transformer["head.weight"] *= 3
        vae = _randomised(decoder, generator) | {"quantize.ema_vocab_hit_SV": torch.zeros(3, self.vae.codes)}
        names = {"shared": "qresi_ls.{}", "one": "qresi", "each": "{}"}[self.phi_names]
        for key in [key for key in vae if ".qresi_ls." in key]:
            stem, _, rest = key.partition("qresi_ls.")
            number, _, kind = rest.partition(".")
            vae[f"{stem}{names.format(number)}.{kind}"] = vae.pop(key)
        torch.save(transformer, folder / "var.pth")
        torch.save(vae, folder / "vae.pth")
        return Sources(folder / "var.pth", folder / "vae.pth")


#: Checkpoints of other sizes, scales and namings than the goldens'.
VAR_MODELS = {
    "one AdaLN for all blocks": Held(
        VarConfig(3, 48, 3, 64, codes=40, channels=6, classes=5, grids=(1, 2, 4, 7), shared_ada=True),
        VarVaeConfig(codes=40, channels=6, base_channels=32, channel_multipliers=(1, 2), res_blocks=2),
        seed=4,
    ),
    "one phi, three scales": Held(
        VarConfig(2, 64, 1, 96, codes=100, channels=12, classes=3, grids=(1, 3, 6)),
        VarVaeConfig(codes=100, channels=12, base_channels=24, channel_multipliers=(1, 1, 2), res_blocks=1, phis=1),
        seed=5,
        phi_names="one",
    ),
    "a phi each, one block": Held(
        VarConfig(1, 40, 5, 80, codes=17, channels=4, classes=2, grids=(1, 2, 3, 4, 5)),
        VarVaeConfig(codes=17, channels=4, base_channels=32, channel_multipliers=(1,), res_blocks=1, phis=5),
        seed=6,
        phi_names="each",
    ),
}


def _randomised(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Every parameter non-trivial."""
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()
    }


def build_var_bundle(sources: Sources, output: Path, chunk: int | None = None, guidance: float = 1.5) -> Bundle:
    spec = replace(infer_spec(sources), guidance=guidance, top_k=100, top_p=0.95)
    return build_shared(plan_build(spec, sources, BuildOptions(output, chunk=chunk)))[0]
