"""What README.md, RESULTS.md and docs/ tell people: commands parse and the first ones run, links and files exist, and
every figure stands in a table of results/."""

import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, read_configs, run_script

from common.demo.__main__ import build_parser
from common.running.runs import SCRIPTS
from exercises.__main__ import parser as exercises_parser

sys.path.append(str(REPOSITORY / "benchmarks"))

import pictures
import table

PAGES = ["README.md", "RESULTS.md", *sorted(f"docs/{p.name}" for p in REPOSITORY.glob("docs/*.md"))]
TABLES = sorted(f"results/{p.name}" for p in REPOSITORY.glob("results/*.md"))
PROGRAMS = sorted(path.stem for path in REPOSITORY.glob("*.py"))
RUN = "runs/interaed_kd-demo-ctc+interaed_kd-s1/interaed_kd"


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text()


@functools.cache
def files() -> list[str]:
    """All files of the project, those not yet committed too, but nothing that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.splitlines()


# ------------------------------------------------------------------------------------------------------------ commands


def bash_blocks(page: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text_of(page), re.S)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in bash_blocks(page) for line in block.splitlines()]
    for name in PROGRAMS:
        docstring = importlib.import_module(name).__doc__
        lines += [line.strip() for line in docstring.splitlines() if line.startswith("    ")]
    found = set()
    for line in lines:
        if re.match(r"(python|torchrun|arecord) .*(\.py|-m )", line):
            found.add(re.split(r"\s{2,}#|\s{3,}", line)[0])
    return sorted(found)


def make_run(name: str, folder: str, arguments: list[str]) -> None:
    """The run that --resume speaks of."""
    config = read_configs(name, arguments)[0]
    Path(folder).mkdir(parents=True)
    (Path(folder) / "config.json").write_text(json.dumps(config.stored()))


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if "-m" in words:
        parse_module(words[words.index("-m") + 1], words[words.index("-m") + 2 :])
        return
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    name, arguments = words[at].removesuffix(".py"), words[at + 1 :]
    if name in ("evaluate", "transcribe"):
        importlib.import_module(name).read_command_line(arguments)
    elif arguments == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            read_configs(name, arguments)
    else:
        if "--resume" in arguments:
            rest = [word for word in arguments if word != "--resume"]
            make_run(name, read_configs(name, rest)[0].out, rest)
        read_configs(name, arguments)


def parse_module(module: str, arguments: list[str]) -> None:
    if module == "common.demo":
        build_parser().parse_args(arguments)
    elif module == "exercises":
        exercises_parser().parse_args(arguments)
    elif module.startswith("variants."):
        _, script, variant = module.split(".")
        importlib.import_module(module)
        read_configs(script, arguments, variant)
    elif arguments == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(module).main(arguments)
    else:
        importlib.import_module(module).read_command_line(arguments)


def test_rows_of_the_tables_that_are_named_exist():
    found = [
        c
        for page in PAGES
        for c in re.findall(r"`python benchmarks/table\.py(.*?)`", text_of(page))
    ]
    for arguments in found:
        table.read_command_line(shlex.split(arguments))  # exits where a row is unknown
    assert len(found) == len(SCRIPTS)


@pytest.mark.slow
def test_a_smoke_run_as_the_usage_page_has_it(root, tmp_path):
    (tmp_path / "data").symlink_to(root)
    (command,) = [c for c in commands() if "interaed_kd.py --preset smoke" in c]
    code, out, error = run_script(*shlex.split(command)[2:], script="interaed_kd.py", cwd=tmp_path)
    assert code == 0, error
    results = [json.loads(line[7:]) for line in out.splitlines() if line.startswith("RESULT ")]
    assert [result["method"] for result in results] == ["ctc", "interaed_kd"]
    assert all(result["wer"]["test-clean"] < 100 for result in results)
    (shown,) = re.findall(r"```\n(.*)\nctc  ", text_of("README.md"))
    assert shown.split() in [line.split() for line in out.splitlines()]  # the head of its table


@pytest.mark.slow
def test_the_first_experiment(root, tmp_path, monkeypatch):
    """The commands of README's first experiment, at smoke scale: train the variant, and score it beside the run."""
    (block,) = [block for block in bash_blocks("README.md") if "variants.interaed_kd" in block]
    train, score = [shlex.split(line) for line in block.splitlines()]
    small = ["--preset", "smoke", "--max-steps", "2", "--root", str(root)]
    main = importlib.import_module("interaed_kd").main
    monkeypatch.chdir(tmp_path)
    main(["--method", "interaed_kd", *small, "--out", score[2]])
    importlib.import_module(train[2]).main([*train[3:], *small, "--out", score[3]])
    results = importlib.import_module("evaluate").main([*score[2:], "--root", str(root)])
    assert [result.get("variant") for result in results] == [None, "uniform_teacher"]


def test_finished_runs_that_are_named_are_written_by_the_scripts():
    text = "".join(text_of(page) for page in PAGES)
    named = set(re.findall(r"(?:evaluate|transcribe)\.py (runs/\S+-s1/\S+)", text))
    written = {config.out for name in SCRIPTS for config in read_configs(name, [])}
    assert named and named <= written and RUN in named


def test_ci_runs_the_test_command_of_the_readme():
    blocks = bash_blocks("README.md")
    (tests,) = [block.strip() for block in blocks if "pytest" in block]
    pattern = re.search(r"grep -E '(.*)' README", text_of(".ci/run"))[1]
    assert re.fullmatch(pattern, tests)
    (install,) = [block for block in blocks if "pip install -r requirements.txt" in block]
    assert "interaed_kd.py" in install and len(install.strip().splitlines()) == 1


# ----------------------------------------------------------------------------------------- links, names, figures, length


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES + TABLES)
def test_links_lead_somewhere(page):
    known = set(files())
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        found = str(path.resolve().relative_to(REPOSITORY.resolve()))
        assert found in known, target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES + TABLES)
def test_files_that_are_named_exist(page):
    rooms = r"`((?:common|benchmarks|tests|variants|tools|results|docs|exercises)/[\w/.]*)`"
    for name in re.findall(rooms, text_of(page)):
        assert any(path.startswith(name) for path in files()), name


@pytest.mark.parametrize("page", PAGES)
def test_figures_stand_in_the_tables(page):
    """Every interval, and every mean with a deviation, was measured and not typed."""
    tables = "".join(text_of(name) for name in TABLES)
    for figure in re.findall(r"[−+-][\d.]+ \[[−+-][\d.]+, [−+-][\d.]+\]", text_of(page)):
        assert figure.replace("−", "-") in tables, figure
    for figure in re.findall(r"[\d.]+ ± [\d.]+", text_of(page)):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", tables), figure


def test_pictures_show_rows_of_the_tables():
    for script, picture in pictures.PICTURES.items():
        names = {score.name for score in table.scores_of(script)}
        assert {picture.baseline, *picture.lines} <= set(table.ROWS[script])
        assert set(picture.scores) <= names
        assert len(picture.lines) * len(picture.scores) <= 8
        assert f"pictures/{script}.png" in text_of(f"docs/{script}.md")


def test_the_first_pages_stay_short():
    assert len(text_of("README.md").splitlines()) <= 130
    assert len(text_of("RESULTS.md").splitlines()) <= 120
    assert "TESTS_MINUTES" not in text_of("README.md")  # how long the tests take has been filled in
