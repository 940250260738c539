"""Model repositories: what is written, that it is whole, and what is refused before anything is written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.errors import ConfigError
from ldp_serving.front.loading import ModelOptions
from ldp_serving.triton import repository
from ldp_serving.triton.repository import config, write_model
from ldp_serving.triton.settings import to_options, to_parameters

OPTIONS = ModelOptions(policy="none", allow_policy=("ld", "top-k:share=0.5+0.4"), threads=1, timeout_s=2.5, previews=0)


def test_a_model_holds_the_bundle_and_the_file_that_draws(small_bundle: Bundle, tmp_path: Path) -> None:
    folder = write_model(small_bundle, tmp_path / "models", OPTIONS, "small")
    assert folder == tmp_path / "models" / "small"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["small"]
    copied = open_bundle(folder / "1" / "bundle")
    assert copied.manifest == small_bundle.manifest
    assert copied.state == small_bundle.state
    source = Path(repository.__file__).with_name("model.py")
    assert (folder / "1" / "model.py").read_bytes() == source.read_bytes()


def test_files_of_the_bundle_are_linked(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(small_bundle.manifest.files))
    linked = write_model(small_bundle, tmp_path / "linked", OPTIONS, "small") / "1" / "bundle" / "versions"
    assert small_bundle.path(name).samefile(linked / small_bundle.manifest.version / name)

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = write_model(small_bundle, tmp_path / "copied", OPTIONS, "small")
    assert open_bundle(folder / "1" / "bundle").manifest == small_bundle.manifest


def test_settings_come_back_from_the_configuration(small_bundle: Bundle) -> None:
    text = config(small_bundle, OPTIONS)
    found = re.findall(r'key: "(\w+)" value \{ string_value: "(.*?)" \}', text)
    assert dict(found) == to_parameters(OPTIONS)
    assert to_options(dict(found), "cpu") == OPTIONS
    assert "decoupled: true" in text
    assert "KIND_CPU" in text
    assert "KIND_GPU" in config(small_bundle, ModelOptions(device="cuda"))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"polcy": "ld"}, "polcy"),
        ({"max_batch": "four"}, "max_batch"),
        ({"max_batch": "0"}, "max_batch"),
        ({"interleave": "always"}, "interleave"),
        ({"max_images": "100"}, "max-images"),
    ],
)
def test_wrong_settings_are_named(parameters: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        to_options({"EXECUTION_ENV_PATH": "/env.tar.gz", **parameters}, "cpu")


def test_a_model_is_replaced_only_if_asked(small_bundle: Bundle, tmp_path: Path) -> None:
    """Files that an operator put beside the configuration stay, as the stub of another Python."""
    folder = write_model(small_bundle, tmp_path, OPTIONS, "small")
    (folder / "triton_python_backend_stub").write_text("stub")
    with pytest.raises(ConfigError, match="already") as caught:
        write_model(small_bundle, tmp_path, OPTIONS, "small")
    assert "--overwrite" in str(caught.value.hint)
    write_model(small_bundle, tmp_path, ModelOptions(policy="ld"), "small", overwrite=True)
    assert (folder / "triton_python_backend_stub").read_text() == "stub"
    assert 'string_value: "ld"' in (folder / "config.pbtxt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "x" * 200])
def test_names_that_are_no_folders_are_refused(small_bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name"):
        write_model(small_bundle, tmp_path / "models", OPTIONS, name)
    assert not (tmp_path / "models").exists()


def test_what_is_no_model_is_never_replaced(small_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigError, match="no model of Triton"):
        write_model(small_bundle, tmp_path, OPTIONS, "small", overwrite=True)
    assert (tmp_path / "small" / "thesis.tex").exists()


def test_bundles_that_cannot_be_served_are_refused(small_bundle: Bundle, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text encoder"):
        write_model(tiny_bundle, tmp_path / "models", OPTIONS, "tiny")
    with pytest.raises(ConfigError, match="policy"):
        write_model(small_bundle, tmp_path / "models", ModelOptions(policy="no-such-policy"), "small")
    with pytest.raises(ConfigError, match="hooks"):
        write_model(small_bundle, tmp_path / "models", ModelOptions(hooks="no.such:hooks"), "small")
    assert not (tmp_path / "models").exists()
