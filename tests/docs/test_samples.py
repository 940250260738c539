"""Python that pages show: it compiles, what it imports is there, and what draws runs."""

from __future__ import annotations

import ast
import importlib
import runpy
from pathlib import Path

import pytest
from helpers.markdown import code_blocks, pages
from helpers.tree import ROOT
from ldp_runtime.bundle.files import Bundle

SAMPLES = {
    f"{page.relative_to(ROOT)}-{i}": block.text
    for page in pages()
    if "reference" not in page.parts
    for i, block in enumerate(block for block in code_blocks(page) if block.language == "python")
}
DRAWING = {name: text for name, text in SAMPLES.items() if "Pipeline.load" in text}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_what_a_sample_imports_is_there(sample: str) -> None:
    for node in ast.walk(ast.parse(sample)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("sample", DRAWING.values(), ids=DRAWING)
def test_a_sample_draws(
    sample: str,
    small_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bundles").mkdir()
    assert small_bundle.root is not None
    (tmp_path / "bundles" / "shapes").symlink_to(small_bundle.root)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.py").write_text(sample)
    runpy.run_path("sample.py", run_name="__main__")
    assert capsys.readouterr().out


def test_the_readmes_sample_is_among_them() -> None:
    assert "README.md-0" in DRAWING
    assert 'policy="ld"' in DRAWING["README.md-0"]
