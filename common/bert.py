"""Asking BERT about the word pieces of a transcript, in the vocabulary of a student.

The student writes a part of BERT's word pieces, each with a label of its own. Two
details make the mapping less simple than a table:

- The student has three apostrophes (inside a word, before and behind it), BERT has one.
Its
  probability counts for the one that stands in the transcript.
- BERT cannot be asked about a piece that it does not have, nor beyond the longest text
that it
  reads. Such a token keeps its hard label: its own label with probability 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.pretrained import MaskedLM, by_length
from common.text import WordPiece


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
        """The K shared pieces with the largest logits at one position of each of N rows
        of ids.

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

    def answer(self, question: Question, labels: Tensor, logits: Tensor) -> Answer:
        """The answer (U, K) to a question, with the exceptions of the module's
        docstring."""
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
        """How often the token is BERT's first guess, and among its K: of the tokens
        asked about."""
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
