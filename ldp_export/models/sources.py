"""Where a model's files are: part of the package, given by path, or fetched from the hub."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle import hash_file
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.models.registry import HubFiles, NamedModel

logger = logging.getLogger(__name__)

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
    spec: NamedModel, weights: Path | None = None, vae: Path | None = None, text_encoder: Path | None = None
) -> Sources:
    """The parts of a model: paths that are given, else the package's own, else the hub's.

    Raises:
        ConfigError: a part is given and another cannot be found.
        CheckpointError: a file does not exist, or the hub cannot be reached.
    """
    if weights is not None or vae is not None:
        if weights is None or vae is None:
            raise ConfigError("give --weights and --vae together")
        found = Sources(weights, vae, text_encoder)
    elif spec.embedded:
        folder = _EMBEDDED / spec.name.replace("-", "_")
        found = Sources(folder / "transformer.safetensors", folder / "vae.safetensors", folder / "text_encoder")
    elif spec.hub is not None:
        found = _from_hub(spec.hub, text_encoder)
    else:
        raise ConfigError(
            f"no weights of {spec.name} were ever released", hint="give your own with --weights and --vae"
        )
    found.check()
    return found


def _from_hub(hub: HubFiles, text_encoder: Path | None) -> Sources:
    """Files from the hub's local cache, downloaded where they are not there yet."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError("fetching a model needs huggingface-hub", hint="pip install 'ldp-export[build]'") from error
    try:
        patterns = [hub.transformer, f"{hub.transformer}/*", hub.vae]
        logger.info("fetching %s of %s", patterns, hub.repository)
        folder = Path(snapshot_download(hub.repository, revision=hub.revision, allow_patterns=patterns))
        if text_encoder is None and hub.text_encoder is not None:
            wanted = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
            text_encoder = Path(snapshot_download(hub.text_encoder, allow_patterns=wanted))
    except Exception as error:  # the hub client raises types of its own, requests' and the system's
        raise CheckpointError(
            f"cannot fetch {hub.repository}: {error}",
            hint="check the network and HF_TOKEN, or give files with --weights, --vae and --text-encoder",
        ) from error
    return Sources(folder / hub.transformer, folder / hub.vae, text_encoder)
