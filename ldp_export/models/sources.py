"""Where a model's files are: part of the package, given by path, or fetched from the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle import hash_file
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.models.registry import NamedModel

_EMBEDDED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Sources:
    """Files or folders of a model's parts; without a text encoder, a bundle takes text features."""

    transformer: Path
    vae: Path
    text_encoder: Path | None = None

    def check(self) -> None:
        """Raises CheckpointError when one of them is not there."""
        for part, path in self.items():
            if not path.exists():
                raise CheckpointError(f"the {part.replace('_', ' ')} {path} does not exist")

    def items(self) -> list[tuple[str, Path]]:
        pairs = [("transformer", self.transformer), ("vae", self.vae), ("text_encoder", self.text_encoder)]
        return [(part, path) for part, path in pairs if path is not None]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part's content: of the file, or of all files of a folder in order of their names."""
        return {part: hash_tree(path) for part, path in self.items()}

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for _, path in self.items() for file in _files(path))


def hash_tree(path: Path) -> str:
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path)}:{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def find_sources(
    spec: NamedModel,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    local_dir: Path | None = None,
) -> Sources:
    """The parts of a model: paths that are given, else the package's own, else what was fetched. Downloads nothing.

    Args:
        local_dir: a folder that `ldp-export fetch --local-dir` wrote, instead of the hub's cache.

    Raises:
        ConfigError: a part is given and another cannot be found.
        CheckpointError: a file does not exist.
    """
    if weights is not None or vae is not None:
        if weights is None or vae is None:
            raise ConfigError("give --weights and --vae together")
        if local_dir is not None:
            raise ConfigError("--weights and --vae are files of their own", hint="leave --local-dir out")
        found = Sources(weights, vae, text_encoder)
    elif spec.embedded:
        if text_encoder is not None or local_dir is not None:
            raise ConfigError(
                f"{spec.name} brings its own files, text encoder included",
                hint="leave --text-encoder and --local-dir out, or name another --model, or --weights and --vae",
            )
        folder = _EMBEDDED / spec.name.replace("-", "_")
        found = Sources(folder / "transformer.safetensors", folder / "vae.safetensors", folder / "text_encoder")
    elif spec.hub is not None:
        from ldp_export.hub.fetch import fetched_sources

        found = fetched_sources(spec, local_dir, text_encoder)
    else:
        raise ConfigError(
            f"no weights of {spec.name} were ever released", hint="give your own with --weights and --vae"
        )
    found.check()
    return found
