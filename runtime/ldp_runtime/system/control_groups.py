"""Limits of the Linux control groups that this process is in: memory and processor time, of versions 1 and 2.

A container, a service with limits, or a job of a cluster is such a group, often inside others: each of them limits it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: Folder in which the system describes this process.
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy of groups: its version, its controllers, and the group that it shows at its root."""

    version: int
    controllers: frozenset[str]
    root: str
    folder: Path


def memory_left(process: Path = PROCESS) -> float:
    """Bytes that this process may still take; infinity if no group limits it.

    Args:
        process: folder that describes the process, as `/proc/self`.
    """
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }
    left = math.inf
    for version, folder in _groups("memory", process):
        limit, used, prefix = names[version]
        try:
            spare = int(_read(folder / limit)) - int(_read(folder / used))
        except (OSError, ValueError):  # no limit, which version 2 writes as the word "max"
            continue
        left = min(left, spare + _cached(folder / "memory.stat", prefix))
    return left


def _cached(statistics: Path, prefix: str) -> int:
    """Bytes of cached pages of files: they count as used, but are freed on demand."""
    try:
        counts = dict(line.split() for line in _read(statistics).splitlines())
        return sum(int(counts[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    except (OSError, ValueError, KeyError):
        return 0


def cpu_quota(process: Path = PROCESS) -> float:
    """Processors' worth of time that this process gets; infinity if no group limits it."""
    return min((_quota(version, folder) for version, folder in _groups("cpu", process)), default=math.inf)


def _quota(version: int, folder: Path) -> float:
    try:
        if version == 2:
            quota, period = _read(folder / "cpu.max").split()
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        count = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit, which version 2 writes as the word "max"
        return math.inf
    return count if count > 0 else math.inf  # version 1 writes -1 for no limit


def _groups(controller: str, process: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group that a controller's limits of this process are in, from the inside out."""
    mounts = _mounts(process)
    for line in _lines(process / "cgroup"):
        _, _, rest = line.partition(":")
        named, _, path = rest.partition(":")
        for mount in mounts:
            ours = mount.version == 2 if not named else mount.version == 1 and controller in named.split(",")
            if ours and (mount.version == 2 or controller in mount.controllers):
                yield from ((mount.version, folder) for folder in _upwards(mount, path))


def _upwards(mount: _Mount, path: str) -> Iterator[Path]:
    """Folders of a group and of all groups around it, as far as they are shown."""
    group = PurePosixPath(path)
    inside = PurePosixPath("/")
    if ".." not in group.parts and group.is_relative_to(mount.root):
        inside = "/" / group.relative_to(mount.root)
    for part in (inside, *inside.parents):
        folder = mount.folder / part.relative_to("/")
        if folder.is_dir():
            yield folder


def _mounts(process: Path) -> list[_Mount]:
    """Mounted hierarchies of groups, as the system lists them."""
    found: list[_Mount] = []
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        folder = Path(fields[4].replace("\\040", " "))
        found.append(_Mount(version, frozenset(kinds[-1].split(",")), fields[3], folder))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return _read(path).splitlines()
    except OSError:  # another system
        return []


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip()
