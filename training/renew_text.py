"""Gives a run a new text encoder that knows what belongs to which noun; minutes, no picture involved.

    python training/renew_text.py --run runs/transformer --text runs/text

An encoder whose attention has saturated on content cannot learn from positions any more. So a fresh one is trained,
on the tags of its nouns and on the former encoder's features, which the transformer understands; the bias for relative
positions learns thirty times as fast as the rest, since it has to grow by whole units. Changes `<run>/last.pt`;
training then goes on from there, from step 0 of a new schedule.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import learning_rate, load_checkpoint, save_checkpoint, scene_at
from ldp_calibration.shapes import caption
from tags import Tagger, tags_of
from text import TRAIN_TOKENS, encode, make_encoder, text_optimizer, tokenize
from tokenizers import Tokenizer
from torch import nn
from transformers import T5EncoderModel


def draw_captions(tokenizer: Tokenizer, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, ...]:
    """Token ids and mask [size, T] of captions, and the tags of their nouns [N, 4]; most have two nouns."""
    texts: list[str] = []
    while len(texts) < size:
        scene = scene_at(int(rng.integers(1 << 29)))
        if len(texts) < 0.4 * size or len({shape.kind for shape in scene.shapes}) > 1:
            texts.append(caption(scene, rng))
    return (*tokenize(tokenizer, texts, TRAIN_TOKENS), tags_of(tokenizer, texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of train_transformer")
    parser.add_argument("--text", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=3.0, help="weight of the distance to the former features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    state = load_checkpoint(options.run / "last.pt")
    if not state:
        raise SystemExit(f"{options.run} holds no checkpoint")
    tokenizer = Tokenizer.from_file(str(options.text / "tokenizer.json"))
    former = make_encoder(tokenizer.get_vocab_size())
    former.load_state_dict({k.removeprefix("text."): v for k, v in state["average"].items() if k.startswith("text.")})
    model = nn.ModuleDict({"text": make_encoder(tokenizer.get_vocab_size()), "tagger": Tagger()})
    train(options, tokenizer, model, former)
    for part in ("model", "average"):
        state[part].update({name: value.detach().clone() for name, value in model.state_dict().items()})
    save_checkpoint(options.run / "last.pt", state | {"step": 0})


def train(options: argparse.Namespace, tokenizer: Tokenizer, model: nn.ModuleDict, former: T5EncoderModel) -> None:
    optimizer, peaks = text_optimizer(model, options.rate)
    rng = np.random.default_rng((options.seed, 6))
    for step in range(options.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = learning_rate(step, options.steps, peak, warmup=50)
        ids, mask, tags = draw_captions(tokenizer, rng, options.batch)
        with torch.no_grad():
            before = encode(former, ids, mask)
        features = encode(model["text"], ids, mask)
        moved = ((features - before).square().mean(-1) * mask).sum() / mask.sum() / before[mask].var()
        tagging = model["tagger"].loss(features, tags)
        optimizer.zero_grad()
        (tagging + options.hold * moved).backward()
        nn.utils.clip_grad_norm_(model["text"].parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} tags {tagging.item():.3f} moved {moved.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
