"""Utterances as batches: the plan of an epoch, and the loader that reads it.

    plan = plan_epoch(corpus.train, epoch, seed, order)  the micro-batches of an epoch
    loader(plan, config, tokenizer.encode, fits)         a Batch for each of them
    loader(evaluation_batches(corpus.dev, ...), config)  without labels, for scoring

Audio becomes padded waves, text becomes labels. A plan depends on its arguments alone,
and what is drawn for an utterance (its speed) on seed, epoch and name. So nothing
changes if other processes read ahead, with the number of ranks, or after a restart.

No model is sent to these processes: `encode` belongs to a tokenizer, and `fits` is a
function of a module with numbers.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.features import change_speed
from common.running.audio import AudioError, read_audio
from common.running.corpora import Corpus, Utterance, download, load_corpus
from common.running.options import RunConfig
from common.running.process import Place, first_rank_first

Encode = Callable[[str], list[int]]  # a tokenizer's: text -> labels
# A script's: are so many samples long enough for the labels, and the text?
Fits = Callable[[int, list[int], str], bool]


class MicroBatch(NamedTuple):
    """What one forward and backward pass reads.

    An update consists of one or more of them, the same number on every rank.
    """

    utterances: list[Utterance]  # may be empty on a rank
    epoch: int = 0
    update: int = 0  # index within the epoch
    part: int = 0  # index within the update, among this rank's
    ends_update: bool = True


class Order(NamedTuple):
    """How the utterances of an epoch become updates and micro-batches."""

    update_seconds: float  # audio per update, over all ranks
    batch_seconds: float  # audio per micro-batch, padding included
    language_power: float = 1.0  # see `balance`; 1: every utterance once
    by_length: bool = True  # False: an update is a random sample, see `cut_into_updates`


def plan_epoch(
    utterances: list[Utterance], epoch: int, seed: int, order: Order, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """The micro-batches of this rank for one epoch, a function of the arguments alone.

    What an update holds does not depend on `batch_seconds` or `ranks`: those only split
    it into micro-batches of at most `batch_seconds`, with padding, at normal speed.
    """
    plan = []
    for index, update in enumerate(cut_into_updates(utterances, epoch, seed, order)):
        parts = _split(update, order.batch_seconds, ranks)
        mine = parts[rank::ranks]
        for part, group in enumerate(mine):
            plan.append(MicroBatch(group, epoch, index, part, part == len(mine) - 1))
    return plan


def cut_into_updates(
    utterances: list[Utterance], epoch: int, seed: int, order: Order
) -> list[list[Utterance]]:
    """The utterances of each update of an epoch, about `update_seconds` of audio each.

    The corpus is shuffled, sorted by length inside pools of 50 updates or a quarter of
    the corpus (so that batches hold little padding but differ from epoch to epoch), cut
    into updates, and the updates are shuffled. Epoch 0 goes from short to long: CTC
    finds its alignments sooner that way (SortaGrad, Amodei et al. 2016).

    by_length False: an update is a random sample. This is for fine-tuning, where length
    may go together with content, so that updates of one length each would pull in
    different directions.
    """
    rng = random.Random(f"{seed}-{epoch}")
    mixed = list(utterances)
    if order.language_power != 1:
        mixed = balance(utterances, order.language_power, rng)
    rng.shuffle(mixed)
    if not order.by_length:
        return _cut(mixed, order.update_seconds)
    if epoch == 0:
        return _cut(sorted(mixed, key=lambda u: u.duration), order.update_seconds)
    total = sum(u.duration for u in mixed)
    updates = []
    for pool in _cut(mixed, min(50 * order.update_seconds, total / 4)):
        updates += _cut(sorted(pool, key=lambda u: u.duration), order.update_seconds)
    rng.shuffle(updates)
    return updates


def balance(utterances: list[Utterance], power: float, rng: random.Random) -> list[Utterance]:
    """As many seconds as before, with other shares of the languages.

    The share of a language with S seconds is in proportion to S ** power (0: equal
    shares). It is repeated whole as often as its share allows; a random part of it
    makes up the rest.
    """
    by_language: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.language, []).append(utterance)
    seconds = {}
    for language, same in by_language.items():
        seconds[language] = sum(u.duration for u in same)
    total = sum(s**power for s in seconds.values())
    chosen = []
    for language, same in by_language.items():
        left = sum(seconds.values()) * seconds[language] ** power / total
        while left > 0:
            for utterance in rng.sample(same, len(same)):
                if left < utterance.duration / 2:
                    left = 0
                    break
                chosen.append(utterance)
                left -= utterance.duration
    return chosen


def _cut(utterances: list[Utterance], seconds: float) -> list[list[Utterance]]:
    """Consecutive groups of about equal duration, near `seconds` each."""
    total = sum(u.duration for u in utterances)
    share = total / max(1, round(total / seconds))
    groups: list[list[Utterance]] = [[]]
    done = 0.0
    for utterance in utterances:
        if groups[-1] and done + utterance.duration / 2 > share * len(groups):
            groups.append([])
        groups[-1].append(utterance)
        done += utterance.duration
    return groups


def _split(update: list[Utterance], batch_seconds: float, ranks: int) -> list[list[Utterance]]:
    """A multiple of `ranks` groups of at most `batch_seconds` each, with padding.

    An utterance that is longer by itself is a group of its own.
    """
    update = sorted(update, key=lambda u: u.duration)
    n = len(update)
    for parts in range(ranks, max(n, 1) + ranks, ranks):
        groups = [update[i * n // parts : (i + 1) * n // parts] for i in range(parts)]
        if all(len(g) * g[-1].duration <= batch_seconds for g in groups if g):
            break
    return groups


def evaluation_batches(
    utterances: list[Utterance], batch_seconds: float, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """Every utterance exactly once over all ranks, in batches of similar length."""
    groups: list[list[Utterance]] = [[]]
    for utterance in sorted(utterances, key=lambda u: u.duration)[rank::ranks]:
        if groups[-1] and (len(groups[-1]) + 1) * utterance.duration > batch_seconds:
            groups.append([])
        groups[-1].append(utterance)
    return [MicroBatch(group) for group in groups if group]


class Batch(NamedTuple):
    """What one forward pass reads.

    Utterances that cannot be read, or do not fit their labels, are left out: it may be
    empty, even if the plan was not.
    """

    waves: Tensor  # (B, N) zero-padded, 16 kHz
    samples: Tensor  # (B,)
    targets: Tensor  # (B, U) zero-padded; (B, 0) for scoring
    target_lengths: Tensor  # (B,)
    utterances: list[Utterance]
    bad: dict[str, str]  # utterance -> why its audio could not be read
    infeasible: int  # utterances too short for their labels
    plan: MicroBatch
    # utterance -> which channel was read, since together its channels cancel each other
    cancelling: dict[str, str] = {}

    def to(self, device: torch.device) -> Batch:
        return self._replace(
            **{name: getattr(self, name).to(device, non_blocking=True) for name in self._fields[:4]}
        )


def make_batch(waves: list[Tensor], labels: list[list[int]], *rest) -> Batch:
    """A Batch of waves (samples,) and the labels of each; rest: its further fields."""
    targets = [torch.tensor(x, dtype=torch.long) for x in labels]
    sizes = torch.tensor([len(x) for x in waves]), torch.tensor([len(x) for x in targets])
    if not waves:
        return Batch(
            torch.zeros(0, 0), sizes[0], torch.zeros(0, 0, dtype=torch.long), sizes[1], *rest
        )
    pad = nn.utils.rnn.pad_sequence
    return Batch(
        pad(waves, batch_first=True), sizes[0], pad(targets, batch_first=True), sizes[1], *rest
    )


def read_corpus(config: RunConfig, place: Place) -> Corpus:
    """What --data names; the first rank may download or build it. Raises UserError."""
    with first_rank_first(place):
        if config.download:
            download(config.data, config.root, config.hours, scoring=False)
        return load_corpus(
            config.data,
            config.root,
            config.hours,
            config.seed,
            scoring=False,
            languages=config.languages,
        )


class _Reader(Dataset):
    """Reads micro-batches, in worker processes if there are any."""

    def __init__(
        self,
        plan: list[MicroBatch],
        config: RunConfig,
        encode: Encode | None,
        fits: Fits | None,
        known_bad: set[str],
    ):
        self.plan = plan
        self.encode = encode
        self.fits = fits
        self.known_bad = known_bad
        self.seed = config.seed
        self.speeds = config.augmentation.speeds if encode else ()

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        plan = self.plan[index]
        bad: dict[str, str] = {}
        infeasible = 0
        waves = []
        labels = []
        kept = []
        cancelling: dict[str, str] = {}
        for utterance in plan.utterances:
            if utterance.id in self.known_bad:
                continue
            said: list[str] = []
            place = utterance.offset, utterance.duration, utterance.channel
            try:
                wave = read_audio(utterance.audio, *place, say=said.append)
            except AudioError as error:
                bad[utterance.id] = str(error)
                continue
            target = []
            if self.encode:
                draw = random.Random(f"{self.seed}-{plan.epoch}-{plan.update}-{utterance.id}")
                wave = change_speed(wave, draw.choice(self.speeds))
                target = self.encode(utterance.text)
                if not self.fits(len(wave), target, utterance.text):
                    infeasible += 1
                    continue
            waves.append(wave)
            labels.append(target)
            kept.append(utterance)
            if said:
                cancelling[utterance.id] = said[0]
        return make_batch(waves, labels, kept, bad, infeasible, plan, cancelling)


def loader(
    plan: list[MicroBatch],
    config: RunConfig,
    encode: Encode | None = None,
    fits: Fits | None = None,
    known_bad=(),
) -> DataLoader:
    """Yields a Batch for every micro-batch of the plan; config.workers processes read.

    With `encode` the batches have labels, the speed of utterances is changed, and those
    that do not fit are left out and counted. Without it they are for scoring.
    known_bad: utterances that are not tried again.
    """
    workers = min(config.workers, len(plan), len(os.sched_getaffinity(0)))
    return DataLoader(
        _Reader(plan, config, encode, fits, set(known_bad)),
        batch_size=None,
        num_workers=workers,
        # Seconds: where shared memory is too small, a reader waits for ever.
        timeout=600 if workers else 0,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available() and config.device != "cpu",
    )


def _ignore_signals(worker: int) -> None:
    """Lets a reading process ignore SIGTERM and Ctrl-C.

    They reach the whole process group; the training process ends its workers itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_one(utterance: Utterance, config: RunConfig) -> Batch:
    """A batch of one utterance without labels; an empty one if it cannot be read."""
    return _Reader([MicroBatch([utterance])], config, None, None, set())[0]


def first_readable(utterances: Iterable[Utterance], config: RunConfig) -> Batch:
    """A batch of the first utterance that figures can show.

    It is at most --cut-seconds long. Raises UserError if there is none.
    """
    for utterance in utterances:
        if utterance.duration <= config.cut_seconds:
            batch = read_one(utterance, config)
            if batch.utterances:
                return batch
    raise UserError("no utterance that it could show is short enough and can be read")


def sample_waves(
    utterances: list[Utterance], config: RunConfig, count: int = 500
) -> Iterator[Tensor]:
    """Yields the waves (samples,) of so many utterances, drawn from the seed.

    The mean and the variance of the features are taken from them.
    """
    sample = random.Random(config.seed).sample(utterances, min(count, len(utterances)))
    for batch in loader([MicroBatch([utterance]) for utterance in sample], config):
        yield from batch.waves
