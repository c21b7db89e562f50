"""exercises/: right solutions pass, wrong ones fail with their own message, and grading survives what students do."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, slow_after_the_first
from other_ways import FINDS, OTHER_WAYS

from common.running.hypotheses import COLUMNS
from exercises import check, grade, isolation, judging, make, master, source
from exercises.table import Break, Change, Exercise, all_exercises

ALL = all_exercises()
EXERCISES = {id: exercise for id, exercise in ALL.items() if isinstance(exercise, Exercise)}
BREAKS = {id: exercise for id, exercise in ALL.items() if isinstance(exercise, Break)}
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


@pytest.mark.parametrize("known", slow_after_the_first(MUTANTS))
def test_a_known_mistake_is_named(known):
    id, mutant = known
    said = explanations(id, (mutant,))
    assert any(mutant.says in text for text in said), said


@pytest.mark.parametrize("id", EXERCISES)
def test_every_exercise_has_three_mutants_and_every_test_finds_one(id):
    exercise = EXERCISES[id]
    assert len(exercise.mutants) >= 3
    for name in exercise.tests:
        assert master.answers(id, None, "grade")[name]["wrong"], name


@pytest.mark.parametrize("id", slow_after_the_first(EXERCISES))
def test_the_tests_give_numbers_that_do_not_depend_on_the_run(id):
    """NaN anywhere, or a result that differs between two runs, could not be graded."""
    exercise = EXERCISES[id]
    seeds = [None]
    for varied in exercise.variations:
        seeds.append(next(n for n in range(100) if exercise.variation(n) == varied))
    for seed in seeds:
        assert not any(explanations(id, (), seed)), seed
        assert "NaN" not in json.dumps(master.answers(id, seed, "grade"))


def test_what_else_a_student_is_told():
    """The form of the paper where the class has another one; a factor that all numbers share."""
    id = "interaed-2"
    seed = next(n for n in range(100) if EXERCISES[id].variation(n))
    (name, test), *_ = master.answers(id, seed, "grade").items()
    papers = check.compute("interaed", name, master.code_of(EXERCISES[id], ()), "grade")
    assert "This is the form of the paper" in check.explain(test, papers)
    right = {"a": {"shape": [2], "values": [2.0, 0.0]}, "b": {"shape": [], "values": [3.0]}}
    for factor, says in ((-1.0, "The sign is wrong."), (0.5, "are 0.5 times the right ones")):
        got = {
            key: value | {"values": [factor * x for x in value["values"]]}
            for key, value in right.items()
        }
        assert says in check.explain({"expected": right, "wrong": []}, got)
    got["b"]["values"] = [7.0]
    assert check.explain({"expected": right, "wrong": []}, got) == "a[0]: expected 2, got 1"


@pytest.mark.parametrize("id", slow_after_the_first(EXERCISES))
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
    """A submission that prints without end, then a right one, which has removed its tests."""
    text = (REPOSITORY / "exercises" / "week0.py").read_text()
    folders = submissions(made, tmp_path, source_with(text, HOSTILE["prints"][0]), text)
    (folders[1] / "exercises" / "tests" / "week0.py").unlink()
    found = grade.main(folders, None, None, tmp_path / "results.json")
    assert [[test.score for test in graded] for graded in found] == [[0, 0], [3, 3]]
    written = [json.loads(path.read_text())["tests"] for path in sorted(tmp_path.glob("*.json"))]
    assert len(written) == 2 and all("File too large" in test["output"] for test in written[0])
    assert set(written[1][0]) == {"name", "score", "max_score", "output"}
    assert "6 of 6 points" in capsys.readouterr().out


def submissions(made: Path, place: Path, *solutions: str) -> list[Path]:
    """Copies of what was handed out, with these texts of exercises/week0.py."""
    folders = []
    for number, solution in enumerate(solutions):
        folders.append(place / f"student-{number}")
        shutil.copytree(made, folders[-1])
        (folders[-1] / "exercises" / "week0.py").write_text(solution)
    return folders


def source_with(text: str, body: str) -> str:
    """Week 0 with this body of its second function."""
    stripped = source.strip(text, "transducer_alpha", "")
    return stripped.replace('raise NotImplementedError("")', body)


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


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_submission_does_ends_with_it(what, made, tmp_path, monkeypatch, capsys):
    """No points for its test, a reason, and the next submission is graded."""
    body, reason = HOSTILE[what]
    monkeypatch.setattr(isolation, "SECONDS", 12)
    text = (REPOSITORY / "exercises" / "week0.py").read_text()
    folders = submissions(made, tmp_path, source_with(text, body), text)
    bad, good = grade.main(folders, None, None, None)
    assert [test.score for test in bad] == [0, 0] and [test.score for test in good] == [3, 3]
    assert all(reason in test.output for test in bad), bad
    assert (folders[0] / "exercises" / "week0.py").exists()


def test_what_an_exercise_asks_for_is_not_available():
    """And it is again for the next exercise."""
    for exercise in EXERCISES.values():
        for name in exercise.blocked:
            path, _, function = name.rpartition(".")
            with check.blocked([name]), pytest.raises(RuntimeError, match="not available"):
                getattr(importlib.import_module(path), function)()
            assert getattr(importlib.import_module(path), function).__name__ != "refuse"


def test_a_link_to_the_master_is_not_taken(tmp_path):
    (tmp_path / "exercises").symlink_to(REPOSITORY / "exercises")
    (tmp_path / "interaed_kd.py").symlink_to(REPOSITORY / "interaed_kd.py")
    for id in ("week0-1", "interaed-2"):
        assert "missing" in grade.take(EXERCISES[id], tmp_path, tmp_path / "taken")


@pytest.mark.skipif(not isolation.can_bubblewrap(), reason="no bubblewrap")
def test_with_bubblewrap_a_submission_sees_no_master(made, tmp_path, capsys):
    master_file = REPOSITORY / "exercises" / "week0.py"
    body = f"raise ValueError(open({str(master_file)!r}).read())"
    folders = submissions(made, tmp_path, source_with(master_file.read_text(), body))
    ((test, _),) = grade.main(folders, None, None, None)
    assert test.score == 0 and "FileNotFoundError" in test.output


# ------------------------------------------------------------------------------------------ bugs


def functions_in(file: str) -> set[str]:
    return set(dict(source.functions_of((REPOSITORY / file).read_text())))


def test_what_is_hidden_exists():
    places = [place for exercise in EXERCISES.values() for place in exercise.hidden]
    bugs = [bug for exercise in BREAKS.values() for bug in exercise.bugs]
    for bug in bugs:
        text = (REPOSITORY / bug.file).read_text()
        changed, others = source.change(text, [bug.function], (bug.change,))
        assert changed != text and not others
        places += bug.hidden
    for place in places:
        file, _, name = place.partition("::")
        assert (REPOSITORY / file).exists() and (not name or name in functions_in(file)), place


def seed_of(exercise: Break, bug) -> int:
    return next(seed for seed in range(100) if exercise.bug(seed) == bug)


BUGS = [f"{id} {number}" for id in BREAKS for number in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("which", BUGS)
def test_a_bug_is_found(which, tmp_path):
    """A student's test that finds it; one that never fails, and one that always does, get no points."""
    id = which[:-2]
    number = int(which[-1])
    exercise = BREAKS[id]
    bug = exercise.bugs[number]
    seed = seed_of(exercise, bug)
    folder = tmp_path / "handed_in"
    make.make([id], folder, seed)
    answer = f'[{id}]\nfile = "{bug.file}"\nfunction = "{bug.function}"\n'
    (folder / "answers.toml").write_text(answer)
    (folder / exercise.test_file).write_text(FINDS[id][number])
    found = grade.grade_folder(folder, [id], None)
    assert [test.score for test in found] == [1, 1, 4], found
    if number:
        return
    assert checked(folder).count("pass  ") == 2
    for name in ("answers.toml", exercise.test_file):
        kept = (folder / name).read_text()
        for text in ("", kept.replace(bug.function, "nowhere").replace("assert", "bool")):
            (folder / name).write_text(text)
            assert checked(folder).count("FAIL  ") == 1, (name, text)
        (folder / name).write_text(kept)
    (folder / "answers.toml").write_text(answer.replace(bug.function, "ctc_loss"))
    for text, reason in (
        ("def test():\n    pass\n", "passes, or does not run"),
        ("def test():\n    assert 0\n", "without the bug"),
    ):
        (folder / exercise.test_file).write_text(text)
        found = grade.grade_folder(folder, [id], None)
        assert [test.score for test in found] == [1, 0, 0] and reason in found[2].output, found


def checked(folder) -> str:
    """What a student reads who checks the folder."""
    command = [sys.executable, "-m", "exercises.check"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


# ----------------------------------------------------------------------------------- predictions


def write_run(folder, method, variant, seed, wrong) -> None:
    """What a scored run leaves: 40 sentences of a homophone, of which some are wrong."""
    folder.mkdir(parents=True)
    result = {"script": "interaed_kd", "method": method, "variant": variant, "seed": seed}
    result |= {"wer": {"test-clean": 0.0}, "decode": "greedy"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "scored.json").write_text('{"homophones": {"sail": "sale", "sale": "sail"}}')
    lines = ["\t".join(COLUMNS)]
    for i in range(40):
        said = "a sale here" if i % 40 in wrong else "a sail here"
        lines.append(f"u{i}\ta sail here\t{said}\taudio\t0\t1\t")
    (folder / "hyp_test-clean.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def predicted(tmp_path):
    """A submission with a prediction, and two seeds of both rows."""
    for seed, more in ((1, 3), (2, 9)):
        both = set(range(0, 12 + seed))
        write_run(tmp_path / f"runs/a{seed}", "interaed_kd", None, seed, both)
        uniform = both | set(range(20, 20 + more))
        write_run(tmp_path / f"runs/b{seed}", "interaed_kd", "uniform_teacher", seed, uniform)
    reason = "BERT knows which of two homophones fits the words on both sides of it."
    answer = f'[interaed-3]\nexpected = "higher"\nreason = "{reason}"\n'
    (tmp_path / "answers.toml").write_text(answer)
    return tmp_path


def graded_prediction(folder, interval):
    names = ("difference", "low", "high")
    lines = [f"{name} = {value}" for name, value in zip(names, interval, strict=True)]
    (folder / "measured.toml").write_text("\n".join(["[interaed-3]", *lines]) + "\n")
    return grade.grade_folder(folder, ["interaed-3"], None)


def test_a_prediction_is_graded_for_its_reason_and_what_was_measured(predicted):
    exercise = ALL["interaed-3"]
    rows = judging.rows_of(exercise, predicted / "runs")
    right = judging.measure(exercise, rows)
    assert right.difference == pytest.approx(100 * 12 / 80)
    assert [test.score for test in graded_prediction(predicted, right)] == [2, 2, 2]
    mistakes = judging.known_mistakes(exercise, rows, right)
    assert len(mistakes) == 4
    for wrong, says in mistakes:
        *_, measured = graded_prediction(predicted, wrong)
        assert measured.score == 0 and says in measured.output
    for name in ("scored.json", "link.json"):  # neither a disk full of zeros nor an endless file
        path = predicted / "runs" / "b1" / name
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        if name == "link.json":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(10**11)
        assert [test.score for test in graded_prediction(predicted, right)] == [2, 0, 0]
        path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    (predicted / "answers.toml").write_text('[interaed-3]\nexpected = "lower"\nreason = "?"\n')
    shutil.rmtree(predicted / "runs" / "b2")
    graded = graded_prediction(predicted, right)
    assert [test.score for test in graded] == [0, 0, 0]
    assert "two seeds" in graded[1].output
    nothing = grade.grade_folder(predicted / "runs", ["interaed-3"], None)
    assert [test.score for test in nothing] == [0, 0, 0]


# ------------------------------------------------------------------------------ every exercise


@pytest.mark.slow
@pytest.mark.parametrize("id", EXERCISES)
def test_what_is_handed_out_fails_all_graded_tests_and_the_masters_files_pass(id, tmp_path):
    exercise = EXERCISES[id]
    folder = tmp_path / "made"
    make.make([id], folder)
    command = [sys.executable, "-m", "exercises.check"]
    empty = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert empty.stdout.count(f"NotImplementedError: {id}: ") == len(exercise.tests), empty.stdout
    for file in exercise.files:
        shutil.copy(REPOSITORY / file, folder / file)
    right = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert right.stdout.count("pass  ") == len(exercise.tests), right.stdout + right.stderr


@pytest.mark.parametrize("id", EXERCISES)
def test_the_solution_is_not_handed_out(id, tmp_path, made_with_all):
    """No statement of the solution, of its mutants or of its hidden tests is left anywhere."""
    exercise = EXERCISES[id]
    for function, file in exercise.functions.items():
        text = (REPOSITORY / file).read_text()
        node = dict(source.functions_of(text))[function]
        lines = text.splitlines()[node.body[1].lineno - 1 : node.end_lineno]
        telling = [line.strip() for line in lines if len(line.strip()) > 30]
        given = made_with_all(file)
        assert telling and not [line for line in telling if line in given], function
    everything = made_with_all("exercises/expected.json")
    assert all(mutant.new not in everything for mutant in exercise.mutants if mutant.new)


@pytest.fixture(scope="module")
def made_with_all(tmp_path_factory):
    """The text of a file of a folder with all exercises."""
    out = tmp_path_factory.mktemp("all") / "made"
    make.make(list(EXERCISES), out, seed=1)
    return lambda file: (out / file).read_text()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """And two classes get another task."""
    ids = ["multirep-2", "streaming-1", "streaming-2", "interaed-1", "break-2"]
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        make.make(ids, folder, seed)
    first, again, other = map(bytes_of, folders)
    assert first == again and len(first) > 100
    changed = {name for name in first if first[name] != other[name]}
    assert {Path("EXERCISE.md"), Path("exercises/expected.json")} <= changed, changed


def bytes_of(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_papers_tests_fail_as_recorded(tmp_path):
    """Those of its own file, in a folder that was handed out; the others were recorded once, which takes long."""
    exercise = EXERCISES["interaed-2"]
    make.make([exercise.id], tmp_path / "made")
    own = "tests/test_interaed_kd.py"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", own]
    ended = subprocess.run(command, cwd=tmp_path / "made", env=env, capture_output=True, text=True)
    recorded = exercise._replace(fails=tuple(x for x in exercise.fails if x.startswith(own)))
    assert not unrecorded(recorded, ended.stdout), ended.stdout[-3000:]


def unrecorded(exercise: Exercise, said: str) -> set[str]:
    """What failed and is not recorded, or is recorded and did not fail."""
    failed = set(re.findall(r"^(?:FAILED|ERROR) ([\w/.]+(?:::\w+)?)", said, re.M))
    explained = {test for test in failed for place in exercise.fails if test.startswith(place)}
    idle = {place for place in exercise.fails if not any(t.startswith(place) for t in failed)}
    return (failed - explained) | idle
