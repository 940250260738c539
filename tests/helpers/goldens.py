"""Golden vectors of the original code: small random-weight models in the original layouts, run in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

from helpers.golden_weights import GOLDEN, golden_folder
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.reference.infinity import InfinitySettings

FOLDER = GOLDEN
CASES = ("infinity_2blike", "infinity_8blike")

#: Tolerances that two correct float32 implementations meet (the noise floor of the originals' own goldens).
RAW_LOGITS = 1.2e-5
GUIDED_LOGITS = 6e-5
LATENT = 1e-6
#: Mixtures (`more_smooth`) divide logits by a temperature down to 0.0135: what rounds differently, in engines or on
#: another processor, is multiplied by 74, at each scale again (0.022 on one). One scale alone is held to rounding.
SMOOTH = 1e-1
IMAGE = 1e-4
#: Bits whose deciding margin is below this may differ; they are listed, never ignored silently.
MARGIN = 1e-4


@dataclass(frozen=True)
class Golden:
    """One golden model; `folder` holds its configuration and vectors."""

    folder: Path

    @cached_property
    def weights(self) -> Path:
        """Folder of its checkpoints in the originals' layout."""
        return golden_folder(self.folder.name)

    @cached_property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.config["pn"], self.config["h_div_w"])

    @cached_property
    def layout(self) -> LatentLayout:
        patch = 2 if self.config["model"]["apply_spatial_patchify"] else 1
        return LatentLayout(self.config["vae"]["codebook_dim"], patch)

    @cached_property
    def transformer(self) -> InfinityTransformer:
        return load_infinity(self.weights / "transformer.safetensors")

    @cached_property
    def vae(self) -> InfinityVae:
        return load_infinity_vae(self.weights / "vae.safetensors")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def run(self, name: str) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(value) for key, value in self.arrays(f"run_{name}").items()}

    def texts(self, which: str) -> list[torch.Tensor]:
        inputs = self.arrays("inputs")
        lengths = inputs[f"{which}_lens"].tolist()
        return list(torch.from_numpy(inputs[f"{which}_feat"]).split(lengths))

    def settings(self, name: str) -> InfinitySettings:
        run = self.config["runs"][name]
        return InfinitySettings(
            guidance=run["cfg_list"],
            temperature=run["tau_list"],
            filter=SamplingFilter(run["top_k"], run["top_p"]),
            seed=run["g_seed"],
            insertion=tuple(run["cfg_insertion_layer"]),
        )

    def prompt(self, name: str) -> dict:
        run = self.config["runs"][name]
        negative = run["negative"]
        return {"texts": self.texts(run["text"]), "negatives": self.texts(negative) if negative else None}
