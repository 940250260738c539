"""Encodes all training scenes once with the trained VAE: continuous latents in float16, 8 KB a scene.

    python training/encode_latents.py --vae runs/vae/last.pt

A second run goes on where the first one ended. Latents rather than bits are kept because self-correction quantises
anew after every flipped bit.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import VAE_CONFIG, default_folder, load_vae, to_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--count", type=int, help="stop after the first so many scenes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # denormal numbers halve the speed of CPUs
    vae = load_vae(options.vae, options.device)
    images = np.load(options.data / "images.npy", mmap_mode="r")
    count, side = options.count or len(images), images.shape[1] // VAE_CONFIG.stride
    # `latents.npy` is complete up to the number in `encoded.txt`: training may begin while this still runs.
    shape = (len(images), VAE_CONFIG.bits, side, side)
    file, ready = options.data / "latents.npy", options.data / "encoded.txt"
    first = int(ready.read_text()) if ready.exists() else 0
    latents = np.lib.format.open_memmap(file, mode="r+" if first else "w+", dtype=np.float16, shape=shape)
    for start in range(first, count, options.batch):
        pixels = to_pixels(images[start : min(start + options.batch, count)], options.device)
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            latent = vae.encode(pixels)
        latents[start : start + len(pixels)] = latent.float().cpu().numpy().astype(np.float16)
        if start % (options.batch * 50) == 0 or start + options.batch >= count:
            latents.flush()
            ready.write_text(str(start + len(pixels)))
            print(f"{start + len(pixels)} of {count} scenes encoded", flush=True)


if __name__ == "__main__":
    main()
