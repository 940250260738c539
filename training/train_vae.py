"""Trains the image tokenizer: a convolutional VAE with multi-scale binary residual quantisation.

    python training/train_vae.py --steps 4000 --out runs/vae
    python training/train_vae.py --steps 9000 --out runs/vae --decoder-only --flip 0.02    # later, bits frozen

Losses: L1 and L2 on pixels, and a commitment of the encoder to its codes. Some images are decoded from their first
scales only, so that coarse scales carry the picture, and some bits are flipped, so that the decoder forgives
mistakes of the transformer. Runs resume from `<out>/last.pt`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import (
    HELD_OUT,
    LAYOUT,
    SCHEDULE,
    SIDE,
    VAE_CONFIG,
    Average,
    Curve,
    default_folder,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
    save_picture,
    scene_at,
    to_images,
    to_pixels,
)
from ldp_calibration.shapes import draw
from muon import Muon
from residual_bits import quantize_noisily
from torch.nn import functional as F

from ldp_export.models.infinity_vae import InfinityVae, quantize


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # denormal numbers halve the speed of CPUs
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    vae = InfinityVae(VAE_CONFIG).to(options.device)
    average = Average(vae, 0.99)
    state = load_checkpoint(options.out / "last.pt", options.device)
    if state:
        vae.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
    phase = "decoder" if options.decoder_only else "joint"
    vae.encoder.requires_grad_(not options.decoder_only)
    optimizers = make_optimizers(vae, options)
    first = phase_start = state["step"] if state else 0
    if state and state["phase"] == phase:
        phase_start = state["phase_start"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    train(options, vae, average, optimizers, first, phase_start)


def make_optimizers(vae: InfinityVae, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for convolutions, AdamW for norms and biases."""
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    matrices = [weight for weight in weights if weight.ndim > 1]
    vectors = [weight for weight in weights if weight.ndim == 1]
    return [Muon(matrices, options.rate), torch.optim.AdamW(vectors, options.rate / 2, betas=(0.9, 0.98))]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="in all, earlier sittings included")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--flip", type=float, default=0.0, help="share of bits flipped")
    parser.add_argument("--drop", type=float, default=0.05, help="share of images decoded from early scales only")
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder, and so the bits, as they are")
    return parser.parse_args()


def train(
    options: argparse.Namespace,
    vae: InfinityVae,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    first: int,
    phase_start: int,
) -> None:
    images = np.load(options.data / "images.npy", mmap_mode="r")
    held_out = to_pixels(np.stack([draw(scene_at(HELD_OUT + i), SIDE) for i in range(24)]), options.device)
    curve = Curve(options.out / "curve.csv", fresh=first == 0)
    clock, sums = time.monotonic(), {"pixel": 0.0, "commitment": 0.0}
    for step in range(first, options.steps):
        rng = np.random.default_rng((options.seed, 1, step))  # a resumed run draws what an unbroken one would
        torch.manual_seed((options.seed << 32) + step)
        batch = to_pixels(images[np.sort(rng.choice(len(images), options.batch, replace=False))], options.device)
        rate = learning_rate(step - phase_start, options.steps - phase_start, options.rate, warmup=50)
        for optimizer, share in zip(optimizers, (1.0, 0.5), strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.zero_grad(set_to_none=True)
        pixel, commitment = losses(vae, batch, options)
        (pixel + 0.1 * commitment).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(vae, step)
        sums["pixel"] += pixel.item()
        sums["commitment"] += commitment.item()
        done = step + 1
        if done % options.every == 0 or done == options.steps:
            means = {name: value / options.every for name, value in sums.items()}
            restored, bits = reconstruct(average.module, held_out, options)
            quality = evaluate(restored, held_out, bits)
            row = {"step": done, "seconds": time.monotonic() - clock, "rate": rate, **means, **quality}
            print(" ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            curve.add(row)
            curve.plot(("pixel", "psnr"))
            sums = dict.fromkeys(sums, 0.0)
            state = {"model": vae.state_dict(), "average": average.module.state_dict(), "step": done}
            state |= {"phase": "decoder" if options.decoder_only else "joint", "phase_start": phase_start}
            save_checkpoint(options.out / "last.pt", state | {"optimizers": [o.state_dict() for o in optimizers]})
            pairs = torch.cat([held_out[:12], restored[:12]])
            save_picture(options.out / "reconstructions.png", to_images(pairs), 12)


def losses(vae: InfinityVae, pixels: torch.Tensor, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel and commitment loss of a batch [B, 3, H, W]."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=options.bf16):
        latent = vae.encode(pixels).float()  # [B, d, h, w]
    codes = quantize_noisily(latent.detach(), SCHEDULE, LAYOUT, flip=options.flip, drop=options.drop)  # [B, d, h, w]
    # Straight through: forwards the codes, backwards the latent as if it had not been rounded.
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=options.bf16):
        decoded = vae.decoder(latent + (codes - latent).detach())
    error = decoded.float() - pixels
    commitment = (latent - codes).pow(2).sum(1).mean()
    return error.abs().mean() + 2 * error.pow(2).mean(), commitment


@torch.no_grad()
def reconstruct(
    vae: InfinityVae, pixels: torch.Tensor, options: argparse.Namespace
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The images as the decoder returns them from their codes, and the bits of every scale."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=options.bf16):
        bits, codes = quantize(vae.encode(pixels).float(), SCHEDULE, LAYOUT)
        return vae.decode(codes).float(), bits


def evaluate(restored: torch.Tensor, pixels: torch.Tensor, bits: list[torch.Tensor]) -> dict[str, float]:
    """PSNR in dB (mean over images, of a range of 2), and how evenly the bits of the last scale are used."""
    error = F.mse_loss(restored, pixels, reduction="none").mean((1, 2, 3))
    share = bits[-1].float().mean((0, 1, 2))
    balance = torch.minimum(share, 1 - share).mean().item()
    return {"psnr": (10 * torch.log10(4 / error)).mean().item(), "balance": balance}


if __name__ == "__main__":
    main()
