"""What can be known of the homophones of demo-mls, and what runs know: python benchmarks/homophones.py [RUN ...]

Without a RUN: of the homophones in the test sets, per language, how many per cent somebody would write wrong who

    usual        always writes the twin that is usual in the transcripts
    trigram      goes by the two words before, counted in the transcripts
    left, whole  asks the language model, which sees the reference up to the homophone, or the whole sentence
    verb         goes by the verb of the clause, which is why homophones can be told apart at all: 0

"after" is the share of homophones whose verb comes after them. With RUNs, the folders of scored runs: the errors of each
in the same test sets,

    homophones   % of those that came out as themselves or as their twin; and of all, since more is lost in worse runs
    before after % of homophones wrong, by where the verb stands
    usual rare   % of homophones wrong, by the twin that was meant
    twins equal  word error rate where twins count as the same, %
    unknowable   % of persons, places and times with an error: text cannot predict them
    nonsense     % of objects written as said where the verb does not fit, for runs scored on demo-mls-nonsense
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import metrics  # noqa: E402
from common.demo import languages, multilingual  # noqa: E402
from common.demo.languages import LANGUAGES, Language  # noqa: E402
from common.running.hypotheses import read_hypotheses  # noqa: E402


class Phrase(NamedTuple):
    """What fills a slot of a sentence."""

    slot: str  # p, v, o, l or t
    words: list[str]
    start: int  # index of its first word


class Homophone(NamedTuple):
    word: str
    twin: str
    at: int  # index of the word in the sentence
    is_after: bool  # whether its verb comes after it
    is_rare: bool  # whether it is the rarer twin of the transcripts
    verb: str


def parse(sentence: str, language: Language) -> list[Phrase]:
    """The phrases of a sentence of the grammar, in their order."""
    for pattern in language.patterns:
        found = re.fullmatch(pattern_of(pattern, language), sentence)
        if not found:
            continue
        phrases = []
        for slot, group in zip(re.findall(r"{(\w)}", pattern), range(1, 10), strict=False):
            start = len(sentence[: found.start(group)].split())
            phrases.append(Phrase(slot, found[group].split(), start))
        return phrases
    raise ValueError(f"no sentence of this grammar: {sentence}")


def pattern_of(pattern: str, language: Language) -> str:
    """A regular expression with a group for each slot."""
    choices = {
        "p": language.persons,
        "v": [verb for verbs, _ in language.scenes for verb in verbs],
        "o": [phrase for _, objects in language.scenes for phrase in objects],
        "l": language.places,
        "t": language.times,
    }
    return re.sub(r"{(\w)}", lambda slot: "(" + "|".join(choices[slot[1]]) + ")", pattern)


def homophones_of(sentence: str, language: Language) -> list[Homophone]:
    """The homophones of a sentence. A verb stands right after its object or somewhere before it."""
    twins = {a: b for pair in language.twins for a, b in (pair, pair[::-1])}
    rare = {second for _, second in language.twins}
    phrases = parse(sentence, language)
    verbs = [phrase for phrase in phrases if phrase.slot == "v"]
    objects = [phrase for phrase in phrases if phrase.slot == "o"]
    found = []
    for verb, thing in zip(verbs, objects, strict=True):  # the first verb has the first object
        word = thing.words[-1]
        if word in twins:
            at = thing.start + len(thing.words) - 1
            is_after = verb.start > at
            name = " ".join(verb.words)
            found.append(Homophone(word, twins[word], at, is_after, word in rare, name))
    return found


def scene_of(verb: str, language: Language) -> list[str]:
    """The objects that go with the verb."""
    return next(objects for verbs, objects in language.scenes if verb in verbs)


# ============================================================================== before any training

Case = tuple[str, Homophone]
Judge = Callable[[list[Case]], list[bool]]  # whether each homophone would be written wrong


def cases_of(name: str) -> list[Case]:
    count = multilingual.SIZES[False]["test"]
    sentences = itertools.chain.from_iterable(languages.take(0, "test", name, count))
    return [(s, h) for s in sentences for h in homophones_of(s, LANGUAGES[name])]


def by_usual(cases: list[Case]) -> list[bool]:
    return [homophone.is_rare for _, homophone in cases]


def by_verb(language: Language) -> Judge:
    def judge(cases: list[Case]) -> list[bool]:
        fitting = [[o.split()[-1] for o in scene_of(h.verb, language)] for _, h in cases]
        return [
            h.word not in words or h.twin in words
            for (_, h), words in zip(cases, fitting, strict=True)
        ]

    return judge


def by_trigrams(name: str) -> Judge:
    """Counted in the transcripts for training; the usual twin where both were seen equally often."""
    counts = Counter()
    for sentence in itertools.chain.from_iterable(
        languages.take(0, "train", name, multilingual.TRAIN[name])
    ):
        words = ["", "", *sentence.split()]
        counts.update(zip(words, words[1:], words[2:], strict=False))

    def judge(cases: list[Case]) -> list[bool]:
        wrong = []
        for sentence, h in cases:
            before = tuple(["", "", *sentence.split()][h.at : h.at + 2])
            own, other = (counts[(*before, word)] for word in (h.word, h.twin))
            wrong.append(other > own or (other == own and h.is_rare))
        return wrong

    return judge


def by_language_model(folder: Path, is_whole: bool) -> Judge:
    """By the log-probability of the sentence with either twin, up to the homophone or to its end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def score(text: str) -> float:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids += [tokenizer.eos_token_id] * is_whole
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)  # (L, V)
        return log_probs[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum().item()

    def judge(cases: list[Case]) -> list[bool]:
        wrong = []
        for sentence, h in cases:
            words = sentence.split()
            behind = words[h.at + 1 :] if is_whole else []
            own, other = (
                score(" ".join([*words[: h.at], word, *behind])) for word in (h.word, h.twin)
            )
            wrong.append(other > own)
        return wrong

    return judge


def show_knowable(models: list[Path]) -> None:
    heads = ["count", "after, %", "usual", "trigram", "verb"]
    heads += [f"{folder.name} {what}" for folder in models for what in ("left", "whole")]
    print(f"| language | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for name, language in LANGUAGES.items():
        cases = cases_of(name)
        if not cases:
            continue
        judges = [by_usual, by_trigrams(name), by_verb(language)]
        for folder in models:
            judges += [by_language_model(folder, is_whole) for is_whole in (False, True)]
        cells = [str(len(cases)), f"{100 * sum(h.is_after for _, h in cases) / len(cases):.0f}"]
        cells += [f"{100 * sum(judge(cases)) / len(cases):.1f}" for judge in judges]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# ================================================================================ what runs know


class Known(NamedTuple):
    """Of one run and language: [errors, how many] of each kind."""

    counts: dict[str, list[int]]
    twins_equal: float

    def cell(self, kind: str) -> str:
        wrong, count = self.counts.get(kind, [0, 0])
        return f"{100 * wrong / count:.1f}" if count else ""


def is_right(reference: str, hypothesis: str) -> list[str | None]:
    """For every word of the reference the word that it came out as; None where it was lost."""
    came = []
    for kind, ref_words, hyp_words in next(iter(metrics.align([reference], [hypothesis]))):
        if kind in ("equal", "substitute"):
            came += hyp_words
        elif kind == "delete":
            came += [None] * len(ref_words)
    return came


def know(path: Path, name: str) -> Known:
    """path: hyp_test-<language>.tsv of a scored run."""
    language = LANGUAGES[name]
    counts: dict[str, list[int]] = {}

    def count(kind: str, is_wrong: bool) -> None:
        both = counts.setdefault(kind, [0, 0])
        both[0] += is_wrong
        both[1] += 1

    rows = read_hypotheses(path)
    for _, reference, hypothesis in rows:
        came = is_right(reference, hypothesis)
        for h in homophones_of(reference, language):
            is_wrong = came[h.at] == h.twin
            count("of all", is_wrong)
            if came[h.at] in (h.word, h.twin):
                count("homophones", is_wrong)
                count("after" if h.is_after else "before", is_wrong)
                count("rare" if h.is_rare else "usual", is_wrong)
        for phrase in parse(reference, language):
            heard = came[phrase.start : phrase.start + len(phrase.words)]
            if phrase.slot in "plt":
                count("unknowable", heard != phrase.words)
            elif phrase.slot == "o":
                count("objects", heard == phrase.words)
    twins = {a: b for pair in language.twins for a, b in (pair, pair[::-1])}
    references, hypotheses = ([row[side] for row in rows] for side in (1, 2))
    return Known(counts, metrics.word_errors(references, hypotheses, twins).rate)


KINDS = ("homophones", "of all", "before", "after", "usual", "rare", "unknowable")


def show_known(runs: list[Path]) -> None:
    print(f"| run | language | {' | '.join(KINDS)} | twins equal | objects as said |")
    print("|---" * (len(KINDS) + 4) + "|")
    for run in runs:
        for name in LANGUAGES:
            path = run / f"hyp_test-{name}.tsv"
            if path.exists():
                known = know(path, name)
                cells = [known.cell(kind) for kind in KINDS]
                cells += [f"{known.twins_equal:.1f}", known.cell("objects")]
                print(f"| {run.name} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument(
        "--models", nargs="*", type=Path, default=[], metavar="DIR", help="language models"
    )
    args = parser.parse_args()
    if args.runs:
        show_known(args.runs)
    else:
        show_knowable(args.models)


if __name__ == "__main__":
    main()
