"""Files of repositories on GitHub at a commit, whose content is known by a hash in advance."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from ldp_calibration.evaluation.benchmarks.published import MOST_BYTES, PublishedFile
from ldp_runtime.errors import ConfigError, HubError, LdpError
from ldp_runtime.system.small_files import is_plain_file

from ldp_export.hub.client import UnreachableHubError, first_line, hub_module

#: Server of the files of GitHub's repositories.
GITHUB = "https://raw.githubusercontent.com"


def check_server(url: str) -> str:
    """The address of a server. Raises ConfigError if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ConfigError(f"--github-mirror is no address of a server: {url!r}", hint=f"such as {GITHUB}")
    return url


@dataclass(frozen=True)
class RawFile:
    """A published file as GitHub, or a mirror of it, serves it; see `RemoteFile`."""

    published: PublishedFile
    server: str = GITHUB

    @property
    def repository(self) -> str:
        return self.published.repository

    @property
    def path(self) -> str:
        return self.published.path

    @property
    def size(self) -> int | None:
        return None

    @property
    def most_bytes(self) -> int:
        return MOST_BYTES

    @property
    def mirror(self) -> str:
        return "name another --github-mirror, or none"

    @property
    def expected(self) -> str:
        known = self.published.sha256
        return f"the published ones with {f'SHA-256 {known}' if known else f'git id {self.published.git_id}'}"

    def url(self) -> str:
        return f"{self.server.rstrip('/')}/{self.repository}/{self.published.revision}/{quote(self.path)}"

    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"}  # else a part that is asked for is a part of something compressed

    def matches(self, path: Path) -> bool:
        if not is_plain_file(path) or path.stat().st_size > MOST_BYTES:
            return False
        return self.published.is_content(path.read_bytes())

    def is_complete(self, path: Path) -> bool:
        return self.matches(path)

    def errors(self) -> AbstractContextManager[None]:
        return raw_errors(self)


class Addressed(Protocol):
    """A file at a server's address, for messages; see `RemoteFile`."""

    @property
    def repository(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def server(self) -> str: ...
    @property
    def mirror(self) -> str: ...


@contextmanager
def raw_errors(file: Addressed) -> Generator[None]:
    """Turns the client's error types into HubError."""
    hub_module()
    from huggingface_hub import errors

    where = f"{file.path} of {file.repository} on {file.server}"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UnreachableHubError(
            f"HF_HUB_OFFLINE forbids to ask for {where}", hint="unset it, or carry the folder here from elsewhere"
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubError(
            f"{file.server} refused {where}: {first_line(error)}", hint=f"try again later, or {file.mirror}"
        ) from error
    except Exception as error:  # the HTTP library, and so its errors, depends on the client's version
        if isinstance(error, MemoryError | LdpError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise UnreachableHubError(
            f"cannot reach {where}: {first_line(error)}",
            hint="check the network and the proxy and run it again (it resumes), or fetch on another machine with "
            "--local-dir and carry the folder here",
        ) from error
