"""Trains the transformer and its text encoder together on the bits of encoded scenes.

    python training/train_transformer.py --vae runs/vae/last.pt --text runs/text --out runs/transformer

Teacher-forced cross-entropy on bits. Most batches hold the five coarse scales only (121 of 521 tokens): they decide
what is drawn and where, and cost a quarter. A tenth of the captions is replaced by the unconditional rows. Bits are
flipped in the inputs (see residual_bits). Runs resume from `<out>/last.pt`; captions, scenes and shares of flipped bits
of a step depend on the seed and the step alone.

On a GPU, beside `encode_latents`, whose scenes it takes as they come:

    python training/train_transformer.py --device cuda --workers 8 --compile --batch 256 --coarse-batch 512 \
        --minutes 4 --by-time --start <weights> --vae <weights>/vae.safetensors --text runs/text --out runs/transformer
"""

import argparse
import time
from pathlib import Path

import teacher
import torch
from batches import NEAR, Batch, Batches, batches_from
from common import (
    LAYOUT,
    SCHEDULE,
    VAE_CONFIG,
    Average,
    Curve,
    cosine,
    default_folder,
    learning_rate,
    load_checkpoint,
    load_infinity_vae,
    save_checkpoint,
    save_picture,
)
from muon import Muon
from residual_bits import corrupted_path
from sampling import draw_prompts
from tags import Tagger
from text import TEXT_CHANNELS, encode, make_encoder
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from ldp_export.checkpoints.infinity import load_infinity
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.sizes import InfinityConfig

CONFIG = InfinityConfig(
    depth=6,
    width=256,
    heads=4,
    ffn=1024,
    bits=VAE_CONFIG.bits,
    text_channels=TEXT_CHANNELS,
    text_tokens=512,
    pool_heads=2,
    chunks=2,
)
COARSE = 5  # scales of a coarse batch
SHOWN = (
    "a red circle",
    "a blue star",
    "three green squares",
    "a yellow ring on a black background",
    "a purple triangle left of an orange square",
    "a large red star above a small blue circle",
    "two orange triangles on a striped slate background",
    "a green ring and a yellow square",
)


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # denormal numbers halve the speed of CPUs
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(options.text / "tokenizer.json"))
    model = make_model(tokenizer, options)
    average = Average(model, options.decay)
    optimizers = make_optimizers(model, options)
    state = load_checkpoint(options.out / "last.pt", options.device)
    if state:
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    if options.compile:
        teacher.run_block = torch.compile(teacher.run_block, dynamic=False)
    train(options, tokenizer, model, average, optimizers, state)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="in all, earlier sittings included")
    parser.add_argument("--minutes", type=float, help="stop after this long, at a checkpoint")
    parser.add_argument("--by-time", action="store_true", help="the rate falls with the minutes, not with the steps")
    parser.add_argument("--coarse-share", type=float, default=0.7)
    parser.add_argument("--coarse-batch", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=float, default=0.5, help="share taken from scenes with different shapes")
    parser.add_argument("--coloured", type=float, default=0.8, help="share of captions that name colours")
    parser.add_argument("--tag-weight", type=float, default=0.1, help="of the text encoder's own loss (see tags)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of AdamW; Muon's is twice this")
    parser.add_argument("--decay", type=float, default=0.998, help="of the averaged weights")
    parser.add_argument("--flip", type=float, default=0.2, help="greatest share of flipped bits in a scale")
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="folder written by warm_text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of exported weights to begin with, where no run goes on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches ahead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: minutes first, then a third faster")
    options = parser.parse_args()
    if options.by_time and options.minutes is None:
        parser.error("--by-time goes with --minutes")
    return options


def make_model(tokenizer: Tokenizer, options: argparse.Namespace) -> nn.ModuleDict:
    """New weights, or those of `--start`; a text encoder that was warmed up goes before the exported one."""
    encoder = make_encoder(tokenizer.get_vocab_size())
    transformer = InfinityTransformer(CONFIG)
    initialise(transformer)
    if options.start is not None:
        transformer.load_state_dict(load_infinity(options.start / "transformer.safetensors").state_dict())
        encoder.load_state_dict(load_text_encoder(options.start / "text_encoder").module.state_dict())
    warm = load_checkpoint(options.text / "last.pt")
    if warm:
        encoder.load_state_dict(warm["encoder"])
    return nn.ModuleDict({"transformer": transformer, "text": encoder, "tagger": Tagger()}).to(options.device)


@torch.no_grad()
def initialise(transformer: InfinityTransformer) -> None:
    """Residual branches start weak, gates open, AdaLN and the head near zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in transformer.blocks:
        for last in (block.sa.proj, block.ca.proj, block.ffn.fc2):
            last.weight.mul_((2 * CONFIG.depth) ** -0.5)
        block.ada_gss.zero_()
        block.ada_gss[:, :, :2] = 0.5
    for near_zero in (transformer.shared_ada_lin[1], transformer.head_nm.ada_lin[1], transformer.head):
        near_zero.weight.mul_(0.1)


def make_optimizers(model: nn.ModuleDict, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer's blocks, AdamW for the rest and the warmed-up text encoder."""
    inside = {name for name, weight in model.named_parameters() if weight.ndim == 2 and ".blocks." in name}
    named = dict(model.named_parameters())
    muon = Muon([named[name] for name in sorted(inside)], lr=2 * options.rate)
    others = [weight for name, weight in named.items() if name not in inside]
    fused = options.device != "cpu"
    return [muon, torch.optim.AdamW(others, lr=options.rate, betas=(0.9, 0.97), weight_decay=0.0, fused=fused)]


def train(
    options: argparse.Namespace,
    tokenizer: Tokenizer,
    model: nn.ModuleDict,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    state: dict | None,
) -> None:
    first = state["step"] if state else 0
    vae = load_infinity_vae(options.vae, options.device)
    batches = Batches(options, tokenizer)
    curve = Curve(options.out / "curve.csv", fresh=first == 0)
    clock, spent, images = time.monotonic(), state["seconds"] if state else 0.0, state["images"] if state else 0
    seen: dict[str, list[torch.Tensor]] = {"coarse": [], "full": [], "tags": []}
    by_scale: list[torch.Tensor] = []
    for done, batch in enumerate(batches_from(batches, first), start=first + 1):
        elapsed = time.monotonic() - clock
        rate = rate_of(options, done - 1, elapsed)
        for optimizer, peak in zip(optimizers, (2 * options.rate, options.rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * peak
            optimizer.zero_grad(set_to_none=True)
        loss, tagging, each = loss_of(model, batch.to(options.device), options)
        (loss + options.tag_weight * tagging).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(model, done - 1)
        images += len(batch.ids)
        # Left on the device until they are printed: asking for a number each step would make the host wait.
        seen["coarse" if batch.coarse else "full"].append(loss.detach())
        seen["tags"].append(tagging.detach())
        by_scale.extend([] if batch.coarse else [each.detach()])
        seconds = spent + elapsed
        if done % options.log_every == 0:
            means = {name: torch.stack(v).mean().item() if v else float("nan") for name, v in seen.items()}
            row = {"step": done, "seconds": seconds, "images": images, "rate": rate, **means}
            scales = torch.stack(by_scale).mean(0).tolist() if by_scale else [float("nan")] * len(SCHEDULE)
            row |= {f"scale{k}": value for k, value in enumerate(scales)}
            print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            curve.add(row)
            seen, by_scale = {"coarse": [], "full": [], "tags": []}, []
        over = options.minutes is not None and elapsed > options.minutes * 60
        if done % options.save_every == 0 or done == options.steps or over:
            curve.plot(("coarse", "full"))
            saved = {"model": model.state_dict(), "average": average.module.state_dict()}
            saved |= {"optimizers": [o.state_dict() for o in optimizers], "step": done}
            save_checkpoint(options.out / "last.pt", saved | {"seconds": seconds, "images": images})
            texts = [text for text in SHOWN for _ in range(2)]
            drawn = draw_prompts(average.module["transformer"], average.module["text"], tokenizer, vae, texts)
            save_picture(options.out / "samples.png", drawn, 8)
        if over:
            return


def rate_of(options: argparse.Namespace, step: int, elapsed: float) -> float:
    """Share of the peak rates; `elapsed` seconds of this sitting."""
    if options.by_time:
        return min((step + 1) / 100, cosine(elapsed / (options.minutes * 60), 1.0))
    return learning_rate(step, options.steps, 1.0)


def loss_of(
    model: nn.ModuleDict, batch: Batch, options: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy in nats per bit, over all scales; the text encoder's loss; the bits' of each scale."""
    transformer = model["transformer"]
    targets, inputs, _ = corrupted_path(batch.latents.float(), SCHEDULE, LAYOUT, batch.flip)
    scales = COARSE if batch.coarse else len(SCHEDULE)
    tokens = teacher.choose_tokens(SCHEDULE, scales, CONFIG.head_dim, options.device)
    with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
        features = encode(model["text"], batch.ids, batch.mask).float()
        tagging = model["tagger"].loss(features, batch.tags)
        nothing = transformer.unconditional_text(features.shape[1]).expand_as(features)
        features = torch.where(batch.dropped[:, None, None], nothing, features)
        logits = teacher.teacher_logits(transformer, features, batch.mask, inputs, tokens)
    pairs = logits.float().unflatten(-1, (-1, 2))  # [B, L, bits, 2]
    signed = (pairs[..., 1] - pairs[..., 0]) * (1 - 2 * targets[:, : logits.shape[1]].float())
    nats = F.softplus(signed).mean(2).split(tokens.counts, dim=1)  # of each scale [B, h*w]
    # Tokens at shapes count more than the background, whose bits are mostly noise.
    near = torch.where(batch.near[:, : logits.shape[1]], NEAR, 1.0).split(tokens.counts, dim=1)
    parts = torch.stack([(each * weight).sum() / weight.sum() for each, weight in zip(nats, near, strict=True)])
    # A scale counts with the root of its tokens: neither all alike nor nine tenths of the weight on two scales.
    weights = torch.tensor([count**0.5 for count in tokens.counts]).to(logits.device, non_blocking=True)
    return (parts * weights).sum() / weights.sum(), tagging, parts


if __name__ == "__main__":
    main()
