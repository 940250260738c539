"""Names, sizes and hashes of a hub repository's files at a revision. Every failure is a typed error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.files import hash_file
from ldp_runtime.errors import ConfigError, HubError, IntegrityError
from ldp_runtime.installation import install

ELSEWHERE = "or fetch on a machine that reaches it (ldp-export fetch MODEL --local-dir DIR) and carry the folder here"


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at a commit.

    Attributes:
        revision: revision that was asked for.
        commit: commit to which the revision resolved.
        size: size in bytes.
        blob: git's object id.
        sha256: SHA-256 of the content, for files kept with LFS.
    """

    repository: str
    revision: str
    commit: str
    path: str
    size: int
    blob: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """Name of the file's content on the hub and in the cache on this machine."""
        return self.sha256 or self.blob

    def matches(self, path: Path) -> bool:
        """True if a local file has this file's size and hash; reads the whole local file."""
        if path.stat().st_size != self.size:
            return False
        return (hash_file(path) if self.sha256 else git_blob_id(path)) == self.etag

    def require(self, path: Path, hint: str) -> None:
        """Raises IntegrityError unless a local file has this file's content."""
        if self.matches(path):
            return
        size = path.stat().st_size
        actual = f"{size} bytes" if size != self.size else "another content"
        raise IntegrityError(
            f"{path} is not {self.path} of {self.repository} at {self.commit[:12]}: it has {actual}, "
            f"expected {self.size} bytes with {'SHA-256' if self.sha256 else 'git id'} {self.etag}",
            hint=hint,
        )


def git_blob_id(path: Path) -> str:
    """Git's id of a file's content; the hub lists it for files that are not kept with LFS."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def list_repository(repository: str, revision: str) -> list[HubFile]:
    """All files of a repository at a revision, in one request.

    Raises:
        HubError: the hub is unreachable, access is denied, or there is no such repository or revision.
    """
    api = hub_module().HfApi(endpoint=endpoint())
    with hub_errors(repository, revision):
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=30)
    return [
        HubFile(
            repository,
            revision,
            str(info.sha),
            sibling.rfilename,
            int(sibling.lfs.size if sibling.lfs else sibling.size or 0),
            str(sibling.blob_id),
            sibling.lfs.sha256 if sibling.lfs else None,
        )
        for sibling in info.siblings or []
    ]


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or hub_module().constants.ENDPOINT).rstrip("/")


def cache_folder() -> Path:
    """Cache of the hub's client on this machine, shared with other programs: HF_HUB_CACHE, or a folder in HF_HOME."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(hub_module().constants.HF_HUB_CACHE)


def hub_module() -> Any:
    """Imports huggingface_hub, which only fetching needs. Raises ConfigError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("fetching a model needs huggingface-hub", hint=install("build")) from error
    return huggingface_hub


@contextmanager
def hub_errors(repository: str, revision: str) -> Generator[None]:
    """Turns the client's many error types into HubError, whose hint tells what to do."""
    from huggingface_hub import errors

    where = f"{repository} at {revision} on {endpoint()}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"access to {where} is restricted",
            hint=f"accept its terms at {endpoint()}/{repository}, then set HF_TOKEN or run `hf auth login`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"there is no revision {revision} of {repository}", hint="try --revision main") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(where, error) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{where} lacks a file: {_first_line(error)}", hint="try --revision main") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no {where}, or it is private",
            hint="check HF_ENDPOINT; for a private mirror set HF_TOKEN or run `hf auth login`",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UnreachableHubError(
            f"HF_HUB_OFFLINE forbids to ask for {where}", hint=f"unset it, {ELSEWHERE}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubError(
            f"the hub refused {where}: {_first_line(error)}", hint="try again later, or set HF_TOKEN"
        ) from error
    except Exception as error:  # the HTTP library, and so its errors, depends on the client's version
        if isinstance(error, MemoryError | HubError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise _unreachable(where, error) from error


class UnreachableHubError(HubError):
    """A hub that cannot be asked at all: a plan is then made from what the registry knows."""

    @property
    def code(self) -> str:
        return HubError.__name__


def _unreachable(where: str, error: Exception) -> HubError:
    return UnreachableHubError(
        f"cannot reach {where}: {_first_line(error)}",
        hint=f"check the network, the proxy and HF_ENDPOINT and run it again (it resumes), {ELSEWHERE}",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
