"""Speech as a prompt of a decoder-only language model, in training and in decoding.

    inputs    before ... a_1 ... a_T' after ... y_1 ... y_U
    targets      -        -       -    y_1      y_2 ... end

a_1 ... a_T' is speech, already as wide as the model's embeddings. Speech has no
targets; the first target stands at the last symbol of `after`.

Two utterances, before = [1], after = [2], end = 3, of 2 and 1 speech vectors and of
texts [7 8] and [9]:

    training  inputs     1  a  a  2  7  8        1  b  2  9  .  .
              targets    -  -  -  7  8  3        -  -  9  3  -  -
              mask       1  1  1  1  1  1        1  1  1  1  0  0
    decoding  inputs     1  a  a  2              .  1  b  2
              mask       1  1  1  1              0  1  1  1

In decoding the text is written behind the prompt, so padding stands before it. What is
real follows from lengths alone, never from ids: the end symbol and padding may be the
same. Positions are counted by the model over what the mask calls real, so that padding
before a prompt moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from common.errors import UserError

NONE = -100  # target where there is none
MASKED = -1  # in place of an id: a piece that the model may not see
LONGEST = 200  # pieces of an answer, in training and when it is written [recall]
# An answer without an end that repeats up to LONGEST_REPEAT pieces REPEATS times is cut [choice].
REPEATS = 4
LONGEST_REPEAT = 8

# =================================================================================== sequences


class Sequences(NamedTuple):
    """The inputs of the language model, and what it has to predict."""

    inputs: Tensor  # (B, S, E) embeddings
    mask: Tensor  # (B, S) True where real
    targets: Tensor  # (B, S) the piece that follows, or NONE


class Frame(NamedTuple):
    """The symbols around the speech, and the one that ends a text."""

    before: list[int]
    after: list[int]  # at least one
    end: int


def ids_of_symbols(tokenizer: Any, pieces: list[str], size: int) -> list[int]:
    """The ids of pieces that are symbols. tokenizer: with `id_of`; size: of the model's
    vocabulary. Raises UserError for what is no piece of the model's."""
    found = []
    for piece in pieces:
        i = tokenizer.id_of(piece)
        advice = "give --begin, --separator and --end."
        if i is None:
            raise UserError(f"{piece} is no piece of GPT's: {advice}")
        if i >= size:
            raise UserError(f"{piece} is beyond GPT's vocabulary of {size} pieces: {advice}")
        found.append(i)
    return found


def embed(embedding: nn.Embedding, ids: list[int], like: Tensor) -> Tensor:
    """(len(ids), E); MASKED becomes the mean of all embeddings, which is the symbol of
    no model. like: a tensor of the wanted type and device."""
    indices = torch.tensor(ids, dtype=torch.long, device=like.device)
    vectors = embedding(indices.clamp(min=0)).to(like.dtype)
    if MASKED in ids:
        mean = embedding.weight.mean(0).to(like.dtype)
        vectors = torch.where((indices == MASKED)[:, None], mean, vectors)
    return vectors


def build_sequences(
    embedding: nn.Embedding,
    speech: Tensor,
    lengths: Sequence[int],
    texts: list[list[int]] | None,
    frame: Frame,
    shown: list[list[int]] | None = None,
) -> Sequences:
    """A row per utterance: frame.before, its speech, frame.after, its text.

    speech (B, T', E) of `lengths`; texts: ids, or None in decoding, when they are still
    to be written: then padding stands on the left. shown: the ids that the model reads
    in place of the texts, MASKED among them.
    """
    rows = []
    targets = []
    for i, length in enumerate(lengths):
        text = [] if texts is None else texts[i]
        read = text if shown is None else shown[i]
        before = embed(embedding, frame.before, speech)
        after = embed(embedding, [*frame.after, *read], speech)
        row = torch.cat([before, speech[i, :length], after])  # (S, E)
        without_target = len(row) - len(text) - 1
        target = [NONE] * without_target + [*text, frame.end]
        rows.append(row)
        targets.append(torch.tensor(target, device=speech.device))
    return pad(rows, targets, side="left" if texts is None else "right")


def pad(rows: list[Tensor], targets: list[Tensor], side: str) -> Sequences:
    """rows (S, E) and targets (S,) of different lengths; side: where padding stands."""
    real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
    to_longest = nn.utils.rnn.pad_sequence
    return Sequences(
        inputs=to_longest(rows, batch_first=True, padding_side=side),
        mask=to_longest(real, batch_first=True, padding_side=side),
        targets=to_longest(targets, batch_first=True, padding_value=NONE, padding_side=side),
    )


def positions_of(lm: nn.Module) -> int | None:
    """How many vectors and pieces a language model reads at once; None: any number."""
    return getattr(lm.config.get_text_config(), "max_position_embeddings", None)


def answer_fits(
    vectors: int, pieces: int, positions: int | None, around: int = 1, longest: int = LONGEST
) -> bool:
    """Whether a language model can learn to write so many pieces behind so many vectors
    of speech.

    There must be a vector, and `longest` pieces at most, as in decoding. All these and
    the `around` symbols before the text need a position each; the end symbol needs
    none, since it is never read. positions: see `positions_of`.
    """
    needed = vectors + around + pieces
    return vectors > 0 and pieces <= longest and (positions is None or needed <= positions)


def answer_loss(lm: nn.Module, sequences: Sequences) -> Tensor:
    """-log p(y_1 ... y_U end | speech) of each utterance (B,), in fp32."""
    logits = lm(
        inputs_embeds=sequences.inputs, attention_mask=sequences.mask.long(), use_cache=False
    ).logits  # (B, S, vocabulary)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        sequences.targets.flatten(),
        ignore_index=NONE,
        reduction="none",
    )
    return losses.view(sequences.targets.shape).sum(1)


def ids_of(targets: Tensor, target_lengths: Tensor) -> list[list[int]]:
    """The transcripts of a batch as ids of the language model.

    targets (B, U) are labels of `text.Pieces`: ids + 1, since label 0 is CTC's blank.
    """
    rows = []
    for row, length in zip(targets, target_lengths.tolist(), strict=True):
        rows.append((row[:length] - 1).tolist())
    return rows


# ==================================================================================== decoding


def write(
    lm: nn.Module,
    sequences: Sequences,
    limits: list[int],
    end: int,
    processors: Sequence[LogitsProcessor] = (),
    **search: Any,
) -> tuple[list[list[int]], list[dict[str, float]]]:
    """Continues prompts by transformers' generate: the ids of each answer without its
    end, and {"unstopped": 1 where the limit came first, "repetitions": 1 where what it
    repeated was cut}.

    limits: most ids per answer, so that an utterance gives the same alone and in a
    batch. search: of generate, such as num_beams; none: greedy. processors: of its
    scores, after its own, see `search_options`.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    per_row = torch.tensor(limits, device=sequences.inputs.device)

    def at_limit(ids: Tensor, scores: Tensor, **_) -> Tensor:  # (B beams, new ids)
        return ids.shape[1] >= per_row.repeat_interleave(len(ids) // len(limits))

    lm.generation_config = GenerationConfig()  # without the model's own, such as a penalty
    options = {"max_new_tokens": max(limits), "do_sample": False}
    options |= {"eos_token_id": end, "pad_token_id": end} | search
    new = lm.generate(
        inputs_embeds=sequences.inputs,
        attention_mask=sequences.mask.long(),
        generation_config=GenerationConfig(**options),
        stopping_criteria=StoppingCriteriaList([at_limit]),
        logits_processor=LogitsProcessorList(processors),
    ).tolist()
    answers = []
    counts = []
    for ids, limit in zip(new, limits, strict=True):
        if end in ids:
            ids = ids[: ids.index(end)]
        is_unstopped = len(ids) >= limit
        kept = cut_repetition(ids) if is_unstopped else ids
        is_cut = len(kept) < len(ids)
        counts.append({"unstopped": float(is_unstopped), "repetitions": float(is_cut)})
        answers.append(kept[:limit])
    return answers, counts


def cut_repetition(ids: list[int]) -> list[int]:
    """Without the repetitions at its end, but for one, if there are REPEATS or more."""
    for size in range(1, LONGEST_REPEAT + 1):
        block = ids[-size:]
        count = 1
        while len(ids) >= (count + 1) * size and ids[-(count + 1) * size : -count * size] == block:
            count += 1
        if count >= REPEATS:
            return ids[: len(ids) - (count - 1) * size]
    return ids


def search_options(search: dict[str, Any], seed: int, samples: Tensor) -> dict[str, Any]:
    """Options of `write` for {"beam": 4}, {"top_k": 10} or {"top_p": 0.9}.

    seed, samples (B,): top_k and top_p draw from the seed and an utterance's length.
    """
    if "beam" in search:
        return {"num_beams": search["beam"]}
    if "top_k" in search:
        kept = TopKLogitsWarper(search["top_k"])
    else:
        kept = TopPLogitsWarper(search["top_p"])
    seeds = [seed * 2**32 + n for n in samples.tolist()]
    return {"processors": [kept, Draw(seeds)]}


class Draw(LogitsProcessor):
    """Noise that makes the largest score a draw from their softmax (Gumbel-max).

    Each row draws from a generator of its own, so that an answer is the same alone and
    in a batch. transformers draws for all rows at once, so that an utterance's draws
    would depend on its neighbours.
    """

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) -> (B, V)"""
        rows = []
        for generator in self.generators:
            rows.append(torch.empty(scores.shape[1]).exponential_(generator=generator))
        return scores - torch.stack(rows).log().to(scores)


def attentions(lm: nn.Module, sequences: Sequences) -> list[np.ndarray]:
    """(S, S) per layer for one sequence: attention weights, the mean over heads."""
    usual = lm.config._attn_implementation
    lm.set_attn_implementation("eager")  # the others keep no weights
    found = lm(inputs_embeds=sequences.inputs, output_attentions=True, use_cache=False).attentions
    lm.set_attn_implementation(usual)
    return [layer[0].mean(0).float().cpu().numpy() for layer in found]
