"""Asking BERT about the word pieces of a transcript, in the vocabulary of a student.

The student writes a part of BERT's word pieces, each with a label of its own. Two
details make the mapping less simple than a table:

- The student has three apostrophes (inside a word, before and behind it), BERT has one.
  BERT's probability counts for the apostrophe that stands in the transcript.
- BERT cannot be asked about a piece that it lacks, nor beyond the longest text that it
  reads. Such a token keeps its hard label: its own label with probability 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.text import WordPiece

SPECIAL = ("[CLS]", "[SEP]", "[MASK]", "[UNK]")


class MaskedLM:
    """A frozen BERT, which answers questions about single tokens of a text, in fp32.

    pieces: its vocabulary in the order of ids; cls, sep, mask, unk: ids; longest:
    tokens that it reads at once. Only `logits` and `logits_at` need its head.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        """model, tokenizer: of transformers, see `is_bert`."""
        self.model = model
        self.tokenizer = tokenizer
        self.pieces = pieces_of(tokenizer)
        self.cls, self.sep, self.mask, self.unk = map(self.pieces.index, SPECIAL)
        self.longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def states(self, rows: list[list[int]], **options):
        """The trunk's output for N rows of ids, padded on the right to (N, L)."""
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(
            self.model.device
        )
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (N, L)
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            return self.model.base_model(ids, real.long(), **options)

    def layers(self, rows: list[list[int]], layers: list[int]) -> Tensor:
        """Hidden states (N, L, k, D) of `layers` (0: the embedding) for N rows of ids,
        padded on the right."""
        states = self.states(
            rows, output_hidden_states=True
        ).hidden_states  # depth + 1 times (N, L, D)
        return torch.stack([states[layer] for layer in layers], 2)

    def logits_at(self, rows: list[list[int]], positions: list[int]) -> Tensor:
        """Logits (N, vocabulary) at one position of each of N rows of ids.

        The vocabulary head, a fifth of the work of bert-base, runs only there.
        """
        states = self.states(rows).last_hidden_state  # (N, L, D)
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            return self.model.cls(states[range(len(rows)), positions])

    def logits(self, rows: list[list[int]], positions: list[int]) -> Tensor:
        """The logits `logits_at` these positions, with [MASK] in place of the token."""
        masked = [
            [*row[:i], self.mask, *row[i + 1 :]] for row, i in zip(rows, positions, strict=True)
        ]
        return self.logits_at(masked, positions)


def pieces_of(tokenizer: Any) -> list[str]:
    """The vocabulary of a transformers tokenizer in the order of its ids."""
    return tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def is_bert(model: nn.Module, tokenizer: Any) -> bool:
    """Whether this is a BERT with its masked language model head and its vocabulary."""
    return knows_pieces(model, tokenizer) and hasattr(model, "cls")


def knows_pieces(model: nn.Module, tokenizer: Any) -> bool:
    """Whether the model has an embedding for every piece, and BERT's special ones."""
    pieces = pieces_of(tokenizer)
    return set(SPECIAL) <= set(pieces) and len(pieces) <= model.config.vocab_size


def by_length(rows: list[list[int]], tokens: int = 2**14) -> Iterator[list[int]]:
    """Yields indices of rows of equal length, with about `tokens` tokens at a time.

    So nothing has to be padded.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for length, same in groupby(order, key=lambda i: len(rows[i])):
        rows_of_length = list(same)
        size = max(1, tokens // max(length, 1))
        yield from (rows_of_length[i : i + size] for i in range(0, len(rows_of_length), size))


class Question(NamedTuple):
    """A transcript of U word pieces as BERT reads it."""

    ids: tuple[int, ...]  # [CLS] ... y_1 ... y_U ... [SEP], as BERT's ids
    first: int  # the position of y_1
    labels: tuple[int, ...]  # y_1 ... y_U, as the student's labels


class Answer(NamedTuple):
    """BERT's K most likely pieces for each of U tokens."""

    labels: Tensor  # (U, K), as the student's labels
    logits: Tensor  # (U, K); -inf: impossible


class SharedPieces:
    """The word pieces that a student shares with BERT.

    bert_id_of (V,): BERT's id of each label, or -1; label 0 has none. labels (M,), ids
    (M,): every shared piece once, as the student's label and as BERT's id.
    """

    def __init__(self, tokenizer: WordPiece, teacher: MaskedLM):
        self.teacher = teacher
        self.bert_id_of = torch.tensor([-1, *tokenizer.ids_in(teacher.pieces)])
        first_label = {}
        for label, piece in enumerate(self.bert_id_of.tolist()):
            if piece >= 0:
                first_label.setdefault(piece, label)  # of the three apostrophes, the first
        self.labels = torch.tensor(list(first_label.values()))
        self.ids = torch.tensor(list(first_label))

    def read(self, labels: list[int]) -> list[int]:
        """The labels as BERT's ids; [UNK] for a piece that BERT does not have."""
        ids = self.bert_id_of[labels].tolist()
        return [piece if piece >= 0 else self.teacher.unk for piece in ids]

    def can_be_asked(self, question: Question) -> Tensor:
        """(U,) True for tokens that BERT has, and reads."""
        positions = question.first + torch.arange(len(question.labels))
        return (self.bert_id_of[list(question.labels)] >= 0) & (positions < self.teacher.longest)

    def top_k(self, rows: list[list[int]], positions: list[int], k: int) -> tuple[Tensor, Tensor]:
        """The K shared pieces with the largest logits, at a position of each of N rows.

        Returns labels (N, K) and logits (N, K). Rows of equal length are read together.
        """
        longest = self.teacher.longest
        rows = [row[:longest] for row in rows]
        labels = torch.zeros(len(rows), k, dtype=torch.long)
        logits = torch.zeros(len(rows), k)
        ids = self.ids.to(self.teacher.model.device)
        for part in by_length(rows):
            where = [min(positions[i], longest - 1) for i in part]
            z = self.teacher.logits_at([rows[i] for i in part], where)  # (n, BERT's vocabulary)
            top = z[:, ids].float().topk(k)  # (n, K) of (n, M)
            labels[part] = self.labels[top.indices.cpu()]
            logits[part] = top.values.cpu()
        return labels, logits

    def with_exceptions(self, question: Question, labels: Tensor, logits: Tensor) -> Answer:
        """The answer (U, K) to a question, with the exceptions named at the top."""
        y = torch.tensor(question.labels)[:, None]  # (U, 1)
        same_piece = self.bert_id_of[labels] == self.bert_id_of[y]  # (U, K)
        labels = torch.where(same_piece, y, labels)
        hard_labels = torch.zeros_like(labels)
        hard_labels[:, :1] = y
        hard_logits = torch.full_like(logits, -torch.inf)
        hard_logits[:, 0] = 0.0
        asked = self.can_be_asked(question)[:, None]  # (U, 1)
        return Answer(
            torch.where(asked, labels, hard_labels), torch.where(asked, logits, hard_logits)
        )

    def accuracy(self, questions: list[Question], answers: list[Answer]) -> tuple[float, float]:
        """How often a token is BERT's first guess, and how often it is among its K."""
        tokens = 0
        first = 0
        among = 0
        for question, answer in zip(questions, answers, strict=True):
            asked = self.can_be_asked(question)  # (U,)
            right = answer.labels == torch.tensor(question.labels)[:, None]  # (U, K)
            tokens += int(asked.sum())
            first += int((right[:, 0] & asked).sum())
            among += int((right.any(1) & asked).sum())
        return first / max(tokens, 1), among / max(tokens, 1)
