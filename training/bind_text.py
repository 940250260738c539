"""Teaches a text encoder that has stopped learning which colour belongs to which noun; minutes, no picture involved.

    python training/bind_text.py --run runs/transformer --text runs/text

An encoder whose attention has saturated on content cannot learn from positions any more. One head of its last layer
is made anew to look at the token before (queries zero, a bias for that distance), and the encoder is trained on the
tags of its nouns alone, held to its former features so that the transformer still understands it. Changes
`<run>/last.pt`; training then goes on from there, from step 0 of a new schedule.
"""

import argparse
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from common import learning_rate, load_checkpoint, save_checkpoint, scene_at
from ldp_calibration.shapes import caption
from tags import Tagger, noun_tags
from text import TEXT_CHANNELS, TRAIN_TOKENS, encode, make_encoder, tokenize
from tokenizers import Tokenizer
from torch import nn
from transformers import T5EncoderModel

HEAD, HEAD_WIDTH = 0, 64
PREVIOUS = 1  # the bucket of T5's relative positions for the token before


@torch.no_grad()
def look_back(encoder: T5EncoderModel, bias: float = 5.0) -> None:
    """Makes one head of the last layer attend to the token before, and read it with new values."""
    attention = encoder.encoder.block[-1].layer[0].SelfAttention
    table = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    rows = slice(HEAD * HEAD_WIDTH, (HEAD + 1) * HEAD_WIDTH)
    attention.q.weight[rows] = 0
    table[PREVIOUS, HEAD] += bias
    nn.init.normal_(attention.v.weight[rows], std=TEXT_CHANNELS**-0.5)
    # The last layer's residual stream is large; what the head writes has to be seen beside it.
    attention.o.weight[:, rows].normal_(std=5.0)


def draw_captions(tokenizer: Tokenizer, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, ...]:
    """Token ids and mask [size, T] of captions of scenes with different shapes, and the tags of their nouns [N, 4]."""
    texts: list[str] = []
    while len(texts) < size:
        scene = scene_at(int(rng.integers(1 << 29)))
        if len({shape.kind for shape in scene.shapes}) > 1:
            texts.append(caption(scene, rng))
    tags = [(row, *tag) for row, text in enumerate(texts) for tag in noun_tags(tokenizer.encode(text).tokens)]
    return (*tokenize(tokenizer, texts, TRAIN_TOKENS), torch.tensor(tags))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of train_transformer")
    parser.add_argument("--text", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="fifty times as much for the bias table")
    parser.add_argument("--hold", type=float, default=0.3, help="weight of the distance to the former features")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    state = load_checkpoint(options.run / "last.pt")
    if not state:
        raise SystemExit(f"{options.run} holds no checkpoint")
    tokenizer = Tokenizer.from_file(str(options.text / "tokenizer.json"))
    encoder, tagger = make_encoder(tokenizer.get_vocab_size()), Tagger()
    model = nn.ModuleDict({"text": encoder, "tagger": tagger})
    model.load_state_dict({k: v for k, v in state["model"].items() if k.startswith(("text.", "tagger."))})
    former = deepcopy(encoder).eval()
    look_back(encoder)
    train(options, tokenizer, model, former)
    for part in ("model", "average"):
        state[part].update({name: value.detach().clone() for name, value in model.state_dict().items()})
    save_checkpoint(options.run / "last.pt", state | {"step": 0})


def train(options: argparse.Namespace, tokenizer: Tokenizer, model: nn.ModuleDict, former: T5EncoderModel) -> None:
    tables = [weight for name, weight in model.named_parameters() if "relative_attention_bias" in name]
    others = [weight for name, weight in model.named_parameters() if "relative_attention_bias" not in name]
    groups = [{"params": others, "peak": options.rate}, {"params": tables, "peak": 50 * options.rate}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, weight_decay=0.0)
    rng = np.random.default_rng((options.seed, 6))
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, group["peak"], warmup=50, floor=1.0)
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
        if (step + 1) % 25 == 0:
            print(f"step {step + 1} tags {tagging.item():.3f} moved {moved.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
