"""What runs understand of demo-jargon, the domain with new words: python benchmarks/jargon.py RUN [RUN ...]

Each RUN is the folder of a run that was scored on it. Prints in Markdown, per run: word errors in the domain and at home
(test-clean), and how many per cent of the words of each kind were written as said:

    heard       new words that the adaptation audio has
    never heard new words that it has not: whoever writes them has learnt to listen, not words
    old         words of the grammar and of home
    homophones  of home's list, with the twin counted as wrong

and what the domain costs: parameters, their size, and minutes of training on a core.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import metrics  # noqa: E402
from common.demo import jargon  # noqa: E402
from common.demo.words import TWIN  # noqa: E402
from common.running.hypotheses import read_hypotheses  # noqa: E402

KINDS = ("heard", "never heard", "old", "homophones")


def kind_of(word: str) -> str:
    body = word.partition("'")[0]
    if body in TWIN:
        return "homophones"
    if body in jargon.UNHEARD:
        return "never heard"
    return "heard" if body in jargon.WORDS else "old"


def recall(path: Path) -> dict[str, float]:
    """% of the words of each kind that were written as said; path: a hyp_<split>.tsv."""
    said, written = Counter(), Counter()
    for _, reference, hypothesis in read_hypotheses(path):
        (alignment,) = metrics.align([reference], [hypothesis])
        for kind, words, _ in alignment:
            for word in words:
                said[kind_of(word)] += 1
                written[kind_of(word)] += kind == "equal"
    return {kind: 100 * written[kind] / said[kind] for kind in KINDS if said[kind]}


def word_errors(path: Path) -> float:
    rows = read_hypotheses(path)
    return metrics.word_errors([row[1] for row in rows], [row[2] for row in rows]).rate


def main(runs: list[str]) -> None:
    print(f"| run | WER | at home | {' | '.join(KINDS)} | parameters | MB | minutes |")
    print("|---" * (len(KINDS) + 6) + "|")
    for run in map(Path, runs):
        result = json.loads((run / "result.json").read_text())
        home = [path for path in run.glob("hyp_*.tsv") if re.search("test-clean", path.name)]
        rates = recall(run / "hyp_test.tsv")
        cells = [f"{word_errors(run / 'hyp_test.tsv'):.1f}"]
        cells += [f"{word_errors(home[0]):.1f}" if home else ""]
        cells += [f"{rates[kind]:.0f}" if kind in rates else "" for kind in KINDS]
        learnt = result.get("trained_params")
        if learnt:
            minutes = result["train_seconds"] / 60
            cells += [f"{learnt:,}", f"{4e-6 * learnt:.2f}", f"{minutes:.1f}"]
        else:
            cells += ["", "", ""]
        print(f"| {run.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
