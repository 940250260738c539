"""Files to deploy with: options, extras, files and addresses that they name are there; other programs accept them."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from helpers.tree import ROOT
from ldp_serving.front.app import create_app
from ldp_serving.front.run import ServeOptions
from ldp_serving.front.service import Service

from ldp_export.cli.serve import command as serve

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
TRY = runpy.run_path(str(DEPLOY / "docker" / "try_in_chroot.py"))
UNIT = DEPLOY / "systemd/ldp-export.service"
#: Versions of Kubernetes, the oldest and the newest that the example is checked for.
KUBERNETES = ("1.30", "1.34")
#: Seconds that the last answers may take after --drain.
LAST = 10


def instructions(file: Path) -> list[tuple[str, str]]:
    return list(TRY["instructions"](file))


def values(file: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(file) if name == word]


def environment(file: Path) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(values(file, "ENV"))))


def option(name: str) -> click.Parameter:
    return next(p for p in serve.params if p.name == name)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Values of serve's options; an option that is not there is an error."""
    return serve.make_context("serve", list(arguments)).params


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfiles:
    def test_the_process_has_no_rights(self, file: Path) -> None:
        *_, user = values(file, "USER")
        assert int(user.partition(":")[0]) > 0
        last = [name for name, _ in instructions(file)]
        assert last.index("USER") > max(i for i, name in enumerate(last) if name in ("RUN", "COPY"))

    def test_bases_are_pinned_by_tag(self, file: Path) -> None:
        bases = {base.split(" ")[0] for base in values(file, "FROM")}
        default = dict(value.partition("=")[::2] for value in values(file, "ARG"))["BASE"]
        assert bases == {"$BASE"}
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\S*", default)

    def test_what_it_copies_is_there_and_sent(self, file: Path) -> None:
        """The context leaves everything out but what is copied, and what is built is all of the distribution."""
        copied = {name for rest in values(file, "COPY") if "--from" not in rest for name in rest.split()[:-1]}
        assert all((ROOT / name).exists() for name in copied)
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        assert copied == sent
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        needed = [project["project"]["readme"], *project["project"]["license-files"], *wheel]
        assert all(any(Path(name).is_relative_to(part) for part in copied) for name in needed)

    def test_extras_are_there(self, file: Path) -> None:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = dict(value.partition("=")[::2] for value in values(file, "ARG"))["EXTRAS"].split(",")
        named += re.findall(r"[\w-]+", " ".join(re.findall(r"EXTRAS=([\w,-]+)", file.read_text())))
        assert set(named) <= set(extras)
        assert "serve" in named

    def test_settings_are_options(self, file: Path) -> None:
        variables = environment(file)
        settings = {name.removeprefix("LDP_").lower() for name in variables if name.startswith("LDP_")}
        assert {"host", "port", "api_key_file"} <= settings <= {p.name for p in serve.params}
        assert variables["ORT_DISABLE_TELEMETRY"] == "1"
        assert values(file, "EXPOSE") == [variables["LDP_PORT"]]
        program, verb, *rest = [
            word for name in ("ENTRYPOINT", "CMD") for rest in values(file, name)[-1:] for word in json.loads(rest)
        ]
        assert (Path(program).name, verb) == ("ldp-export", "serve")
        assert parsed(rest)["bundles"] == (Path("/bundle"),)

    def test_the_health_check_asks_what_is_there(self, file: Path) -> None:
        (check,) = values(file, "HEALTHCHECK")
        program, flag, code = json.loads(check[check.index("[") :])
        assert (Path(program).name, flag) == ("python", "-c")
        compile(code, "healthcheck", "exec")
        (path,) = re.findall(r"\]\}(/\w+)", code)
        assert path in addresses()

    def test_both_are_installed_alike(self, file: Path) -> None:
        steps = [(name, rest) for name, rest in instructions(file) if name in ("RUN", "COPY", "WORKDIR", "USER")]
        assert steps == [
            (name, rest) for name, rest in instructions(DOCKERFILES[0]) if name in ("RUN", "COPY", "WORKDIR", "USER")
        ]

    def test_the_script_knows_every_instruction(self, file: Path) -> None:
        known = set(re.findall(r'"([A-Z]{3,})"', inspect.getsource(TRY["follow"]) + inspect.getsource(TRY["step"])))
        assert {name for name, _ in instructions(file)} <= known


def addresses() -> set[str]:
    """Paths that the server answers."""
    return {getattr(route, "path", "") for route in create_app(Service()).routes}


def kubernetes() -> dict[str, dict[str, Any]]:
    """Objects of the example, by their kind."""
    text = (DEPLOY / "kubernetes/ldp-export.yaml").read_text()
    return {entry["kind"]: entry for entry in yaml.safe_load_all(text)}


class TestKubernetes:
    @pytest.mark.parametrize("version", KUBERNETES)
    @pytest.mark.parametrize("kind", kubernetes())
    def test_the_schemas_accept_it(self, kind: str, version: str) -> None:
        kubernetes_validate.validate(kubernetes()[kind], version, strict=True)

    def test_the_schemas_would_find_what_is_wrong(self) -> None:
        wrong = kubernetes()["Deployment"]
        wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)

    @pytest.fixture
    def pod(self) -> dict[str, Any]:
        return kubernetes()["Deployment"]["spec"]["template"]["spec"]

    @pytest.fixture
    def container(self, pod: dict[str, Any]) -> dict[str, Any]:
        (only,) = pod["containers"]
        return only

    def test_labels_meet(self) -> None:
        objects = kubernetes()
        labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert objects["Service"]["spec"]["selector"] == labels
        assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels

    def test_probes_ask_what_is_there(self, container: dict[str, Any]) -> None:
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
        assert set(paths.values()) <= addresses()
        (port,) = container["ports"]
        assert {container[f"{name}Probe"]["httpGet"]["port"] for name in paths} == {port["name"]}
        assert str(port["containerPort"]) == environment(DEPLOY / "docker/cpu.Dockerfile")["LDP_PORT"]

    def test_it_has_time_to_drain(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        options = parsed(container["args"])
        program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        assert pod["terminationGracePeriodSeconds"] >= int(seconds) + options["drain"] + LAST
        probe = container["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] <= int(seconds)

    def test_its_options_can_be(self, container: dict[str, Any]) -> None:
        options = parsed(container["args"])
        names = {entry["name"].removeprefix("LDP_").lower() for entry in container["env"]}
        assert names <= {p.name for p in serve.params}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        (keys,) = [entry["value"] for entry in container["env"] if entry["name"] == "LDP_API_KEY_FILE"]
        assert str(Path(keys).parent) in mounts
        assert {str(path) for path in options["bundles"]} <= mounts
        ServeOptions(options["bundles"], host="0.0.0.0", api_key_file=Path(keys), drain_s=options["drain"])

    def test_it_has_no_rights(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        security = container["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        (user,) = {str(pod["securityContext"][name]) for name in ("runAsUser", "runAsGroup", "fsGroup")}
        assert values(DEPLOY / "docker/cpu.Dockerfile", "USER") == [f"{user}:{user}"]
        writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert [volume for volume in pod["volumes"] if volume["name"] in writable and "emptyDir" not in volume] == []

    def test_keys_come_from_a_secret(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert "secret" in volumes["keys"]
        assert volumes["keys"]["secret"]["defaultMode"] & 0o007 == 0
        assert "Secret" not in kubernetes()
        assert set(container["resources"]) == {"requests", "limits"}


class TestUnit:
    def unit(self) -> dict[str, str]:
        return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))

    def test_systemd_accepts_it(self, tmp_path: Path) -> None:
        """Its program must be there to be checked: this environment's stands for it."""
        program = shutil.which("systemd-analyze")
        assert program is not None, "this test asks systemd: apt-get install systemd"
        copied = tmp_path / UNIT.name
        text = UNIT.read_text()
        for wrong in (False, True):
            ours = text.replace("/opt/ldp-export/bin/ldp-export", sys.executable)
            copied.write_text(ours.replace("ProtectSystem=", "ProtectSystems=") if wrong else ours)
            done = subprocess.run([program, "verify", "--man=no", copied], capture_output=True, text=True)
            said = [line for line in done.stderr.splitlines() if UNIT.name in line]
            assert bool(said) == wrong, done.stderr

    def test_its_options_can_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program, verb, *arguments = self.unit()["ExecStart"].split()
        assert (Path(program).name, verb) == ("ldp-export", "serve")
        config = tmp_path / "serve.toml"
        config.write_text('bundles = ["/srv/shapes"]')
        options = parsed([str(config) if word.endswith(".toml") else word for word in arguments])
        assert options["drain"] + LAST <= int(self.unit()["TimeoutStopSec"])
        credential, _, _ = self.unit()["LoadCredential"].partition(":")
        assert options["api_key_file"] == Path(f"%d/{credential}")

    def test_it_has_few_rights(self) -> None:
        """What systemd itself says of it, on its scale from 0 to 10."""
        program = shutil.which("systemd-analyze")
        assert program is not None, "this test asks systemd: apt-get install systemd"
        done = subprocess.run(
            [program, "security", "--offline=yes", "--threshold=20", UNIT], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:]
