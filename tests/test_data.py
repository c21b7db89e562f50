"""Batches: ranks, memory and reading processes change neither what an update holds nor what is scored."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
import pytest
import soundfile
import torch

from common.errors import note_once
from common.running import options
from common.running.audio import read_audio
from common.running.batches import (
    MicroBatch,
    Order,
    evaluation_batches,
    loader,
    make_batch,
    plan_epoch,
    read_one,
    sample_waves,
)
from common.running.corpora import Utterance


def made_up(n: int, seed: int = 0) -> list[Utterance]:
    """Durations like LibriSpeech's: 1 to 17 s, most of them long."""
    rng = random.Random(seed)
    return [
        Utterance(f"u{i}", "", "x", 1 + 16 * rng.betavariate(3, 1.5), session=f"s{i // 20}")
        for i in range(n)
    ]


# ----------------------------------------------------------------------------------------------------------- the plan


def ids(parts) -> list[str]:
    return [u.id for part in parts for u in part.utterances]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_utterance_once_per_epoch_and_the_same_updates_for_all_ranks_and_memories(epoch):
    utterances = made_up(1500)

    def updates(batch_seconds, ranks):
        plans = [
            plan_epoch(utterances, epoch, 1, Order(400, batch_seconds), rank, ranks)
            for rank in range(ranks)
        ]
        assert (
            len({len(plan) for plan in plans}) == 1
        )  # the same number of micro-batches on every rank
        assert all(
            [p.ends_update for p in plan] == [p.ends_update for p in plans[0]] for plan in plans
        )
        for part in (part for plan in plans for part in plan):
            padded = len(part.utterances) * max((u.duration for u in part.utterances), default=0)
            assert len(part.utterances) == 1 or padded <= batch_seconds
        held: dict[int, set[str]] = {}
        for part in (part for plan in plans for part in plan):
            held.setdefault(part.update, set()).update(ids([part]))
        assert sorted(name for update in held.values() for name in update) == sorted(
            u.id for u in utterances
        )
        return held

    assert updates(500, 1) == updates(100, 1) == updates(60, 3) == updates(500, 4)


def test_updates_are_of_equal_length_and_in_another_order_every_epoch():
    utterances = made_up(1500)
    plans = [plan_epoch(utterances, epoch, 1, Order(400, 1e9)) for epoch in range(3)]
    for plan in plans:
        seconds = [sum(u.duration for u in part.utterances) for part in plan]
        assert max(seconds) < 1.1 * 400 and min(seconds) > 0.9 * 400
    first = [u.duration for part in plans[0] for u in part.utterances]
    assert first == sorted(first)
    assert ids(plans[1]) != ids(plans[2])
    assert (
        plan_epoch(utterances, 2, 1, Order(400, 1e9))
        == plans[2]
        != plan_epoch(utterances, 2, 7, Order(400, 1e9))
    )
    assert (
        len(
            {frozenset(ids([part])) for part in plans[1]}
            & {frozenset(ids([part])) for part in plans[2]}
        )
        == 0
    )


def test_languages_in_proportion_to_a_power_of_their_seconds():
    languages = {"a": 800, "b": 100, "c": 20}
    utterances = [
        replace(u, id=f"{name}{u.id}", language=name)
        for name, n in languages.items()
        for u in made_up(n)
    ]
    seconds = {
        name: sum(u.duration for u in utterances if u.language == name) for name in languages
    }
    for power in (0.5, 0.0):
        plan = plan_epoch(utterances, 3, 1, Order(400, 1e9, language_power=power))
        taken = [u for part in plan for u in part.utterances]
        counts = Counter(u.id for u in taken)
        for name in languages:
            share = seconds[name] ** power / sum(s**power for s in seconds.values())
            found = sum(u.duration for u in taken if u.language == name)
            assert found == pytest.approx(share * sum(seconds.values()), abs=17)  # an utterance
            times = [counts[u.id] for u in utterances if u.language == name]
            assert max(times) - min(times) <= 1  # repeated whole, then a part of it
        assert plan == plan_epoch(utterances, 3, 1, Order(400, 1e9, language_power=power))
        assert ids(plan) != ids(plan_epoch(utterances, 4, 1, Order(400, 1e9, language_power=power)))
        halves = [plan_epoch(utterances, 3, 1, Order(400, 1e9, power), rank, 2) for rank in (0, 1)]
        assert Counter(ids(halves[0] + halves[1])) == counts
    assert plan_epoch(utterances, 3, 1, Order(400, 1e9, language_power=1.0)) == plan_epoch(
        utterances, 3, 1, Order(400, 1e9)
    )


def test_little_padding():
    utterances = made_up(5000)
    plan = plan_epoch(utterances, 1, 1, Order(400, 1e9))
    padded = sum(len(p.utterances) * max(u.duration for u in p.utterances) for p in plan)
    assert sum(u.duration for u in utterances) / padded > 0.97


@pytest.mark.parametrize("ranks", [1, 3])
def test_scoring_sees_every_utterance_exactly_once(ranks):
    utterances = made_up(100)
    seen = [
        name
        for rank in range(ranks)
        for name in ids(evaluation_batches(utterances, 60, rank, ranks))
    ]
    assert sorted(seen) == sorted(u.id for u in utterances)
    assert evaluation_batches([], 60) == []
    plan = evaluation_batches([*utterances, Utterance("very long", "", "x", 900.0)], 60)
    assert all(len(p.utterances) * p.utterances[-1].duration <= 60 for p in plan[:-1])
    assert len(plan) < 25 and ids(plan[-1:]) == [
        "very long"
    ]  # one long recording does not make all batches small


# ---------------------------------------------------------------------------------------------------------- the loader


@dataclass(frozen=True)
class Config(options.RunConfig):
    augmentation: options.Augmentation = options.Augmentation((1.0,), 0, 0)


@pytest.fixture
def config():
    return Config(device="cpu", workers=0)


@pytest.fixture
def utterances(tmp_path) -> list[Utterance]:
    """Of 0.1, 0.2, … 0.8 s; the third cannot be read, the fifth has more labels than anything can fit."""
    for i in range(8):
        torch.manual_seed(i)
        soundfile.write(tmp_path / f"{i}.flac", torch.rand(1600 * (i + 1)).numpy() - 0.5, 16000)
    (tmp_path / "2.flac").write_bytes(b"no audio")
    texts = ["a", "bb", "c", "", "e" * 99, "f", "g", "h"]
    return [
        Utterance(f"u{i}", str(tmp_path / f"{i}.flac"), text, (i + 1) / 10)
        for i, text in enumerate(texts)
    ]


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def fits(samples: int, labels: list[int], text: str) -> bool:
    return len(labels) < 50


def read(config, utterances, **options):
    (batch,) = loader([MicroBatch(utterances, epoch=3)], config, **options)
    return batch


def test_batches_to_learn_from(config, utterances):
    batch = read(config, utterances, encode=encode, fits=fits)
    assert [u.id for u in batch.utterances] == ["u0", "u1", "u3", "u5", "u6", "u7"]
    assert (
        list(batch.bad) == ["u2"]
        and "2.flac cannot be read" in batch.bad["u2"]
        and batch.infeasible == 1
    )
    assert batch.samples.tolist() == [
        1600,
        3200,
        6400,
        9600,
        11200,
        12800,
    ] and batch.waves.shape == (6, 12800)
    assert batch.targets.tolist() == [[97, 0], [98, 98], [0, 0], [102, 0], [103, 0], [104, 0]]
    assert batch.target_lengths.tolist() == [1, 2, 0, 1, 1, 1]
    for wave, size, utterance in zip(batch.waves, batch.samples, batch.utterances, strict=True):
        assert torch.equal(wave[:size], read_audio(utterance.audio)) and not wave[size:].any()


def test_batches_to_score(config, utterances):
    """Without labels, at the speed they were spoken at, and whatever their transcripts say."""
    batch = read(options.with_values(config, speeds=(2.0,)), utterances)
    assert [u.id for u in batch.utterances] == ["u0", "u1", "u3", "u4", "u5", "u6", "u7"]
    assert (
        batch.targets.shape == (7, 0)
        and not batch.target_lengths.any()
        and batch.samples[0] == 1600
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_channels_that_cancel_each_other_are_read_and_named(config, utterances, workers):
    for utterance in utterances[5:7]:
        wave, _ = soundfile.read(utterance.audio)
        soundfile.write(utterance.audio, np.stack([wave, -wave], axis=1), 16000)
    plan = [MicroBatch(utterances[:6]), MicroBatch(utterances[6:])]
    for more in ({"encode": encode, "fits": fits}, {}):
        first, second = loader(plan, replace(config, workers=workers), **more)
        assert list(first.cancelling) == ["u5"] and list(second.cancelling) == ["u6"]
        assert "5.flac: its channels cancel each other" in first.cancelling["u5"]
        assert second.waves[0].abs().max() > 0.4


def test_what_is_said_once(capsys):
    for remark in ("a.wav: this", "b.wav: that", "a.wav: this"):
        note_once(remark)
    assert capsys.readouterr().err == "a.wav: this\nb.wav: that\n"


def test_a_bad_file_is_not_tried_again(config, utterances):
    batch = read(config, utterances, encode=encode, fits=fits, known_bad={"u2": "why", "u0": "why"})
    assert [u.id for u in batch.utterances] == ["u1", "u3", "u5", "u6", "u7"] and not batch.bad


@pytest.mark.parametrize("some", [slice(0, 0), slice(2, 3), slice(4, 5)])
def test_a_batch_may_come_out_empty(config, utterances, some):
    batch = read(config, utterances[some], encode=encode, fits=fits)
    assert batch.utterances == [] and batch.samples.shape == batch.target_lengths.shape == (0,)
    assert batch.to(torch.device("cpu")).waves.numel() == batch.targets.numel() == 0


def test_what_is_drawn_depends_on_the_utterance_and_the_epoch_alone(config, utterances):
    """Not on reading processes, ranks or neighbours."""
    config = options.with_values(config, speeds=(0.9, 1.0, 1.1))

    def samples(config, plan):
        batches = [*loader(plan, config, encode, fits)]
        return {
            (b.plan.epoch, u.id): n
            for b in batches
            for u, n in zip(b.utterances, b.samples.tolist(), strict=True)
        }

    def all_of(seconds, ranks, config=config):
        plans = [
            part
            for e in range(4)
            for r in range(ranks)
            for part in plan_epoch(utterances, e, 1, Order(2, seconds), r, ranks)
        ]
        return samples(config, plans)

    once = all_of(9, 1)
    assert len(once) == 4 * 6 and once == all_of(9, 1, replace(config, workers=2)) == all_of(0.5, 2)
    shares = {n / (1600 * (int(name[1]) + 1)) for (_, name), n in once.items()}
    assert len({round(share, 1) for share in shares}) == 3  # every speed was drawn
    assert once != all_of(9, 1, replace(config, seed=2))
    assert any(once[0, u.id] != once[1, u.id] for u in utterances if (0, u.id) in once)


def test_an_utterance_that_comes_again_in_an_epoch_has_another_speed(config, utterances):
    """As those of a small language do, see `balance`."""
    plan = [MicroBatch(utterances[:1], 0, update) for update in range(8)]
    batches = loader(plan, options.with_values(config, speeds=(0.9, 1.0, 1.1)), encode, fits)
    assert len({int(batch.samples[0]) for batch in batches}) > 1


def test_an_update_may_be_a_random_sample():
    """Every utterance once, in updates of mixed lengths, in another order in every epoch."""
    utterances, means = made_up(1500), {}
    plans = [plan_epoch(utterances, epoch, 1, Order(400, 1e9, by_length=False)) for epoch in (0, 1)]
    assert ids(plans[0]) != ids(plans[1])
    for name, plan in (
        ("random", plans[0]),
        ("sorted", plan_epoch(utterances, 0, 1, Order(400, 1e9))),
    ):
        assert sorted(u.id for part in plan for u in part.utterances) == sorted(
            u.id for u in utterances
        )
        means[name] = [fmean(u.duration for u in part.utterances) for part in plan]
    assert stdev(means["random"]) < stdev(means["sorted"]) / 3


def test_batches_come_in_the_order_of_the_plan(config, utterances):
    plan = plan_epoch(utterances, 1, 1, Order(0.5, 0.3))
    for workers in (0, 2):
        assert [
            batch.plan for batch in loader(plan, replace(config, workers=workers), encode, fits)
        ] == plan


def test_one_utterance(config, utterances):
    batch = read_one(utterances[4], config)
    assert batch.samples.tolist() == [8000] and batch.targets.shape == (1, 0)
    assert read_one(utterances[2], config).utterances == []


def test_a_sample_of_waves(config, utterances):
    first, again, other = (
        [len(wave) for wave in sample_waves(utterances, replace(config, seed=seed), 4)]
        for seed in (1, 1, 2)
    )
    assert first == again != other and 3 <= len(first) <= 4
    assert sorted(map(len, sample_waves(utterances, config))) == [
        1600,
        3200,
        6400,
        8000,
        9600,
        11200,
        12800,
    ]


def test_nothing_to_put_together():
    batch = make_batch([], [], [], {}, 0, MicroBatch([]))
    assert batch.waves.shape == (0, 0) and batch.targets.dtype == torch.long
