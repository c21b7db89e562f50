"""The page of a run: what it says, that it can be opened anywhere, and that it breaks nothing."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import run_script, slow_after_the_first

from common import metrics
from common.errors import UserError
from common.running import clips, comparison, curves, report, sentences
from common.running.corpora import Utterance
from common.running.hypotheses import Scored, read_scored, write_hypotheses
from common.running.runs import SCRIPTS

TWINS = {"sail": "sale", "sale": "sail"}
SAID = ["the sail was white", "a sale in the shop", "he saw the ship", "it was in the harbour"]
WRITTEN = {
    "ctc": ["the sale was white", "a sail in shop", "he saw a big ship", "it was in the harbour"],
    "taught": ["the sail was white", "a sale in shop", "he saw the ship", "it was at the harbour"],
}
LOG = [
    {"step": 1, "loss": 9.0, "ctc": 8.0, "kd": {"layer 1": 1.0, "layer 2": 3.0}, "lr": 0.1},
    {"step": 2, "loss": 5.0, "ctc": 4.0, "kd": {"layer 1": 1.0, "layer 2": 1.0}, "lr": 0.1},
    {"step": 2, "epoch": 1, "dev": 95.0},
    {"step": 3, "loss": float("nan"), "ctc": 3.0},
    {"step": 3, "epoch": 2, "dev": 60.0},
]


@pytest.fixture
def made(tmp_path):
    """made("ctc", said, written): the folder of a run with these transcripts, each with a second of audio."""

    def run(method, said=SAID, written=None, seed=1, twins=TWINS, **about) -> Path:
        folder = tmp_path / f"{method}-s{seed}"
        folder.mkdir()
        written = WRITTEN[method] if written is None else written
        utterances = []
        for i, text in enumerate(said):
            wave = 0.1 * np.sin(np.arange(16000) * (i + 1) / 20)
            soundfile.write(tmp_path / f"{i}.flac", wave, 16000)
            utterances.append(Utterance(f"u{i}", str(tmp_path / f"{i}.flac"), text, 1.0))
        found = {f"u{i}": text for i, text in enumerate(written)}
        write_hypotheses(folder, "test", utterances, found, str(tmp_path))
        rate = metrics.word_errors(said, written).rate
        result = {"script": "interaed_kd", "method": method, "seed": seed, "decode": "greedy"}
        write = {
            "result.json": result | {"wer": {"test": rate}},
            "config.json": {"script": "interaed_kd", "config": {"methods": [method], "seed": seed}},
            "scored.json": {"root": str(tmp_path), "homophones": twins} | about,
        }
        for name, content in write.items():
            (folder / name).write_text(json.dumps(content))
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
        return folder

    return run


# -------------------------------------------------------------------------------------------- what it says


def test_scores_and_whether_they_are_certain(made):
    """Rates are those of RESULT; the interval is of the difference, over sentences, with the seeds that both have."""
    said = [f"word number {i} is here" for i in range(40)]
    missing = [text.replace(" is", "") if i % 2 else text for i, text in enumerate(said)]
    worse = [made("ctc", said, missing, seed) for seed in (1, 2)]
    better = [made("taught", said, said, seed) for seed in (2, 3)]
    rows = comparison.read_rows([*worse, *better])
    assert [(row.name, row.seeds) for row in rows] == [("ctc", [1, 2]), ("taught", [2, 3])]
    words, homophones = comparison.scores(rows)
    baseline, other = words.cells
    assert baseline.rate == pytest.approx(rows[0].first.result["wer"]["test"]) and other.rate == 0
    assert baseline.interval is None and other.seeds == [2]
    assert (
        other.interval.low < other.interval.difference == -baseline.rate < other.interval.high < 0
    )
    assert (
        other.verdict == "better" and comparison.scores(rows[::-1])[0].cells[1].verdict == "worse"
    )
    # There is no homophone here.
    assert (
        homophones.cells[1].interval == (0, 0, 0) and homophones.cells[1].verdict == "not certain"
    )
    page = report.render(rows)
    assert "taught is better than ctc" in page and "one seed's" in page


def test_the_same_run_twice_is_two_rows(made, tmp_path):
    folder = made("ctc")
    shutil.copytree(folder, tmp_path / "copy")
    names = [row.name for row in comparison.read_rows([folder, tmp_path / "copy"])]
    assert len(set(names)) == 2 and names[1].endswith("/copy)")


def test_answers(made):
    """Which errors are left, what language helps with, and where one can hear it."""
    page = report.render(comparison.read_rows([made("ctc"), made("taught")]))
    said = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", page))
    assert (
        "ctc, 5 errors: 20 % a word that sounds different, 40 % the homophone, 20 % a missing word"
        in said
    )
    assert (
        "taught, 2 errors: 50 % a word that sounds different, 0 % the homophone, 50 % a missing"
        in said
    )
    assert "ctc writes “sale” for “sail” there, taught does not; both sound the same" in said
    (number,) = re.findall(r"Listen to sentence (\d)\.", said)
    (chosen,) = re.findall(rf'id="s{number}" .*?test u(\d)', page, re.S)[:1]
    assert chosen == "0"
    assert "ctc: after update 3; taught: after update 3." in said
    alone = report.render(comparison.read_rows([made("ctc", seed=2)]))
    assert "difference (95" not in alone and "test: 27.8 % errors in words." in alone


def test_what_went_wrong_is_listed(made):
    not_scored = {"test": {"<b>x": "it is empty"}}
    folder = made("ctc", not_scored=not_scored, missing={"train": {"y": "no such file"}})
    (folder / "bad_files.json").write_text(json.dumps({"z&z": "it is cut off"}))
    result = json.loads((folder / "result.json").read_text()) | {"infeasible": 7}
    (folder / "result.json").write_text(json.dumps(result))
    page = report.render(comparison.read_rows([folder]))
    for words in ("&lt;b&gt;x: it is empty", "y: no such file", "z&amp;z: it is cut off", "7 utt"):
        assert words in page


def test_transcripts_of_strangers_are_text(made):
    """In the sentences, and in the table of confusions."""
    attack = "<script>alert(1)</script>"
    said = ["a b", f"{attack} c", "今日は天気がいいですね", "ذهب الولد إلى المدرسة"]
    written = [f"a {attack} 😀", f"{attack} d", "今日天気がいいですね", "ذهب الولد المدرسة"]
    page = report.render(comparison.read_rows([made("<img src=x>", said, written)]))
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3 and "😀" in page
    assert "今日天気がいいですね" in page and ">إلى</del>" in page


def test_no_model_is_needed(runs):
    """A page is made of what was written when the run was scored."""
    folder = runs("interaed_kd").folder
    weights = {"model.safetensors", "last.pt", "epochs", "tokenizer.json"}
    copy = folder.parent / "without-weights"
    shutil.copytree(folder, copy, ignore=lambda _, names: weights & set(names), dirs_exist_ok=True)
    report.write_page([copy], copy / "report.html")
    assert (copy / "report.html").read_text() == (folder / "report.html").read_text()


@pytest.mark.parametrize("name", slow_after_the_first(SCRIPTS))
def test_rates_are_those_of_the_result(name, runs):
    rows = comparison.read_rows([runs(name).folder])
    table = comparison.scores(rows)[0]
    assert table.cells[0].rate == pytest.approx(rows[0].first.result["wer"]["test"], abs=0.01)


# ------------------------------------------------------------------------------------------------- words


def kinds_of(units) -> list[tuple[str, str]]:
    return [(unit.text, unit.kind) for unit in units]


def test_words_are_marked_as_they_were_written():
    marked = sentences.mark_hypothesis(
        "the sail was well known", "the sale 😀 Well-known x", TWINS, False
    )
    assert kinds_of(marked) == [
        ("the", "right"),
        ("sale", "twin"),
        ("😀", "right"),
        ("was", "missing"),
        ("Well-known", "right"),
        ("x", "extra"),
    ]
    assert marked[1].instead_of == "sail"
    reference = sentences.mark_reference("the sail was", TWINS, False)
    assert kinds_of(reference) == [("the", "right"), ("sail", "homophone"), ("was", "right")]
    assert kinds_of(sentences.mark_hypothesis("a b", "", {}, False)) == [
        ("a", "missing"),
        ("b", "missing"),
    ]


def test_characters_are_marked_where_there_are_no_spaces():
    marked = sentences.mark_hypothesis("今日は天気", "今日天汽。", {}, True)
    kinds = ["right", "right", "missing", "right", "wrong", "right"]
    assert [unit.kind for unit in marked] == kinds and "".join(
        u.text for u in marked
    ) == "今日は天汽。"


def test_errors_are_counted_as_in_the_scores():
    errors = sentences.errors_of(SAID, WRITTEN["ctc"], TWINS, False)
    expected = metrics.word_errors(SAID, WRITTEN["ctc"])
    assert sum(e.count for e in errors) == expected.errors
    assert sum(e.units for e in errors) == expected.words
    twins = metrics.homophone_errors(SAID, WRITTEN["ctc"], TWINS)
    assert sum(e.twins for e in errors) == twins.wrong == 2
    assert sum(e.homophones for e in errors) == twins.count == 2


def test_twenty_sentences_are_chosen():
    """Where rows differ most, errors at homophones, and the worst; all of a small set."""

    def sentence(i, wrong, twins=0):
        errors = [sentences.Errors(10, n, 0, 0, twins, twins, ()) for n in wrong]
        return sentences.Sentence("test", str(i), tuple(errors), wrong[0] != wrong[1])

    dull = [sentence(i, (1, 1)) for i in range(500)]
    differing = [sentence(f"d{i}", (0, 3 + i)) for i in range(9)]
    twins = [sentence(f"t{i}", (2, 2), twins=1) for i in range(3)]
    worst = [sentence(f"w{i}", (9, 9)) for i in range(9)]
    chosen = sentences.choose([*dull, *differing, *twins, *worst])
    names = [s.id for s in chosen]
    assert len(set(names)) == 20 and names[0] == "d8"
    assert {f"t{i}" for i in range(3)} < set(names) and sum(n[0] == "w" for n in names) == 6
    assert [s.difference for s in chosen] == sorted((s.difference for s in chosen), reverse=True)
    assert chosen[0].kinds == ["differ", "many"] and sentence(0, (2, 2), 1).kinds == ["homophones"]
    assert len(sentences.choose(dull[:7])) == 7


# ------------------------------------------------------------------------------------------------- curves


def test_curves_of_all_rows():
    """A panel per quantity with the rows that have it, inside the frame; what is not finite is left out."""
    panels = {p.title.split(",")[0]: p for p in curves.panels([(0, LOG), (1, LOG[:3])])}
    assert list(panels) == ["training loss", "dev error", "ctc", "kd"]
    assert [line.row for line in panels["ctc"].lines] == [0, 1]
    assert [len(line.points) for line in panels["training loss"].lines] == [2, 2]
    for panel in panels.values():
        for line in panel.lines:
            assert all(curves.LEFT <= x <= curves.RIGHT for x, _ in line.points)
            assert all(curves.TOP <= y <= curves.BOTTOM for _, y in line.points)
    assert panels["dev error"].moments == [(0, curves.RIGHT)]  # the other row is still at 95 %
    ys = [y for _, y in panels["kd"].lines[0].points]  # of the means 2 and 1
    assert ys[0] == curves.TOP and ys[1] == pytest.approx((curves.TOP + curves.BOTTOM) / 2)


def test_a_language_model_has_found_its_alignments_when_it_listens():
    log = [{"step": i, "dev": 50.0, "listening_gap": gap} for i, gap in ((5, 0.01), (9, 0.4))]
    assert curves.found_alignments(log) == 9 and curves.found_alignments(log[:1]) is None


# -------------------------------------------------------------------------------------------------- audio


def decoded(clip) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(clip.uri.partition("base64,")[2])))


def test_clips_are_the_segments_that_were_scored(tmp_path):
    """Two seconds of the second channel, whatever the rate; read anew where the corpus has moved."""
    left = np.zeros(32000)
    right = np.r_[np.zeros(8000), np.full(16000, 0.5), np.zeros(8000)]
    (tmp_path / "old").mkdir()
    soundfile.write(tmp_path / "old" / "x.wav", np.stack([left, right], 1), 8000)
    utterance = Utterance("u", str(tmp_path / "old" / "x.wav"), "a", 2.0, offset=1.0, channel=1)
    write_hypotheses(tmp_path, "test", [utterance], {"u": "a"}, str(tmp_path / "old"))
    scored = read_scored(tmp_path / "hyp_test.tsv")
    assert scored == [Scored("u", "a", "a", "x.wav", 1.0, 2.0, 1)]
    (tmp_path / "old").rename(tmp_path / "new")
    (gone,) = clips.clips_of(scored, str(tmp_path / "old"))
    assert gone == ("", "Its audio cannot be read any more.")
    (clip,) = clips.clips_of(scored, str(tmp_path / "new"))
    wave, rate = decoded(clip)
    assert clip.remark == "" and clip.uri.startswith("data:audio/flac;")
    assert rate == 16000 and len(wave) == 32000 and abs(wave[1000:-1000] - 0.5).max() < 0.01
    (tmp_path / "hyp_test.tsv").write_text("id\treference\thypothesis\nu\ta\tb\n")  # older
    assert read_scored(tmp_path / "hyp_test.tsv") == [Scored("u", "a", "b")]
    assert not clips.clips_of([Scored("u", "a", "b")], str(tmp_path))[0].uri


def test_clips_keep_to_their_budget(tmp_path, monkeypatch):
    """Opus where FLAC is too large, the beginning of long recordings, and nothing where there is no room."""
    noise = np.random.default_rng(0).normal(0, 0.1, 7 * 16000)
    soundfile.write(tmp_path / "x.flac", noise, 16000)
    scored = [Scored("u", "a", "a", "x.flac", 0.0, seconds) for seconds in (3.0, 7.0)]
    monkeypatch.setattr(clips, "LONGEST", 6.0)
    monkeypatch.setattr(clips, "BUDGET", 100_000)
    small, long = clips.clips_of(scored, str(tmp_path))
    assert small.uri.startswith("data:audio/ogg;") and long.remark == "The first 6 seconds."
    seconds = [len(decoded(clip)[0]) / 16000 for clip in (small, long)]
    assert seconds == pytest.approx([3, 6], abs=0.1)
    monkeypatch.setattr(clips, "BUDGET", 30_000)
    small, long = clips.clips_of(scored, str(tmp_path))
    assert small.uri and long == ("", "The page has no room for this audio.")


def test_only_the_audio_of_twenty_sentences_is_read(made, monkeypatch):
    said = [f"word {i}" for i in range(200)]
    folder = made("ctc", said[:50], said[50:100])
    read = []
    monkeypatch.setattr(clips, "_read", lambda one, root: read.append(one.id) or (None, "no"))
    report.render(comparison.read_rows([folder]))
    assert len(read) == len(set(read)) == 20


# ------------------------------------------------------------------------------------------------ program


def test_the_program(made, tmp_path, capsys):
    folders = [str(made("ctc")), str(made("taught"))]
    report.main(folders)
    assert "open " in capsys.readouterr().err
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") == len(SAID)
    report.main([folders[0], "--no-audio", "--out", str(tmp_path / "x.html")])
    assert "<audio" not in (tmp_path / "x.html").read_text()
    report.main([folders[0], "--root", str(tmp_path / "elsewhere")])
    page = (Path(folders[0]) / "report.html").read_text()
    assert "<audio" not in page and page.count("cannot be read any more") == len(SAID)
    with pytest.raises(UserError, match="no result.json: give the folder of a finished run"):
        report.main([str(tmp_path)])


def test_scores_on_other_data_have_pages(runs, tmp_path, capsys):
    """One per run with the training's curves, and one side by side; nothing of the training is replaced."""
    finished = runs("interaed_kd")
    before = (finished.folder / "report.html").read_bytes()
    copy = shutil.copytree(finished.folder, tmp_path / "other" / "copy")
    finished.evaluate(finished.folder, copy, "--out", tmp_path / "scores")
    assert f"open {tmp_path}/scores/compared.html" in capsys.readouterr().err
    page = (tmp_path / "scores" / "compared.html").read_text()
    assert page.count("<svg") > 3 and page.count("<audio") == 4 and "other-copy)" in page
    assert len(list((tmp_path / "scores").glob("*/report.html"))) == 2
    assert (finished.folder / "report.html").read_bytes() == before


def test_without_audio_it_ends_well(made, tmp_path):
    folder = made("ctc")
    for path in tmp_path.glob("*.flac"):
        path.unlink()
    code, out, error = run_script(folder, script=None, launcher=["-m", "common.running.report"])
    assert (code, out, error) == (0, "", f"open {folder}/report.html\n")


def test_a_page_that_fails_loses_no_result(made, tmp_path, capsys):
    """What is missing is said in a sentence, and the other pages are written."""
    folder = made("ctc")
    report.write_when_scored([folder, tmp_path / "nothing"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("could not be written" in line for line in said)
    assert (folder / "report.html").exists()
    report.write_when_scored([folder])
    assert capsys.readouterr().err == f"open {folder}/report.html\n"


# ------------------------------------------------------------------------------------------------ browser


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium without a window; it may play sound without being asked to."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no chromium with its chromedriver on this machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--autoplay-policy=no-user-gesture-required")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chromium = webdriver.Chrome(options=options, service=service)
    yield chromium
    chromium.quit()


def open_page(browser, path: Path, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(path.absolute().as_uri())


def shown(browser) -> list[str]:
    """The sentences that can be seen, in their order."""
    script = "return [...document.querySelectorAll('#sentences > li')].filter(x => !x.hidden).map(x => x.id)"
    return browser.execute_script(script)


PLAY = """
const done = arguments[0], players = [...document.querySelectorAll("audio")];
Promise.all(players.map(async player => {
  player.muted = true;
  await player.play();
  while (player.currentTime === 0) await new Promise(go => setTimeout(go, 10));
  player.pause();
  return player.duration;
})).then(done, error => done(String(error)));
"""
# What is wider than the page, but for tables that are scrolled in frames of their own.
TOO_WIDE = """
const wide = x => x.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
const found = [...document.querySelectorAll("main *")].filter(x => wide(x) && !x.closest(".scroll, .hidden"));
if (document.documentElement.scrollWidth > innerWidth) found.push(document.documentElement);
return found.map(x => x.outerHTML.slice(0, 80));
"""


@pytest.mark.parametrize("name", slow_after_the_first(SCRIPTS))
def test_the_page_of_every_script_in_a_browser(name, runs, browser):
    path = runs(name).folder / "report.html"
    for width in (360, 1400):
        open_page(browser, path, width)
        assert browser.execute_script(TOO_WIDE) == []
    durations = browser.execute_async_script(PLAY)
    assert len(durations) == 4 and all(0.5 < seconds < 20 for seconds in durations)
    pictures = "return [...document.querySelectorAll('img')].map(x => x.decode().then(() => x.naturalWidth))"
    widths = browser.execute_async_script(
        f"const done = arguments[0]; Promise.all((() => {{{pictures}}})()).then(done)"
    )
    assert len(widths) == len(runs(name).script.files - {"shapes.json"}) and min(widths) > 100
    assert browser.get_log("browser") == []


def test_sorting_and_filtering(made, browser, tmp_path):
    """By keyboard, too; a console that stays empty."""
    report.main([str(made("ctc")), str(made("taught"))])
    open_page(browser, tmp_path / "report.html", 360)
    assert browser.execute_script(TOO_WIDE) == []
    everything = shown(browser)
    assert len(everything) == 4
    homophones = browser.find_element("css selector", "input[value=homophones]")
    homophones.click()
    by_twins = shown(browser)
    assert len(by_twins) == 2 and set(by_twins) < set(everything)
    assert browser.find_element("id", "count").text == "2 of 4 sentences"
    homophones.send_keys("\ue012" * 2)  # the left arrow, to `all`
    assert shown(browser) == everything
    browser.find_element("id", "sort").send_keys("test")
    names = "return [...document.querySelectorAll('#sentences > li')].map(x => x.dataset.name)"
    assert browser.execute_script(names) == [f"test u{i}" for i in range(4)]
    assert browser.get_log("browser") == []


def test_without_javascript_all_is_there(made, browser, tmp_path):
    report.main([str(made("ctc")), str(made("taught"))])
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, tmp_path / "report.html", 360)
        items = browser.find_elements("css selector", "#sentences > li")
        assert len(items) == 4 and all(item.is_displayed() for item in items)
        assert not browser.find_element("id", "sort").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_script_in_a_transcript_does_not_run(made, browser):
    attack = "<script>document.title='owned'</script>"
    folder = made("ctc", [attack, "a b"], [f"x {attack}", "ذهب 今日 😀"])
    report.main([str(folder)])
    open_page(browser, folder / "report.html", 1400)
    assert browser.title == "ctc: report"
    said = [x.text for x in browser.find_elements("css selector", ".said")]
    assert attack in said and any(
        "ذهب" in text and "今日" in text and "😀" in text for text in said
    )
