"""Variants of the scripts: each runs, differs from the script as it is, and is another run."""

import importlib
import json
import sys
from types import ModuleType

import pytest
from conftest import REPOSITORY, build_once, run_script, slow_after_the_first

from common.errors import UserError
from common.figures import read_log
from common.running import variants

FOLDERS = sorted((REPOSITORY / "variants").glob("[a-z]*/"))
FILES = []
for folder in FOLDERS:
    FILES += slow_after_the_first(sorted(folder.glob("[a-z]*.py")))
# What a variant is compared with, where that is not the method of its script by default.
OPTIONS = {
    "aed_kd_with_taps": ["--method", "aed_kd"],
    "untrained_hubert": ["--method", "ctc"],
    "token_kd_delay_2": ["--method", "token_kd"],
    "token_kd_delay_4": ["--method", "token_kd"],
}


def first_losses(folder) -> list[float]:
    return [entry["loss"] for entry in read_log(folder) if "loss" in entry]


@pytest.fixture(scope="session")
def plain(runs, shared):
    """plain(script, options): the first losses of the script as it is."""
    known = {}

    def losses(script: str, more: list[str]) -> list[float]:
        key = (script, *more)
        if key not in known:
            folder = shared / f"plain-{'-'.join(key)}"
            finished = runs(script)
            build_once(folder, lambda _: finished.train("--out", folder, "--max-steps", 2, *more))
            known[key] = first_losses(folder)
        return known[key]

    return losses


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_variant_runs_and_differs(path, runs, plain, tmp_path):
    """It says what it asks; its name stands in config.json and RESULT; its losses are others."""
    script, name = path.parent.name, path.stem
    module = importlib.import_module(f"variants.{script}.{name}")
    assert "?" in module.__doc__.split("\n\n")[0] and f"variants.{script}.{name}" in module.__doc__
    more = OPTIONS.get(name, [])
    finished = runs(script)
    options = finished.options("--out", tmp_path, "--max-steps", 2, *more)
    result = module.main([str(option) for option in options])
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"]["variant"] == result["variant"] == name
    losses = first_losses(tmp_path)
    assert len(losses) == 2 and losses != plain(script, more)
    with pytest.raises(UserError, match=f"--variant {name} -> None"):
        finished.main(*options, "--resume")


def test_a_variant_that_changes_nothing_is_said(runs, tmp_path):
    module = importlib.import_module("variants.interaed_kd.uniform_teacher")
    options = runs("interaed_kd").options("--out", tmp_path, "--max-steps", 1, "--method", "ctc")
    with pytest.raises(UserError, match="uniform_teacher replaces soften, which this method never"):
        module.main([str(option) for option in options])


def test_what_cannot_replace_a_function(monkeypatch):
    script = ModuleType("a_script")
    script.double = double = lambda x: 2 * x
    monkeypatch.setitem(sys.modules, "a_script", script)
    with variants.replaced("a_script", {"double": lambda x: 3 * x}) as variant:
        assert script.double(2) == 6 and variant.name == "test_variants"
        with variants.plain("a_script"):  # of an earlier stage
            assert script.double(2) == 4
        assert script.double(2) == 6
        variant.check_called()
    assert script.double is double
    with variants.plain("a_script"):
        assert script.double is double
    for replacements in ({"triple": double}, {"double": lambda y: y}, {"double": lambda x, y: x}):
        with (
            pytest.raises(TypeError, match=r"no function triple|takes \(x\)"),
            variants.replaced("a_script", replacements),
        ):
            pass
    with pytest.raises(KeyError), variants.replaced("a_script", {"double": double}):
        raise KeyError
    assert script.double is double  # put back, whatever happened
    with variants.replaced("a_script", None) as variant:
        variant.check_called()
        assert variant.name is None


@pytest.mark.slow
def test_a_variant_is_started_by_its_name(root, model, tmp_path):
    """python -m variants.interaed_kd.kd_at_the_taps, from the project's folder."""
    words = f"--preset smoke --max-steps 1 --root {root} --teacher {model('bert-a')}".split()
    words += ["--method", "interaed_kd", "--out", str(tmp_path)]
    launcher = ["-m", "variants.interaed_kd.kd_at_the_taps"]
    code, out, error = run_script(*words, script=None, launcher=launcher)
    assert code == 0, error
    assert json.loads(out.splitlines()[-1].removeprefix("RESULT "))["variant"] == "kd_at_the_taps"
