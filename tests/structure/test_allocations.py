"""Allocations of the runtime: each names its type and its device, since a process may change PyTorch's defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ldp_runtime

#: Functions of PyTorch that make a tensor of the default type, or on the default device, unless told otherwise.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch":
                yield node.func.attr, node


def is_told(name: str, call: ast.Call) -> bool:
    named = {keyword.arg for keyword in call.keywords}
    if name == "Generator":
        return bool(call.args) or "device" in named
    return name not in FACTORIES or None in named or {"dtype", "device"} <= named  # None: **options, named where made


def test_each_names_its_type_and_device() -> None:
    files = sorted(Path(ldp_runtime.__file__).parent.rglob("*.py"))
    untold = [
        f"{path.name}:{call.lineno} torch.{name}"
        for path in files
        for name, call in calls(path)
        if not is_told(name, call)
    ]
    assert len(files) > 50
    assert not untold
