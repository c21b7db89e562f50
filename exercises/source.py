"""Changes a Python file as text, so that all the rest of it stays byte for byte."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from exercises.table import Change

Function = ast.FunctionDef | ast.ClassDef


def functions_of(text: str) -> Iterator[tuple[str, Function]]:
    """(name, node) of every function and class, and "Class.method" of every method."""
    for node in ast.parse(text).body:
        if isinstance(node, Function):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def lines_of(text: str, name: str) -> tuple[int, int]:
    """The lines [start, end) of a function with its decorators. Raises KeyError."""
    node = dict(functions_of(text))[name]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first - 1, node.end_lineno


def function_of(text: str, name: str) -> str:
    start, end = lines_of(text, name)
    return "".join(text.splitlines(keepends=True)[start:end])


def change(
    text: str, names: list[str], changes: tuple[Change, ...]
) -> tuple[str, tuple[Change, ...]]:
    """The text with those changes that belong to these functions, and the others.

    Raises ValueError where the old text stands more than once.
    """
    others = []
    for made in changes:
        places = [name for name in names if made.old in function_of(text, name)]
        if not places:
            others.append(made)
            continue
        function = function_of(text, places[0])
        if len(places) > 1 or function.count(made.old) > 1:
            raise ValueError(f"several places for: {made.old}")
        start, end = lines_of(text, places[0])
        lines = text.splitlines(keepends=True)
        changed = function.replace(made.old, made.new)
        text = "".join([*lines[:start], changed, *lines[end:]])
    return text, tuple(others)


def strip(text: str, name: str, message: str, docstring: str | None = None) -> str:
    """The function without its body; its docstring stays, or becomes another one."""
    lines = text.splitlines(keepends=True)
    node = dict(functions_of(text))[name]
    first = node.body[0]
    indent = " " * first.col_offset
    has_docstring = ast.get_docstring(node) is not None
    kept = lines[: first.end_lineno if has_docstring else first.lineno - 1]
    if docstring is not None and has_docstring:
        kept = lines[: first.lineno - 1] + [f'{indent}"""{docstring}"""\n']
    body = [f'{indent}raise NotImplementedError("{message}")\n']
    return "".join([*kept, *body, *lines[node.end_lineno :]])


def remove(text: str, name: str) -> str:
    """The text without this function."""
    lines = text.splitlines(keepends=True)
    start, end = lines_of(text, name)
    return "".join([*lines[:start], *lines[end:]])
