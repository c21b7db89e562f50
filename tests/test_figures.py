"""Figures of texts that matplotlib's font and its formulas do not expect."""

import warnings

import numpy as np

from common import figures


def test_any_text_is_drawn_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.posteriors(tmp_path / "a.png", np.eye(3), ["日", "本", "語"], 0.04, "これは日本語 $5, $x_{")
        figures.bars(tmp_path / "b.png", ["音", "b"], {"언어": [1.0, 2.0], "x": [1.0, 1.0]}, "label", "t_$a$")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))
