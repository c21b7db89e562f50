"""What is asked of any recogniser: this one reads loudness, a level per word, so that one knows what it should say."""

import json
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from common.errors import UserError, note_once
from common.running import decoding, evaluation, options, transcription
from common.running.audio import read_audio
from common.running.batches import read_one
from common.running.corpora import Corpus, Utterance
from common.running.decoding import Transcript, Word
from common.running.hypotheses import write_hypotheses
from common.running.options import Search
from common.running.process import Place

CPU = Place(0, 1, torch.device("cpu"))
WORDS = ["", "the", "night", "knight", "rides", "home", "sea", "see"]
TWINS = {"night": "knight", "knight": "night", "sea": "see", "see": "sea"}


@dataclass(frozen=True)
class Config(options.RunConfig):
    """Of evaluate.py or transcribe.py, as far as these functions read it."""

    methods: tuple[str, ...] = ("echo",)
    search: Search = Search(beam=4, lm_weight=(0.0, 0.5), bonus=(0.0, 1.0))
    times: bool = False
    srt: bool = False


class Echo(nn.Module):
    """Hears a word per stretch of constant loudness, in blocks of 0.1 s. A low bonus makes it miss the last word."""

    def __init__(self, has_times: bool = True, lm=lambda *_: object(), own: Search | None = None):
        super().__init__()
        self.decodes = decoding.Decoding(("greedy", "beam"), lm, own or Search())
        self.weight, self.has_times, self.tokenizer = (
            nn.Parameter(torch.ones(3)),
            has_times,
            "its tokenizer",
        )

    def transcribe(self, batch, place, beam=None, lm=None, lm_weight=0.0, bonus=1.0):
        assert not self.training and torch.is_inference_mode_enabled()
        found = []
        for wave, size in zip(batch.waves, batch.samples.tolist(), strict=True):
            blocks = nn.functional.pad(wave[:size], (0, -size % 1600)).view(-1, 1600).abs().amax(1)
            levels = [0, *(10 * blocks).round().int().tolist(), 0]
            ends = [i for i in range(1, len(levels)) if levels[i] != levels[i - 1]]
            spans = [(a, b) for a, b in zip(ends, ends[1:], strict=False) if levels[a]]
            words = [Word(WORDS[levels[a]], 0.1 * (a - 1), 0.1 * (b - 1)) for a, b in spans]
            words = words[: len(words) - (bonus < 1)]
            text = " ".join(word.text for word in words)
            found.append(
                Transcript(text, words if self.has_times else None, {"pieces": 1, "lm": lm_weight})
            )
        return found


@pytest.fixture
def say(tmp_path):
    def spoken(name: str, text: str) -> Utterance:
        """0.3 s a word, with 0.2 s of silence behind it."""
        parts = [
            np.r_[np.full(4800, WORDS.index(word) / 10), np.zeros(3200)] for word in text.split()
        ]
        soundfile.write(tmp_path / f"{name}.flac", np.concatenate(parts), 16000)
        return Utterance(name, str(tmp_path / f"{name}.flac"), text, 0.5 * len(parts))

    return spoken


@pytest.fixture
def config(tmp_path):
    return Config(device="cpu", workers=0, out=str(tmp_path / "out"))


@pytest.fixture
def corpus(say):
    """One homophone of three is the wrong one in `test`, and one word too many."""
    wrong = replace(say("b", "the sea sea home"), text="the see home")
    tests = {
        "test": [say("a", "the knight rides"), wrong, say("c", "night")],
        "test-more": [say("d", "home")],
    }
    return Corpus(
        [],
        [say("e", "the night"), say("f", "home the sea")],
        tests,
        TWINS,
        {"test": {"x": "why"}, "dev": {}},
    )


# ------------------------------------------------------------------------------------------------------------ decoding


def test_long_recordings_are_cut_at_pauses(say, config):
    """The words, their times and what is counted are put together again, beside whatever other recordings."""
    long, short = say("long", "the night rides home sea " * 12), say("short", "the sea")
    whole, cut = config, replace(config, cut_seconds=4.1)
    (once,) = decoding.recognise(Echo().train(), read_one(long, whole), whole, CPU)
    (pieces,) = decoding.recognise(Echo(), read_one(long, cut), cut, CPU)
    assert once.text == pieces.text == long.text.strip() and len(once.words) == 60
    assert [word.text for word in pieces.words] == [word.text for word in once.words]
    for ours, other in zip(pieces.words, once.words, strict=True):
        assert ours.start == pytest.approx(other.start, abs=0.101) and ours.end == pytest.approx(
            other.end, abs=0.101
        )
    assert once.counts["pieces"] == 1 and 30 / 4.1 < pieces.counts["pieces"] < 60 / 4.1
    together = decoding.decode(Echo(), [long, short], replace(cut, batch_seconds=99), CPU)
    assert together == {
        "long": pieces,
        "short": decoding.decode(Echo(), [short], cut, CPU)["short"],
    }


def test_pieces_without_times_or_words():
    parts = [
        Transcript("a b", None, {"n": 1}),
        Transcript("", None, {}),
        Transcript("c", None, {"n": 2}),
    ]
    assert decoding.join(parts, [0.0, 1.0, 2.0]) == Transcript("a b c", None, {"n": 3})
    assert decoding.join(
        [Transcript("", []), Transcript("a", [Word("a", 0, 1)])], [0, 5]
    ).words == [Word("a", 5, 6)]


def test_every_utterance_is_decoded_once(say, config, capsys):
    utterances = [say(f"u{i}", " ".join(WORDS[1 : 2 + i % 7])) for i in range(9)]
    (broken,) = [replace(say("broken", "the"), audio=__file__)]
    found = decoding.decode(Echo(), [*utterances, broken], replace(config, batch_seconds=4.0), CPU)
    assert decoding.texts_of(found) == {u.id: u.text for u in utterances}
    assert "not scored: " in capsys.readouterr().err


def test_channels_that_cancel_each_other_are_scored_counted_and_said_once(corpus, config, capsys):
    name = "a"
    path = next(u.audio for u in corpus.tests["test"] if u.id == name)
    wave, _ = soundfile.read(path)
    expected = evaluation.evaluate(Echo(), corpus, config, CPU)
    assert expected["cancelling_channels_scored"] == 0
    # A constant level has no power: the sign of every second sample is turned.
    wave[::2] *= -1
    soundfile.write(path, np.stack([wave, -wave], axis=1), 16000)
    for _ in range(2):
        found = evaluation.evaluate(Echo(), corpus, config, CPU)
        assert found["wer"] == expected["wer"] and found["cancelling_channels_scored"] == 1
    assert capsys.readouterr().err.count("a.flac: its channels cancel each other") == 1


def test_dev_scores(corpus, config):
    assert evaluation.dev_scores(Echo(), corpus, config, CPU) == {
        "dev": 0.0,
        "dev_homophone_error": 0.0,
    }
    other = replace(corpus.dev[0], text="the knight")
    found = evaluation.dev_scores(Echo(), replace(corpus, dev=[other, corpus.dev[1]]), config, CPU)
    assert found == {"dev": pytest.approx(20), "dev_homophone_error": pytest.approx(50)}
    assert evaluation.dev_scores(Echo(), replace(corpus, homophones={}), config, CPU) == {
        "dev": 0.0
    }
    unreadable = [replace(u, audio=__file__) for u in corpus.dev]
    with pytest.raises(UserError, match="none of the 2 dev utterances could be read"):
        evaluation.dev_scores(Echo(), replace(corpus, dev=unreadable), config, CPU)


def test_several_languages_count_equally(say, config, capsys):
    """One word of two is wrong in the first language, none of eight in the second; so on dev as over the test sets."""
    dutch = replace(say("nl", "the sea"), text="the home", language="dutch")
    polish = [replace(say(f"pl{i}", "the night rides home"), language="polish") for i in range(2)]
    corpus = Corpus([], [dutch, *polish], {"test-dutch": [dutch], "test-polish": polish}, {})
    assert evaluation.dev_scores(Echo(), corpus, config, CPU) == {"dev": 25.0}
    result = {"method": "echo"} | evaluation.evaluate(Echo(), corpus, config, CPU)
    assert result["wer"] == {"test-dutch": 50.0, "test-polish": 0.0} and result["wer_mean"] == 25.0
    assert (
        result["cer"] == {"test-dutch": 57.14, "test-polish": 0.0} and result["cer_mean"] == 28.57
    )
    capsys.readouterr()
    evaluation.compare_methods([config, config], [result, result])
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert table == [
        ["mean", "WER", "test-dutch", "WER", "test-polish", "WER"],
        *[["echo", "25.0", "50.0", "0.0"]] * 2,
    ]
    alone = evaluation.evaluate(Echo(), replace(corpus, tests={"test": polish}), config, CPU)
    assert "wer_mean" not in alone


# --------------------------------------------------------------------------------------- choosing where no spaces are

JAPANESE = [
    "今日は天気がいいですね",
    "駅まで歩いて十分かかります",
    "来週の会議は木曜日です",
    "電車が遅れています",
]


def japanese(language: str = "") -> tuple[list[Utterance], dict[str, str], dict[str, str]]:
    """Dev utterances; answers of which one character each is wrong; and answers that are all wrong."""
    dev = [
        Utterance(f"{language}{i}", "", text, 1.0, language=language)
        for i, text in enumerate(JAPANESE)
    ]
    return dev, {u.id: u.text[:-1] + "よ" for u in dev}, {u.id: "あああ" for u in dev}


def test_without_spaces_characters_are_counted():
    """By words, all answers would be equally wrong."""
    dev, nearly, rubbish = japanese()
    letters = sum(map(len, JAPANESE))
    assert evaluation.mean_error(dev, nearly) == pytest.approx(100 * 4 / letters)
    assert evaluation.mean_error(dev, rubbish) > 90 and evaluation.mean_error(dev, {}) == 0
    spaced = [replace(u, text=" ".join(u.text)) for u in dev]  # it has words, as far as one can see
    assert evaluation.mean_error(spaced, {u.id: u.text for u in spaced}) == 0
    assert evaluation.mean_error(spaced, nearly) == 100


def test_every_language_is_counted_in_its_own_way():
    dev, nearly, _ = japanese("japanese")
    english = Utterance("en", "", "the night rides home", 1.0, language="english")
    one = Utterance("one", "", "donaudampfschifffahrtsgesellschaft", 1.0, language="english")
    letters = sum(map(len, JAPANESE))
    found = nearly | {"en": "the night rides", "one": one.text[:-1]}
    assert evaluation.mean_error([*dev, english], found) == pytest.approx(
        (100 * 4 / letters + 25) / 2
    )
    # What was decoded does not decide it, but all references: here the one long word is a word.
    assert evaluation.mean_error([english, one], {"one": one.text[:-1]}) == 100


def test_a_search_is_tuned_by_characters_and_this_is_said_once(config, monkeypatch, capsys):
    dev, nearly, rubbish = japanese()
    answers = {0.3: rubbish, 0.6: nearly, 1.0: rubbish}

    def decode(recogniser, utterances, config, place, lm_weight=0.3, **search):
        return {u.id: Transcript(answers[lm_weight][u.id]) for u in utterances}

    monkeypatch.setattr(evaluation, "decode", decode)
    note_once.cache_clear()
    corpus = Corpus([], dev, {}, {})
    searches = [dict(lm_weight=weight, bonus=0.0) for weight in answers]
    assert evaluation.tune(None, corpus, config, CPU, searches) == {"lm_weight": 0.6, "bonus": 0.0}
    assert evaluation.dev_scores(None, corpus, config, CPU)["dev"] > evaluation.mean_error(
        dev, nearly
    )
    said = capsys.readouterr().err
    assert (
        said.count(
            "no spaces between words: epochs and searches are chosen by errors in characters"
        )
        == 1
    )
    assert said.count("dev CER ") == 3 and "WER" not in said


# ------------------------------------------------------------------------------------------------------ tuning a search


def test_searches(config):
    built = []
    echo = Echo(lm=lambda *arguments: built.append(arguments) or "an lm")
    assert decoding.searches(config, echo, CPU) == [{}]
    beam = options.with_values(config, decode="beam")
    without = decoding.searches(beam, echo, CPU)
    assert (
        without == [dict(beam=4, lm=None, lm_weight=0.0, bonus=bonus) for bonus in (0.0, 1.0)]
        and not built
    )
    found = decoding.searches(options.with_values(beam, lm="demo/lm", root="r"), echo, CPU)
    assert built == [("demo/lm", "--lm", "r", "its tokenizer", CPU.device)]  # once
    pairs = [(search["lm_weight"], search["bonus"]) for search in found]
    assert pairs == [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0)] and all(
        search["lm"] == "an lm" for search in found
    )
    sampled = options.with_values(config, decode="top_k")
    assert decoding.searches(sampled, Echo(lm=None, own=Search(top_k=7)), CPU) == [{"top_k": 7}]


def test_what_a_recogniser_cannot_do(config):
    with pytest.raises(UserError, match="--decode top_p: this model is decoded by greedy, beam"):
        decoding.check_search(Echo(), Search(decode="top_p"))
    with pytest.raises(UserError, match="is a language model itself"):
        decoding.check_search(Echo(lm=None), Search(decode="beam", lm="x"))
    decoding.check_search(Echo(), Search(decode="beam", lm="x"))


def test_tuning_takes_the_best_and_says_all(corpus, config, capsys):
    searches = [{"lm_weight": 0.5, "bonus": bonus} for bonus in (0.0, 1.0, 2.0)]
    assert (
        evaluation.tune(Echo(), corpus, config, CPU, searches) == searches[1]
    )  # of equal ones the first
    shown = [line for line in capsys.readouterr().err.splitlines() if "dev WER" in line]
    assert len(shown) == 3 and shown[0] == "dev WER 40.0 % with --lm-weight 0.5 --bonus 0"
    nothing = replace(corpus, dev=[])
    assert evaluation.tune(Echo(), nothing, config, CPU, searches[:1]) == searches[0]
    with pytest.raises(UserError, match="no dev set to tune on"):
        evaluation.tune(Echo(), nothing, config, CPU, searches)


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_every_test_set(corpus, config, tmp_path, capsys):
    found = evaluation.evaluate(Echo(), corpus, config, CPU)
    assert found["wer"] == {"test": pytest.approx(100 * 2 / 7, abs=0.01), "test-more": 0.0}
    assert found["homophone_error"] == {"test": pytest.approx(100 / 3, abs=0.01), "test-more": 0.0}
    assert (
        found["not_scored"] == 1
        and found["missing"] == {"test": 1}
        and found["normaliser"] == "basic"
    )
    assert (
        found["params"] == 3
        and found["rtf"] > 0
        and found["pieces"] == 4
        and "greedy_rtf" not in found
    )
    json.dumps(found)
    out = capsys.readouterr().out
    assert (
        "WER 28.57 % of 7 words (1 wrong, 0 missing, 1 too many)" in out.replace("  ", " ")
        and "chance" in out
    )
    assert out.count("REF: ") == 1  # those with errors
    assert (tmp_path / "out" / "hyp_test.txt").read_text().count("REF: ") == 3
    rows = evaluation.read_hypotheses(tmp_path / "out" / "hyp_test.tsv")
    assert rows == [
        ["a", *["the knight rides"] * 2],
        ["b", "the see home", "the sea sea home"],
        ["c", "night", "night"],
    ]
    more = (tmp_path / "out" / "hyp_test-more.tsv").read_text()
    assert more.startswith("id\treference\thypothesis\taudio\toffset\tduration\tchannel\n")


def test_scores_of_a_tuned_search(corpus, config):
    """RESULT says which it was, and how long the greedy one takes."""
    beam = options.with_values(config, decode="beam", lm="demo/lm", lm_weight=(0.5,))
    found = evaluation.evaluate(Echo(), corpus, beam, CPU)
    assert (found["lm"], found["lm_weight"], found["bonus"], found["beam"]) == (
        "demo/lm",
        0.5,
        1.0,
        4,
    )
    assert found["greedy_rtf"] > 0 and found["wer"]["test-more"] == 0
    json.dumps(found)


def test_nothing_to_score(corpus, config):
    with pytest.raises(UserError, match="has no test set"):
        evaluation.evaluate(Echo(), replace(corpus, tests={}), config, CPU)
    unreadable = replace(corpus, tests={"test": [replace(u, audio=__file__) for u in corpus.dev]})
    with pytest.raises(UserError, match="none of the 2 utterances of test could be scored"):
        evaluation.evaluate(Echo(), unreadable, config, CPU)
    assert evaluation.real_time_factor(Echo(), unreadable, config, CPU) is None


def test_names_that_would_break_a_table(tmp_path, capsys):
    names = {"a\tb\nc": "the night", "née 1": "sea", "left out": "x"}
    utterances = [Utterance(name, "a\tb.flac", text, 1.0) for name, text in names.items()]
    found = {"a\tb\nc": "the night", "née 1": ""}
    write_hypotheses(tmp_path, "test", utterances, found, "data")
    rows = evaluation.read_hypotheses(tmp_path / "hyp_test.tsv")
    assert rows == [["a\\tb\\nc", "the night", "the night"], ["née 1", "sea", ""]]
    assert capsys.readouterr().out == "REF: SEA\nHYP: ***\n"


def test_methods_side_by_side(corpus, config, tmp_path, capsys):
    """Their errors below each other, and sentences that they made different."""
    configs, results = [], []
    for method, has_last in (("short", 0.0), ("whole", 1.0)):
        configs.append(
            options.with_values(
                config,
                methods=(method,),
                out=str(tmp_path / method),
                decode="beam",
                bonus=(has_last,),
            )
        )
        result = {"method": method} | evaluation.evaluate(Echo(), corpus, configs[-1], CPU)
        results.append(evaluation.report(result, configs[-1], CPU))
        assert json.loads((tmp_path / method / "result.json").read_text()) == result
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("RESULT {") for line in lines) == 2
    assert evaluation.compare_methods(configs, results) == {
        "short": results[0],
        "whole": results[1],
    }
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line[:5] in ("short", "whole")]
    assert table[0] == ["short", "57.1", "50.0", "100.0", "0.0"] and table[1][:3] == [
        "whole",
        "28.6",
        "33.3",
    ]
    assert out.count("REF: ") == 3 and "short         HYP: the knight *****\n" in out
    assert (
        evaluation.compare_methods(configs[:1], results[:1]) == results[0]
        and capsys.readouterr().out == ""
    )


# --------------------------------------------------------------------------------------------------------- transcribing


def test_files_are_transcribed_in_their_order(say, config, tmp_path, capsys):
    a, b = say("a", "the night"), say("b", "home")
    odd = tmp_path / os.fsdecode(b"\xff\tx.flac")  # bytes that are no text, and a tab
    odd.write_bytes((tmp_path / "a.flac").read_bytes())
    files = [b.audio, str(odd), a.audio]
    transcription.transcribe_files(Echo(), files, config, CPU)
    out = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[-1] for line in out] == ["home", "the night", "the night"]
    assert all(len(line.split("\t")) == 2 for line in out) and out[0].startswith(b.audio)
    transcription.transcribe_files(Echo(), files, replace(config, times=True), CPU)
    timed = capsys.readouterr().out.splitlines()
    assert (
        timed[0] == f"{b.audio}\t0.00\t0.30\thome"
        and len(timed) == 5
        and timed[4].endswith("\t0.50\t0.80\tnight")
    )


def test_what_cannot_be_transcribed(say, config, tmp_path, capsys):
    files = [str(tmp_path), say("a", "the").audio, __file__]
    with pytest.raises(UserError, match="2 of 3 files could not be read"):
        transcription.transcribe_files(Echo(), files, config, CPU)
    captured = capsys.readouterr()
    assert captured.out.endswith("a.flac\tthe\n") and captured.err.count("error: ") == 2
    with pytest.raises(UserError, match="no word times: leave --times out"):
        transcription.transcribe_files(
            Echo(has_times=False), files[1:2], replace(config, times=True), CPU
        )


def test_transcribing_needs_one_search(config):
    beam = options.with_values(config, decode="beam")
    with pytest.raises(UserError, match="transcribing needs one --lm-weight and one --bonus"):
        transcription.transcribe_files(Echo(), ["a.wav"], beam, CPU)  # of two bonuses
    # A recogniser that is itself a language model has nothing to weigh.
    transcription.transcribe_files(Echo(lm=None), [], beam, CPU)


def test_a_recording_is_transcribed_as_it_is_scored(say, config):
    long = say("long", "the night rides home sea " * 12)
    cut = replace(config, cut_seconds=4.1)
    wave = decoding.batch_of(read_audio(long.audio))
    assert decoding.recognise(Echo(), wave, cut, CPU) == [
        decoding.decode(Echo(), [long], cut, CPU)["long"]
    ]


def test_two_recordings_of_one_name_have_subtitles_of_their_own(say, config, tmp_path, capsys):
    flac, other = say("x", "the night").audio, say("y", "home").audio
    wave, rate = soundfile.read(other)
    wav = str(tmp_path / "x.wav")
    soundfile.write(wav, wave, rate)
    transcription.transcribe_files(Echo(), [flac, wav, other], replace(config, srt=True), CPU)
    assert {path.name for path in tmp_path.glob("*.srt")} == {"x.flac.srt", "x.wav.srt", "y.srt"}
    assert (
        "the night" in (tmp_path / "x.flac.srt").read_text()
        and "home" in (tmp_path / "x.wav.srt").read_text()
    )
    assert transcription.subtitle_files(["a/x.wav", "b/x.flac"])["a/x.wav"].name == "x.srt"
