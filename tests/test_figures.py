"""Figures of texts that matplotlib's font and its formulas do not expect."""

import json
import subprocess
import sys
import warnings

import numpy as np
from conftest import REPOSITORY

from common import figures
from common.errors import UserError


def test_any_text_is_drawn_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.posteriors(
            tmp_path / "a.png", np.eye(3), ["日", "本", "語"], 0.04, "これは日本語 $5, $x_{"
        )
        figures.bars(
            tmp_path / "b.png", ["音", "b"], {"언어": [1.0, 2.0], "x": [1.0, 1.0]}, "label", "t_$a$"
        )
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))


def test_a_figure_that_fails_is_named_and_the_others_are_drawn(tmp_path, capsys):
    """Whatever the reason; also where there is no log to draw."""
    drawn = []

    def unreadable():
        raise UserError("no clip can be read.")

    def out_of_memory():
        raise MemoryError

    figures.draw(
        tmp_path, {"a.png": unreadable, "b.png": out_of_memory, "c.png": lambda: drawn.append("c")}
    )
    said = capsys.readouterr().err.splitlines()
    assert drawn == ["c"] and len(said) == 3 and "loss.png could not be drawn (" in said[0]
    assert said[1] == "a.png could not be drawn (no clip can be read); the results are complete."
    assert said[2] == "b.png could not be drawn (MemoryError); the results are complete."


def test_the_curve_of_a_run(tmp_path, capsys):
    log = [{"step": i, "loss": 1 / i} for i in range(1, 9)] + [{"step": 8, "epoch": 1, "dev": 9.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    figures.draw(tmp_path, {})
    assert (tmp_path / "loss.png").stat().st_size > 1000 and capsys.readouterr().err == ""


def test_matplotlib_is_loaded_when_something_is_drawn():
    """Scripts import this module before anything is learnt."""
    code = "import sys; from common import figures; print([m for m in sys.modules if m.startswith('matplotlib')])"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True).stdout
        == b"[]\n"
    )
