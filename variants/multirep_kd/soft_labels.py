"""Do soft labels teach better than BERT's states?

This is a comparator with a loss of its own. Every word piece of the transcript is
masked once, and BERT's answer becomes a distribution over characters:

    q_u(v) = p(v follows the characters that u's piece has so far | BERT, piece masked)
    kd_k   = - sum_u sum_v q_u(v) log p(v | c_u, no blank)

For p the joint network reads c_u in place of h_t and g_u, and only its labels count,
not the blank [choice]. There are no regression networks. lam was tuned: 0.3 [choice].

    python -m variants.multirep_kd.soft_labels --method multirep_kd --kd-weight 0.3
"""

import functools
import re

import torch
from torch import Tensor, nn

import multirep_kd
from common.bert import MaskedLM
from common.running import pretrained
from common.running.batches import Batch
from common.running.process import Place
from common.text import Characters
from multirep_kd import Config, Teacher

# (is it a ## piece?, its first letters) -> ids of the pieces that begin so (M,), and the label
# of the letter that follows in each (M,)
Beginnings = dict[tuple[bool, str], tuple[Tensor, Tensor]]
NOTHING = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


def beginnings_of(pieces: list[str], alphabet: Characters) -> Beginnings:
    """All beginnings of the teacher's pieces; a piece has a space at its end."""
    found: dict[tuple[bool, str], tuple[list[int], list[int]]] = {}
    for i, piece in enumerate(pieces):
        if re.fullmatch(r"\[.*\]", piece):  # [CLS] and the like
            continue
        letters = piece.removeprefix("##") + " "
        for j, letter in enumerate(letters):
            key = (piece.startswith("##"), letters[:j])
            ids, following = found.setdefault(key, ([], []))
            if letter in alphabet.ids:
                ids.append(i)
                following.append(alphabet.ids[letter])
    return {key: (torch.tensor(a), torch.tensor(b)) for key, (a, b) in found.items()}


def masked_answers(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """p(piece | the others), (I, pieces) for each utterance: every token is masked
    once."""
    rows, positions = [], []
    for name in names:
        row, first = teacher.read(name, epoch)
        for i in range(len(teacher.tokens[name].ids)):
            rows.append(row)
            positions.append(first + i)
    answers = []
    for i in range(0, len(rows), 256):
        logits = teacher.lm.logits(rows[i : i + 256], positions[i : i + 256])
        answers += logits.float().softmax(-1).cpu()
    found = []
    for name in names:
        size = len(teacher.tokens[name].ids)
        found.append(answers[:size])
        answers = answers[size:]
    return found


def soft_label(
    teacher: Teacher, name: str, answers: list[Tensor], alphabet: Characters, known: Beginnings
) -> Tensor:
    """q (U, V) of an utterance; rows of zeros where the teacher's pieces do not spell
    the transcript.

    A piece gives its characters, each from those before it, and the space behind a
    word.
    """
    transcript = teacher.transcripts[name]
    ids, spans = teacher.tokens[name]
    q = torch.zeros(len(transcript), alphabet.size)
    for piece, (start, end), p in zip(ids.tolist(), spans.tolist(), answers, strict=True):
        goes_on = teacher.lm.pieces[piece].startswith("##")
        has_space = transcript[end : end + 1] == " "
        for u in range(start, end + has_space):
            pieces, following = known.get((goes_on, transcript[start:u]), NOTHING)
            q[u].index_add_(0, following, p[pieces])
    return q / q.sum(-1, keepdim=True).clamp(min=1e-30)


@functools.cache
def beginnings_for(teacher: Teacher, characters: str) -> Beginnings:
    """`beginnings_of`, computed once for a teacher and a recogniser's characters."""
    return beginnings_of(teacher.lm.pieces, Characters(characters))


def soft_labels_of(
    teacher: Teacher, names: list[str], epoch: int, alphabet: Characters
) -> list[Tensor]:
    """q (U, V) of each utterance."""
    if teacher.known.keys() >= set(names):
        return [teacher.known[name] for name in names]
    known = beginnings_for(teacher, alphabet.characters)
    found = []
    for name, answers in zip(names, masked_answers(teacher, names, epoch), strict=True):
        found.append(soft_label(teacher, name, answers, alphabet, known))
    return found


def remember_soft_labels(teacher: Teacher, names: list[str], place: Place) -> None:
    """Keeps q of these utterances, if it is fixed and fits into 2 GB."""
    alphabet = Characters.build(teacher.transcripts[name] for name in names)  # the recogniser's
    characters = sum(len(teacher.transcripts[name]) for name in names)
    is_masked = teacher.config.context > 0 and teacher.config.context_mask > 0
    if is_masked or 4e-9 * characters * alphabet.size > 2:
        return
    known = {}
    for part in multirep_kd.in_batches(teacher, names, place):
        known |= zip(part, soft_labels_of(teacher, part, 0, alphabet), strict=True)
    teacher.known = known


def soft_label_loss(logits: Tensor, q: Tensor) -> Tensor:
    """kd_k: logits (B, U, V) with the blank's, q (B, U, V) with 0 at the blank.

    Rows of zeros are ignored.
    """
    return -(q[..., 1:] * logits[..., 1:].float().log_softmax(-1)).sum()


def soft_label_losses(
    models: nn.ModuleDict, c: Tensor, teachers: list[Teacher], batch: Batch
) -> dict[str, Tensor]:
    """kd_k of each teacher; c (B, U, D+P)."""
    recogniser = models["recogniser"]
    joint = recogniser.joint
    h, g = c.split([joint.encode.in_features, joint.predict.in_features], -1)
    logits = joint(joint.encode(h), joint.predict(g))  # (B, U, V)
    names = [utterance.id for utterance in batch.utterances]
    losses = {}
    for teacher in teachers:
        rows = soft_labels_of(teacher, names, batch.plan.epoch, recogniser.tokenizer)
        q = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(c.device)  # (B, U, V)
        losses[f"{teacher.name} soft labels"] = soft_label_loss(logits, q)
    return losses


def load_with_head(name: str, config: Config, place: Place) -> MaskedLM:
    """The BERT of this name, which has to answer. Raises UserError where it is none."""
    return pretrained.load_masked_lm(name, "--teachers", config.root, place.device)


def build_without_heads(
    config: Config,
    vocabulary: int,
    sizes: list[tuple[int, int]],
    tokenizer: Characters | None = None,
) -> nn.ModuleDict:
    """What is trained: `recogniser` alone."""
    return nn.ModuleDict({"recogniser": multirep_kd.Recogniser(config, vocabulary, tokenizer)})


def main(argv: list[str] | None = None) -> dict:
    replacements = {
        "load_teacher": load_with_head,
        "representation_losses": soft_label_losses,
        "build_models": build_without_heads,
        "remember": remember_soft_labels,
    }
    return multirep_kd.main(argv, replace=replacements)


if __name__ == "__main__":
    main()
