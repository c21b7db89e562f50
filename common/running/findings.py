"""What the scores of a page say, in sentences: which row is better and whether that is
certain, what errors are left, and where one can hear it."""

from __future__ import annotations

from typing import NamedTuple

from common.running.comparison import HOMOPHONES, MEAN, Cell, Kinds, Row, Table
from common.running.sentences import Sentence


class Finding(NamedTuple):
    question: str
    answers: list[str]
    sentence: int | None = None  # the number of a sentence that one should listen to


def findings(
    rows: list[Row], tables: list[Table], kinds: list[Kinds], shown: list[Sentence]
) -> list[Finding]:
    """The questions that a reader has, and their answers."""
    mains = [table for table in tables if table.what != HOMOPHONES]
    means = [table for table in mains if table.split == MEAN]
    homophones = [table for table in tables if table.what == HOMOPHONES]
    left = Finding("What errors are left?", [_left(kind) for kind in kinds])
    if len(rows) == 1:
        answers = [_alone(table) for table in means or mains]
        return [Finding("How many errors are there?", answers), left]
    answers = _compare(means or mains)
    if any(len(cell.seeds) == 1 for cell in mains[0].cells[1:]):
        answers.append("This is one seed: training with another seed may turn it round.")
    found = [Finding("Which row is better, and is that certain?", answers), left]
    if homophones:
        question = "Does knowledge of the language help at homophones?"
        found.append(Finding(question, _compare(homophones)))
    found.append(_where_to_listen(rows, shown))
    return found


def _compare(tables: list[Table]) -> list[str]:
    """A sentence for every row but the baseline on every set."""
    said = []
    for table in tables:
        baseline, *others = table.cells
        said += [_compare_two(table, baseline, cell) for cell in others]
    return said


def _compare_two(table: Table, baseline: Cell, cell: Cell) -> str:
    if cell.interval is None:
        return f"{table.split}: {cell.row} and {baseline.row} share no sentence."
    words = {
        "better": f"{cell.row} is better than {baseline.row}",
        "worse": f"{cell.row} is worse than {baseline.row}",
        "not certain": f"it is not certain whether {cell.row} is better than {baseline.row}",
    }
    rates = f"{cell.rate:.1f} % {table.what} against {baseline.rate:.1f} %"
    low = cell.interval.low
    high = cell.interval.high
    holds = "holds 0" if cell.verdict == "not certain" else "does not hold 0"
    interval = f"95 % interval of the difference {low:+.1f} to {high:+.1f}, which {holds}"
    return f"{table.split}: {words[cell.verdict]} ({rates}; {interval})."


def _alone(table: Table) -> str:
    return f"{table.split}: {table.cells[0].rate:.1f} % {table.what}."


def _left(kind: Kinds) -> str:
    total = sum(kind.counts.values())
    if not total:
        return f"{kind.row} makes no errors."
    shares = [f"{100 * count / total:.0f} % {name}" for name, count in kind.counts.items()]
    return f"{kind.row}, {total} errors: {', '.join(shares)}."


def _where_to_listen(rows: list[Row], shown: list[Sentence]) -> Finding:
    """A sentence where the baseline writes more wrong twins than another row; if there
    is none, where the rows differ most."""
    question = "On which sentence can one hear why?"
    best = None  # (how clear it is, number, row)
    for number, sentence in enumerate(shown, start=1):
        baseline, *others = sentence.errors
        for row, errors in zip(rows[1:], others, strict=True):
            gain = baseline.twins - errors.twins
            clear = gain - (baseline.count - baseline.twins) - errors.count
            if gain > 0 and (best is None or clear > best[0]):
                best = (clear, number, row)
    if best is not None:
        return Finding(question, [_what_is_heard(rows, shown, best[1], best[2])], best[1])
    differing = [n for n, sentence in enumerate(shown, start=1) if sentence.differs]
    if not differing:
        return Finding(question, ["On none: all rows write the same."])
    return Finding(question, ["This is where the rows differ most."], differing[0])


def _what_is_heard(rows: list[Row], shown: list[Sentence], number: int, row: Row) -> str:
    """The sentence's first wrong twin of the baseline that the row does not write."""
    errors = shown[number - 1].errors
    confusions_of_row = errors[rows.index(row)].confusions
    twins = rows[0].first.twins
    said, written = next(
        (said, written)
        for said, written in errors[0].confusions
        if twins.get(said) == written and (said, written) not in confusions_of_row
    )
    what = f"{rows[0].name} writes “{written}” for “{said}” there, {row.name} does not"
    why = "both sound the same, so that only the words around them can tell which is meant"
    return f"{what}; {why}."
