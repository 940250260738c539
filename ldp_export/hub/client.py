"""Names, sizes and hashes of a hub repository's files at a revision. Every failure is a typed error."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ldp_runtime.bundle.files import hash_file
from ldp_runtime.errors import ConfigError, HubError, IntegrityError, LdpError
from ldp_runtime.system.installation import install
from ldp_runtime.system.small_files import MOST_BYTES, is_plain_file, parse_json, stays_inside

#: Bytes of a file that are hashed at a time.
_PIECE = 2**20
#: Seconds that the hub may take to answer.
_SECONDS = 30
#: Kinds of repositories of the hub, as its addresses have them.
RepositoryKind = Literal["models", "datasets"]
ELSEWHERE = "or fetch with --local-dir on a machine that reaches it, and carry the folder here"


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
    kind: RepositoryKind = "models"

    @property
    def etag(self) -> str:
        """Name of the file's content on the hub and in the cache on this machine."""
        return self.sha256 or self.blob

    @property
    def most_bytes(self) -> int:
        return self.size

    @property
    def server(self) -> str:
        return endpoint()

    @property
    def mirror(self) -> str:
        return "ask for another HF_ENDPOINT"

    @property
    def expected(self) -> str:
        return f"the listed {self.size} bytes with {'SHA-256' if self.sha256 else 'git id'} {self.etag}"

    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        kind = None if self.kind == "models" else self.kind.removesuffix("s")
        return hf_hub_url(self.repository, self.path, repo_type=kind, revision=self.commit, endpoint=endpoint())

    def headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers()

    def errors(self) -> AbstractContextManager[None]:
        return hub_errors(self.repository, self.revision)

    def is_complete(self, path: Path) -> bool:
        """True if a local file has this file's size; its hash is not looked at."""
        return is_plain_file(path) and path.stat().st_size == self.size

    def matches(self, path: Path) -> bool:
        """True if a local file has this file's size and hash; reads the whole local file."""
        if not is_plain_file(path) or path.stat().st_size != self.size:
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
            f"expected {self.expected.removeprefix('the listed ')}",
            hint=hint,
        )


def git_blob_id(path: Path) -> str:
    """Git's id of a file's content; the hub lists it for files that are not kept with LFS."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def list_repository(repository: str, revision: str, kind: RepositoryKind = "models") -> list[HubFile]:
    """All files of a repository at a revision, in one request.

    Raises:
        ConfigError: the revision cannot be the name of one.
        HubError: the hub is unreachable, access is denied, or there is no such repository or revision. Or its list is
            damaged, or names files or hashes that lead out of the folder that they are written to.
    """
    if not stays_inside(revision):
        raise ConfigError(f"{revision!r} cannot be a revision", hint="name a branch, a tag or a commit")
    hub_module()
    with hub_errors(repository, revision):
        text = _answer(f"{endpoint()}/api/{kind}/{repository}/revision/{quote(revision, safe='')}")
    try:
        listed = parse_json(text)
        commit, siblings = _hash(listed["sha"], 40), listed["siblings"]
        files = [_listed(repository, revision, commit, entry, kind) for entry in siblings]
        _check_names([file.path for file in files])
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise HubError(
            f"the list of files of {repository} at {revision} on {endpoint()} is damaged: {why}",
            hint="nothing was written; ask for another HF_ENDPOINT, or unset it",
        ) from error
    return files


def _answer(url: str) -> bytes:
    """Body of the hub's answer to a question; read no further than a list of files can be long."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    with get_session().stream(
        "GET", url, headers=build_hf_headers(), params={"blobs": "true"}, timeout=_SECONDS, follow_redirects=True
    ) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        body = b""
        for piece in response.iter_bytes(2**16):
            body += piece
            if len(body) > MOST_BYTES:
                raise HubError(f"{url} answers with more than {MOST_BYTES} bytes", hint="ask for another HF_ENDPOINT")
    return body


def _listed(repository: str, revision: str, commit: str, entry: dict[str, Any], kind: RepositoryKind) -> HubFile:
    """A file as the hub lists it; raises ValueError, KeyError or TypeError for anything odd."""
    path, lfs = entry["rfilename"], entry.get("lfs")
    if not stays_inside(path):
        raise ValueError(f"the name {str(path)[:80]!r} leads out of a folder, or is no name")
    size = _size(path, (lfs or entry)["size"])
    sha256 = None if lfs is None else _hash(lfs["sha256"], 64)
    return HubFile(repository, revision, commit, path, size, _hash(entry["blobId"], 40), sha256, kind)


def _size(path: str, size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise ValueError(f"the size of {path} is {str(size)[:40]!r}")
    return size


def _hash(text: object, digits: int) -> str:
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise ValueError(f"{str(text)[:80]!r} is no hash of {digits} digits")
    return text


def _check_names(paths: list[str]) -> None:
    """Raises ValueError for names of which a disk may hold only one: equal but for case or Unicode form, or nested."""
    seen: dict[str, str] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise ValueError(f"{seen[folded]!r} and {path!r} may be one file")
        seen[folded] = path
    folders = {parent for folded in seen for parent in _parents(folded)}
    if nested := sorted(folders & seen.keys()):
        raise ValueError(f"{seen[nested[0]]!r} is both a file and a folder")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or _client_defaults().ENDPOINT).rstrip("/")


def cache_folder() -> Path:
    """Cache of the hub's client on this machine, shared with other programs: HF_HUB_CACHE, or a folder in HF_HOME.

    Home folders and variables in them are expanded, as the client does.
    """
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if name in os.environ:
            return Path(os.path.expandvars(Path(os.environ[name]).expanduser()), below)
    return Path(_client_defaults().HF_HUB_CACHE)


def _client_defaults() -> Any:
    hub_module()
    from huggingface_hub import constants  # the package does not offer it as an attribute

    return constants


def hub_module() -> Any:
    """Imports huggingface_hub, which only fetching needs. Raises ConfigError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("fetching needs huggingface-hub", hint=install("build")) from error
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
        raise unreachable(where, error) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{where} lacks a file: {first_line(error)}", hint="try --revision main") from error
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
            f"the hub refused {where}: {first_line(error)}", hint="try again later, or set HF_TOKEN"
        ) from error
    except Exception as error:  # the HTTP library, and so its errors, depends on the client's version
        if isinstance(error, MemoryError | LdpError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise unreachable(where, error) from error


class UnreachableHubError(HubError):
    """A hub that cannot be asked at all: a plan is then made from what the registry knows."""

    @property
    def code(self) -> str:
        return HubError.__name__


def unreachable(where: str, error: Exception) -> HubError:
    return UnreachableHubError(
        f"cannot reach {where}: {first_line(error)}",
        hint=f"check the network, the proxy and HF_ENDPOINT and run it again (it resumes), {ELSEWHERE}",
    )


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
