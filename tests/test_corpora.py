"""Corpora as they really are: damaged, incomplete, oddly laid out. What is wrong is said, counted, and never silent."""

import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import copy_corpus, write_manifest

from common.demo import english
from common.errors import UserError
from common.running import mls
from common.running.corpora import (
    CHARACTERS_PER_SECOND,
    Utterance,
    first_hours,
    languages_of,
    load_corpus,
    load_homophones,
    session_order,
    too_many_bad,
    trainable,
    untrainable,
)
from common.running.downloads import fetch_archive
from common.running.layouts import LIBRISPEECH_SCORED, LIBRISPEECH_TRAIN, list_subset
from common.running.manifests import list_manifest
from common.text import normalise


def made_up(n: int, seed: int = 0) -> list[Utterance]:
    """Durations like LibriSpeech's: 1 to 17 s, most of them long."""
    rng = random.Random(seed)
    return [
        Utterance(f"u{i}", "", "x", 1 + 16 * rng.betavariate(3, 1.5), session=f"s{i // 20}")
        for i in range(n)
    ]


@pytest.fixture
def data(tmp_path) -> Path:
    """A data folder with 30 training, 4 dev and 4 test utterances of a second each, of unknown duration."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0).standard_normal(16_000) / 10
    for name, count in (("train", 30), ("dev", 4), ("test", 4)):
        for i in range(count):
            soundfile.write(folder / f"{name}{i}.flac", noise, 16_000)
        entries = [
            {"id": f"{name}-{i}", "audio_filepath": f"{name}{i}.flac", "text": "a word"}
            for i in range(count)
        ]
        write_lines(folder / f"{name}.jsonl", entries)
    return folder


def write_lines(path: Path, entries) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def change_line(path: Path, index: int, **changes) -> None:
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    entries[index] |= changes
    write_lines(path, entries)


# ---------------------------------------------------------------------------------------------------- LibriSpeech


def test_librispeech_layout_with_everything_wrong_that_can_be(root, tmp_path, capsys):
    folder = copy_corpus(root, tmp_path) / "LibriSpeech"
    transcript = sorted((folder / "train-000").glob("*/*/*.trans.txt"))[0]
    lines = transcript.read_text().splitlines()
    names = [line.split()[0] for line in lines]
    lines[0] = f"{names[0]} DON'T SAY 'TIS \"ÜBER\" THE BOYS'"
    (transcript.parent / f"{names[1]}.flac").unlink()
    (transcript.parent / f"{names[2]}.flac").write_bytes(b"")
    lines[3] = names[3]  # a name without words: silence, which a test set may hold
    transcript.write_text("\ufeff" + "\n\n".join(lines) + "\n")
    corpus = load_corpus("librispeech", str(tmp_path))
    by_name = {u.id: u for u in corpus.train}
    assert by_name[names[0]].text == "don't say 'tis über the boys'"
    assert (
        not {names[1], names[2]} & set(by_name)
        and len(corpus.train) == 198
        and by_name[names[3]].text == ""
    )
    assert set(corpus.missing["train"]) == {names[1], names[2]} and corpus.missing["dev"] == {}
    error = capsys.readouterr().err
    assert (
        "train: left out 2 of 200" in error
        and f"{names[1]}.flac cannot be read: no such file" in error
    )
    assert f"{names[2]}.flac cannot be read: it is empty" in error
    first = by_name[names[0]]
    assert first.speaker == names[0].split("-")[0] and first.session == "-".join(
        names[0].split("-")[:2]
    )


def test_root_with_or_without_librispeech_in_it(root):
    inside = root / "demo-smoke" / "LibriSpeech"
    a, b = (load_corpus("librispeech", str(folder)) for folder in (inside, inside.parent))
    assert (
        a == b and set(a.tests) == {"test-clean", "test-other"} and a.homophones["sail"] == "sale"
    )


def test_missing_corpora_say_what_to_do(root, tmp_path):
    with pytest.raises(UserError, match="--root names the folder that holds LibriSpeech"):
        load_corpus("librispeech", str(tmp_path))
    with pytest.raises(UserError, match="train-clean-100.*--download"):
        load_corpus("librispeech", str(root / "demo-smoke"), hours=100)
    for name in ("librispech", "x" * 300):
        with pytest.raises(
            UserError, match="no such folder, and not demo, demo-smoke, .*librispeech"
        ):
            load_corpus(name, str(tmp_path))
    (tmp_path / "LibriSpeech" / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match=r"trans\.txt"):
        list_subset(tmp_path / "LibriSpeech", "train-clean-100")


def test_scoring_needs_no_training_data(root, tmp_path):
    shutil.copytree(
        root / "demo-smoke" / "LibriSpeech" / "test-clean", tmp_path / "LibriSpeech" / "test-clean"
    )
    corpus = load_corpus("librispeech", str(tmp_path), hours=100, scoring=True)
    assert corpus.train == corpus.dev == [] and len(corpus.tests["test-clean"]) == 60


def test_demo_worlds_by_name_and_no_more_of_them_than_scoring_needs(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        english, "build", lambda folder, **options: built.append((folder, options)) or ["train-000"]
    )
    for name in ("demo", "demo-smoke"):
        for options in ({}, {"hours": 7.2}, {"hours": 7.2, "scoring": True}):
            with pytest.raises(UserError, match=f"{name}/LibriSpeech lacks a"):
                load_corpus(name, str(tmp_path), **options)
    hours = [english.HOURS, 7.2, english.SHARD_HOURS]
    assert built == [
        (tmp_path / name, {"hours": h, "small": name == "demo-smoke"})
        for name in ("demo", "demo-smoke")
        for h in hours
    ]


def test_transcripts_in_another_encoding_name_file_and_line(root, tmp_path):
    folder = copy_corpus(root, tmp_path) / "LibriSpeech"
    transcript = sorted((folder / "dev-clean").glob("*/*/*.trans.txt"))[0]
    transcript.write_bytes(b"1-2-3 HELLO\n1-2-4 \xdcBER\n")
    with pytest.raises(UserError, match=f"{transcript.name}, line 2 is not UTF-8"):
        load_corpus("librispeech", str(tmp_path))


INSIDE = "a\u2028b\u2029c\x85d\ve\ff\x1cg\x1dh\x1ei\rj"  # str.splitlines would cut at each of them


def test_a_line_of_a_list_ends_at_a_line_feed_alone(tmp_path):
    chapter = tmp_path / "test-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    ending = "\r\n"
    (chapter / "1-2.trans.txt").write_bytes(f"1-2-0 {INSIDE}{ending}1-2-1 K{ending}".encode())
    (tmp_path / "transcripts.txt").write_bytes(f"1_2_0\t{INSIDE}{ending}1_2_1\tK{ending}".encode())
    raw = json.dumps({"audio_filepath": "a.wav", "text": INSIDE}, ensure_ascii=False)
    for control in "\v\f\x1c\x1d\x1e\r":  # as they are, though JSON wants them escaped
        raw = raw.replace(json.dumps(control)[1:-1], control)
    (tmp_path / "test.jsonl").write_bytes(
        f'{raw}{ending}{{"audio_filepath": "a", "text": "K"}}'.encode()
    )
    lists = [
        list_subset(tmp_path, "test-clean"),
        mls.list_subset(tmp_path, "english"),
        list_manifest(tmp_path / "test.jsonl").utterances,
    ]
    for utterances in lists:
        assert [u.text for u in utterances] == ["a b c d e f g h i j", "k"]


def test_homophone_lists(tmp_path):
    (tmp_path / "homophones.txt").write_text("sail sale\n\n")
    assert load_homophones(tmp_path) == {"sail": "sale", "sale": "sail"}
    (tmp_path / "homophones.txt").write_text("sail\n")
    with pytest.raises(UserError, match="two words"):
        load_homophones(tmp_path)
    (tmp_path / "homophones.txt").write_bytes(b"sail sale\nna\xefve knave\n")
    with pytest.raises(UserError, match="homophones.txt, line 2 is not UTF-8"):
        load_homophones(tmp_path)


def test_hours_are_whole_sessions_and_the_same_for_a_seed():
    utterances = made_up(1000)
    chosen = first_hours(utterances, 0.5, seed=3)
    assert 1800 <= sum(u.duration for u in chosen) <= 1800 + 20 * 17
    assert chosen == first_hours(utterances, 0.5, seed=3) != first_hours(utterances, 0.5, seed=4)
    assert set(Counter(u.session for u in chosen).values()) == {20}
    longer = first_hours(utterances, 1.0, seed=3)
    assert longer[: len(chosen)] == chosen
    assert first_hours(utterances, None, 3) == utterances


def test_the_order_of_a_session_is_that_of_time():
    talk = [
        Utterance(n, "", "x", 1.0, at, session=s)
        for n, at, s in (("a", 5, "s"), ("b", 0, "t"), ("c", 2, "s"))
    ]
    assert session_order(talk) == {"c": (["c", "a"], 0), "a": (["c", "a"], 1), "b": (["b"], 0)}


# ------------------------------------------------------------------------------------------------ what is not there


def test_what_is_missing_is_counted_however_it_is_found(data, capsys):
    """No file, no audio, audio in part, numbers that make no sense: named, counted, and the rest is used."""
    (data / "train0.flac").unlink()
    (data / "train1.flac").write_text("no audio")
    change_line(data / "train.jsonl", 2, offset=1.5)
    change_line(data / "train.jsonl", 3, duration=math.nan)
    change_line(data / "train.jsonl", 4, audio_filepath="a\0\x1b[2J.wav")
    os.mkfifo(data / "pipe")
    change_line(data / "train.jsonl", 5, audio_filepath="pipe")
    (data / "test0.flac").unlink()
    corpus = load_corpus(str(data), "")
    assert len(corpus.train) == 24 and len(corpus.tests["test"]) == 3
    assert {name: list(missing) for name, missing in corpus.missing.items()} == {
        "train": [f"train-{i}" for i in range(6)], "dev": [], "test": ["test-0"],
    }  # fmt: skip
    reasons = list(corpus.missing["train"].values())
    expected = [
        "no such file",
        "no audio file",
        "no audio after 1.50 s",
        "line 4: .*duration nan",
        "name",
        "regular",
    ]
    assert all(re.search(words, reason) for words, reason in zip(expected, reasons, strict=True))
    error = capsys.readouterr().err
    assert (
        "train: left out 6 of 30" in error
        and "and 1 more" in error
        and "test: left out 1 of 4" in error
    )
    assert "\x1b" not in error and "\0" not in error


@pytest.mark.parametrize("layout", ["manifest", "librispeech"])
def test_more_than_ten_and_one_per_cent_missing_stop_the_run(layout, data, root, tmp_path):
    if layout == "librispeech":
        folder = copy_corpus(root, tmp_path)
        audio, where, n = (
            sorted(folder.glob("LibriSpeech/train-*/*/*/*.flac")),
            ("librispeech", str(folder)),
            200,
        )
    else:
        audio, where, n = sorted(data.glob("train*.flac")), (str(data), ""), 30
    for path in audio[:10]:
        path.unlink()
    corpus = load_corpus(*where)
    assert len(corpus.missing["train"]) == 10 and len(corpus.train) == n - 10
    audio[10].unlink()
    with pytest.raises(
        UserError, match=rf"11 of {n} utterances cannot be read(.|\n)*{audio[0].name}(.|\n)*no such"
    ):
        load_corpus(*where)
    assert load_corpus(*where, scoring=True).train == []


def test_too_many_bad():
    bad = {f"u{i}": f"u{i} is broken" for i in range(300)}
    too_many_bad(dict(list(bad.items())[:10]), 11)
    too_many_bad(bad, 30_000)
    with pytest.raises(
        UserError,
        match=r"300 of 29999 utterances cannot be read(.|\n)*u99 is broken\n  and 200 more$",
    ):
        too_many_bad(bad, 29_999)


def test_missing_utterances_outside_the_chosen_hours_do_not_count(data):
    for i in range(30):
        change_line(data / "train.jsonl", i, session=f"s{i % 15}")
    for i in range(14):
        (data / f"train{i}.flac").unlink()
    chosen = load_corpus(str(data), "", hours=1e-9, seed=1)
    assert len(chosen.train) + len(chosen.missing["train"]) == 2


@pytest.mark.parametrize("name", ["train", "dev", "test"])
@pytest.mark.parametrize(
    "how", ["empty manifest", "all files missing", "all lines bad", "no manifest"]
)
def test_nothing_left_of_a_set(data, name, how):
    if how == "all files missing":
        for path in data.glob(f"{name}*.flac"):
            path.unlink()
    elif how == "all lines bad":
        for i in range(30 if name == "train" else 4):
            change_line(data / f"{name}.jsonl", i, duration=-1)
    elif how == "empty manifest":
        (data / f"{name}.jsonl").write_text("\n")
    else:
        (data / f"{name}.jsonl").unlink()
    with pytest.raises(
        UserError, match=rf"{name}: nothing to learn from or to check it on|{name}\*?.jsonl"
    ):
        load_corpus(str(data), "")
    if name == "test":
        with pytest.raises(UserError, match="nothing to learn from or to check it on|no test set"):
            load_corpus(str(data), "", scoring=True)


def test_nothing_to_score(data, root, tmp_path):
    for i in range(4):
        change_line(data / "test.jsonl", i, text="...!")
    with pytest.raises(
        UserError, match="test: nothing to check it on, none of its 4 utterances has text"
    ):
        load_corpus(str(data), "", scoring=True)
    for name in ("train-000", "dev-clean"):
        shutil.copytree(root / "demo-smoke" / "LibriSpeech" / name, tmp_path / "LibriSpeech" / name)
    for scoring in (False, True):
        with pytest.raises(UserError, match=r"lacks a test-\* subset: add --download"):
            load_corpus("librispeech", str(tmp_path), scoring=scoring)


def test_what_cannot_be_learnt_from_is_counted(capsys):
    good = Utterance("good", "", "a word", 2.0)
    longest = "x" * (2 * CHARACTERS_PER_SECOND)
    others = {
        "without text": replace(good, text=""),
        "longer than --max-seconds 8": replace(good, duration=8.1),
        f"with more than {CHARACTERS_PER_SECOND} characters a second": replace(
            good, text=longest + "x"
        ),
    }
    assert {reason: untrainable(u, 8.0) for reason, u in others.items()} == {
        reason: reason for reason in others
    }
    kept = [good, replace(good, text=longest), replace(good, duration=8.0)]
    assert trainable(kept, 8.0) == kept and capsys.readouterr().err == ""
    assert trainable([*others.values(), *kept, *others.values()], 8.0) == kept
    assert capsys.readouterr().err == (
        "6 of 9 training utterances are left out, 2 without text, 2 longer than --max-seconds 8, "
        f"2 with more than {CHARACTERS_PER_SECOND} characters a second\n"
    )
    with pytest.raises(
        UserError, match="nothing to learn from: 3 of 3 .* 1 longer than --max-seconds 8"
    ):
        trainable(list(others.values()), 8.0)
    with pytest.raises(UserError, match="longer than --max-seconds nan"):
        trainable(kept, math.nan)


# --------------------------------------------------------------------------------------- Multilingual LibriSpeech


def mls_of(mls_root: Path, folder: Path, *languages: str) -> Path:
    """A copy of some languages, with lists for limited supervision: 9hr the first three, 1hr/0 and 1 the next two."""
    for language in languages:
        shutil.copytree(mls_root / "demo-mls-smoke" / f"mls_{language}", folder / f"mls_{language}")
        train = folder / f"mls_{language}" / "train"
        names = [
            line.split("\t")[0] for line in (train / "transcripts.txt").read_text().splitlines()
        ]
        for subset, some in {"9hr": names[:3], "1hr/0": names[3:4], "1hr/1": names[4:5]}.items():
            (train / "limited_supervision" / subset).mkdir(parents=True)
            (train / "limited_supervision" / subset / "handles.txt").write_text(
                "\n".join(some) + "\n"
            )
    return folder


def test_mls_layout(mls_root, tmp_path):
    demo_mls = load_corpus("demo-mls-smoke", str(mls_root))
    assert load_corpus("mls", str(mls_root / "demo-mls-smoke")) == demo_mls
    assert tuple(demo_mls.tests) == tuple(f"test-{language}" for language in mls.LANGUAGES)
    for u in demo_mls.train:
        assert u.id.rsplit("_", 1)[0] == u.session and u.session.startswith(f"{u.speaker}_")
        assert u.text == normalise(u.text)
    counts = Counter(u.language for u in demo_mls.train)
    assert (
        tuple(language for language, _ in counts.most_common()) == mls.LANGUAGES
    )  # in MLS's order
    assert {u.language for u in demo_mls.dev} == set(mls.LANGUAGES)
    for name, utterances in demo_mls.tests.items():
        assert {u.language for u in utterances} == {name.removeprefix("test-")}
        assert {u.speaker for u in utterances}.isdisjoint(u.speaker for u in demo_mls.train)
    folder = mls_of(mls_root, tmp_path, "polish", "italian")
    some = load_corpus("mls", str(folder))
    assert list(some.tests) == ["test-italian", "test-polish"]
    assert {u.language for u in some.train} == {"italian", "polish"}
    for hours, count in {9: 3, 1: 2, 10: 5}.items():
        limited = load_corpus("mls", str(folder), hours=hours).train
        assert Counter(u.language for u in limited) == {"italian": count, "polish": count}
    polish = load_corpus("mls", str(folder), languages=("polish",))
    few = load_corpus("mls", str(folder), hours=0.001, languages=("polish",))
    assert 0 < len(few.train) < len(polish.train)
    with pytest.raises(
        UserError, match="--hours 0.001 has room for no utterance in (italian|polish)"
    ):
        load_corpus("mls", str(folder), hours=0.001)


@pytest.mark.parametrize("how", ["no folder", "empty list"])
@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_a_language_does_not_vanish_from_mls(mls_root, tmp_path, name, how):
    subset = mls_of(mls_root, tmp_path, "polish", "italian") / "mls_polish" / name
    if how == "no folder":
        subset.rename(tmp_path / "elsewhere")
        wrong = f"no .*mls_polish/{name}/transcripts.txt: unpack {name} of that language"
    else:
        (subset / "transcripts.txt").write_text("\n")
        wrong = f"{name} has no utterance in polish"
    with pytest.raises(UserError, match=wrong):
        load_corpus("mls", str(tmp_path))
    if name == "train":
        assert len(load_corpus("mls", str(tmp_path), scoring=True).tests) == 2
    else:
        with pytest.raises(UserError, match=wrong):
            load_corpus("mls", str(tmp_path), scoring=True)
    assert list(load_corpus("mls", str(tmp_path), languages=("italian",)).tests) == ["test-italian"]


def test_scoring_mls_needs_no_dev(mls_root, tmp_path):
    folder = mls_of(mls_root, tmp_path, "polish", "italian")
    for language in ("polish", "italian"):
        shutil.rmtree(folder / f"mls_{language}" / "dev")
    scored = load_corpus("mls", str(folder), scoring=True)
    assert scored.dev == [] and list(scored.tests) == ["test-italian", "test-polish"]


def test_mls_where_the_first_file_is_missing(tmp_path):
    names = [f"1_2_{i}" for i in range(3)]
    (tmp_path / "transcripts.txt").write_text("".join(f"{name}\ta word\n" for name in names))
    (tmp_path / "audio" / "1" / "2").mkdir(parents=True)
    for ending in (".flac", ".opus"):
        (tmp_path / "audio" / "1" / "2" / f"{names[1]}{ending}").touch()
        found = [Path(u.audio).name for u in mls.list_subset(tmp_path, "polish")]
        assert found == [f"{name}{ending}" for name in names]
        (tmp_path / "audio" / "1" / "2" / f"{names[1]}{ending}").unlink()
    assert {Path(u.audio).suffix for u in mls.list_subset(tmp_path, "polish")} == {".flac"}


def test_opus_is_read_where_it_is_unpacked(mls_root, tmp_path):
    folder = mls_of(mls_root, tmp_path, "polish")
    for path in (folder / "mls_polish").rglob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".opus"), samples, rate, format="OGG", subtype="OPUS")
        path.unlink()
    (folder / "mls_polish").rename(folder / "mls_polish_opus")
    (flac,), (opus,) = (load_corpus("mls", str(f), languages=("polish",)).tests.values()
                        for f in (mls_root / "demo-mls-smoke", folder))  # fmt: skip
    assert [(u.id, u.text, round(u.duration, 3)) for u in opus] == [
        (u.id, u.text, round(u.duration, 3)) for u in flac
    ]


def test_languages_are_chosen_by_name(mls_root, data, tmp_path):
    polish = load_corpus("demo-mls-smoke", str(mls_root), languages=("polish",))
    assert list(polish.tests) == ["test-polish"] and {
        u.language for u in polish.train + polish.dev
    } == {"polish"}
    for index, lang in enumerate(["nl", "pl", "pl", "nl"]):
        for name in ("train", "dev"):
            change_line(data / f"{name}.jsonl", index, lang=lang)
    for index in range(4, 30):
        change_line(data / "train.jsonl", index, lang="nl")
    for index in range(4):
        change_line(data / "test.jsonl", index, lang="nl")
    shutil.copy(data / "test.jsonl", data / "test-pl.jsonl")
    change_line(data / "test-pl.jsonl", 0, lang="pl")
    corpus = load_corpus(str(data), "", languages=("pl",))
    assert (len(corpus.train), len(corpus.dev), len(corpus.tests["test-pl"])) == (2, 2, 1) and len(
        corpus.tests
    ) == 1
    for where in ((str(data), ""), ("mls", str(mls_of(mls_root, tmp_path / "mls", "polish")))):
        with pytest.raises(
            UserError, match=r"--languages klingon: the corpus has (nl, pl|polish)\."
        ):
            load_corpus(*where, languages=("klingon",))
    with pytest.raises(UserError, match="--languages klingon: the corpus has dutch, english"):
        load_corpus("demo-mls-smoke", str(mls_root), languages=("klingon",))


def two_languages(data: Path) -> None:
    """Makes every third line of the manifests Polish, the others Dutch."""
    for name, count in (("train", 30), ("dev", 4), ("test", 4)):
        for index in range(count):
            change_line(data / f"{name}.jsonl", index, lang="nl" if index % 3 else "pl")


@pytest.mark.parametrize("name", ["train", "dev", "test"])
@pytest.mark.parametrize("how", ["no lines", "no audio", "no text"])
def test_a_language_does_not_vanish_from_manifests(data, name, how):
    two_languages(data)
    assert len(load_corpus(str(data), "").train) == 30
    for index in range(0, 30 if name == "train" else 4, 3):
        if how == "no lines":
            change_line(data / f"{name}.jsonl", index, lang="nl")
        elif how == "no text":
            change_line(data / f"{name}.jsonl", index, text="...")
        else:
            change_line(data / f"{name}.jsonl", index, audio_filepath="nowhere.flac")
    wrong = f"{name} has no utterance in pl" if how == "no lines" else f"{name}: no utterance in pl"
    if name == "train" and how == "no text":
        utterances = load_corpus(str(data), "").train
        with pytest.raises(
            UserError, match="nothing to learn from in pl: 10 of 30 .* without text"
        ):
            trainable(utterances, 30.0)
        return
    for languages in ((), ("nl", "pl")):
        with pytest.raises(UserError, match=wrong):
            load_corpus(str(data), "", languages=languages)
    assert load_corpus(str(data), "", languages=("nl",)).train
    if name != "train":
        with pytest.raises(UserError, match=wrong):
            load_corpus(str(data), "", scoring=True)


def test_a_language_that_only_the_tests_have(data):
    two_languages(data)
    change_line(data / "test.jsonl", 1, lang="klingon")
    with pytest.raises(UserError, match="train has no utterance in klingon"):
        load_corpus(str(data), "")
    (data / "dev.jsonl").unlink()
    assert len(load_corpus(str(data), "", scoring=True).tests["test"]) == 4


def test_lang_is_a_name_and_no_path(data):
    for lang in (
        "../../evil",
        "/tmp/x",
        "a/b",
        "..",
        ".",
        "a b",
        "x\x1b[2J",
        "x" * 300,
        ["nl"],
        1.5,
        "nl\n",
    ):
        change_line(data / "dev.jsonl", 2, lang=lang)
        with pytest.raises(UserError, match="dev.jsonl, line 3 has the lang .*no name") as caught:
            list_manifest(data / "dev.jsonl")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    for lang in ("nl", "zh-Hant-TW", "en_US", "日本語", 7):
        change_line(data / "dev.jsonl", 2, lang=lang)
        assert list_manifest(data / "dev.jsonl").utterances[2].language == str(lang)


def test_where_languages_are_needed_it_is_said_what_a_line_needs(data):
    what = 'Every line of a manifest needs its language here, as "lang": "german"'
    corpus = load_corpus(str(data), "")
    with pytest.raises(UserError, match=f"4 of 4 utterances have no language.* dev-0. {what}"):
        languages_of(corpus.dev)
    with pytest.raises(UserError, match=f"--languages pl: .*{what}"):
        load_corpus(str(data), "", languages=("pl",))
    two_languages(data)
    assert languages_of(load_corpus(str(data), "").dev) == ["nl", "pl"]
    change_line(data / "dev.jsonl", 1, lang=None)
    for languages in ((), ("pl",)):
        with pytest.raises(
            UserError, match='1 of 38 .* no language, the first is dev-1.*a "lang", or none'
        ):
            load_corpus(str(data), "", languages=languages)


def test_damaged_mls_says_what_to_do(mls_root, tmp_path):
    with pytest.raises(UserError, match="--root names the folder that does"):
        load_corpus("mls", str(tmp_path))
    train = mls_of(mls_root, tmp_path, "polish") / "mls_polish" / "train"
    with (train / "limited_supervision" / "9hr" / "handles.txt").open("a") as file:
        file.write("1_2_3\n")
    with pytest.raises(UserError, match="lists 4 utterances, and transcripts.txt has 3 of them"):
        load_corpus("mls", str(tmp_path), hours=9)
    lines = (train / "transcripts.txt").read_text().splitlines()
    (train / "transcripts.txt").write_text("\n".join([lines[0], "no name\tkto tam"]))
    with pytest.raises(UserError, match="line 2 is no <speaker>_<book>_<number>"):
        load_corpus("mls", str(tmp_path))


# ------------------------------------------------------------------------------------------------------- downloads


def archive(path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_archives_are_verified_before_they_are_unpacked(tmp_path):
    member = "LibriSpeech/dev-clean"
    checksum = archive(tmp_path / "a.tar.gz", {f"{member}/1/2/1-2.trans.txt": b"1-2-0 HELLO\n"})
    url = (tmp_path / "a.tar.gz").as_uri()
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_archive(url, "0" * 64, tmp_path / "root", member)
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_archive((tmp_path / "none.tar.gz").as_uri(), checksum, tmp_path / "root", member)
    assert list((tmp_path / "root").iterdir()) == []
    fetch_archive(url, checksum, tmp_path / "root", member)
    assert (tmp_path / "root" / member / "1/2/1-2.trans.txt").read_text() == "1-2-0 HELLO\n"
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["LibriSpeech"]
    with pytest.raises(UserError, match="could not be fetched .*File exists"):
        fetch_archive(url, checksum, tmp_path / "a.tar.gz", member)


def test_archives_cannot_write_outside(tmp_path):
    checksum = archive(
        tmp_path / "evil.tar.gz", {"../../escaped.txt": b"x", "LibriSpeech/dev-clean/a": b"x"}
    )
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_archive(
            (tmp_path / "evil.tar.gz").as_uri(),
            checksum,
            tmp_path / "deep" / "root",
            "LibriSpeech/dev-clean",
        )
    assert not list(tmp_path.rglob("escaped.txt"))


def test_torchaudio_knows_a_checksum_for_every_subset():
    from torchaudio.datasets.librispeech import _CHECKSUMS

    known = {url.rsplit("/", 1)[1] for url in _CHECKSUMS}
    assert {f"{name}.tar.gz" for name in [*LIBRISPEECH_TRAIN[960], *LIBRISPEECH_SCORED]} <= known
    assert all(len(checksum) == 64 for checksum in _CHECKSUMS.values())


# ------------------------------------------------------------------------------------------------ JSONL manifests


def test_manifest(tmp_path, corpus):
    audio = corpus.train[0].audio
    shutil.copy(audio, tmp_path / "a b.flac")
    lines = [
        {"audio_filepath": "a b.flac", "text": "Hello, World!", "lang": "en"},
        {"audio_filepath": str(tmp_path / "a b.flac"), "text": "x", "duration": 0.5, "offset": 0.25, "channel": 0,
         "speaker": 7, "session": "s", "lang": "en"},
        {"audio_filepath": "nowhere.flac", "text": "y", "lang": "en"},
        {"audio_filepath": "a b.flac", "text": "end", "offset": 0.5, "channel": None, "id": None, "session": None,
         "lang": "en"},
        {"audio_filepath": "a b.flac", "text": "channel of a data frame", "channel": 0.0, "id": "tab\tand\x1b[31mred",
         "lang": "en"},
    ]  # fmt: skip
    (tmp_path / "test.jsonl").write_bytes(
        ("\ufeff" + "\r\n".join(map(json.dumps, lines)) + "\n\n").encode()
    )
    corpus_here = load_corpus(str(tmp_path), "", scoring=True)
    first, second, third, fourth = corpus_here.tests["test"]
    assert third.duration == pytest.approx(first.duration - 0.5)
    assert first.text == "hello world" and first.duration == pytest.approx(corpus.train[0].duration)
    assert second == Utterance(
        "test-000002", str(tmp_path / "a b.flac"), "x", 0.5, 0.25, 0, "7", "s", "en"
    )
    assert (third.id, third.channel, third.session) == (
        "test-000004",
        None,
        str(tmp_path / "a b.flac"),
    )
    assert (fourth.id, fourth.channel) == ("tab\\tand\\x1b[31mred", 0)
    assert list(corpus_here.missing["test"]) == ["test-000003"]


@pytest.mark.parametrize(
    "line",
    [
        '{"audio_filepath": "a.wav"}', "not json", "[1]", '{"audio_filepath": "a", "text": 3}', "NaN", '"text"', "7",
        '{"audio_filepath": 3, "text": "x"}', '{"audio_filepath": ["a"], "text": "x"}', '{"text": "x"}', "\x1b[2J",
        '{"audio_filepath": "a", "text": null}', '{"audio_filepath": "a", "text": {"a": "b"}}', "[" * 100_000,
        '{"audio_filepath": "a", "text": "x", "offset": 1' + "0" * 5000 + "}", '{"audio_filepath": "a", "text": "x"',
        '{"audio_filepath": "~\\u0000", "text": "x"}',
    ],
)  # fmt: skip
def test_a_broken_manifest_names_its_line(tmp_path, line):
    good = '{"audio_filepath": "a.wav", "text": "x", "duration": 1}\n'
    (tmp_path / "m.jsonl").write_text(good + line + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        list_manifest(tmp_path / "m.jsonl")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["duration", "offset", "channel"])
@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1",
        '"1"',
        '"x\\u001b"',
        "true",
        "[]",
        "{}",
        "1" + "0" * 400,
    ],
)
def test_numbers_that_make_no_sense_cost_one_utterance(tmp_path, key, value):
    line = '{"audio_filepath": "a.wav", "text": "x", "duration": 1'
    (tmp_path / "m.jsonl").write_text(line + "}\n" + line + f', "{key}": {value}}}\n')
    listing = list_manifest(tmp_path / "m.jsonl")
    utterances, bad = listing.utterances, listing.bad
    assert [u.id for u in utterances] == ["m-000001", "m-000002"] and list(bad) == ["m-000002"]
    assert f"m.jsonl, line 2: there cannot be {key}" in bad["m-000002"]
    assert bad["m-000002"].isprintable() and len(bad["m-000002"]) < 400


@pytest.mark.parametrize("key, value", [("duration", 0), ("channel", 0.5)])
def test_other_numbers_that_make_no_sense(tmp_path, key, value):
    write_lines(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "text": "x", key: value}])
    assert (
        f"line 1: there cannot be {key} {value}"
        in list_manifest(tmp_path / "m.jsonl").bad["m-000001"]
    )


@pytest.mark.parametrize(
    "encoding, line",
    [
        ("latin-1", 2),
        ("utf-16", 1),
        ("utf-16-le", 1),
        ("utf-16-be", 1),
        ("cp1252", 2),
        ("utf-32", 1),
    ],
)
def test_manifests_in_another_encoding_name_file_and_line(data, encoding, line):
    entries = [
        '{"audio_filepath": "train0.flac", "text": "x"}',
        '{"audio_filepath": "train1.flac", "text": "naïve"}',
    ]
    (data / "train.jsonl").write_bytes("\n".join(entries).encode(encoding))
    with pytest.raises(UserError, match=rf"train.jsonl, line {line} is not UTF-8: save the file"):
        load_corpus(str(data), "")


def test_a_manifest_that_is_no_file(data):
    (data / "train.jsonl").unlink()
    os.mkfifo(data / "train.jsonl")
    with pytest.raises(UserError, match="train.jsonl cannot be read: not a regular file"):
        load_corpus(str(data), "")
    (data / "test-b.jsonl").mkdir()
    with pytest.raises(UserError, match="test-b.jsonl cannot be read: is a directory"):
        load_corpus(str(data), "", scoring=True)


def test_ids_given_twice(data, corpus):
    write_manifest(data / "train.jsonl", [corpus.train[0]] * 2)
    with pytest.raises(UserError, match="same id"):
        load_corpus(str(data), "")
