"""Speech as a prompt of a decoder-only language model: one sequence for training and for decoding.

    inputs    before… a_1 … a_T' after… y_1 … y_U            a: speech, already as wide as the model's embeddings
    targets      –     –      –    y_1   y_2 … end            none at speech; the first stands at the last of `after`

Two utterances, before = [1], after = [2], end = 3, of 2 and 1 speech vectors and of texts [7 8] and [9]:

    training  inputs     1  a  a  2  7  8        1  b  2  9  .  .
              targets    -  -  -  7  8  3        -  -  9  3  -  -
              mask       1  1  1  1  1  1        1  1  1  1  0  0
    decoding  inputs     1  a  a  2              .  1  b  2          the text comes behind: padding stands before
              mask       1  1  1  1              0  1  1  1

What is real follows from lengths alone, never from ids: the end symbol and padding may be the same. Positions are the
model's own: it counts them over what the mask calls real, so that padding before a prompt moves nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from common.features import SAMPLE_RATE
from common.running.batches import Batch, Encode, Fits, evaluation_batches, loader
from common.running.corpora import Utterance
from common.running.flags import RunConfig
from common.running.process import Place, note

NONE = -100  # target where there is none
MASKED = -1  # in place of an id: a piece that the model may not see
LONGEST = 200  # pieces of an answer, in training and when it is written [recall]
REPEATS, LONGEST_REPEAT = (
    4,
    8,
)  # an answer without end that repeats up to so many pieces so often is cut [choice]


class Sequences(NamedTuple):
    """What the language model reads, and what it has to say."""

    inputs: Tensor  # (B, S, D) embeddings
    mask: Tensor  # (B, S) True where real
    targets: Tensor  # (B, S) the piece that follows, or NONE


def build_sequences(
    embedding: nn.Embedding, speech: Tensor, lengths: Sequence[int], texts: list[list[int]] | None,
    before: list[int], after: list[int], end: int, shown: list[list[int]] | None = None,
) -> Sequences:  # fmt: skip
    """speech (B, T', D) of `lengths`, texts: ids; absent: to be written, then padding stands before.

    after: at least one id. shown: the ids to be read in place of the texts; MASKED is the mean of all embeddings, which
    says nothing and is a symbol of no model.
    """
    rows, targets = [], []
    mean = embedding.weight.mean(0).to(speech.dtype) if shown else None
    answers = [[] for _ in lengths] if texts is None else texts
    for vectors, n, answer, ids in zip(speech, lengths, answers, shown or answers, strict=True):
        ids = torch.tensor([*before, *after, *ids], device=speech.device)
        vectors_of = embedding(ids.clamp(min=0)).to(speech.dtype)
        if shown:
            vectors_of = torch.where((ids == MASKED)[:, None], mean, vectors_of)
        first = len(before)
        rows.append(torch.cat([vectors_of[:first], vectors[:n], vectors_of[first:]]))  # (S, D)
        targets.append(
            torch.tensor(
                [*[NONE] * (len(rows[-1]) - len(answer) - 1), *answer, end], device=speech.device
            )
        )
    side, pad = "left" if texts is None else "right", nn.utils.rnn.pad_sequence
    real = [torch.ones(len(row), dtype=torch.bool, device=speech.device) for row in rows]
    mask = pad(real, batch_first=True, padding_side=side)
    inputs = pad(rows, batch_first=True, padding_side=side)
    targets = pad(targets, batch_first=True, padding_value=NONE, padding_side=side)
    return Sequences(inputs, mask, targets)


def positions_of(lm: nn.Module) -> int | None:
    """How many vectors and pieces a language model reads at once; None: no limit, as BLOOM."""
    return getattr(lm.config.get_text_config(), "max_position_embeddings", None)


def answer_fits(
    vectors: int, pieces: int, positions: int | None, around: int = 1, longest: int = LONGEST
) -> bool:
    """Whether a language model can be taught to write so many pieces behind so many vectors of
    speech.

    It needs a vector at least, has `longest` pieces at most, as when it writes, and needs
    a position for each of all these and of the `around` symbols before the text. The end
    is said and never read. positions: see `positions_of`.
    """
    needed = vectors + around + pieces
    return vectors > 0 and pieces <= longest and (positions is None or needed <= positions)


def anything_fits(samples: int, labels: list[int], text: str) -> bool:
    """For a loader, where nothing is to be left out."""
    return True


def answer_loss(lm: nn.Module, sequences: Sequences) -> Tensor:
    """-log p(y_1 … y_U end | speech) of each utterance (B,), in fp32."""
    logits = lm(
        inputs_embeds=sequences.inputs, attention_mask=sequences.mask.long(), use_cache=False
    ).logits
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        sequences.targets.flatten(),
        ignore_index=NONE,
        reduction="none",
    )
    return losses.view(sequences.targets.shape).sum(1)


def write(
    lm: nn.Module,
    sequences: Sequences,
    limits: list[int],
    end: int,
    processors: Sequence[LogitsProcessor] = (),
    **search,
) -> tuple[list[list[int]], list[dict[str, float]]]:
    """Continues sequences made without texts, by transformers' generate: the ids of each answer without its end, and
    {"unstopped": 1 where the limit came first, "repetitions": 1 where what it repeated was cut}.

    limits: most ids per answer, so that an utterance gives the same alone and in a batch. search: of generate, such as
    num_beams; none: greedy. processors: of its scores, after its own, see `search_options`.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    per_row = torch.tensor(limits, device=sequences.inputs.device)

    def at_limit(ids: Tensor, scores: Tensor, **_) -> Tensor:  # (B beams, new ids)
        return ids.shape[1] >= per_row.repeat_interleave(len(ids) // len(limits))

    lm.generation_config = (
        GenerationConfig()
    )  # nothing of the model's own, such as a penalty for repetition
    options = (
        dict(max_new_tokens=max(limits), do_sample=False, eos_token_id=end, pad_token_id=end)
        | search
    )
    new = lm.generate(
        inputs_embeds=sequences.inputs, attention_mask=sequences.mask.long(),
        generation_config=GenerationConfig(**options), stopping_criteria=StoppingCriteriaList([at_limit]),
        logits_processor=LogitsProcessorList(processors),
    ).tolist()  # fmt: skip
    answers, counts = [], []
    for ids, limit in zip(new, limits, strict=True):
        ids = ids[: ids.index(end)] if end in ids else ids
        kept = cut_repetition(ids) if len(ids) >= limit else ids
        counts.append(
            {"unstopped": float(len(ids) >= limit), "repetitions": float(len(kept) < len(ids))}
        )
        answers.append(kept[:limit])
    return answers, counts


def cut_repetition(ids: list[int]) -> list[int]:
    """Without the repetitions at its end, of which one is left, where there are REPEATS of them or more."""
    for size in range(1, LONGEST_REPEAT + 1):
        block, count = ids[-size:], 1
        while len(ids) >= (count + 1) * size and ids[-(count + 1) * size : -count * size] == block:
            count += 1
        if count >= REPEATS:
            return ids[: len(ids) - (count - 1) * size]
    return ids


def swap_audio(
    utterances: list[Utterance], count: int = 64
) -> tuple[list[Utterance], list[Utterance]]:
    """So many utterances, spread over languages; and the same with the audio of another session in the same language.

    Where a language has one session only, with another utterance's; where it has one utterance, that is left out.
    """
    by_language: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_language.setdefault(utterance.language, []).append(utterance)
    draw, own, swapped = random.Random(0), [], []
    for same in by_language.values():
        for u in draw.sample(same, min(len(same), -(-count // len(by_language)))):
            others = [o for o in same if o.session != u.session] or [o for o in same if o is not u]
            if others:
                other = draw.choice(others)
                audio = {
                    name: getattr(other, name)
                    for name in ("audio", "offset", "duration", "channel")
                }
                own.append(u)
                swapped.append(replace(u, **audio))
    return own, swapped


def listening_batches(
    utterances: list[Utterance], config: RunConfig, encode: Encode, fits: Fits
) -> Iterator[tuple[bool, Batch]]:
    """(False, batch) of some utterances as they are, then (True, batch) of the same words with swapped audio.

    How much more a piece of the right answer costs then is the listening gap: near 0, the model writes what is likely
    and does not listen. Left out is what does not fit, with its own audio or with the other.
    """
    plain = replace(config, speeds=(1.0,), workers=0)
    own, swapped_audio = [], []
    for u, other in zip(*swap_audio(utterances), strict=True):
        labels = encode(u.text)
        if all(fits(round(x.duration * SAMPLE_RATE), labels, u.text) for x in (u, other)):
            own.append(u)
            swapped_audio.append(other)
    for swapped, some in enumerate((own, swapped_audio)):
        for batch in loader(evaluation_batches(some, config.batch_seconds), plain, encode, fits):
            if batch.utterances:
                yield bool(swapped), batch


@torch.inference_mode()
def measure_listening(
    recogniser: nn.Module,
    losses: Callable,
    utterances: list[Utterance],
    config: RunConfig,
    place: Place,
    fits: Fits = anything_fits,
) -> dict[str, float]:
    """{"listening_gap"}: by how many nats per piece a transcript is less likely after the audio of another session.

    losses(recogniser, batch, place): -log p(answer | speech) of each utterance (B,). fits: see `answer_fits`.
    """
    sums, pieces = [0.0, 0.0], [0, 0]
    recogniser.eval()
    for swapped, batch in listening_batches(utterances, config, recogniser.tokenizer.encode, fits):
        sums[swapped] += losses(recogniser, batch.to(place.device), place).sum().item()
        pieces[swapped] += int(batch.target_lengths.sum()) + len(batch.utterances)
    if 0 in pieces:  # nothing that fits
        return {}
    own, other = (total / count for total, count in zip(sums, pieces, strict=True))
    if place.first and other - own < 0.1:
        note(
            f"listening gap {other - own:.2f}: the model writes likely sentences and does not listen yet"
        )
    return {"listening_gap": round(other - own, 3)}


@torch.inference_mode()
def text_perplexity(
    recogniser: nn.Module, utterances: list[Utterance], symbols: tuple[int, int], place: Place
) -> float:
    """Per piece, of 50 to 100 transcripts without audio, their ends included; symbols: the ids of beginning and end.

    Of a transcript longer than the model reads at once, only the beginning counts.
    """
    (beginning, end), embedding = symbols, recogniser.lm.get_input_embeddings()
    no_speech, total, pieces = (
        torch.zeros(1, 0, embedding.embedding_dim, device=place.device),
        0.0,
        0,
    )
    longest = (positions_of(recogniser.lm) or math.inf) - 1  # beside the beginning
    with place.autocast():
        for utterance in utterances[:: len(utterances) // 100 + 1]:
            ids = [i - 1 for i in recogniser.tokenizer.encode(utterance.text)]
            last = end
            if len(ids) > longest:
                last, ids = ids[longest], ids[:longest]  # what follows is its next piece
            sequence = build_sequences(embedding, no_speech, [0], [ids], [], [beginning], last)
            total += answer_loss(recogniser.lm, sequence).item()
            pieces += len(ids) + 1
    return round(math.exp(total / pieces), 3)


def texts_of(batch: Batch) -> list[list[int]]:
    """The transcripts in the ids of the language model, whose `Pieces` are the tokenizer."""
    return [
        (row[:n] - 1).tolist()
        for row, n in zip(batch.targets, batch.target_lengths.tolist(), strict=True)
    ]


def search_options(search: dict, seeds: list[int]) -> dict:
    """Options of `write` for a search: {"beam": 4}, {"top_k": 10} or {"top_p": 0.9}.

    seeds: of each utterance, from which top_k and top_p draw.
    """
    if "beam" in search:
        return {"num_beams": search["beam"]}
    if "top_k" in search:
        kept = TopKLogitsWarper(search["top_k"])
    else:
        kept = TopPLogitsWarper(search["top_p"])
    return {"processors": [kept, Draw(seeds)]}


class Draw(LogitsProcessor):
    """Noise that makes the largest of the scores a draw from their softmax (Gumbel-max).

    Each row draws from a generator of its own, so that an answer is the same alone and in
    a batch. Those who draw from all rows at once, as transformers does it, give an
    utterance other draws beside other utterances.
    """

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) -> (B, V)"""
        rows = [
            torch.empty(scores.shape[1]).exponential_(generator=generator)
            for generator in self.generators
        ]
        return scores - torch.stack(rows).log().to(scores)


def attentions(lm: nn.Module, sequences: Sequences) -> list[np.ndarray]:
    """(S, S) per layer for one sequence: from each position to each, the mean over heads."""
    usual = lm.config._attn_implementation
    lm.set_attn_implementation("eager")  # the others keep no weights
    found = lm(inputs_embeds=sequences.inputs, output_attentions=True, use_cache=False).attentions
    lm.set_attn_implementation(usual)
    return [layer[0].mean(0).float().cpu().numpy() for layer in found]
