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


def room(path) -> str:
    """The name of a file of common/: `common.features`, `common.running.batches`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def rooms_imported(tree: ast.AST) -> set[str]:
    """The files of common/ that are imported, wherever in a file the import stands."""
    rooms = {room(path) for path in COMMON}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("common"):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                names.add(inside if inside in rooms else node.module)
    return names


def test_imports_run_in_no_circle():
    """Between all files of common/, wherever in a file an import stands."""
    graph = {room(path): rooms_imported(tree_of(path)) for path in COMMON}
    assert len(graph) > 50 and sum(map(len, graph.values())) > 150
    assert set().union(*graph.values()) <= set(graph)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_demo_is_imported_only_when_one_is_asked_for():
    """By the layouts and the finder of models, inside functions; by nobody else."""
    reach_in = set()
    for path in [*PROGRAMS, *COMMON]:
        if path.parent.name == "demo":
            continue
        found = [n for n in tree_of(path).body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
        at_the_top = set().union(*map(rooms_imported, found))
        assert not any(name.startswith("common.demo") for name in at_the_top), path.name
        if any(name.startswith("common.demo") for name in rooms_imported(tree_of(path))):
            reach_in.add(path.name)
    assert reach_in == {"layouts.py", "pretrained.py"}


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
