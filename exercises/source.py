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


def change(text: str, names: list[str], changes: tuple[Change, ...]) -> str:
    """Makes each change in one of these functions, where its old text stands once."""
    for old, new, says in changes:
        made = 0
        for name in names:
            lines = text.splitlines(keepends=True)
            start, end = lines_of(text, name)
            function = "".join(lines[start:end])
            if old in function:
                made += function.count(old)
                text = "".join([*lines[:start], function.replace(old, new), *lines[end:]])
        if made != 1:
            raise ValueError(f"{made} places instead of one for: {says}")
    return text


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
