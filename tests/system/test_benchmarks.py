"""What the tables in results/ rest on: intervals, counts per utterance, and rows that their scripts can run."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, read_configs

import evaluate
from common.intervals import bootstrap_difference

sys.path.append(str(REPOSITORY / "benchmarks"))  # where they find each other

import demo_world
import jargon_rates
import table
from rows import PAIRS, ROWS, SEEDS


def test_bootstrap_of_a_difference():
    rng = np.random.default_rng(0)
    words, sessions = np.full((3, 400), 10), [f"s{i // 8}" for i in range(400)]
    base = rng.binomial(10, 0.2, (3, 400))
    fewer = np.maximum(base - 1, 0)
    assert bootstrap_difference((base, words), (base, words), sessions) == (0, 0, 0)
    better = bootstrap_difference((base, words), (fewer, words), sessions)
    assert better.low < better.difference < better.high < 0
    assert better.difference == pytest.approx(100 * (fewer.sum() - base.sum()) / words.sum())
    assert better == bootstrap_difference((base, words), (fewer, words), sessions)
    # the systems may differ in how many homophones are counted: rates, not sums, are compared
    half = bootstrap_difference((base, words), (base, 2 * words), sessions)
    assert half.difference == pytest.approx(-50 * base.sum() / words.sum())


def test_the_mean_over_languages_is_unweighted():
    """Ten words of one language count as much as a thousand of another, and sessions are drawn within each."""
    words, languages = np.array([[10] * 2 + [100] * 10]), ["p"] * 2 + ["q"] * 10
    errors = np.array([[5, 3] + [10] * 10])
    sessions = [f"s{i}" for i in range(12)]
    found = bootstrap_difference((0 * errors, words), (errors, words), sessions, languages)
    assert found.difference == pytest.approx(100 * (8 / 20 + 0.1) / 2)
    assert found.low == pytest.approx(100 * (0.3 + 0.1) / 2) and found.high == pytest.approx(
        100 * (0.5 + 0.1) / 2
    )


def test_intervals_cover_the_truth_and_know_sessions():
    """95 % intervals hold the true difference of zero about 95 times in 100, even though errors cluster in sessions."""
    rng, covered, repeats = np.random.default_rng(1), 0, 100
    words, session = np.full((1, 200), 10), np.arange(200) // 10
    for _ in range(repeats):
        hardness = rng.normal(0, 0.5, (2, 20))[
            :, session
        ]  # the two systems fail in different sessions
        errors = rng.poisson(np.exp(0.5 + hardness))
        interval = bootstrap_difference(
            (errors[:1], words), (errors[1:], words), list(session), samples=400
        )
        covered += interval.low <= 0 <= interval.high
    assert covered >= 86


def test_dev_chooses_the_rate_of_a_way_of_adapting(monkeypatch, tmp_path):
    """A way that never beats the run as it was has no point in the picture, but a rate and lines in the table."""
    for options, _ in jargon_rates.WAYS.values():
        read_configs("hubert_gpt_bridge", options.replace("RATE", "1e-3").split()[1:])
    folders = {}
    for i, way in enumerate(jargon_rates.WAYS):
        for j, rate in enumerate((*jargon_rates.RATES, "3e-2")):
            dev = [50.0, 60.0, 55.0 + j if i == 0 else [45.0, 30.0, 20.0, 40.0, 90.0][j]]
            folder = folders[way, rate] = tmp_path / jargon_rates.folder_of(way, rate).name
            folder.mkdir()
            lines = [json.dumps({"epoch": n, "dev": value}) for n, value in enumerate(dev)]
            (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
            result = {"wer": {"test": min(dev), "test-clean": 60 - j}}
            result |= {"trained_params": 7, "train_seconds": 8.0}
            (folder / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(jargon_rates, "folder_of", lambda way, rate: folders[way, rate])
    monkeypatch.setattr(table, "ROOT", tmp_path)
    for name in ("results", "docs/pictures"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["jargon_rates.py"])
    jargon_rates.main()
    text = (tmp_path / "results" / "hubert_gpt_bridge-rates.md").read_text()
    assert "| LoRA all r 32 | **3e-3** | 50.0, 60.0, 20.0 | 20.0 | 58.0 | 7 | 8 |" in text
    assert text.count("**") == 2 * len(jargon_rates.WAYS)
    assert (tmp_path / "docs" / "pictures" / "hubert_gpt_bridge_rates.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", ROWS)
def test_rows_are_options_of_their_scripts(script):
    rows = ROWS[script]
    for what in rows.values():
        program, *arguments = table.command_of(script, what, Path("runs"), 1)
        if program == "evaluate.py":
            assert what.removeprefix("of ").split(":")[0] in rows
            evaluate.read_command_line(arguments)
        elif program == "-m":
            _, _, variant = arguments[0].split(".")
            assert (REPOSITORY / "variants" / script / f"{variant}.py").exists()
            read_configs(script, arguments[1:], variant)
        else:
            read_configs(script, arguments)
    assert {row for pair in PAIRS[script] for row in pair} <= set(rows) and all(
        a != b for a, b in PAIRS[script]
    )
    assert set(SEEDS) <= set(ROWS["interaed_kd"])


def test_a_table_from_hypotheses(tmp_path, monkeypatch):
    """Two rows, two seeds, two sessions of one sentence each: counted, averaged and compared."""
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setitem(
        ROWS, "script", {"base": "--method base", "better": "--method better", "later": ""}
    )
    monkeypatch.setitem(PAIRS, "script", [])
    entries = []
    for split in ("test-clean", "test-other"):
        for chapter, text in (("1-1", "THE SAIL"), ("1-2", "A SALE")):
            folder = tmp_path / "data/demo/LibriSpeech" / split / chapter.replace("-", "/")
            folder.mkdir(parents=True)
            (folder / f"{chapter}.trans.txt").write_text(f"{chapter}-0000 {text}\n")
    (tmp_path / "data/demo/LibriSpeech/homophones.txt").write_text("sail sale\n")
    for row, found, rate in (
        ("base", ("the sale", "sale x"), 75.0),
        ("better", ("the sail", "a sale"), 0.0),
    ):
        hypotheses = zip(("1-1-0000\tthe sail", "1-2-0000\ta sale"), found, strict=True)
        (tmp_path / "hyp.tsv").write_text(
            "id\treference\thypothesis\n" + "".join(f"{a}\t{b}\n" for a, b in hypotheses)
        )
        counts = table.count(tmp_path / "hyp.tsv", table.twins_of("interaed_kd"))
        assert counts["characters"] == "7,5" and counts["character_errors"] == (
            "2,2" if row == "base" else "0,0"
        )
        assert {name: counts[name] for name in ("errors", "audible", "twins", "heard")} == (
            {"errors": "1,2", "audible": "0,2", "twins": "1,0", "heard": "1,0"} if row == "base" else
            {"errors": "0,0", "audible": "0,0", "twins": "0,0", "heard": "1,1"}
        )  # fmt: skip
        scores = {
            name: dict.fromkeys(("test-clean", "test-other"), rate)
            for name in ("wer", "homophone_error")
        }
        both = dict.fromkeys(("test-clean", "test-other"), counts)
        entries += [
            {"row": row, "seed": s, "commit": "abc", "counts": both, "rtf": 0.1} | scores
            for s in (1, 2)
        ]
    (tmp_path / "results").mkdir()
    page = tmp_path / "results" / "script.md"
    page.write_text("before\n<!-- table: script -->\nold\n<!-- end of table -->\nafter\n")
    table.results_file("script").write_text("".join(json.dumps(e) + "\n" for e in entries))
    table.sessions_and_words.cache_clear()
    table.write_table("script")
    table.sessions_and_words.cache_clear()
    first, *lines, last = page.read_text().splitlines()  # the text around the tables stays
    assert (first, last) == ("before", "after") and "old" not in lines
    assert page.with_suffix(".png").exists()
    assert "| base | 2 | 75.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0 | 75.0 ± 0.0 |" in lines
    assert any(line.startswith("| better | base | **-75.0 [-100.0, -50.0]** |") for line in lines)
    assert (
        "| later | not run |  |  |  |  |" in lines
        and "| base | `--method base` | 0.1 | abc |" in lines
    )


def test_the_further_table_has_means_where_there_is_something(monkeypatch):
    found = {
        "base": {1: {"n": 1200}, 2: {"n": 1301}},
        "other": {1: {"x": 0.25}},
        "nothing": {1: {}},
        "later": {},
    }
    monkeypatch.setitem(table.MORE, "script", {"n": lambda e: e["n"], "x": lambda e: e["x"]})
    (shown,) = table.further("script", found)
    assert shown.splitlines()[2:] == ["| base | 1,250 |  |", "| other |  | 0.25 |"]
    assert table.further("another", found) == []


def test_what_the_demo_world_can_be_guessed_from():
    train = ["the captain had the sail", "the pirate had the sail", "the broker had the sale"]
    dev = ["the captain had the sail", "the broker had the sale"]
    assert demo_world.chosen_by_counts(train, dev, trigram=False) == 0.5  # it always writes "sail"
    assert (
        demo_world.chosen_by_cues(dev) == 1
        and demo_world.chosen_by_cues(["the broker had the sail"]) == 0
    )
    train, dev = ["captain sail", "broker sale", "sail"], ["captain sail", "broker sale"]
    assert demo_world.chosen_by_counts(train, dev, trigram=True) == 1


@pytest.mark.slow
def test_what_text_models_know_is_said(root, capsys):
    demo_world.main(["--root", str(root), "--data", "demo-smoke", "--hours", "0.1"])
    out = capsys.readouterr().out
    assert out.count(" %") == 3 + 8 + 1 and "bert-b" in out and "perplexity" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, said",
    [
        ("llm_prompt_asr", ["answers the same", "positions"]),
        ("hubert_gpt_bridge", ["HuBERT and bridge"]),
    ],
)
def test_what_a_run_costs_is_said(script, said, runs, capsys):
    """The figures' and tables' own scripts, beside the ones that they measure."""
    spec = importlib.util.spec_from_file_location(
        f"{script}_costs", REPOSITORY / "benchmarks" / f"{script}.py"
    )
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    run = runs(script)
    capsys.readouterr()
    costs.main([str(run.folder), "--utterances", "3"])
    out = capsys.readouterr().out
    assert f"| {run.folder.name} |" in out and all(words in out for words in said)
