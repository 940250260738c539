"""Golden Switti models in the released layout, and requests that ask for the original's runs."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldp_runtime.bundle.files import Bundle
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from helpers.golden_weights import GOLDEN
from helpers.shared import build_shared
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.switti import load_switti
from ldp_export.checkpoints.var import load_var_vae
from ldp_export.models.switti import SwittiTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.switti import SwittiSettings, SwittiText

CASES = ("switti_small", "switti_ar_small")
#: Two correct float32 implementations of the original differ by up to this in raw logits.
RAW_LOGITS = 1.5e-5


@cache
def released_folder(name: str) -> Path:
    """Folder of this process with a golden model's files as a repository has them, its `config.json` included."""
    folder = Path(tempfile.mkdtemp(prefix=f"golden-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "model.safetensors").symlink_to(GOLDEN / name / "switti.safetensors")
    (folder / "vae.safetensors").symlink_to(GOLDEN / name / "vae.safetensors")
    model = json.loads((GOLDEN / name / "config.json").read_text())["model"]
    kept = ("depth", "num_heads", "rope", "rope_theta", "rope_size", "use_ar", "use_crop_cond", "use_swiglu_ffn")
    (folder / "config.json").write_text(json.dumps({key: model[key] for key in kept}))
    return folder


@dataclass(frozen=True)
class SwittiGolden:
    """Vectors of the original: one text a run."""

    name: str

    @property
    def folder(self) -> Path:
        return GOLDEN / self.name

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def sources(self) -> Sources:
        folder = released_folder(self.name)
        return Sources(folder / "model.safetensors", folder / "vae.safetensors")

    @cached_property
    def transformer(self) -> SwittiTransformer:
        return load_switti(self.sources.transformer)

    @cached_property
    def vae(self) -> VarVae:
        return load_var_vae(self.sources.vae)

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        with np.load(self.folder / f"{name}.npz") as file:
            return {key: torch.from_numpy(value) for key, value in file.items()}

    @cached_property
    def texts(self) -> dict[str, torch.Tensor]:
        return self.arrays("inputs")

    def text(self, name: str) -> SwittiText:
        return SwittiText(
            self.texts[f"{name}_context"], self.texts[f"{name}_pooled"], self.texts[f"{name}_mask"].bool()
        )

    def run(self, name: str) -> dict[str, Any]:
        return self.config["runs"][name]

    def settings(self, name: str) -> SwittiSettings:
        run = self.run(name)
        return SwittiSettings(
            run["cfg"],
            run["top_k"],
            run["top_p"],
            run["seed"],
            run["turn_on_cfg_start_si"],
            run["turn_off_cfg_start_si"],
            run["last_scale_temp"] or 1.0,
            run["more_smooth"],
            run["smooth_start_si"],
        )

    def request(self, name: str) -> dict[str, Any]:
        """Arguments of a pipeline's call for a run of the original: texts without their padding."""
        run, own, scales = self.run(name), self.settings(name), len(self.config["model"]["patch_nums"])
        ramp = [1 + own.guidance * k / (scales - 1) if own.is_guided(k) else 1.0 for k in range(scales)]
        return {
            **self._embeds("prompt", run["text"]),
            **self._embeds("negative_prompt", run["null"]),
            "guidance_scale": ramp,
            "temperature": own.last_temperature,
            "top_k": own.top_k,
            "top_p": own.top_p,
            "seed": own.seed,
            "more_smooth": own.more_smooth,
            "policy": "none",
        }

    def _embeds(self, name: str, text: str) -> dict[str, torch.Tensor]:
        tokens = int(self.texts[f"{text}_mask"].sum())
        pooled = name.replace("prompt", "pooled_prompt_embeds")
        return {f"{name}_embeds": self.texts[f"{text}_context"][0, :tokens], pooled: self.texts[f"{text}_pooled"][0]}

    def build(self, output: Path, chunk: int | None = None, towers: tuple[Path, ...] = ()) -> Bundle:
        sources = self.sources.with_text(towers)
        spec = replace(infer_spec(sources), first_smooth=2)
        return build_shared(plan_build(spec, sources, BuildOptions(output, chunk=chunk)))[0]


def write_towers(folder: Path, widths: tuple[int, int] = (48, 64)) -> tuple[Path, Path]:
    """Two small random CLIP models, as their repositories hold them, with a byte-level tokenizer in CLIP's manner."""
    from transformers import CLIPConfig, CLIPModel

    for seed, (name, width, act) in enumerate(
        zip(("clip_l", "clip_bigg"), widths, ("quick_gelu", "gelu"), strict=True)
    ):
        text = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width}
        text |= {"vocab_size": 600, "hidden_act": act, "max_position_embeddings": 77}
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        vision |= {"image_size": 28, "patch_size": 14}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
            for parameter in model.text_model.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape)
            model.save_pretrained(folder / name)
        clip_tokenizer().save(str(folder / name / "tokenizer.json"))
    return folder / "clip_l", folder / "clip_bigg"


def clip_tokenizer() -> Tokenizer:
    """Tokenizer of letters that ends words, lower-cases texts, and puts CLIP's tokens around them."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(f"{letter}</w>" for letter in letters), start, end])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(start, vocabulary[start]), (end, vocabulary[end])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    tokenizer.add_special_tokens([start, end])
    return tokenizer
