"""The rules of the house: who imports whom, and where a model is trained."""

import ast
import re
from graphlib import TopologicalSorter

from conftest import REPOSITORY

SCRIPTS = sorted(REPOSITORY.glob("*.py"))
COMMON = sorted((REPOSITORY / "common").rglob("*.py"))


def tree_of(path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path) -> set[str]:
    nodes = list(ast.walk(tree_of(path)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_scripts_stand_alone():
    names = {path.stem for path in SCRIPTS}
    assert len(names) >= 3
    for path in [*SCRIPTS, *COMMON]:
        assert not imported(path) & names, path.name


def test_imports_run_in_no_circle():
    """Between the files of common/, of which demo/ is one; wherever in a file an import stands."""
    graph: dict[str, set[str]] = {}
    for path in COMMON:
        here = "demo" if path.parent.name == "demo" else path.stem
        nodes = list(ast.walk(tree_of(path)))
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        names = {n.module.split(".")[1] for n in froms if n.module.startswith("common.")}
        names |= {alias.name for n in froms if n.module == "common" for alias in n.names}
        graph.setdefault(here, set()).update(names - {here})
    assert len(graph) > 15 and sum(map(len, graph.values())) > 30
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_models_are_trained_in_scripts_only():
    """And in the demo world, which makes its pretrained models itself. No common code takes a loss."""
    for path in COMMON:
        if path.parent.name == "demo":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                assert not ast.unparse(node.func).endswith((".backward", "optimizer.step")), path.name
    for path in SCRIPTS:
        text = path.read_text()
        assert text.count("loss.backward()") == text.count("optimizer.step()") == 1, path.name


def test_the_command_line_imports_nothing_heavy():
    heavy = {"torch", "numpy", "transformers", "soundfile", "torchaudio", "common"}
    assert not {name.split(".")[0] for name in imported(REPOSITORY / "common" / "flags.py")} & heavy


def test_scripts_have_the_same_sections():
    expected = ["configuration", "model", "loss", "teacher", "train", "figures", "main"]
    for path in SCRIPTS:
        assert re.findall(r"^# =+ (.*)$", path.read_text(), re.M) == expected, path.name
        headings = re.findall(r"^(\w.*)\n-+$", ast.get_docstring(tree_of(path)), re.M)
        found = [re.split(r" \(", heading)[0] for heading in headings]
        assert found == ["Idea", "Diagram", "Equations", "Sources", "Choices", "Metrics", "Run"], path.name
