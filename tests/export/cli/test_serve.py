"""The verb `serve` as a process: options, environment and TOML file; readiness; SIGTERM; how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError

from ldp_export.cli import main


def root(bundle: Bundle) -> Path:
    assert bundle.root is not None
    return bundle.root


@contextmanager
def serving(*arguments: str | Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that is ready, and its address."""
    command = [sys.executable, "-m", "ldp_export", "serve", *map(str, arguments)]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | environment | {"PYTHONPATH": path}
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"ready on (http://\S+)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("the server ended before it was ready")
    finally:
        process.kill()
        process.wait(timeout=60)
        process.stderr.close()


def ask(url: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
    raw = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, raw, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_server_from_its_file_to_its_end(small_bundle: Bundle, tmp_path: Path) -> None:
    """The command line wins over the environment, which wins over the file; SIGTERM ends with status 0."""
    config = tmp_path / "serve.toml"
    lines = [f"bundles = [{json.dumps(str(root(small_bundle)))}]", "max-images = 3", "max_queue = 5", "previews = 6"]
    config.write_text("\n".join([*lines, 'policy = "none"', 'allow_policy = ["ld"]', "port = 1", "page = false"]))
    with serving("--config", config, "--port", "0", LDP_MAX_IMAGES="2", LDP_THREADS="1") as (process, url):
        assert ask(f"{url}/ready")[0] == 200
        assert ask(f"{url}/")[0] == 404
        status, raw = ask(f"{url}/v1/images/generations", {"prompt": "blue xyzzy", "n": 2, "return_trace": True})
        assert status == 200
        answer = json.loads(raw)
        assert [entry["trace"]["policy"] for entry in answer["data"]] == ["none", "none"]
        status, raw = ask(f"{url}/v1/images/generations", {"prompt": "blue", "n": 3})
        assert (status, json.loads(raw)["error"]["param"]) == (400, "n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert (
            "xyzzy" not in process.stderr.read()
        )  # a prompt is in no log, also where the model does not know its words


def test_sigterm_while_loading(small_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "ldp_export", "serve", str(root(small_bundle)), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [*command, "--previews", "4000"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["serve", *map(str, arguments)])
    assert result.exit_code == ConfigError.exit_code
    return result.output


def test_what_cannot_be_served(small_bundle: Bundle, tmp_path: Path) -> None:
    assert "nothing to serve" in refused()
    assert "can be reached from other machines" in refused(root(small_bundle), "--host", "0.0.0.0")
    assert "two bundles are of the same model" in refused(root(small_bundle), root(small_bundle))
    assert "cannot read the keys" in refused(root(small_bundle), "--api-key-file", tmp_path / "none")
    assert "cannot load the hooks" in refused(root(small_bundle), "--hooks", "nowhere:x")
    assert "are for --ray" in refused(root(small_bundle), "--replicas", "2")
    assert "--replicas must be" in refused(root(small_bundle), "--ray", "--replicas", "0")
    assert "--max-replicas must be" in refused(root(small_bundle), "--ray", "--replicas", "2", "--max-replicas", "1")
    assert "unknown policy" in refused(root(small_bundle), "--ray", "--policy", "nowhere")
    config = tmp_path / "serve.toml"
    for text, message in (("prot = 1", "unknown options: prot"), ("= 1", "cannot read")):
        config.write_text(text)
        assert message in refused("--config", config)


def test_a_policy_that_is_not_there_ends_the_server(small_bundle: Bundle) -> None:
    assert "unknown policy" in refused(root(small_bundle), "--port", "0", "--policy", "nowhere")


@pytest.mark.parametrize("port", ["-1", "70000", "x"])
def test_ports(port: str) -> None:
    assert CliRunner().invoke(main, ["serve", "x", "--port", port]).exit_code == 2
