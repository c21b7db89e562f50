"""Corpora as they really are: damaged, incomplete, oddly laid out; and batches that ranks and memory may not change."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections import Counter

import pytest
from conftest import copy_corpus, write_manifest

from common.corpora import (
    LIBRISPEECH_SCORED,
    LIBRISPEECH_TRAIN,
    Utterance,
    evaluation_batches,
    fetch_archive,
    first_hours,
    load_corpus,
    load_homophones,
    load_librispeech,
    load_manifest,
    plan_epoch,
)
from common.flags import UserError


def made_up(n: int, seed: int = 0) -> list[Utterance]:
    """Durations like LibriSpeech's: 1 to 17 s, most of them long."""
    rng = random.Random(seed)
    return [Utterance(f"u{i}", "", "x", 1 + 16 * rng.betavariate(3, 1.5), session=f"s{i // 20}") for i in range(n)]


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
    transcript.write_text("\n".join(lines) + "\n")
    utterances = load_librispeech(folder, "train-000")
    by_name = {u.id: u for u in utterances}
    assert by_name[names[0]].text == "don't say 'tis über the boys'"
    assert not {names[1], names[2]} & set(by_name) and len(utterances) == 98 and by_name[names[3]].text == ""
    error = capsys.readouterr().err
    assert "left out 2 of 100" in error and f"{names[1]}.flac is missing" in error
    assert f"{names[2]}.flac is no readable audio file" in error
    first = by_name[names[0]]
    assert first.speaker == names[0].split("-")[0] and first.session == "-".join(names[0].split("-")[:2])


def test_root_with_or_without_librispeech_in_it(root):
    inside = root / "demo-smoke" / "LibriSpeech"
    a, b = (load_corpus("librispeech", str(folder)) for folder in (inside, inside.parent))
    assert a == b and set(a.tests) == {"test-clean", "test-other"} and a.homophones["sail"] == "sale"


def test_missing_corpora_say_what_to_do(root, tmp_path):
    with pytest.raises(UserError, match="--root names the folder that holds LibriSpeech"):
        load_corpus("librispeech", str(tmp_path))
    with pytest.raises(UserError, match="train-clean-100.*--download"):
        load_corpus("librispeech", str(root / "demo-smoke"), hours=100)
    with pytest.raises(UserError, match="no such folder, and not demo or librispeech"):
        load_corpus("librispech", str(tmp_path))
    (tmp_path / "LibriSpeech" / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match=r"trans\.txt"):
        load_librispeech(tmp_path / "LibriSpeech", "train-clean-100")


def test_scoring_needs_no_training_data(root, tmp_path):
    shutil.copytree(root / "demo-smoke" / "LibriSpeech" / "test-clean", tmp_path / "LibriSpeech" / "test-clean")
    corpus = load_corpus("librispeech", str(tmp_path), hours=100, scoring=True)
    assert corpus.train == corpus.dev == [] and len(corpus.tests["test-clean"]) == 60


def test_homophone_lists(tmp_path):
    (tmp_path / "homophones.txt").write_text("sail sale\n\n")
    assert load_homophones(tmp_path) == {"sail": "sale", "sale": "sail"}
    (tmp_path / "homophones.txt").write_text("sail\n")
    with pytest.raises(UserError, match="two words"):
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


def test_archives_cannot_write_outside(tmp_path):
    checksum = archive(tmp_path / "evil.tar.gz", {"../../escaped.txt": b"x", "LibriSpeech/dev-clean/a": b"x"})
    with pytest.raises(UserError, match="could not be fetched"):
        fetch_archive(
            (tmp_path / "evil.tar.gz").as_uri(), checksum, tmp_path / "deep" / "root", "LibriSpeech/dev-clean"
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
        {"audio_filepath": "a b.flac", "text": "Hello, World!"},
        {"audio_filepath": str(tmp_path / "a b.flac"), "text": "x", "duration": 0.5, "offset": 0.25, "channel": 0,
         "speaker": 7, "session": "s", "lang": "en"},
        {"audio_filepath": "nowhere.flac", "text": "y"},
        {"audio_filepath": "a b.flac", "text": "end", "offset": 0.5},
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second, third = load_manifest(tmp_path / "m.jsonl")
    assert third.duration == pytest.approx(first.duration - 0.5)
    assert first.text == "hello world" and first.duration == pytest.approx(corpus.train[0].duration)
    assert second == Utterance("m-000002", str(tmp_path / "a b.flac"), "x", 0.5, 0.25, 0, "7", "s", "en")


@pytest.mark.parametrize(
    "line", ['{"audio_filepath": "a.wav"}', "not json", "[1]", '{"audio_filepath": "a", "text": 3}']
)
def test_a_broken_manifest_names_its_line(tmp_path, line):
    good = '{"audio_filepath": "a.wav", "text": "x", "duration": 1}\n'
    (tmp_path / "m.jsonl").write_text(good + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        load_manifest(tmp_path / "m.jsonl")


def test_ids_given_twice(tmp_path, corpus):
    write_manifest(tmp_path / "m.jsonl", [corpus.train[0]] * 2)
    with pytest.raises(UserError, match="same id"):
        load_manifest(tmp_path / "m.jsonl")


# --------------------------------------------------------------------------------------------------------- batches


def ids(parts) -> list[str]:
    return [u.id for part in parts for u in part.utterances]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_utterance_once_per_epoch_and_the_same_updates_for_all_ranks_and_memories(epoch):
    utterances = made_up(1500)

    def updates(batch_seconds, ranks):
        plans = [plan_epoch(utterances, epoch, 1, 400, batch_seconds, rank, ranks) for rank in range(ranks)]
        assert len({len(plan) for plan in plans}) == 1  # the same number of micro-batches on every rank
        assert all([p.ends_update for p in plan] == [p.ends_update for p in plans[0]] for plan in plans)
        for part in (part for plan in plans for part in plan):
            assert (
                len(part.utterances) <= 1
                or len(part.utterances) * max(u.duration for u in part.utterances) <= batch_seconds
            )
        held: dict[int, set[str]] = {}
        for part in (part for plan in plans for part in plan):
            held.setdefault(part.update, set()).update(ids([part]))
        assert sorted(name for update in held.values() for name in update) == sorted(u.id for u in utterances)
        return held

    assert updates(500, 1) == updates(100, 1) == updates(60, 3) == updates(500, 4)


def test_updates_are_of_equal_length_and_in_another_order_every_epoch():
    utterances = made_up(1500)
    plans = [plan_epoch(utterances, epoch, 1, 400, 1e9) for epoch in range(3)]
    for plan in plans:
        seconds = [sum(u.duration for u in part.utterances) for part in plan]
        assert max(seconds) < 1.1 * 400 and min(seconds) > 0.9 * 400
    first = [u.duration for part in plans[0] for u in part.utterances]
    assert first == sorted(first)
    assert ids(plans[1]) != ids(plans[2])
    assert plan_epoch(utterances, 2, 1, 400, 1e9) == plans[2] != plan_epoch(utterances, 2, 7, 400, 1e9)
    assert len({frozenset(ids([part])) for part in plans[1]} & {frozenset(ids([part])) for part in plans[2]}) == 0


def test_little_padding():
    utterances = made_up(5000)
    plan = plan_epoch(utterances, 1, 1, 400, 1e9)
    padded = sum(len(p.utterances) * max(u.duration for u in p.utterances) for p in plan)
    assert sum(u.duration for u in utterances) / padded > 0.97


@pytest.mark.parametrize("ranks", [1, 3])
def test_scoring_sees_every_utterance_exactly_once(ranks):
    utterances = made_up(100)
    seen = [name for rank in range(ranks) for name in ids(evaluation_batches(utterances, 60, rank, ranks))]
    assert sorted(seen) == sorted(u.id for u in utterances)
    assert evaluation_batches([], 60) == []
    plan = evaluation_batches([*utterances, Utterance("very long", "", "x", 900.0)], 60)
    assert all(len(p.utterances) * p.utterances[-1].duration <= 60 for p in plan[:-1])
    assert len(plan) < 25 and ids(plan[-1:]) == ["very long"]  # one long recording does not make all batches small
