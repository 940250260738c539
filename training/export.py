"""Writes the averaged weights in the original file layouts, as the package ships them.

    python training/export.py --vae runs/vae/last.pt --run runs/transformer --text runs/text --out <weights folder>

Halves (float16) on disk; loaders widen them. The whole must stay under 25 MB.
"""

import argparse
import json
from pathlib import Path

import torch
from common import load_checkpoint, load_infinity_vae
from safetensors.torch import load_file, save_file
from text import TRAIN_TOKENS, make_encoder, save_text_encoder
from tokenizers import Tokenizer
from train_transformer import CONFIG

from ldp_export.checkpoints.files.tensors import save_state
from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.models.infinity import InfinityTransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder written by train_transformer")
    parser.add_argument("--text", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    state = load_checkpoint(options.run / "last.pt")
    if state is None:
        raise FileNotFoundError(f"no checkpoint at {options.run / 'last.pt'}: run train_transformer first")
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(options.text / "tokenizer.json"))
    transformer, encoder = InfinityTransformer(CONFIG), make_encoder(tokenizer.get_vocab_size())
    transformer.load_state_dict(part_of(state["average"], "transformer."))
    encoder.load_state_dict(part_of(state["average"], "text."))
    # No caption was longer than TRAIN_TOKENS: longer prompts take the mean of the rows that were trained.
    transformer.cfg_uncond.data[TRAIN_TOKENS:] = transformer.cfg_uncond.data[4:TRAIN_TOKENS].mean(0)
    save_state(original_infinity_state(transformer), options.out / "transformer.safetensors", torch.float16)
    save_state(
        original_infinity_vae_state(load_infinity_vae(options.vae)), options.out / "vae.safetensors", torch.float16
    )
    save_text_encoder(options.out / "text_encoder", encoder.half(), tokenizer)
    widen_config(options.out / "text_encoder")
    for file in options.out.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files for the owner alone
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB, step {state['step']}, {state['images']} images")


def part_of(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def widen_config(folder: Path) -> None:
    """Says float32 in the configuration: halves are how the file is stored, not how the encoder computes."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")
    # Without transformers' marker in the header some of its versions refuse the file.
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
