"""The demo world: homophones that really sound alike, honest splits, enough frames, a build that survives a kill."""

import hashlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.demo import english, grammar, languages, models, multilingual
from common.demo.__main__ import main, read
from common.demo.building import run_speech, speak
from common.demo.english import SHARD, SIZES, build, plan_utterances
from common.demo.models import build_english
from common.demo.speakers import ACCENTS, NEW_SPEAKERS, SPEAKERS
from common.demo.speech import frames
from common.demo.vocabulary import frames_needed
from common.demo.words import (
    CUES,
    ONE_HOMOPHONE,
    PAIRS,
    SCENES,
    SECOND,
    TWIN,
    TWO_HOMOPHONES,
    USUAL,
)
from common.errors import UserError
from common.running.corpora import load_corpus
from common.running.mls import LANGUAGES as MLS_LANGUAGES
from common.text import WordPiece, normalise

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import homophones

HELD_OUT, TRAINING = ["dev-clean", "test-clean", "test-other"], ["train-000", "train-001"]
ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, str]:
    """{path: checksum} of every file of a world but what a killed build left behind."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".building-" not in str(p)]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def sentences(subset: str, count: int, seed: int = 0) -> list[str]:
    return list(itertools.chain.from_iterable(grammar.take(seed, subset, count)))


@pytest.fixture(scope="session")
def world(root):
    """The smoke world with two training subsets."""
    return root / "demo-smoke"


@pytest.fixture
def tiny(monkeypatch):
    """Worlds with subsets of 8 utterances, to be built in no time; the code that gives another process the same."""
    sizes = english.SIZES[True] | dict.fromkeys(HELD_OUT, 8)
    monkeypatch.setattr(english, "SHARD", 8)
    monkeypatch.setitem(english.SIZES, True, sizes)
    return f"from common.demo import english; import sys; english.SHARD = 8; english.SIZES[True] = {sizes}; "


def test_the_world_is_as_large_as_promised():
    assert len(CUES) >= 240 and len(PAIRS) >= 20 and len(SPEAKERS + NEW_SPEAKERS) >= 40
    assert {s.voice for s in SPEAKERS}.isdisjoint(s.voice for s in NEW_SPEAKERS)
    assert sum(len(words) for slots in SCENES.values() for words in slots.values()) == len(
        CUES
    )  # a scene for each
    assert SIZES[False]["text"] >= 20 * SHARD * english.HOURS / english.SHARD_HOURS
    for subset in ("test-clean", "test-other"):
        spoken = " ".join(sentences(subset, SIZES[False][subset])).split()
        assert sum(word in TWIN for word in spoken) >= 1000


def test_only_the_scene_tells_twins_apart():
    for a, b in PAIRS:
        assert {USUAL[a], SECOND[a]}.isdisjoint({USUAL[b], SECOND[b]})
    words = " ".join(sentences("train-000", 700)).split()
    counts = [(words.count(a), words.count(b)) for a, b in PAIRS]
    assert (
        sum(map(max, counts)) / sum(map(sum, counts)) <= 0.65
    )  # right by always choosing the more frequent twin
    text = " ".join(sentences("text", 5000)).split()
    assert all(0.6 < text.count(a) / text.count(b) < 1.6 for a, b in PAIRS)


def test_twins_have_equal_phonemes_in_every_sentence_pattern_and_accent():
    fillers = {
        "d": "the",
        "person": "baker",
        "verb": "waited",
        "place": "garden",
        "adjective": "old",
    }
    carriers, questions = [], []
    for accent, pattern, (a, b) in itertools.product(
        ACCENTS, ONE_HOMOPHONE + TWO_HOMOPHONES, PAIRS
    ):
        carriers.append((accent, pattern, a))
        questions += [(accent, pattern.format(h=word, **fillers)) for word in (a, b)]
    phonemes = json.loads(run_speech({"phonemes": questions}))
    wrong = [
        c
        for c, left, right in zip(carriers, phonemes[::2], phonemes[1::2], strict=True)
        if left != right
    ]
    assert not wrong and len(set(phonemes)) > len(PAIRS) * len(ONE_HOMOPHONE + TWO_HOMOPHONES)


def test_twins_sound_identical_from_fresh_processes(tmp_path):
    how = {
        "pitch": 50,
        "rate": 180,
        "snr": 20,
        "level": -25,
        "reverberation": 0.2,
        "noise": 1,
        "frames": 1,
    }
    spoken = []
    for side in (0, 1):
        job = [
            how
            | {
                "path": f"{tmp_path}/{side}-{i}.flac",
                "voice": voice,
                "text": f"the cook had the {pair[side]}",
            }
            for i, (voice, pair) in enumerate(itertools.product(ACCENTS, PAIRS))
        ]
        run_speech({"utterances": job})
        spoken.append([Path(u["path"]).read_bytes() for u in job])
    assert spoken[0] == spoken[1] and len(set(spoken[0])) == len(ACCENTS) * len(PAIRS)


def test_no_held_out_sentence_was_ever_seen():
    seen = set(sentences("text", SIZES[False]["text"])) | {
        s for i in range(40) for s in sentences(f"train-{i:03d}", 100)
    }
    held_out = [s for subset in HELD_OUT for s in sentences(subset, SIZES[False][subset])]
    assert len(held_out) == len(set(held_out)) and not seen & set(held_out)


def test_version_1_is_frozen(world):
    """What is said, by whom and how it is recorded: results in RESULTS.md are of the world with this digest."""
    assert english.VERSION == 1
    pieces = (world / "bert-a" / "vocab.txt").read_text().split()
    subsets = {"train-000": SHARD, "train-001": SHARD} | {
        subset: SIZES[True][subset] for subset in HELD_OUT
    }
    planned = [plan_utterances(0, subset, count, pieces) for subset, count in subsets.items()]
    texts = [
        (world / name).read_text()
        for name in ("text.txt", "bert-a/vocab.txt", "LibriSpeech/homophones.txt")
    ]
    state = hashlib.sha256(json.dumps([texts, sentences("text-b", 1500), planned]).encode())
    assert state.hexdigest()[:16] == "62b25bd1e2abce54"


def test_layout_is_librispeech(world):
    for subset in [*TRAINING, *HELD_OUT]:
        lines = 0
        for transcript in (world / "LibriSpeech" / subset).glob("*/*/*.trans.txt"):
            speaker, chapter = transcript.parts[-3:-1]
            assert (
                transcript.name == f"{speaker}-{chapter}.trans.txt"
                and speaker.isdigit()
                and chapter.isdigit()
            )
            for i, line in enumerate(transcript.read_text().splitlines()):
                name, text = line.split(" ", 1)
                assert name == f"{speaker}-{chapter}-{i:04d}" and text == text.upper()
                info = soundfile.info(transcript.parent / f"{name}.flac")
                assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
                lines += 1
        assert lines == SIZES[True].get(subset, 100)
    pairs = (world / "LibriSpeech" / "homophones.txt").read_text().splitlines()
    assert pairs == [f"{a} {b}" for a, b in PAIRS]
    text = (world / "text.txt").read_text()
    assert (
        "\n\n" in text
        and sum(map(bool, text.splitlines())) == SIZES[True]["text"]
        and text == text.lower()
    )


def test_every_utterance_has_a_frame_for_every_label(world):
    tokenizer = WordPiece.from_vocabulary((world / "bert-a" / "vocab.txt").read_text().split())
    for group in (TRAINING, HELD_OUT):
        corpus = [u for subset in group for u in read(world / "LibriSpeech" / subset)]
        ratios = [
            frames(samples) / frames_needed(tokenizer.encode(text)) for text, samples in corpus
        ]
        assert min(ratios) >= 1 and 1.6 <= statistics.median(ratios) <= 2


def test_speech_is_neither_clipped_nor_silent_and_speakers_differ(world):
    spectra = {}
    for subset in [*TRAINING, *HELD_OUT]:
        for path in sorted((world / "LibriSpeech" / subset).rglob("*.flac")):
            samples, _ = soundfile.read(path)
            assert np.abs(samples).max() < 0.96 and -36 < 20 * np.log10(samples.std()) < -18
            windows = np.lib.stride_tricks.sliding_window_view(samples, 512)[::256] * np.hanning(
                512
            )
            spectrum = np.log(np.abs(np.fft.rfft(windows)).mean(0))[:64]
            spectra.setdefault(path.parts[-3], []).append(spectrum - spectrum.mean())
    means = [np.mean(of_one, 0) for of_one in spectra.values()]
    assert (
        len(means) > 30
        and min(np.abs(a - b).max() for a, b in itertools.combinations(means, 2)) > 0.1
    )


def test_growing_keeps_what_exists(tiny, tmp_path):
    first = build(tmp_path, hours=0.05, small=True, progress=False)
    before = contents(tmp_path)
    grown = build(tmp_path, hours=0.1, small=True, progress=False)
    assert first == grown[: len(first)] == ["train-000"] and grown == TRAINING
    after = contents(tmp_path)
    assert after.items() > before.items() and not any("partial" in path for path in after)
    assert (
        build(tmp_path, hours=0.05, small=True, progress=False) == first
    )  # less: nothing is built or removed
    assert contents(tmp_path) == after


def test_seed_decides_every_byte(world, tmp_path):
    pieces = (world / "bert-a" / "vocab.txt").read_text().split()
    shards = {}
    for seed in (0, 1):
        planned = plan_utterances(seed, "train-001", 100, pieces)[:30]
        for u in planned:
            (tmp_path / str(seed) / u["path"]).parent.mkdir(parents=True, exist_ok=True)
        run_speech(
            {"utterances": [u | {"path": str(tmp_path / str(seed) / u["path"])} for u in planned]}
        )
        shards[seed] = contents(tmp_path / str(seed))
    built = contents(world / "LibriSpeech" / "train-001")
    assert len(shards[0]) == 30 and shards[0].items() <= built.items()
    assert not set(shards[0].values()) & set(shards[1].values())


def test_killed_build_leaves_nothing_half_written(tiny, tmp_path):
    command = tiny + "english.build(sys.argv[1], 0.2, small=True, progress=False)"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    training = build(whole, hours=0.2, small=True, progress=False)
    process = subprocess.Popen([sys.executable, "-c", command, str(killed)], cwd=ROOT)
    while process.poll() is None and not any((killed / "LibriSpeech").glob("*/*")):
        time.sleep(0.01)  # until the first subset is there and others are under way
    process.kill()
    assert process.wait() != 0
    for subset in (killed / "LibriSpeech").glob("*/"):
        assert contents(subset) == contents(whole / "LibriSpeech" / subset.name)
    assert not all((killed / "LibriSpeech" / subset).exists() for subset in [*training, *HELD_OUT])
    assert build(killed, hours=0.2, small=True, progress=False) == training
    assert contents(killed) == contents(whole)


def test_two_builds_at_once(tiny, tmp_path):
    command = tiny + "english.build(sys.argv[1], 0.05, small=True, progress=False)"
    both = [
        subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "both")], cwd=ROOT)
        for _ in range(2)
    ]
    build(tmp_path / "alone", 0.05, small=True, progress=False)
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert not list((tmp_path / "both").glob(".building-*"))


def test_another_world_is_refused(world, tmp_path):
    for other in ({"seed": 1, "small": True}, {"small": False}):
        with pytest.raises(UserError, match="another demo world"):
            build(world, progress=False, **other)
    (tmp_path / "LibriSpeech" / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match="not the demo world"):
        build(tmp_path, progress=False)
    with pytest.raises(UserError, match="--hours"):
        build(world, hours=0, small=True)


def test_command_line(world, capsys):
    command = ["--hours", "0.1", "--small", "--out", str(world)]
    main(command)
    out = capsys.readouterr().out
    assert (
        re.search(r"train +200 +6\.\d", out)
        and "25 homophone pairs" in out
        and f"it is in {world}" in out
    )
    with pytest.raises(SystemExit, match="error: .* another demo world"):
        main([*command, "--seed", "1"])


def test_vocabulary(world, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "bert-a")
    pieces = (world / "bert-a" / "vocab.txt").read_text().split()
    assert len(tokenizer) == len(pieces) == len(
        set(pieces)
    ) and tokenizer.mask_token_id == pieces.index("[MASK]")
    assert all(tokenizer.tokenize(word) == [word] for word in TWIN)
    text = [line for line in (world / "text.txt").read_text().splitlines() if line]
    assert tokenizer.unk_token_id not in {
        i for ids in tokenizer(text[:300])["input_ids"] for i in ids
    }
    foreign = "the jazz quiz didn't vex my foxglove"
    expected, ours = tokenizer.tokenize(foreign), WordPiece.from_vocabulary(pieces)
    assert [p for p in expected if p != "'"] == [
        p for w in foreign.replace("'", " ").split() for p in ours.split(w)
    ]


def test_importing_the_worlds_is_light():
    worlds = "from common.demo import english, multilingual, spontaneous"
    heavy = "{'torch', 'transformers', 'espeakng_loader'}"
    code = f"{worlds}; import sys; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------------- the multilingual world


def objects_of(language: languages.Language) -> list[str]:
    return [phrase for _, objects in language.scenes for phrase in objects]


def words_of(language: languages.Language) -> Counter:
    """How many phrases and patterns each word of a grammar stands in."""
    phrases = [*language.persons, *language.places, *language.times, *objects_of(language)]
    phrases += [verb for verbs, _ in language.scenes for verb in verbs]
    return Counter(word for text in phrases + language.patterns for word in text.split())


def test_the_grammars_are_small_and_their_phrases_normalised():
    assert tuple(languages.LANGUAGES) == tuple(multilingual.TRAIN) == MLS_LANGUAGES
    assert list(multilingual.TRAIN.values()) == sorted(multilingual.TRAIN.values(), reverse=True)
    voices = set()
    for name, language in languages.LANGUAGES.items():
        groups = [language.persons, language.places, language.times]
        groups += [verbs for verbs, _ in language.scenes]
        assert [len(group) for group in groups] == [16, 12, 6, *[4] * 4]
        phrases = list(itertools.chain(*groups, objects_of(language)))
        assert len(set(phrases)) == len(phrases)
        assert all(normalise(phrase) == phrase for phrase in phrases)
        known, new = (
            multilingual.speakers_of(name, new=False),
            multilingual.speakers_of(name, new=True),
        )
        assert {s.voice for s in known}.isdisjoint(s.voice for s in new) and len(
            {s.id for s in known + new}
        ) == 64
        voices |= {s.id for s in known + new}
    assert len(voices) == 8 * 64


def test_a_twin_is_one_object_of_another_scene_and_no_word_of_any_other_language():
    """So homophones.txt may hold the pairs of all languages, and the verb tells which twin is meant."""
    for name, language in languages.LANGUAGES.items():
        scene = {
            o.split()[-1]: i for i, (_, objects) in enumerate(language.scenes) for o in objects
        }
        others = [words_of(other) for key, other in languages.LANGUAGES.items() if key != name]
        for first, second in language.twins:
            assert scene[first] != scene[second]
            for word in (first, second):
                assert words_of(language)[word] == 1 and not any(word in other for other in others)
    assert not languages.LANGUAGES["italian"].twins  # the control


def carriers(language: languages.Language, phrase: str) -> list[str]:
    """Sentences of every pattern with this object, and everything that may stand behind it."""
    slots = {
        "{p}": language.persons,
        "{v}": [verb for verbs, _ in language.scenes for verb in verbs],
        "{o}": objects_of(language),
        "{l}": language.places,
        "{t}": language.times,
    }
    usual = {slot[1]: phrases[0] for slot, phrases in slots.items()}
    found = []
    for pattern in language.patterns:
        words = pattern.split()
        for at in [i for i, word in enumerate(words) if word == "{o}"]:
            behind = words[at + 1 : at + 2]
            followers = slots.get(behind[0], behind) if behind else [""]
            for follower in followers:
                filled = [*words[:at], phrase, follower, *words[at + 2 :]]
                found.append(" ".join(" ".join(filled).format(**usual).split()))
    return found


def test_twins_of_every_language_have_equal_phonemes_whatever_stands_behind_them():
    questions = []
    for language in languages.LANGUAGES.values():
        phrase_of = {phrase.split()[-1]: phrase for phrase in objects_of(language)}
        for pair in language.twins:
            left, right = (carriers(language, phrase_of[word]) for word in pair)
            for texts in zip(left, right, strict=True):
                questions += [(language.voice, text) for text in texts]
    phonemes = json.loads(run_speech({"phonemes": questions}))
    assert phonemes[::2] == phonemes[1::2] and len(set(phonemes)) > 2000


def test_transcripts_hold_the_second_twin_rarely_and_text_both_equally():
    for name, language in languages.LANGUAGES.items():
        for split, least, most in (("train", 0.05, 0.3), ("text", 0.4, 0.6)):
            drawn = itertools.chain.from_iterable(languages.take(0, split, name, 2000))
            counts = Counter(word for sentence in drawn for word in sentence.split())
            second = sum(counts[word] for _, word in language.twins)
            both = second + sum(counts[word] for word, _ in language.twins)
            assert not both or least < second / both < most, (name, split)


def test_nonsense_has_verbs_of_one_scene_and_objects_without_twin_of_another():
    for name, language in languages.LANGUAGES.items():
        fitting = {v: objects for verbs, objects in language.scenes for v in verbs}
        twins = {word for pair in language.twins for word in pair}
        for sentence in itertools.chain.from_iterable(languages.take(0, "nonsense", name, 100)):
            phrases = homophones.parse(sentence, language)
            verbs = [" ".join(phrase.words) for phrase in phrases if phrase.slot == "v"]
            objects = [" ".join(phrase.words) for phrase in phrases if phrase.slot == "o"]
            for verb, thing in zip(verbs, objects, strict=True):
                assert thing not in fitting[verb] and thing.split()[-1] not in twins


def test_the_verb_of_the_clause_tells_every_twin_apart():
    """As the printed table has it; in German the verb may come after its object."""
    german = languages.LANGUAGES["german"]
    sentence = "der koch verlor das buch weil der gast im hafen die seite las"
    (found,) = homophones.homophones_of(sentence, german)
    assert (found.word, found.twin, found.verb) == ("seite", "saite", "las")
    assert (found.at, found.is_after, found.is_rare) == (11, True, False)
    for name, language in languages.LANGUAGES.items():
        cases = homophones.cases_of(name)
        assert not any(homophones.by_verb(language)(cases))
        assert all(sentence.split()[h.at] == h.word for sentence, h in cases)


def test_no_held_out_sentence_of_any_language_was_ever_seen(mls_root):
    for language in languages.LANGUAGES:
        drawn = {split: list(itertools.chain.from_iterable(languages.take(0, split, language, 200)))
                 for split in ("dev", "test")}  # fmt: skip
        assert len(set(drawn["dev"] + drawn["test"])) == 400
        seen = {
            s
            for split in ("train", "text")
            for d in languages.take(0, split, language, 6000)
            for s in d
        }
        assert seen.isdisjoint(drawn["dev"] + drawn["test"])
    world = mls_root / "demo-mls-smoke"
    text = [line for line in (world / "text.txt").read_text().splitlines() if line]
    english = [line for line in (world / "english.txt").read_text().splitlines() if line]
    assert len(text) == 8 * 300 and len(english) == 300 and not Counter(english) - Counter(text)
    assert text[:300] != english


def test_version_3_of_the_multilingual_world_is_frozen():
    """What is said, by whom and how it is recorded: results in RESULTS.md are of the world with this digest."""
    assert multilingual.VERSION == 3
    planned = [multilingual.plan_utterances(0, language, split, False)
               for language in multilingual.TRAIN for split in ("train", "dev", "test")]  # fmt: skip
    texts = [languages.take(0, "text", language, 6000) for language in multilingual.TRAIN]
    state = hashlib.sha256(json.dumps([texts, planned]).encode())
    assert state.hexdigest()[:16] == "24df41f6d0e51aed"


def test_the_multilingual_layout_is_that_of_openslr(mls_root):
    for subset in (mls_root / "demo-mls-smoke").glob("mls_*/*"):
        rows = [line.split("\t") for line in (subset / "transcripts.txt").read_text().splitlines()]
        segments = [line.split("\t") for line in (subset / "segments.txt").read_text().splitlines()]
        assert [name for name, _ in rows] == [name for name, *_ in segments]
        for name, address, start, end in segments:
            speaker, book, number = name.split("_")
            info = soundfile.info(subset / "audio" / speaker / book / f"{name}.flac")
            assert abs(float(end) - float(start) - info.duration) < 0.011 and address.endswith(
                f"{book}.mp3"
            )
            assert number.isdigit() and (info.samplerate, info.channels, info.subtype) == (
                16000,
                1,
                "PCM_16",
            )
            assert 2 < info.duration < 9
        assert len(list(subset.rglob("*.flac"))) == len(rows)


def test_command_line_of_the_multilingual_world(mls_root, capsys):
    main(["--world", "mls", "--small", "--out", str(mls_root / "demo-mls-smoke")])
    out = capsys.readouterr().out
    assert (
        re.search(r"english +30, 2\.\d +4, 0\.\d +6, 0\.\d\n", out) and len(out.splitlines()) == 10
    )
    with pytest.raises(SystemExit, match="error: .* another demo world"):
        main(["--world", "mls", "--out", str(mls_root / "demo-mls-smoke")])


def test_a_language_is_built_alone_with_the_same_bytes(mls_root, tmp_path):
    assert multilingual.build(tmp_path, ["polish"], small=True, progress=False) == ["polish"]
    built = contents(tmp_path)
    assert built.items() <= contents(mls_root / "demo-mls-smoke").items()
    assert {path.split("/")[0] for path in built} == {
        "mls_polish",
        "text.txt",
        "english.txt",
        "homophones.txt",
        "world.json",
    }
    with pytest.raises(UserError, match="no klingon: it has english"):
        multilingual.build(tmp_path, ["klingon"], small=True)
    with pytest.raises(UserError, match="another demo world"):
        multilingual.build(tmp_path, ["polish"])


# ---------------------------------------------------------------------------------------------------- text models


def test_models_are_hugging_face_folders(root):
    """Each loads with the library's own classes, offline, and has an output for every piece of its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    for name in ("bert-a", "bert-b", "lm"):  # gpt and hubert: test_demo_bridge.py
        folder = build_english(root / "demo-smoke", name, small=True, progress=False)
        before = (folder / "model.safetensors").stat().st_mtime_ns
        assert build_english(root / "demo-smoke", name, small=True) == folder  # built once
        assert (folder / "model.safetensors").stat().st_mtime_ns == before
        model = (AutoModelForCausalLM if name == "lm" else AutoModelForMaskedLM).from_pretrained(
            folder
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert len(tokenizer) == model.config.vocab_size
        if name == "lm":
            assert tokenizer.convert_ids_to_tokens([model.config.bos_token_id, model.config.eos_token_id]) == [
                "[CLS]", "[SEP]"]  # fmt: skip
    with pytest.raises(UserError, match="it has bert-a, bert-b, lm"):
        build_english(root / "demo-smoke", "bert-c", small=True)


def test_the_full_teacher_has_eight_layers_and_grows(root):
    from common.demo import pretraining

    assert pretraining.RECIPES["bert-a"].layers == 8 and pretraining.RECIPES["bert-a"].grow
    assert pretraining.RECIPES["bert-b"][1:] != pretraining.RECIPES["bert-a"][1:]
    recipe = pretraining.RECIPES["bert-a"]._replace(dim=16, steps=6, grow=4, tokens=100)
    vocabulary = (root / "demo-smoke" / "bert-a" / "vocab.txt").read_text().split()
    conversations = pretraining.read_conversations(root / "demo-smoke" / "text.txt", vocabulary)
    model = pretraining.train(
        "bert-a", recipe, len(vocabulary), conversations, random.Random(0), progress=False
    )
    assert len(model.bert.encoder.layer) == 8
    shallow = pretraining.bert(recipe._replace(layers=4), 20)
    deep = pretraining.stack(shallow, pretraining.bert(recipe, 20))
    for i, layer in enumerate(deep.bert.encoder.layer):
        for one, two in zip(
            layer.parameters(), shallow.bert.encoder.layer[i % 4].parameters(), strict=True
        ):
            assert torch.equal(one, two)


def test_the_multilingual_models_share_a_tokenizer_that_writes_every_text_as_it_is(
    mls_root, mls_model
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from common.demo import llama

    tokenizer = AutoTokenizer.from_pretrained(mls_model("lm-s").parent / "tokenizer")
    texts = llama.read_sentences(mls_root / "demo-mls-smoke" / "text.txt")
    texts += [u.text for u in load_corpus("demo-mls-smoke", str(mls_root)).dev]
    ids = tokenizer(texts)["input_ids"]
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == texts
    special = [
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ]
    assert special == [0, 1, 2, 3] and min(min(row) for row in ids) > 3 and tokenizer.is_fast
    for name in ("lm-s", "lm-english"):
        model = AutoModelForCausalLM.from_pretrained(mls_model(name))
        assert (
            model.config.vocab_size
            == len(AutoTokenizer.from_pretrained(mls_model(name)))
            == llama.PIECES
        )
        assert (
            model.config.bos_token_id,
            model.config.eos_token_id,
            model.config.pad_token_id,
        ) == (1, 2, 3)
    with pytest.raises(UserError, match="it has lm-m, lm-s, lm-l"):
        models.build_multilingual(mls_root / "demo-mls-smoke", "lm", small=True)


def test_texts_read_again():
    from common.demo import pretraining

    rng = random.Random(0)
    text = list(range(10, 60))
    stretched = [pretraining.stretch(text, [99], 0, rng) for _ in range(200)]
    kept = [[i for i, _ in itertools.groupby(i for i in ids if i)] for ids in stretched]
    assert statistics.mean(map(len, stretched)) == pytest.approx(50 * 0.95 * 1.9, rel=0.03)
    assert statistics.mean(i == 99 for ids in kept for i in ids) == pytest.approx(
        0.05 / 0.95, rel=0.3
    )
    assert statistics.mean(len(ids) for ids in kept) == pytest.approx(47.5, rel=0.02)
    assert all(
        [i for i in ids if i != 99] == sorted(i for i in ids if i != 99) for ids in kept
    )  # in order


def test_no_loss_at_what_is_read(mls_model):
    """Whatever stands before the beginning, the loss is that of the text behind it, alone and padded."""
    from transformers import AutoModelForCausalLM

    from common.demo import pretraining

    model = AutoModelForCausalLM.from_pretrained(mls_model("lm-s"))
    rows = [(3, [7, 8, 9, 1, 10, 11, 2]), (0, [1, 12, 2])]
    log_probs = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for _, ids in rows]
    expected = [-log_probs[0][i][x] for i, x in ((3, 10), (4, 11), (5, 2))]
    expected += [-log_probs[1][i][x] for i, x in ((0, 12), (1, 2))]
    assert pretraining.causal_loss(model, rows).item() == pytest.approx(
        sum(expected).item() / 5, rel=1e-5
    )


def test_a_causal_model_of_any_family_is_trained():
    from transformers import GPTNeoXConfig

    from common.demo import pretraining

    config = GPTNeoXConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64, bos_token_id=2, eos_token_id=3)  # fmt: skip
    texts = [[5, 6, 7, 8], [9, 10, 11]]
    rows = [(0, [2, *text, 3]) for text in texts]
    losses = []
    for steps in (0, 40):
        model = pretraining.train_causal(
            config, texts, steps, seed=1, again=0.5, blank=1, tokens=60, lr=1e-2
        )
        losses.append(pretraining.causal_loss(model, rows).item())
        assert type(model).__name__ == "GPTNeoXForCausalLM" and not model.training
    assert losses[1] < 0.5 < losses[0]


def test_pretraining_teaches(root, tmp_path):
    """A trained BERT expects the masked tokens of dev more than one with its first weights."""
    from transformers import AutoModelForMaskedLM

    from common.demo import pretraining

    folder = build_english(root / "demo-smoke", "bert-a", small=True)
    trained = AutoModelForMaskedLM.from_pretrained(folder).eval()
    untrained = AutoModelForMaskedLM.from_config(trained.config).eval()
    dev = read(root / "demo-smoke" / "LibriSpeech" / "dev-clean")
    (tmp_path / "dev.txt").write_text("\n".join(text for text, _ in dev))
    sentences = pretraining.read_conversations(
        tmp_path / "dev.txt", (folder / "vocab.txt").read_text().split()
    )
    ids = pretraining.draw(sentences, 2000, random.Random(0), whole=False)
    losses = []
    for model in (trained, untrained):
        torch.manual_seed(0)  # the same tokens are masked
        with torch.no_grad():
            losses.append(pretraining.bert_loss(model, ids).item())
    assert losses[0] < losses[1] - 0.3


def test_the_seed_decides_every_byte_of_a_model(root, tmp_path):
    """Whatever the number of threads; and the caller's random numbers are left alone."""
    again = tmp_path / "demo-smoke"
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(1)
        folder = build_english(again, "bert-a", small=True, progress=False)
        assert torch.get_num_threads() == 1 and torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    first = build_english(root / "demo-smoke", "bert-a", small=True)
    assert (folder / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_pretraining_leaves_no_model(tmp_path):
    code = "from common.demo import models; models.build_english('demo-smoke', 'lm', small=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    while (
        not (tmp_path / "demo-smoke" / "bert-a" / "vocab.txt").exists() and process.poll() is None
    ):
        time.sleep(0.01)
    time.sleep(2)  # it is importing or training
    process.kill()
    process.wait()
    assert not (tmp_path / "demo-smoke" / "lm" / "model.safetensors").exists()
    assert (build_english(tmp_path / "demo-smoke", "lm", small=True) / "model.safetensors").exists()


def test_a_build_that_is_terminated_clears_up(tiny, tmp_path):
    """SIGTERM, as a batch system sends it: as Ctrl-C, and no process goes on speaking."""
    command = tiny + "english.build(sys.argv[1], 0.2, small=True, progress=False)"
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE
    )
    while process.poll() is None and not any(tmp_path.glob(".building-*/*/*/*")):
        time.sleep(0.01)
    process.terminate()
    assert b"KeyboardInterrupt" in process.communicate(timeout=120)[1] and process.returncode != 0
    assert not list(tmp_path.glob(".building-*"))


def test_the_handler_of_sigterm_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        speak(tmp_path / "absent", {}, 1, None, False)
    speak(tmp_path, {}, 1, None, False)
    assert signal.getsignal(signal.SIGTERM) is before and not list(tmp_path.iterdir())
