"""Decoding with a trained recogniser.

A recogniser is an nn.Module with a `tokenizer`, `decodes` (a `Decoding`) and

    transcribe(batch, place, **search) -> [Transcript, ...]    one per utterance

where `search` is empty for greedy decoding. The functions here take a `config` with the
fields `search`, `batch_seconds`, `cut_seconds`, `workers`, `device`, `seed`, `root`,
`data` and `out`. Recordings longer than --cut-seconds are cut at pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.ctc import Token, word_times
from common.errors import UserError, note_once
from common.features import SAMPLE_RATE, split_at_pauses
from common.running.batches import Batch, MicroBatch, evaluation_batches, loader, make_batch
from common.running.corpora import Utterance
from common.running.options import Search
from common.running.process import Place, first_rank_first, gather, note
from common.running.updates import add_up
from common.text import Tokenizer


class Word(NamedTuple):
    text: str
    start: float  # seconds
    end: float


class Transcript(NamedTuple):
    """What was recognised in one utterance."""

    text: str
    words: list[Word] | None = None  # None if the model gives no times
    counts: dict[str, float] = {}  # numbers that RESULT adds up over utterances


@dataclass(frozen=True)
class Decoding:
    """How a recogniser can be decoded."""

    kinds: tuple[str, ...] = ("greedy",)  # the values of --decode that it takes
    lm: type | None = None  # the kind of language model that its beam search takes
    own: Search = Search()  # what --beam, --lm-weight, ... are where they are not given


# ================================================================================== decoding


@torch.inference_mode()
def recognise(
    recogniser: nn.Module, batch: Batch, config: Any, place: Place, **search: Any
) -> list[Transcript]:
    """A transcript per utterance; above --cut-seconds they are cut and joined again."""
    recogniser.eval()
    if batch.samples.max() <= config.cut_seconds * SAMPLE_RATE:
        return recogniser.transcribe(batch.to(place.device), place, **search)
    transcripts = []
    for wave, size in zip(batch.waves, batch.samples.tolist(), strict=True):
        parts, starts = [], []
        for start, end in split_at_pauses(wave[:size], config.cut_seconds):
            piece = batch_of(wave[start:end]).to(place.device)
            parts += recogniser.transcribe(piece, place, **search)
            starts.append(start / SAMPLE_RATE)
        transcripts.append(join(parts, starts))
    return transcripts


def batch_of(wave: Tensor) -> Batch:
    """One recording (samples,) as a batch without labels."""
    return make_batch([wave], [[]], [], {}, 0, MicroBatch([]))


def transcript_of(tokens: list[Token], tokenizer: Tokenizer, seconds: float) -> Transcript:
    """The transcript of labels with the frames that they cover, each `seconds` long."""
    words = []
    for text, start, end in word_times(tokens, tokenizer.decode):
        words.append(Word(text, start * seconds, end * seconds))
    return Transcript(tokenizer.decode([token.label for token in tokens]), words)


def join(parts: list[Transcript], starts: list[float]) -> Transcript:
    """One transcript of several pieces, which begin at `starts` seconds."""
    words: list[Word] = []
    counts: dict[str, float] = {}
    for part, start in zip(parts, starts, strict=True):
        for word in part.words or []:
            words.append(Word(word.text, word.start + start, word.end + start))
        add_up(counts, part.counts)
    text = " ".join(part.text for part in parts if part.text)
    return Transcript(text, None if parts[0].words is None else words, counts)


def decode(
    recogniser: nn.Module,
    utterances: list[Utterance],
    config: Any,
    place: Place,
    unreadable: dict[str, str] | None = None,
    **search: Any,
) -> dict[str, Transcript]:
    """{utterance: transcript}; all ranks share the work. Unreadable utterances are
    named.

    unreadable: gets {utterance: why it could not be read}. Utterances whose channels
    cancel each other are counted, and named once per file.
    """
    plan = evaluation_batches(utterances, config.batch_seconds, place.rank, place.ranks)
    quiet = None if place.first else True  # None: quiet if stderr is no terminal
    bar = tqdm(loader(plan, config), "decoding", unit="batch", leave=False, delay=2, disable=quiet)
    mine: dict[str, Transcript] = {}
    cancelling: dict[str, str] = {}
    bad: dict[str, str] = {}
    for batch in bar:
        bad |= batch.bad
        for reason in batch.bad.values():
            note(f"not scored: {reason}")
        cancelling |= batch.cancelling
        if batch.utterances:
            transcripts = recognise(recogniser, batch, config, place, **search)
            mine |= zip([u.id for u in batch.utterances], transcripts, strict=True)
    for name in cancelling:
        counts = mine[name].counts | {"cancelling_channels_scored": 1}
        mine[name] = mine[name]._replace(counts=counts)
    found = {}
    remarks = set()
    for part, its_remarks, its_bad in gather((mine, cancelling, bad), place):
        found |= part
        if unreadable is not None:
            unreadable |= its_bad
        remarks |= {*its_remarks.values()}
    if place.first:
        for remark in sorted(remarks):  # about a file, not each of its segments
            note_once(remark)
    return found


def texts_of(transcripts: dict[str, Transcript]) -> dict[str, str]:
    return {name: transcript.text for name, transcript in transcripts.items()}


# ==================================================================================== search


def check_search(recogniser: nn.Module, search: Search) -> None:
    """Raises UserError for a search that the recogniser does not have."""
    kinds = recogniser.decodes.kinds
    if search.decode not in kinds:
        raise UserError(f"--decode {search.decode}: this model is decoded by {', '.join(kinds)}.")
    if search.lm and recogniser.decodes.lm is None:
        raise UserError("--lm: this model is a language model itself.")


def searches(config: Any, recogniser: nn.Module, place: Place) -> list[dict[str, Any]]:
    """The choices of options of `transcribe`: each --lm-weight with each --bonus."""
    decoding = recogniser.decodes
    search = config.search.filled(decoding.own)
    if search.decode == "greedy":
        return [{}]
    if decoding.lm is None:  # beam, top_k or top_p
        return [{search.decode: getattr(search, search.decode)}]
    lm = None
    if search.lm:
        with first_rank_first(place):
            lm = decoding.lm(search.lm, "--lm", config.root, recogniser.tokenizer, place.device)
    found = []
    for weight in search.lm_weight if lm else (0.0,):
        for bonus in search.bonus:
            found.append({"beam": search.beam, "lm": lm, "lm_weight": weight, "bonus": bonus})
    return found
