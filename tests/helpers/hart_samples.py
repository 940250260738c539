"""Golden HART model in the released layout, and the original's runs as requests."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ldp_runtime.bundle.files import Bundle
from tokenizers import Tokenizer, models

from helpers.golden_weights import GOLDEN, golden_folder
from helpers.shared import build_shared
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints import qwen2vl
from ldp_export.checkpoints.hart import load_hart
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.var import load_var_vae
from ldp_export.models.hart import HartTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.hart import HartSettings, HartText, residual_noise

NAME = "hart_small"
#: Two correct float32 implementations of the original differ by up to this in raw and guided logits, and in the latent
#: with the same codes.
RAW_LOGITS, GUIDED, LATENT, RESIDUAL = 1.2e-5, 1e-4, 2e-6, 2e-5
#: As much in the final latent of a run that draws freely; mixtures multiply rounding by up to 58 at each scale.
FREE_HARD, FREE_SMOOTH = 1e-5, 2e-2


@cache
def released_folder() -> Path:
    """Folder of this process with the golden model's files as its repository has them: `llm` and `tokenizer`."""
    folder, golden = Path(tempfile.mkdtemp(prefix="golden-hart-")), golden_folder(NAME)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part, name in (("llm", "transformer"), ("tokenizer", "vae")):
        (folder / part).mkdir()
        (folder / part / "model.safetensors").symlink_to(golden / f"{name}.safetensors")
    model = json.loads((GOLDEN / NAME / "config.json").read_text())["model"]
    (folder / "llm" / "config.json").write_text(json.dumps(model))
    return folder


#: Instruction of the small text encoder, which stands for the original's.
INSTRUCTION = "describe the picture of these words\n"


def write_qwen2(folder: Path, width: int = 64, side: str = "left") -> Path:
    """A small random Qwen2 model with tokenizer and instruction, as its folder must be."""
    from transformers import Qwen2Config, Qwen2Model

    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 96, "vocab_size": 120, "max_position_embeddings": 512}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2Model(Qwen2Config(**sizes, rope_theta=1000.0))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    letters = {chr(code): code - 32 for code in range(32, 127)} | {"\n": 95, "<|pad|>": 96}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.add_special_tokens(["<|pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "<|pad|>", "padding_side": side}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "constants.py").write_text(f"other = [1]\nllm_system_prompt = {INSTRUCTION!r}\n")
    return folder


@contextmanager
def known_instruction() -> Generator[None]:
    """The small encoder's instruction in place of the one that is known of the original."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qwen2vl, "INSTRUCTION_LENGTH", len(INSTRUCTION))
        patch.setattr(qwen2vl, "INSTRUCTION_SHA256", hashlib.sha256(INSTRUCTION.encode()).hexdigest())
        yield


@dataclass(frozen=True)
class HartGolden:
    """Vectors of the original: one text a run."""

    name: str = NAME

    @property
    def folder(self) -> Path:
        return GOLDEN / self.name

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def sources(self) -> Sources:
        folder = released_folder()
        return Sources(folder / "llm" / "model.safetensors", folder / "tokenizer" / "model.safetensors")

    @cached_property
    def transformer(self) -> HartTransformer:
        return load_hart(self.sources.transformer)

    @cached_property
    def vae(self) -> VarVae:
        return load_var_vae(self.sources.vae)

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        with np.load(self.folder / f"{name}.npz") as file:
            return {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}

    @cached_property
    def texts(self) -> dict[str, torch.Tensor]:
        return self.arrays("inputs")

    def text(self, name: str) -> HartText:
        return HartText.of(self.texts[f"{name}_feat"], self.texts[f"{name}_mask"])

    def run(self, name: str) -> dict[str, Any]:
        return self.config["runs"][name]

    def settings(self, name: str) -> HartSettings:
        run = self.run(name)
        first = 7 if run["top_k"][0] > 1 else 0
        return HartSettings(
            run["cfg"],
            run["top_k"][0],
            run["top_k"][-1],
            first,
            run["top_p"],
            run["g_seed"],
            run["more_smooth"],
            run["final_stage"] == 0,
        )

    def request(self, name: str) -> dict[str, Any]:
        """Arguments of a pipeline's call for a run of the original."""
        run, own = self.run(name), self.settings(name)
        return {
            "prompt_embeds": self.texts[f"{run['text']}_feat"][0],
            "prompt_attention_mask": self.texts[f"{run['text']}_mask"][0],
            "guidance_scale": own.guidance,
            "top_k": own.top_k,
            "top_p": own.top_p,
            "seed": own.seed,
            "more_smooth": own.more_smooth,
            "policy": "none",
        }

    def residual_noise(self, name: str) -> torch.Tensor:
        """Noise of the residual of a run of one image [L, steps * channels], which the original draws elsewhere."""
        run, config = self.run(name), self.transformer.config
        noise = residual_noise(run["noise_seed"], 1, config.grids[-1] ** 2, config.channels, config.residual_steps)
        return noise[0].flatten(1)

    def build(self, output: Path, chunk: int | None = None, text: Path | None = None) -> Bundle:
        sources = self.sources.with_text((text,))
        return build_shared(plan_build(infer_spec(sources), sources, BuildOptions(output, chunk=chunk)))[0]
