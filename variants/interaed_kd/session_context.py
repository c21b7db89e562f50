"""Does BERT teach better if it reads more than one utterance?

BERT reads the utterance among its neighbours in the session, as many as fit in 256
tokens. On Japanese lectures, others report 10.3 % errors without a teacher, 9.5 % with
one that reads the utterance, 9.2 % with one that reads its neighbours too [peer].

    python -m variants.interaed_kd.session_context
"""

import interaed_kd
from common.bert import Question, SharedPieces
from common.running.corpora import Utterance, session_order
from common.text import WordPiece

LONGEST = 256  # tokens that BERT reads at once, [CLS] and [SEP] included
questions_of_one = interaed_kd.questions_of


def neighbours(lengths: list[int], i: int, room: int) -> tuple[int, int]:
    """The range of utterances around the i-th whose lengths fit in `room`, nearer ones
    first."""
    first, end = i, i + 1
    while True:
        nearest = sorted((first - 1, end), key=lambda j: abs(j - i))
        fitting = [j for j in nearest if 0 <= j < len(lengths) and lengths[j] <= room]
        if not fitting:
            return first, end
        chosen = fitting[0]
        first = min(first, chosen)
        end = max(end, chosen + 1)
        room -= lengths[chosen]


def questions_in_context(
    tokenizer: WordPiece, pieces: SharedPieces, utterances: list[Utterance]
) -> list[Question]:
    """[CLS] past y_1 ... y_U future [SEP]."""
    teacher = pieces.teacher
    alone = questions_of_one(tokenizer, pieces, utterances)
    ids = {u.id: question.ids[1:-1] for u, question in zip(utterances, alone, strict=True)}
    places = session_order(utterances)
    questions = []
    for utterance, question in zip(utterances, alone, strict=True):
        session, i = places[utterance.id]
        lengths = [len(ids[name]) for name in session]
        room = min(LONGEST, teacher.longest) - 2 - lengths[i]
        first, end = neighbours(lengths, i, room)
        read = [piece for name in session[first:end] for piece in ids[name]]
        start = 1 + sum(lengths[first:i])
        whole = (teacher.cls, *read, teacher.sep)
        questions.append(Question(whole, start, question.labels))
    return questions


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"questions_of": questions_in_context})


if __name__ == "__main__":
    main()
