"""Encodes all training scenes once with the trained VAE: continuous latents in float16, 8 KB a scene.

    python training/encode_latents.py --vae runs/vae/last.pt
    python training/encode_latents.py --vae runs/vae/last.pt --count 120000 --workers 12 --device cuda --batch 256

Scenes that `make_data` drew are read, others are drawn on the way. A second run goes on where the first one ended.
Latents rather than bits are kept because self-correction quantises anew after every flipped bit.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import SIDE, VAE_CONFIG, default_folder, load_infinity_vae, scene_at, to_pixels
from ldp_calibration.shapes import draw
from torch.utils.data import DataLoader, Dataset


class Drawings(Dataset[np.ndarray]):
    """Images of `batch` scenes at a time, uint8 [B, side, side, 3]."""

    def __init__(self, data: Path, first: int, count: int, batch: int) -> None:
        drawn = data / "images.npy"
        self.images = np.load(drawn, mmap_mode="r") if drawn.exists() else np.empty(0)
        self.starts = range(first, count, batch)
        self.count = count

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self.starts[index]
        end = min(start + self.starts.step, self.count)
        if end <= len(self.images):
            return np.array(self.images[start:end])
        return np.stack([draw(scene_at(number), SIDE) for number in range(start, end)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=default_folder())
    parser.add_argument("--count", type=int, default=40000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw ahead")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # denormal numbers halve the speed of CPUs
    options.data.mkdir(parents=True, exist_ok=True)
    vae = load_infinity_vae(options.vae, options.device)
    # `latents.npy` is complete up to the number in `encoded.txt`: training may begin while this still runs.
    file, ready = options.data / "latents.npy", options.data / "encoded.txt"
    side = SIDE // VAE_CONFIG.stride
    shape = (options.count, VAE_CONFIG.bits, side, side)
    first = int(ready.read_text()) if ready.exists() else 0
    latents = np.lib.format.open_memmap(file, mode="r+" if first else "w+", dtype=np.float16, shape=shape)
    if len(latents) < options.count:
        raise SystemExit(
            f"{file} was begun for {len(latents)} scenes: remove {ready} to begin anew with {options.count}"
        )
    drawings = Drawings(options.data, first, options.count, options.batch)
    for start, images in zip(drawings.starts, DataLoader(drawings, None, num_workers=options.workers), strict=True):
        pixels = to_pixels(images, options.device)
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            latent = vae.encode(pixels)
        latents[start : start + len(pixels)] = latent.float().cpu().numpy().astype(np.float16)
        if start % (options.batch * 50) == 0 or start + options.batch >= options.count:
            latents.flush()
            ready.write_text(str(start + len(pixels)))
            print(f"{start + len(pixels)} of {options.count} scenes encoded", flush=True)


if __name__ == "__main__":
    main()
