"""Limits on the density of the code, checked by syntax tree: `python tests/limits.py -v` in the project's root.

Exit code 1 and what falls short. Totals (lines, characters of the rooms) are printed, not judged.
"""

import ast
import glob
import os
import pathlib
import statistics
import sys

PROGRAMS = ["evaluate.py", "transcribe.py"]
SCRIPTS = sorted(set(glob.glob("*.py")) - set(PROGRAMS))
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SIMPLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise, ast.Assert, ast.Delete)
short, figures = [], []


def docstring_lines(tree):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def inside(node, kinds):
    return any(isinstance(m, kinds) for m in ast.walk(node) if m is not node)


def is_packed(node):
    tuples = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
    if not tuples or not isinstance(node.value, ast.Tuple):
        return False
    return len(node.value.elts) > 2 or len(ast.unparse(node)) > 50


def check(path):
    text = pathlib.Path(path).read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    documentation = docstring_lines(tree)
    for i, line in enumerate(lines, 1):
        if len(line) > (88 if i in documentation else 100):
            short.append(f"{path}:{i} {len(line)} columns")
    if "fmt: skip" in text or "fmt: off" in text:
        short.append(f"{path}: fmt: skip")
    if path.startswith("common/") and len(lines) > 400:
        short.append(f"{path}: {len(lines)} lines")
    nodes = []
    for node in ast.walk(tree):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.end_lineno - node.lineno + 1 > 50:
                short.append(f"{where} {node.name}: {node.end_lineno - node.lineno + 1} lines")
            a = node.args
            count = (
                len(a.posonlyargs)
                + len(a.args)
                + (0 if node.name == "__init__" else len(a.kwonlyargs))
            )
            bound = bool(a.args) and a.args[0].arg in ("self", "cls")
            if count - bound > 6:
                short.append(f"{where} {node.name}: more than 6 parameters")
        if is_packed(node):
            short.append(f"{where} packed assignment: {ast.unparse(node)[:60]}")
        if isinstance(node, COMPREHENSIONS) and (
            inside(node, COMPREHENSIONS) or len(node.generators) > 2
        ):
            short.append(f"{where} nested comprehension")
        if isinstance(node, COMPREHENSIONS) and inside(node, ast.NamedExpr):
            short.append(f"{where} walrus in a comprehension")
        if isinstance(node, ast.IfExp) and inside(node, ast.IfExp):
            short.append(f"{where} conditional expression in another")
        if isinstance(node, (ast.Lambda, ast.JoinedStr)) and node.end_lineno > node.lineno:
            short.append(f"{where} {type(node).__name__} over several lines")
        if isinstance(node, SIMPLE) and node.lineno not in documentation:
            nodes.append(sum(1 for _ in ast.walk(node)))
        if path.startswith("common/") and "/running/" not in path and "/demo/" not in path:
            names = (
                [x.name for x in node.names]
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else []
            )
            module = getattr(node, "module", None) or ""
            if any("running" in x for x in (module, *names)) and (
                module + "".join(names)
            ).startswith("common"):
                short.append(f"{where} a science room imports running")
    if path in SCRIPTS:
        config = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"]
        own = sum(isinstance(n, ast.AnnAssign) for n in config[0].body) if config else 99
        code = [x.strip() for i, x in enumerate(lines, 1) if i not in documentation and x.strip()]
        size = sum(len(x) for x in code if not x.startswith("#"))
        first = [
            n.lineno
            for n in tree.body
            if isinstance(n, ast.ClassDef) and any("Module" in ast.unparse(b) for b in n.bases)
        ]
        mean = statistics.mean(nodes)
        figures.append(
            f"{path} {len(lines)} lines, code {size} characters, {own} own options, {mean:.1f} nodes a statement, first model at {first[0] if first else '-'}"
        )
        for name, value, most in (
            ("characters of code", size, 21_000),
            ("own options", own, 25),
            ("nodes a statement", mean, 17),
        ):
            if value > most:
                short.append(f"{path}: {value:.5g} {name}, at most {most}")


for needed in ("evaluate.py", "transcribe.py", "variants", "common/running"):
    if not os.path.exists(needed):
        short.append(f"{needed} is missing")
paths = [
    p
    for pattern in ("variants/**/*.py", "common/**/*.py", "exercises/**/*.py")
    for p in sorted(glob.glob(pattern, recursive=True))
]
paths += SCRIPTS + [p for p in PROGRAMS if os.path.exists(p)]
for p in paths:
    if "common/demo/" not in p and os.path.exists(p):
        check(p)
print("\n".join(short if "-v" in sys.argv else short[:12]))
print("\n".join(figures))
print(f"{len(short)} short" if short else "all limits hold")
sys.exit(bool(short))
