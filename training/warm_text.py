"""Teaches the text encoder what captions say before the transformer sees it: minutes, since no picture is involved.

    python training/warm_text.py --steps 2500 --out runs/text

From the caption alone, a single attention layer must say which colour and which kind of shape stands at each cell of
a 6x6 grid over the scene; where the caption leaves it open the best answer is a distribution. And each noun's token
must say its own colour and how it stands to the other noun (see tags). Both readouts are thrown away.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import learning_rate, save_checkpoint, scene_at
from ldp_calibration.shapes import COLOURS, KINDS, Scene, caption
from tags import Tagger, tags_of
from text import TEXT_CHANNELS, TRAIN_TOKENS, encode, make_encoder, make_tokenizer, text_optimizer, tokenize
from torch import nn
from torch.nn import functional as F

CELLS = 6


class Readout(nn.Module):
    """One learned query per cell; logits over colours and kinds, each with a last class "nothing"."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(CELLS * CELLS, TEXT_CHANNELS) * 0.5)
        self.norm = nn.LayerNorm(TEXT_CHANNELS)
        self.attention = nn.MultiheadAttention(TEXT_CHANNELS, 4, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(TEXT_CHANNELS, 512), nn.GELU(), nn.Linear(512, TEXT_CHANNELS))
        self.head = nn.Linear(TEXT_CHANNELS, len(COLOURS) + len(KINDS) + 2)

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        text = self.norm(features)
        queries = self.query.expand(len(features), -1, -1)
        x = queries + self.attention(queries, text, text, key_padding_mask=~mask, need_weights=False)[0]
        logits = self.head(x + self.mix(x))  # [B, cells, classes]
        return logits.split((len(COLOURS) + 1, len(KINDS) + 1), dim=-1)


def cells_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Colour and kind number of each cell [CELLS * CELLS]; the last class where no shape covers its middle."""
    colours, kinds = np.full((CELLS, CELLS), len(COLOURS)), np.full((CELLS, CELLS), len(KINDS))
    middles = (np.arange(CELLS) + 0.5) / CELLS
    for shape in scene.shapes:
        near = np.hypot(middles[None, :] - shape.x, middles[:, None] - shape.y) < shape.radius
        colours[near], kinds[near] = list(COLOURS).index(shape.colour), KINDS.index(shape.kind)
    return colours.ravel(), kinds.ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # denormal numbers halve the speed of CPUs
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(seed=options.seed)
    tokenizer.save(str(options.out / "tokenizer.json"))
    encoder, readout = (
        make_encoder(tokenizer.get_vocab_size()).to(options.device),
        Readout().to(options.device),
    )
    tagger = Tagger().to(options.device)
    model = nn.ModuleDict({"encoder": encoder, "readout": readout, "tagger": tagger})
    optimizer, peaks = text_optimizer(model, options.rate)
    clock, total, tagged = time.monotonic(), 0.0, 0.0
    for step in range(options.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = learning_rate(step, options.steps, peak)
        rng = np.random.default_rng((options.seed, 3, step))
        scenes = [scene_at(int(number), options.seed) for number in rng.integers(1 << 29, size=options.batch)]
        texts = [caption(scene, rng) for scene in scenes]
        ids, mask = tokenize(tokenizer, texts, TRAIN_TOKENS, options.device)
        targets = [torch.from_numpy(np.stack(part)) for part in zip(*map(cells_of, scenes), strict=True)]
        features = encode(encoder, ids, mask)
        tagging = tagger.loss(features, tags_of(tokenizer, texts).to(options.device))
        logits = readout(features, mask)
        loss = sum(
            F.cross_entropy(a.flatten(0, 1), b.to(options.device).flatten())
            for a, b in zip(logits, targets, strict=True)
        )
        optimizer.zero_grad(set_to_none=True)
        (loss + tagging).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total, tagged = total + loss.item(), tagged + tagging.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - clock
            print(f"step {step + 1} seconds {seconds:.0f} loss {total / 100:.4f} tags {tagged / 100:.4f}", flush=True)
            total, tagged = 0.0, 0.0
            save_checkpoint(options.out / "last.pt", {"encoder": encoder.state_dict(), "step": step + 1})


if __name__ == "__main__":
    main()
