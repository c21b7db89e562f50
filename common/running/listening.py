"""Does a prompted language model listen?

The gap tells by how many nats per piece the right answer becomes less likely when the
audio is replaced by that of another session. Near 0 the model writes likely sentences
whatever the audio is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from common import alignment, prompting
from common.errors import note
from common.features import SAMPLE_RATE
from common.running.batches import Batch, Encode, Fits, evaluation_batches, loader
from common.running.options import with_values
from common.running.process import Place
from common.running.utterances import Utterance


def anything_fits(samples: int, labels: list[int], text: str) -> bool:
    """For a loader that leaves nothing out."""
    return True


def swap_audio(
    utterances: list[Utterance], count: int = 64
) -> tuple[list[Utterance], list[Utterance]]:
    """So many utterances, spread over languages; and the same with the audio of another
    session in the same language.

    Where a language has one session only, the audio is another utterance's. Where it
    has one utterance, that is left out.
    """
    by_language: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.language, []).append(utterance)
    each = -(-count // len(by_language)) if by_language else 0
    draw = random.Random(0)
    own: list[Utterance] = []
    swapped: list[Utterance] = []
    for same in by_language.values():
        for u in draw.sample(same, min(len(same), each)):
            others = [o for o in same if o.session != u.session] or [o for o in same if o is not u]
            if others:
                other = draw.choice(others)
                names = ("audio", "offset", "duration", "channel")
                own.append(u)
                swapped.append(replace(u, **{name: getattr(other, name) for name in names}))
    return own, swapped


def batches(
    utterances: list[Utterance], config: Any, encode: Encode, fits: Fits
) -> Iterator[tuple[bool, Batch]]:
    """(False, batch) of some utterances as they are, then (True, batch) of the same
    words with swapped audio.

    What does not fit, with its own audio or with the other, is left out.
    """
    plain = with_values(config, speeds=(1.0,), workers=0)
    own = []
    swapped = []
    for u, other in zip(*swap_audio(utterances), strict=True):
        labels = encode(u.text)
        if all(fits(round(x.duration * SAMPLE_RATE), labels, u.text) for x in (u, other)):
            own.append(u)
            swapped.append(other)
    for is_swapped, some in ((False, own), (True, swapped)):
        for batch in loader(evaluation_batches(some, config.batch_seconds), plain, encode, fits):
            if batch.utterances:
                yield is_swapped, batch


@torch.inference_mode()
def measure_gap(
    recogniser: nn.Module,
    losses: Callable[[Batch], Tensor],
    utterances: list[Utterance],
    config: Any,
    place: Place,
    fits: Fits = anything_fits,
) -> dict[str, float]:
    """{"listening_gap": nats per piece}, over 64 utterances; {} where none fits.

    losses: of a batch, -log p(answer | speech) of each utterance (B,).
    """
    sums = {False: 0.0, True: 0.0}
    pieces = {False: 0, True: 0}
    recogniser.eval()
    for is_swapped, batch in batches(utterances, config, recogniser.tokenizer.encode, fits):
        sums[is_swapped] += losses(batch.to(place.device)).sum().item()
        pieces[is_swapped] += int(batch.target_lengths.sum()) + len(batch.utterances)
    if 0 in pieces.values():
        return {}
    gap = sums[True] / pieces[True] - sums[False] / pieces[False]
    if place.first and gap < 0.1:
        note(f"listening gap {gap:.2f}: the model ignores the audio so far")
    return {"listening_gap": round(gap, 3)}


@torch.inference_mode()
def text_perplexity(
    recogniser: nn.Module, utterances: list[Utterance], begin: int, end: int, place: Place
) -> float:
    """Perplexity per piece of 50 to 100 transcripts without audio, their ends included.

    begin, end: ids. Of a transcript longer than the model reads at once, only the
    beginning counts.
    """
    lm = recogniser.lm
    embedding = lm.get_input_embeddings()
    no_speech = torch.zeros(1, 0, embedding.embedding_dim, device=place.device)
    longest = (prompting.positions_of(lm) or math.inf) - 1  # beside the beginning
    total = 0.0
    pieces = 0
    with place.autocast():
        for utterance in utterances[:: len(utterances) // 100 + 1]:
            ids = [label - 1 for label in recogniser.tokenizer.encode(utterance.text)]
            last = end
            if len(ids) > longest:
                last = ids[longest]  # what follows is its next piece
                ids = ids[:longest]
            frame = prompting.Frame(before=[], after=[begin], end=last)
            sequence = prompting.build_sequences(embedding, no_speech, [0], [ids], frame)
            total += prompting.answer_loss(lm, sequence).item()
            pieces += len(ids) + 1
    return round(math.exp(total / pieces), 3)


@torch.inference_mode()
def alignments(
    recogniser: nn.Module, dev: list[Utterance], config: Any, place: Place, fits: Fits
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """S of 64 utterances, see `alignment.cosines`: with their own audio, and with
    another's. Texts of a single piece are left out."""
    recogniser.eval()
    maps: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    embedding = recogniser.lm.get_input_embeddings()
    for is_swapped, batch in batches(dev, config, recogniser.tokenizer.encode, fits):
        with place.autocast():
            a, lengths = recogniser.prompt(batch.to(place.device))
        texts = prompting.ids_of(batch.targets, batch.target_lengths)
        for i, utterance in enumerate(batch.utterances):
            if len(texts[i]) > 1:
                e = embedding(torch.tensor(texts[i], device=place.device))  # (U, E)
                S = alignment.cosines(a[i, : lengths[i]], e)
                maps[is_swapped][utterance.id] = S.cpu()
    return maps[False], maps[True]
