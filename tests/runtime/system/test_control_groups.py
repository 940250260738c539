"""Limits of control groups, nested and of both versions, as the system's own files describe them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ldp_runtime.engines import hardware
from ldp_runtime.system import control_groups
from ldp_runtime.system.control_groups import cpu_quota, memory_left

MB = 2**20


class Machine:
    """Files of a machine's control groups, and of a process in one of them."""

    def __init__(self, place: Path) -> None:
        self.process, self.mounts, self.groups = place / "proc", place / "groups", []
        self.process.mkdir()
        self._mounted: list[str] = []

    def mount(self, version: int, controllers: str = "rw", root: str = "/") -> Path:
        folder = self.mounts / (f"v1 {controllers}" if version == 1 else "v2")
        folder.mkdir(parents=True)
        kind = "cgroup" if version == 1 else "cgroup2"
        path = str(folder).replace(" ", "\\040")
        self._mounted.append(f"30 23 0:26 {root} {path} rw,nosuid - {kind} {kind} rw,{controllers}")
        (self.process / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + "\n".join(self._mounted))
        return folder

    def belongs(self, *lines: str) -> None:
        (self.process / "cgroup").write_text("\n".join(lines) + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def memory_2(folder: Path, limit: str, used: int, cached: int = 0) -> None:
    stat = f"anon 5\ninactive_file {cached}\nactive_file 0"
    write(folder, memory__max=limit, memory__current=str(used), memory__stat=stat)


def test_a_nested_group_of_version_2(machine: Machine) -> None:
    """As systemd's MemoryMax: the limit is the service's, not the root's."""
    root = machine.mount(2)
    machine.belongs("0::/system.slice/draw.service")
    memory_2(root / "system.slice", "max", 900 * MB)
    memory_2(root / "system.slice/draw.service", str(500 * MB), 450 * MB, cached=100 * MB)
    assert memory_left(machine.process) == 150 * MB


def test_the_tightest_of_all_groups_around_counts(machine: Machine) -> None:
    root = machine.mount(2)
    machine.belongs("0::/slice/unit")
    memory_2(root / "slice", str(300 * MB), 200 * MB)
    memory_2(root / "slice/unit", str(800 * MB), 200 * MB)
    assert memory_left(machine.process) == 100 * MB
    write(root / "slice", cpu__max="150000 100000")
    write(root / "slice/unit", cpu__max="max 100000")
    assert cpu_quota(machine.process) == 1.5


def test_groups_of_version_1(machine: Machine) -> None:
    memory, cpu = machine.mount(1, "memory"), machine.mount(1, "cpu,cpuacct")
    machine.belongs("9:memory:/docker/7", "4:cpu,cpuacct:/docker/7", "1:name=systemd:/docker/7", "0::/")
    write(memory, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="9")
    write(
        memory / "docker/7",
        memory__limit_in_bytes=str(400 * MB),
        memory__usage_in_bytes=str(390 * MB),
        memory__stat=f"inactive_file 1\ntotal_inactive_file {20 * MB}\ntotal_active_file {10 * MB}",
    )
    write(cpu, **{"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    write(cpu / "docker/7", **{"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"})
    assert memory_left(machine.process) == 40 * MB
    assert cpu_quota(machine.process) == 2.5


def test_a_container_that_sees_only_its_own_group(machine: Machine) -> None:
    """Its path is one of the host, which is mounted at that very group."""
    memory = machine.mount(1, "memory", root="/docker/7")
    machine.belongs("9:memory:/docker/7/inner")
    write(memory, memory__limit_in_bytes=str(100 * MB), memory__usage_in_bytes="0")
    assert memory_left(machine.process) == 100 * MB
    machine.belongs("9:memory:/../elsewhere")
    assert memory_left(machine.process) == 100 * MB


def test_no_limit(machine: Machine, tmp_path: Path) -> None:
    assert memory_left(tmp_path / "absent") == cpu_quota(tmp_path / "absent") == math.inf
    root = machine.mount(2)
    machine.belongs("0::/", "nonsense", "")
    assert memory_left(machine.process) == cpu_quota(machine.process) == math.inf
    memory_2(root, "not a number", 3)
    write(root, cpu__max="0 0")
    assert memory_left(machine.process) == cpu_quota(machine.process) == math.inf


class TestProcessors:
    @pytest.mark.parametrize(("quota", "usable"), [(0.3, 1), (1.0, 1), (1.9, 1), (math.inf, None), (10_000.0, None)])
    def test_no_more_than_the_quota(self, monkeypatch: pytest.MonkeyPatch, quota: float, usable: int | None) -> None:
        monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert hardware.usable_cpus() == (allowed if usable is None else usable)
        assert 1 <= hardware.default_threads() <= hardware.usable_cpus()

    def test_engines_run_where_this_process_may(self) -> None:
        """Bound to one processor, an engine starts no further thread and leaves the mask alone."""
        code = (
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
            "from ldp_runtime.engines.onnxruntime import _session_options, import_onnxruntime; import torch;"
            "options = _session_options(import_onnxruntime(), torch.device('cpu'), None);"
            "from ldp_runtime.engines.torch_compiled.threads import default_torch_threads;"
            "print(options.intra_op_num_threads, default_torch_threads())"
        )
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert made.stdout.split() == ["1", "1"]

    def test_this_machine(self) -> None:
        assert control_groups.memory_left() > 0
        assert control_groups.cpu_quota() > 0
