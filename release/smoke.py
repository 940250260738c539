"""Smoke test of an installed distribution: the embedded model is built, verified and draws.

It runs in the environment that it tests, which knows nothing of the sources.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_COMMAND = [sys.executable, "-I", "-m", "ldp_export"]


def main() -> None:
    folder = Path(sys.argv[1])
    import ldp_runtime

    assert Path(sys.prefix) in Path(ldp_runtime.__file__).parents, ldp_runtime.__file__
    bundle = folder / "bundle"
    for arguments in (
        ["--version"],
        ["build", "--output", str(bundle)],
        ["verify", str(bundle)],
        ["inspect", str(bundle)],
    ):
        subprocess.run([*_COMMAND, *arguments], check=True, cwd=folder)
    with ldp_runtime.Pipeline.load(bundle) as pipe:
        drawn = pipe("a red circle", seed=1, policy="ld")
    image, trace = drawn.images[0], drawn.traces[0]
    image.save(folder / "red-circle.png")
    assert len(image.getcolors(2**24)) > 64, "the picture is blank"
    assert trace.tokens < trace.tokens_full, "nothing was pruned"
    print(f"drew {image.size[0]}x{image.size[1]} pixels with {trace.tokens} of {trace.tokens_full} tokens")


if __name__ == "__main__":
    main()
