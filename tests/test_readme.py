"""What the README and the docstrings tell people to type: every command parses, and those for a quick look are run."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, SCRIPTS, read_configs, run_script

from common.demo.__main__ import build_parser
from common.running import report

PROGRAMS = sorted(
    path.stem for path in REPOSITORY.glob("*.py")
)  # the five scripts, and two for finished runs


def commands() -> list[str]:
    texts = [
        (REPOSITORY / "README.md").read_text(),
        *(importlib.import_module(name).__doc__ for name in PROGRAMS),
    ]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [
        re.split(r"\s{2,}#|\s{3,}", line)[0]
        for line in lines
        if re.match(r"(python|torchrun|arecord) .*(\.py|-m )", line)
    ]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_parse(command, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    if "common.demo" in words:
        build_parser().parse_args(words[words.index("common.demo") + 1 :])
        return
    if "common.running.report" in words:
        report.read_command_line(words[words.index("common.running.report") + 1 :])
        return
    if "-m" in words:
        _, script, variant = words[words.index("-m") + 1].split(".")
        importlib.import_module(f"variants.{script}.{variant}")
        read_configs(script, words[words.index("-m") + 2 :], variant)
        return
    name, arguments = next(
        (w[:-3], words[i + 1 :]) for i, w in enumerate(words) if w.endswith(".py")
    )
    if name in ("evaluate", "transcribe"):
        importlib.import_module(name).read_command_line(arguments)
        return
    configs = read_configs(name, [])
    config = read_configs(name, ["--method", configs[0].method])[0]
    run = Path(
        arguments[arguments.index("--checkpoint") + 1]
        if "--checkpoint" in arguments
        else config.out
    )
    run.mkdir(parents=True)  # the run that --checkpoint or --resume speaks of
    (run / "config.json").write_text(json.dumps(config.stored()))
    if arguments == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            read_configs(name, arguments)
        return
    read_configs(name, arguments)
    if "--preset smoke" in command:
        (tmp_path / "data").symlink_to(request.getfixturevalue("root"))
        code, out, error = run_script(*arguments, script=f"{name}.py", cwd=tmp_path)
        assert code == 0, error
        results = [json.loads(line[7:]) for line in out.splitlines() if line.startswith("RESULT ")]
        assert [result["method"] for result in results] == [config.method for config in configs]
        assert all(
            result["script"] == name and result["wer"]["test-clean"] < 100 for result in results
        )


def test_the_readme_scores_what_the_first_commands_wrote():
    text = (REPOSITORY / "README.md").read_text()
    folders = set(re.findall(r"(?:evaluate|transcribe)\.py (\S+)", text)) - {"RUN"}
    written = {
        config.out for name in PROGRAMS if name in SCRIPTS for config in read_configs(name, [])
    }
    assert folders and folders <= written


def test_ci_runs_the_test_command_of_the_readme():
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    (tests,) = [block.strip() for block in blocks if "pytest" in block]
    pattern = re.search(r"grep -E '(.*)' README", (REPOSITORY / ".ci" / "run").read_text())[1]
    assert re.fullmatch(pattern, tests)
    (install,) = [block for block in blocks if "pip install -r requirements.txt" in block]
    assert "interaed_kd.py" in install and len(install.strip().splitlines()) == 1


def test_the_readme_names_what_exists():
    text = (REPOSITORY / "README.md").read_text()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    for name in re.findall(r"`((?:common|benchmarks|tests)/[\w/.]*)`", text):
        assert any(path.startswith(name) for path in tracked), name
    assert "@" not in re.sub(r"\S+@\S+\.\w+", "", text)  # no placeholder left
