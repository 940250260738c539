"""Judges the exported model on 500 prompts in six categories, for several guidances and temperatures.

    python training/evaluate.py --weights <weights folder> --guidance 2 3 4 --temperature 0.7 1 --out runs/evaluation

Prompts are drawn from a seed of their own. Rates come with 95 % Wilson intervals; one seed draws each prompt once.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import HELD_OUT, LAYOUT, SCHEDULE, SIDE, save_picture, scene_at, to_pixels
from ldp_calibration.shapes import CATEGORIES, Prompt, Score, draw, judge, sample_prompt, score
from sampling import draw_prompts
from tokenizers import Tokenizer

from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.models.infinity_vae import InfinityVae, quantize


@dataclass(frozen=True)
class Setting:
    guidance: float
    temperature: float
    top_p: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--top-p", type=float, nargs="+", default=[0.97])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    transformer = load_infinity(options.weights / "transformer.safetensors").to(options.device)
    vae = load_infinity_vae(options.weights / "vae.safetensors").to(options.device)
    text = load_text_encoder(options.weights / "text_encoder")
    tokenizer = Tokenizer.from_file(str(text.tokenizer))
    encoder = text.module.to(options.device)
    results = {"vae": vae_quality(vae, options.device), "settings": []}
    print(results["vae"], flush=True)
    prompts = held_out_prompts(options.prompts, options.seed)
    for choice in product(options.guidance, options.temperature, options.top_p):
        setting, clock = Setting(*choice), time.monotonic()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            texts = [prompt.text for prompt in prompts]
            images = draw_prompts(transformer, encoder, tokenizer, vae, texts, **asdict(setting), seed=options.seed)
        scores = score((prompt, judge(image, prompt)) for prompt, image in zip(prompts, images, strict=True))
        results["settings"].append(asdict(setting) | {"scores": {name: summary(s) for name, s in scores.items()}})
        print(setting, f"{time.monotonic() - clock:.0f} s", flush=True)
        print("  " + "\n  ".join(f"{name}: {value}" for name, value in scores.items()), flush=True)
        name = f"g{setting.guidance:g}-t{setting.temperature:g}-p{setting.top_p:g}"
        save_picture(options.out / f"{name}.png", images[: 8 * 12], 12)
        (options.out / "scores.json").write_text(json.dumps(results, indent=1))


def held_out_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` prompts, the categories in turn."""
    rng = np.random.default_rng((seed, 5))
    return [sample_prompt(CATEGORIES[i % len(CATEGORIES)], rng) for i in range(count)]


def summary(result: Score) -> dict[str, float]:
    return {"rate": result.rate, "low": result.interval[0], "high": result.interval[1], "total": result.total}


@torch.no_grad()
def vae_quality(vae: InfinityVae, device: str, scenes: int = 128) -> dict[str, float]:
    """Reconstruction of held-out scenes: mean PSNR over images in dB, and its standard error."""
    values = []
    for number in range(scenes):
        pixels = to_pixels(draw(scene_at(HELD_OUT + number), SIDE)[None], device)
        _, codes = quantize(vae.encode(pixels), SCHEDULE, LAYOUT)
        values.append(10 * np.log10(4 / (vae.decode(codes) - pixels).pow(2).mean().item()))
    return {"psnr": float(np.mean(values)), "standard_error": float(np.std(values) / len(values) ** 0.5)}


if __name__ == "__main__":
    main()
