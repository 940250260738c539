"""Every error that a user can meet says what to do."""

from __future__ import annotations

import ast

from helpers.tree import modules


def error_names(trees: list[ast.Module]) -> set[str]:
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and node.name != "InternalError"
    }


def test_every_raise_has_a_hint() -> None:
    """`InternalError` has its own: no user can cause it."""
    trees = {name: ast.parse(path.read_text()) for name, path in modules().items()}
    errors, bare = error_names(list(trees.values())), []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            called = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            hints = [k.value for k in node.exc.keywords if k.arg == "hint"]
            if called in errors and not any(getattr(hint, "value", True) for hint in hints):
                bare.append(f"{name}:{node.lineno}")
    assert not bare
