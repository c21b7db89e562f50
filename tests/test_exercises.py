"""exercises/: right solutions pass, wrong ones fail with their own message, and grading survives what students do."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, slow_after_the_first
from other_ways import OTHER_WAYS

from exercises import check, grade, isolation, make, master, source
from exercises.table import Change, all_exercises

EXERCISES = all_exercises()
SEEDS = [None, *range(4)]
MUTANTS = [(id, mutant) for id, exercise in EXERCISES.items() for mutant in exercise.mutants]


def explanations(id: str, changes: tuple[Change, ...], seed=None) -> list[str]:
    """What a student with these changes of the master's solution is told, by test."""
    exercise = EXERCISES[id]
    said = []
    for name, test in master.answers(id, seed, "grade").items():
        code = master.code_of(exercise, (*exercise.variation(seed), *changes))
        try:
            said.append(check.explain(test, check.compute(exercise.paper, name, code, "grade")))
        except Exception as error:
            said.append(check.last_words(error))
    return said


@pytest.mark.parametrize(("id", "mutant"), MUTANTS)
def test_a_known_mistake_is_named(id, mutant):
    said = explanations(id, (mutant,))
    assert any(mutant.says in text for text in said), said


@pytest.mark.parametrize("id", EXERCISES)
def test_every_exercise_has_three_mutants_and_every_test_finds_one(id):
    exercise = EXERCISES[id]
    assert len(exercise.mutants) >= 3
    for name in exercise.tests:
        assert master.answers(id, None, "grade")[name]["wrong"], name


@pytest.mark.parametrize("id", EXERCISES)
def test_the_tests_give_numbers_that_do_not_depend_on_the_run(id):
    """NaN anywhere, or a result that differs between two runs, could not be graded."""
    for seed in SEEDS:
        assert not any(explanations(id, (), seed)), seed
        assert "NaN" not in json.dumps(master.answers(id, seed, "grade"))


@pytest.mark.parametrize("id", EXERCISES)
def test_a_right_solution_written_differently_passes(id):
    exercise = EXERCISES[id]
    code = master.code_of(exercise, ())
    for place, text in OTHER_WAYS[id].items():
        module_name, _, name = place.partition(".")
        module = getattr(code, module_name)
        namespace = dict(vars(module))
        exec(text, namespace)
        other = namespace[name.rpartition(".")[2]]
        owner, _, method = name.rpartition(".")
        kept = vars(getattr(module, owner) if owner else module)[method]
        setattr(getattr(module, owner) if owner else module, method, other)
        try:
            for test_name, test in master.answers(id, None, "grade").items():
                got = check.compute(exercise.paper, test_name, code, "grade")
                assert not check.explain(test, got), test_name
        finally:
            setattr(getattr(module, owner) if owner else module, method, kept)


# ------------------------------------------------------------------------------- whole gradings


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with every exercise of week 0, as a student gets it."""
    out = tmp_path_factory.mktemp("made") / "week0"
    make.make(["week0-2"], out, seed=3)
    return out


def test_grading(made, tmp_path, capsys):
    """One right and one empty submission, and a wrong one between them; the right one has edited its tests."""
    right = tmp_path / "right"
    wrong = tmp_path / "wrong"
    for folder in (right, wrong):
        shutil.copytree(made, folder)
    shutil.copy(REPOSITORY / "exercises" / "week0.py", right / "exercises" / "week0.py")
    (right / "exercises" / "tests" / "week0.py").unlink()
    text = (REPOSITORY / "exercises" / "week0.py").read_text()
    mutant = EXERCISES["week0-2"].mutants[0]
    (wrong / "exercises" / "week0.py").write_text(text.replace(mutant.old, mutant.new))
    results = tmp_path / "results.json"
    found = grade.main([right, wrong, made], None, None, results)
    scores = [[test.score for test in graded] for graded in found]
    assert scores == [[3, 3], [0, 0], [0, 0]]
    written = [json.loads(path.read_text())["tests"] for path in sorted(tmp_path.glob("*.json"))]
    assert len(written) == 3
    assert mutant.says in written[1][0]["output"] and "expected" in written[1][0]["output"]
    assert "NotImplementedError: week0-2" in written[2][0]["output"]
    assert set(written[0][0]) == {"name", "score", "max_score", "output"}


def test_a_student_checks_the_solution(made, tmp_path):
    """Without the master beside it: the folder stands alone."""
    folder = tmp_path / "student"
    shutil.copytree(made, folder)
    command = [sys.executable, "-m", "exercises.check"]
    empty = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert empty.returncode == 1 and empty.stdout.count("FAIL") == 2, empty.stdout + empty.stderr
    shutil.copy(REPOSITORY / "exercises" / "week0.py", folder / "exercises" / "week0.py")
    right = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert right.returncode == 0 and right.stdout.count("pass") == 2, right.stdout + right.stderr


HOSTILE = {
    "hangs": ("while True:\n        pass", "longer than"),
    "prints": ("while True:\n        print('x' * 1_000_000)", "File too large"),
    "forks": ("import os\n    while True:\n        os.fork()", "may not start processes"),
    "deletes": (
        "import os, shutil\n    shutil.rmtree(os.path.dirname(os.getcwd()))\n    return blank",
        "without a result",
    ),
    "fills": ("return torch.ones(2**33)", "memory"),
    "leaves": ("import os\n    os._exit(0)", "without a result"),
}


@pytest.mark.parametrize("what", slow_after_the_first(HOSTILE))
def test_what_a_submission_does_ends_with_it(what, made, tmp_path, monkeypatch, capsys):
    """No points for its test, a reason, and the next submission is graded."""
    body, reason = HOSTILE[what]
    monkeypatch.setattr(isolation, "SECONDS", 12)
    text = (REPOSITORY / "exercises" / "week0.py").read_text()
    folders = []
    for name, solution in (("bad", source_with(text, body)), ("good", text)):
        folders.append(tmp_path / name)
        shutil.copytree(made, folders[-1])
        (folders[-1] / "exercises" / "week0.py").write_text(solution)
    bad, good = grade.main(folders, None, None, None)
    assert [test.score for test in bad] == [0, 0] and [test.score for test in good] == [3, 3]
    assert all(reason in test.output for test in bad), bad
    assert (folders[0] / "exercises" / "week0.py").exists()


def source_with(text: str, body: str) -> str:
    return source.strip(text, "transducer_alpha", "").replace('raise NotImplementedError("")', body)


@pytest.mark.skipif(not isolation.can_bubblewrap(), reason="no bubblewrap")
def test_with_bubblewrap_a_submission_sees_no_master(made, tmp_path, capsys):
    master_file = REPOSITORY / "exercises" / "week0.py"
    body = f"raise ValueError(open({str(master_file)!r}).read())"
    folder = tmp_path / "curious"
    shutil.copytree(made, folder)
    solution = source_with((folder / "exercises" / "week0.py").read_text(), body)
    (folder / "exercises" / "week0.py").write_text(solution)
    ((test, _),) = grade.main([folder], None, None, None)
    assert test.score == 0 and "FileNotFoundError" in test.output
