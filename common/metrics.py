"""Word and character error rates, and homophone errors.

Both sides of every comparison pass the normaliser `basic` (common/text.py) and lose the
joiners that it keeps, which nobody hears. Rates are in per cent. `twins` is {word: its
homophone}, both ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jiwer
from torch import Tensor

from common.text import JOINERS, normalise

NORMALISER = "basic"
WITHOUT_JOINERS = str.maketrans("", "", JOINERS)


def comparable(text: str) -> str:
    """A text as it is compared: normalised, and without zero width joiners."""
    return normalise(text).translate(WITHOUT_JOINERS)


# How long words are on average, in characters, at most [choice]: in scripts that put no spaces
# between words, where a transcript may be cut into words all the same, and in all others. A script
# is the first word of its characters' names.
LONGEST_MEAN_WORD = {
    "CJK": 3,
    "HIRAGANA": 3,
    "KATAKANA": 3,
    "THAI": 6,
    "LAO": 6,
    "KHMER": 6,
    "MYANMAR": 6,
}
LONGEST_MEAN_WORD_ELSEWHERE = (
    15  # Greenlandic has the longest words that we know of, of 12 to 14 letters
)


class ErrorRate(NamedTuple):
    """Counts over a test set; `rate` is (substitutions + deletions + insertions) /
    words in the references."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per word in per cent.

        For a test set without words it is 0 if nothing was recognised, else 100.
        """
        return 100 * self.errors / self.words if self.words else 100.0 * (self.errors > 0)


def _count(references: Iterable[str], hypotheses: Iterable[str]) -> ErrorRate:
    """The errors in texts that are normalised already."""
    found = jiwer.process_words(list(references), list(hypotheses))
    words = found.hits + found.substitutions + found.deletions
    return ErrorRate(found.substitutions, found.deletions, found.insertions, words)


def word_errors(
    references: Iterable[str], hypotheses: Iterable[str], twins: Mapping[str, str] = {}
) -> ErrorRate:
    """The errors in words. With `twins`, a word and its homophone count as the same."""

    def one_of_both(text: str) -> str:
        return " ".join(min(word, twins.get(word, word)) for word in comparable(text).split())

    def prepared(texts: Iterable[str]) -> list[str]:
        return [one_of_both(text) for text in texts]

    return _count(prepared(references), prepared(hypotheses))


def character_errors(references: Iterable[str], hypotheses: Iterable[str]) -> ErrorRate:
    """The same over characters; spaces and apostrophes do not count."""
    return _count(map(spread, references), map(spread, hypotheses))


def spread(text: str) -> str:
    """The characters of a text that count, with a space between each two."""
    return " ".join(comparable(text).replace(" ", "").replace("'", ""))


def longest_mean_word(character: str) -> int:
    """The longest mean length, in characters, of words with this character."""
    script = re.split("[ -]", unicodedata.name(character, ""))[0]
    return LONGEST_MEAN_WORD.get(script, LONGEST_MEAN_WORD_ELSEWHERE)


def has_no_spaces_between_words(character: str) -> bool:
    """Whether the character belongs to a script that puts no spaces between words."""
    return longest_mean_word(character) < LONGEST_MEAN_WORD_ELSEWHERE


def written_without_spaces(texts: Iterable[str]) -> bool:
    """Whether the texts have (almost) no spaces, so that words cannot be counted.

    The rule: the mean word, from space to space, is longer than words of these letters
    can be. That is more than 3 characters where all letters are Chinese or Japanese, 6
    where they are Thai, Lao, Khmer or Burmese, and 15 elsewhere; of mixed letters, the
    mean of these numbers. So Japanese that was cut into words counts as written with
    spaces, and a pause here and there does not make words. Texts without letters also
    count as written with spaces.
    """
    words = [word for text in texts for word in normalise(text).split()]
    characters = Counter("".join(words))
    letters = {c: count for c, count in characters.items() if c.isalpha()}
    if not letters:
        return False
    total = sum(count * longest_mean_word(c) for c, count in letters.items())
    return characters.total() / len(words) > total / sum(letters.values())


def align(
    references: Iterable[str], hypotheses: Iterable[str]
) -> Iterator[list[tuple[str, list[str], list[str]]]]:
    """Yields the minimal alignment of every pair of texts: a list of stretches.

    A stretch is (kind, words of the reference, words of the hypothesis); its kind is
    equal, substitute, delete or insert.
    """
    found = jiwer.process_words(
        [comparable(text) for text in references], [comparable(text) for text in hypotheses]
    )
    for chunks, ref, hyp in zip(found.alignments, found.references, found.hypotheses, strict=True):
        yield [
            (c.type, ref[c.ref_start_idx : c.ref_end_idx], hyp[c.hyp_start_idx : c.hyp_end_idx])
            for c in chunks
        ]


def hits(reference: str, hypothesis: str) -> list[tuple[int, int]]:
    """The words that were right: [(index in the reference, in the hypothesis), …]."""
    found = []
    i = 0
    j = 0
    (alignment,) = align([reference], [hypothesis])
    for kind, ref_words, hyp_words in alignment:
        if kind == "equal":
            found += [(i + n, j + n) for n in range(len(ref_words))]
        i, j = i + len(ref_words), j + len(hyp_words)
    return found


class HomophoneErrors(NamedTuple):
    """How often the wrong twin was written.

    chance: the rate of writing always the twin that the references have more often.
    """

    wrong: int
    count: int
    chance: float  # per cent

    @property
    def rate(self) -> float:
        return 100 * self.wrong / self.count if self.count else 0.0


def homophone_errors(
    references: Iterable[str], hypotheses: Iterable[str], twins: Mapping[str, str]
) -> HomophoneErrors:
    """Among reference homophones aligned with themselves or their twin, those that came
    out as the twin.

    Homophones that were misheard altogether count in the word error rate only.
    """
    meant, wrong = Counter(), 0
    for alignment in align(references, hypotheses):
        for kind, ref_words, hyp_words in alignment:
            if kind in ("equal", "substitute"):
                for ref, hyp in zip(ref_words, hyp_words, strict=True):
                    if ref in twins and hyp in (ref, twins[ref]):
                        meant[ref] += 1
                        wrong += hyp != ref
    count = meant.total()
    rarer = (
        sum(min(meant[word], meant[twin]) for word, twin in twins.items()) / 2
    )  # every pair came up twice
    return HomophoneErrors(wrong, count, 100 * rarer / count if count else 0.0)


def score(
    references: dict[str, str], hypotheses: dict[str, str], twins: Mapping[str, str]
) -> tuple[ErrorRate, HomophoneErrors]:
    """Word and homophone errors, both sides utterance -> text, over the utterances that
    have a hypothesis."""
    pairs = [(text, hypotheses[name]) for name, text in references.items() if name in hypotheses]
    texts = [text for text, _ in pairs]
    found = [hypothesis for _, hypothesis in pairs]
    return word_errors(texts, found), homophone_errors(texts, found, twins)


class Metric(NamedTuple):
    """A column of the scores: (references, hypotheses, twins) -> per cent."""

    rate: Callable[[list[str], list[str], Mapping[str, str]], float]
    needs_twins: bool = False  # it is left out where the corpus has no homophones


METRICS = {
    "wer": Metric(lambda ref, hyp, twins: word_errors(ref, hyp).rate),
    "cer": Metric(lambda ref, hyp, twins: character_errors(ref, hyp).rate),
    "homophone_error": Metric(lambda ref, hyp, twins: homophone_errors(ref, hyp, twins).rate, True),
    "wer_twins_equal": Metric(lambda ref, hyp, twins: word_errors(ref, hyp, twins).rate, True),
}


def side_by_side(reference: str, hypothesis: str) -> str:
    """Two aligned lines; what differs is in capitals, what is missing is stars.

    REF: the KNIGHT rode *** home
    HYP: the NIGHT  rode OUT home
    """
    rows = [], []
    (alignment,) = align([reference], [hypothesis])
    for kind, ref_words, hyp_words in alignment:
        n = max(len(ref_words), len(hyp_words))
        for ref, hyp in zip(ref_words or [""] * n, hyp_words or [""] * n, strict=True):
            if kind != "equal":
                ref, hyp = ref.upper(), hyp.upper()
            width = max(len(ref), len(hyp))
            rows[0].append(ref.ljust(width) if ref else "*" * width)
            rows[1].append(hyp.ljust(width) if hyp else "*" * width)
    return f"REF: {' '.join(rows[0])}\nHYP: {' '.join(rows[1])}"


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of the ranks of x and y (N,); equal values share their mean rank. 0
    where either is constant."""
    ranks = [((v[:, None] > v).sum(1) + (v[:, None] >= v).sum(1)).double() for v in (x, y)]
    x, y = (r - r.mean() for r in ranks)
    return ((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-9)).item()
