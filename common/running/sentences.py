"""Which errors a sentence has, word by word, and the twenty sentences of a run's page.

Where a language is written without spaces, a character stands for a word: one is called
a unit here.
"""

from __future__ import annotations

from typing import NamedTuple

from common import metrics

SHOWN = 20  # sentences of a page [choice]
# How many of them each ranking gives; what is left goes to the first one [choice].
SHARES = {"differ": 8, "homophones": 6, "many": 6}
MANY = 0.5  # of the units are wrong [choice]


class Unit(NamedTuple):
    """A word as the page shows it."""

    text: str
    kind: str  # right, wrong, twin (its homophone), missing, extra; homophone (in a reference)
    instead_of: str = ""  # what was said, for wrong and twin


class Errors(NamedTuple):
    """The errors of one utterance."""

    units: int  # in the reference
    wrong: int  # the twins among them
    missing: int
    extra: int
    twins: int  # homophones written as their twin
    homophones: int  # written as themselves or as their twin
    confusions: tuple[tuple[str, str], ...]  # (what was said, what was written instead)

    @property
    def count(self) -> int:
        return self.wrong + self.missing + self.extra


def errors_of(
    references: list[str], hypotheses: list[str], twins: dict[str, str], by_characters: bool
) -> list[Errors]:
    """The errors of every utterance of a set, counted as in `metrics.py`."""
    if by_characters:
        references = [metrics.spread(text) for text in references]
        hypotheses = [metrics.spread(text) for text in hypotheses]
    if not references:
        return []
    return [_count(chunks, twins) for chunks in metrics.align(references, hypotheses)]


def _count(chunks: list[tuple[str, list[str], list[str]]], twins: dict[str, str]) -> Errors:
    units = missing = extra = heard = 0
    confusions = []
    for kind, said, written in chunks:
        units += len(said)
        missing += len(said) if kind == "delete" else 0
        extra += len(written) if kind == "insert" else 0
        if kind == "equal":
            heard += sum(word in twins for word in said)
        if kind == "substitute":
            confusions += zip(said, written, strict=True)
    wrong_twins = sum(twins.get(said) == written for said, written in confusions)
    heard += wrong_twins
    return Errors(units, len(confusions), missing, extra, wrong_twins, heard, tuple(confusions))


# ============================================================================= words in colours


def mark_reference(text: str, twins: dict[str, str], by_characters: bool) -> list[Unit]:
    """The words of a reference, with its homophones marked."""
    marked = []
    for shown, units in _pieces(text, by_characters):
        is_homophone = any(unit in twins for unit in units)
        marked.append(Unit(shown, "homophone" if is_homophone else "right"))
    return marked


def mark_hypothesis(
    reference: str, hypothesis: str, twins: dict[str, str], by_characters: bool
) -> list[Unit]:
    """The words of a hypothesis as they were written, and the missing ones in their
    places."""
    sides = reference, hypothesis
    if by_characters:
        sides = metrics.spread(reference), metrics.spread(hypothesis)
    (chunks,) = metrics.align([sides[0]], [sides[1]])
    found: list[Unit] = []  # of what is compared, which may be written otherwise
    missing: dict[int, list[Unit]] = {}  # {units of the hypothesis before: what is missing there}
    for kind, said, written in chunks:
        if kind == "delete":
            missing.setdefault(len(found), []).extend(Unit(word, "missing") for word in said)
        elif kind == "insert":
            found += [Unit(word, "extra") for word in written]
        elif kind == "equal":
            found += [Unit(word, "right") for word in written]
        else:
            for word, other in zip(said, written, strict=True):
                found.append(Unit(other, "twin" if twins.get(word) == other else "wrong", word))
    pieces = _pieces(hypothesis, by_characters)
    if sum(len(units) for _, units in pieces) != len(found):  # taken apart, they read otherwise
        pieces = [(unit.text, [unit.text]) for unit in found]
    marked, position = [], 0
    for shown, units in pieces:
        here = found[position : position + len(units)]
        for i in range(position, position + len(units)):
            marked += missing.pop(i, [])
        not_right = [unit for unit in here if unit.kind != "right"]
        kind, instead_of = not_right[0][1:] if not_right else ("right", "")
        marked.append(Unit(shown, kind, instead_of))
        position += len(units)
    return marked + missing.pop(position, [])


def _pieces(text: str, by_characters: bool) -> list[tuple[str, list[str]]]:
    """[(a word as it is written, the units that it has where texts are compared), ...].

    A sign alone has no unit, and `well-known` has two.
    """
    if by_characters:
        return [(character, metrics.spread(character).split()) for character in text]
    return [(word, metrics.comparable(word).split()) for word in text.split()]


# ================================================================================== the choice


class Sentence(NamedTuple):
    """An utterance of a test set, and the errors of every row."""

    split: str
    id: str
    errors: tuple[Errors, ...]
    differs: bool  # whether the hypotheses differ

    @property
    def difference(self) -> int:
        """Errors of the worst row minus those of the best."""
        counts = [errors.count for errors in self.errors]
        return max(counts) - min(counts)

    @property
    def twins(self) -> int:
        return sum(errors.twins for errors in self.errors)

    @property
    def share(self) -> float:
        """Errors per unit, of all rows together."""
        units = sum(errors.units for errors in self.errors)
        return sum(errors.count for errors in self.errors) / max(units, 1)

    @property
    def kinds(self) -> list[str]:
        """The names in SHARES that fit the sentence."""
        fits = {
            "differ": self.differs,
            "homophones": self.twins > 0,
            "many": any(e.count >= MANY * max(e.units, 1) for e in self.errors),
        }
        return [name for name, does in fits.items() if does]


def choose(sentences: list[Sentence]) -> list[Sentence]:
    """At most SHOWN sentences: where rows differ most, where they differ at homophones,
    and those with the most errors; sorted by difference."""

    def homophones_first(sentence: Sentence) -> tuple:
        twins = [errors.twins for errors in sentence.errors]
        others = sum(errors.count for errors in sentence.errors) - sum(twins)
        return (max(twins) - min(twins), -others)  # the clearest first

    rankings = {
        "differ": lambda s: (s.difference, s.differs),
        "homophones": homophones_first,
        "many": lambda s: (s.share, max(e.count for e in s.errors)),
    }
    chosen: dict[tuple[str, str], Sentence] = {}
    for name, share in SHARES.items():
        fitting = [s for s in sentences if name in s.kinds and (s.split, s.id) not in chosen]
        best = sorted(fitting, key=rankings[name], reverse=True)[:share]
        chosen |= {(s.split, s.id): s for s in best}
    others = [s for s in sentences if (s.split, s.id) not in chosen]
    rest = sorted(others, key=rankings["differ"], reverse=True)[: SHOWN - len(chosen)]
    found = [*chosen.values(), *rest]
    return sorted(found, key=rankings["differ"], reverse=True)
