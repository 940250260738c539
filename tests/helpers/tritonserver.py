"""A real tritonserver, from the wheel that carries its binary, and a client of it."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from helpers.ports import free_port
from helpers.waiting import HANGS

#: NumPy's types of Triton's types.
_TYPES = {"BYTES": np.object_, "UINT64": np.uint64, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_}
_KINDS = {"seed": "UINT64", "class_label": "INT64", "deadline_ms": "INT64", "n": "INT32", "partial_images": "INT32"}
_KINDS |= {"stream_scales": "BOOL", "return_trace": "BOOL", "guidance_scale": "FP64"}


def wheel() -> Path:
    """Folder of the wheel's package, which is not imported: only its binaries are used."""
    found = importlib.util.find_spec("pytriton")
    assert found is not None, "there is no tritonserver here: see `make triton-test`"
    return Path(next(iter(found.submodule_search_locations or ())))


def backends(folder: Path) -> Path:
    """Copy of the wheel's Python backend with the process of this Python's version, which the wheel keeps apart."""
    home, version = wheel() / "tritonserver", f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(home / "backends", folder / "backends")
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends" / "python")
    return folder / "backends"


class Triton:
    """A running server in explicit mode: models are loaded and unloaded by name."""

    def __init__(self, process: subprocess.Popen[bytes], ports: dict[str, int], log: Path) -> None:
        self.process, self.ports, self.log = process, ports, log

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    def client(self) -> Any:
        """A client that sends no requests for pictures."""
        import tritonclient.grpc as grpc

        return grpc.InferenceServerClient(f"127.0.0.1:{self.ports['grpc']}")

    def wait(self) -> None:
        ends = time.monotonic() + HANGS
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.log.read_text()[-6000:]
            try:
                with urllib.request.urlopen(f"{self.http}/v2/health/live"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise AssertionError("tritonserver does not start")

    def metric(self, name: str, model: str) -> float:
        """Value of a model's metric, or 0."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['metrics']}/metrics") as page:
            lines = page.read().decode().splitlines()
        values = [
            float(line.split()[-1]) for line in lines if line.startswith(name + "{") and f'model="{model}"' in line
        ]
        return sum(values)

    def stubs(self) -> list[psutil.Process]:
        """Processes that run models."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "triton_python_backend_stub" in child.name() + " ".join(child.cmdline())]


@contextmanager
def running(repository: Path, folder: Path) -> Generator[Triton]:
    """A server of a repository, which loads nothing by itself; its log lies in `folder`."""
    home = wheel() / "tritonserver"
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    libraries = [wheel().parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        # Its packages are those of the first Python.
        "PATH": os.pathsep.join((f"{sys.prefix}/bin", os.environ["PATH"])),
    }
    command = [
        home / "bin" / "tritonserver", f"--model-repository={repository}", "--model-control-mode=explicit",
        f"--backend-directory={backends(folder)}", "--allow-cpu-metrics=false", "--exit-timeout-secs=60",
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    log = folder / "tritonserver.log"
    with log.open("wb") as out:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=subprocess.STDOUT)
        triton = Triton(process, ports, log)
        try:
            triton.wait()
            yield triton
        finally:
            process.terminate()
            try:
                process.wait(timeout=120)  # it waits for clients whose streams a failed test left open
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Stream:
    """A stream of requests and responses over gRPC."""

    def __init__(self, triton: Triton, **headers: str) -> None:
        import tritonclient.grpc as grpc

        self._grpc, self.client = grpc, triton.client()
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.client.start_stream(lambda result, error: self._responses.put((result, error)), headers=headers or None)

    def ask(self, model: str, /, parameters: dict[str, Any] | None = None, request_id: str = "", **fields: Any) -> None:
        """Sends a request; texts and numbers become input tensors."""
        inputs = [self._tensor(name, value) for name, value in fields.items()]
        self.client.async_stream_infer(
            model, inputs, parameters=parameters, request_id=request_id, enable_empty_final_response=True
        )

    def next(self) -> tuple[dict[str, Any], bytes, bool]:
        """Fields and file of the next response, and whether it is the request's last.

        Raises:
            InferenceServerException: it is an error.
        """
        result, error = self._responses.get(timeout=HANGS)
        if error is not None:
            raise error
        answer = result.get_response()
        last = answer.parameters["triton_final_response"].bool_param
        fields, file = result.as_numpy("event"), result.as_numpy("image")
        return (
            ({"id": answer.id} | json.loads(fields[0]), bytes(file[0]), last) if fields is not None else ({}, b"", last)
        )

    def all(self) -> list[tuple[dict[str, Any], bytes]]:
        """Responses of the one request that runs."""
        taken = []
        while True:
            fields, file, last = self.next()
            taken += [(fields, file)] if fields else []
            if last:
                return taken

    def cancel(self) -> None:
        """Cancels all requests of the stream."""
        self.client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()

    def _tensor(self, name: str, value: Any) -> Any:
        kind = _KINDS.get(name, "BYTES")
        array = np.array([value.encode() if kind == "BYTES" else value], _TYPES.get(kind, np.float64))
        tensor = self._grpc.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(array)
        return tensor
