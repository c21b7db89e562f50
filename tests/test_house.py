"""The rules of the house: who imports whom, and where a model is trained."""

import ast
import re
from graphlib import TopologicalSorter

from conftest import REPOSITORY

PROGRAMS = sorted(REPOSITORY.glob("*.py"))
SCRIPTS = [path for path in PROGRAMS if path.stem not in ("evaluate", "transcribe")]
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


def rooms_imported(path) -> set[str]:
    """Modules of common/ that a file imports, as `features` or `running.batches`; demo/ is one."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("common"):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module not in ("common", "common.running"):
                found = [node.module]
            names |= {name.removeprefix("common.") for name in found}
    return {"demo" if name.startswith("demo") else name for name in names}


def room(path) -> str:
    name = ".".join(path.relative_to(REPOSITORY / "common").with_suffix("").parts)
    return "demo" if name.startswith("demo") else name


def test_imports_run_in_no_circle():
    """Between the files of common/, of which demo/ is one; wherever in a file an import stands."""
    graph: dict[str, set[str]] = {}
    for path in COMMON:
        here = room(path)
        graph.setdefault(here, set()).update(rooms_imported(path) - {here})
    assert len(graph) > 15 and sum(map(len, graph.values())) > 30
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_models_are_trained_in_scripts_only():
    """And in the demo world, which makes its pretrained models itself. No common code takes a loss."""
    for path in COMMON:
        if path.parent.name == "demo":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                assert not ast.unparse(node.func).endswith((".backward", "optimizer.step")), (
                    path.name
                )
    for path in SCRIPTS:
        text = path.read_text()
        assert text.count("loss.backward()") == text.count("optimizer.step()") == 1, path.name


def test_the_command_line_imports_nothing_heavy():
    heavy = {"torch", "numpy", "transformers", "soundfile", "torchaudio"}
    for name in ("command_line", "options", "variants"):
        found = {
            x.split(".")[0] for x in imported(REPOSITORY / "common" / "running" / f"{name}.py")
        }
        assert not found & heavy, name


SECTIONS = ["configuration", "teacher", "model", "losses", "training", "presets", "main"]
HEADINGS = ["Idea", "Diagram", "Equations", "Our own choices", "Run"]


def test_scripts_have_the_same_sections():
    """A pretrained model that does not teach, but becomes a part, stands where the others have their teacher."""
    for path in SCRIPTS:
        sections = re.findall(r"^# =+ (.*)$", path.read_text(), re.M)
        same = ["teacher" if name == "pretrained" else name for name in sections]
        assert same == SECTIONS, path.name
        found = re.findall(r"^(\w.*)\n-+$", ast.get_docstring(tree_of(path)), re.M)
        assert [re.split(r" \(", heading)[0] for heading in found] == HEADINGS, path.name
