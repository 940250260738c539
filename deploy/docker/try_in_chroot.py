"""Follows a Dockerfile's steps in trees made by debootstrap, and serves a bundle from the last one.

For machines that cannot build images. Run as root on Debian, from the repository's root; trees stay under --output:

    python deploy/docker/try_in_chroot.py deploy/docker/cpu.Dockerfile --bundle bundles/shapes --output /var/tmp/tried

Each stage is a tree: FROM, ARG, ENV, WORKDIR, COPY, RUN and USER are followed as they stand in the file. Then the
ENTRYPOINT runs as USER, with the tree and the bundle read-only, and /ready, the HEALTHCHECK, a picture and SIGTERM are
tried.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "0123456789abcdef0123"


@dataclass
class Stage:
    """One stage: its tree, and what its steps have set so far."""

    tree: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    folder: str = "/"
    user: str = "0:0"
    command: dict[str, Any] = field(default_factory=dict)

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["chroot", f"--userspec={self.user}", self.tree, *command], env=self.env, **options)


def instructions(file: Path) -> Iterator[tuple[str, str]]:
    """Instructions of a Dockerfile: the word and the rest; lines that end in a backslash go on."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def follow(file: Path, arguments: argparse.Namespace) -> Stage:
    """Follows all steps; returns the last stage."""
    given = dict(pair.partition("=")[::2] for pair in arguments.build_arg)
    stages: dict[str, Stage] = {}
    stage, above = None, dict[str, str]()
    for word, rest in instructions(file):
        print(f"--- {word} {rest[:100]}", flush=True)
        if word == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "last"
            stage = stages[name] = Stage(arguments.output / name)
            new_tree(stage.tree, arguments)
        elif word == "ARG" and stage is None:
            above.update([rest.partition("=")[::2]])
        elif stage is None:
            raise SystemExit(f"{word} before FROM")
        elif word == "ARG":
            key, _, default = rest.partition("=")
            stage.env[key] = given.get(key, default)
        else:
            step(stage, word, rest, stages)
    assert stage is not None
    return stage


def new_tree(tree: Path, arguments: argparse.Namespace) -> None:
    """A tree of the distribution's least packages, with this machine's ways to the network."""
    suite = ["debootstrap", "--variant=minbase", arguments.suite, str(tree)]
    subprocess.run([*suite, *([arguments.mirror] if arguments.mirror else [])], check=True, stdout=subprocess.DEVNULL)
    for path in map(Path, ["/etc/resolv.conf", "/etc/hosts", *arguments.lend]):
        place = tree / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def step(stage: Stage, word: str, rest: str, stages: dict[str, Stage]) -> None:
    """One step inside a stage."""
    if word == "RUN":
        stage.run(["/bin/sh", "-c", f"cd {stage.folder} && {rest}"], check=True)
    elif word == "ENV":
        stage.env |= dict(pair.partition("=")[::2] for pair in shlex.split(rest))
    elif word == "WORKDIR":
        stage.folder = rest
        (stage.tree / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif word == "USER":
        stage.user = rest
    elif word == "COPY":
        copy(stage, rest.split(), stages)
    elif word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        stage.command[word] = json.loads(rest[rest.index("[") :])
    elif word not in ("EXPOSE", "STOPSIGNAL"):
        raise SystemExit(f"{word} is not known to this script")


def copy(stage: Stage, words: list[str], stages: dict[str, Stage]) -> None:
    """Files of the repository, or of an earlier stage."""
    origin = Path.cwd()
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")].tree
    *sources, target = words
    place = stage.tree / os.path.normpath(f"{stage.folder}/{target}" if target[0] != "/" else target).lstrip("/")
    for source in sources:
        found = origin / source.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(found, place / found.name if place.is_dir() else place)


def serve(stage: Stage, bundle: Path) -> None:
    """Serves from the tree, read-only but for /tmp, and tries what an orchestrator and a client do."""
    for place in ("bundle", "run/secrets", "tmp", "proc"):
        (stage.tree / place).mkdir(parents=True, exist_ok=True)
    keys = stage.tree / stage.env["LDP_API_KEY_FILE"].lstrip("/")
    keys.write_text(f"one {KEY}\n")
    tree = shlex.quote(str(stage.tree))
    mounts = [
        f"mount --bind {tree} {tree}",
        f"mount --bind {shlex.quote(str(bundle.resolve()))} {tree}/bundle",
        f"mount -o remount,bind,ro {tree}/bundle",
        f"mount -o remount,bind,ro {tree}",
        f"mount -t tmpfs tmpfs {tree}/tmp && mount -t proc proc {tree}/proc && mount --rbind /dev {tree}/dev",
    ]
    command = [*stage.command["ENTRYPOINT"], *stage.command["CMD"]]
    inside = f"exec chroot --userspec={stage.user} {tree} {shlex.join(command)}"
    server = subprocess.Popen(["unshare", "--mount", "/bin/sh", "-ec", "\n".join([*mounts, inside])], env=stage.env)
    try:
        tried(stage, server)
    finally:
        server.kill()


def tried(stage: Stage, server: subprocess.Popen[bytes]) -> None:
    address = f"http://127.0.0.1:{stage.env['LDP_PORT']}"
    while status(f"{address}/ready") != 200:
        assert server.poll() is None, "the server ended"
        time.sleep(0.5)
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    print(f"ready, as user {owner}")
    assert owner == int(stage.user.partition(":")[0])
    stage.run(stage.command["HEALTHCHECK"], check=True)
    assert status(f"{address}/v1/models") == 401
    body = json.dumps({"prompt": "a red circle", "seed": 1}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/images/generations", body, headers)) as answer:
        picture = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
    place = stage.tree.parent / "picture.png"
    place.write_bytes(picture)
    print(f"drew {place}")
    server.send_signal(signal.SIGTERM)
    print(f"ended with status {server.wait(timeout=60)} after SIGTERM")
    assert server.returncode == 0


def status(url: str) -> int:
    """Status of an answer; 0 without one."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the trees")
    parser.add_argument("--suite", default="bookworm", help="of the base image")
    parser.add_argument("--mirror", help="of Debian's packages")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--lend", action="append", default=[], help="a file of this machine that the trees need too")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes trees and changes into them")
    arguments.output.mkdir(parents=True)
    serve(follow(arguments.dockerfile, arguments), arguments.bundle)


if __name__ == "__main__":
    main()
