"""Draws the training scenes once into an uncompressed array on disk (about 2 GB for 40,000).

    python training/make_data.py --count 40000

Captions are not stored: they are worded anew, from the scene's number, each time a scene is used.
"""

import argparse
from pathlib import Path

import numpy as np
from common import SIDE, default_folder, scene_at
from ldp_calibration.shapes import draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=default_folder())
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "images.npy"
    shape = (options.count, SIDE, SIDE, 3)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for number in range(options.count):
        images[number] = draw(scene_at(number, options.seed), SIDE)
        if (number + 1) % 5000 == 0:
            print(f"{number + 1} of {options.count} scenes drawn", flush=True)
    images.flush()


if __name__ == "__main__":
    main()
