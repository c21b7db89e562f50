"""What can be known about a demo world's dev sentences: python benchmarks/demo_world.py [--root data] [--data demo]

demo: how often the right twin of a homophone is chosen by its frequency in the transcripts, by a trigram model of them,
and by the scene of every cue word; then by the text models, which are asked about every token in turn.

demo-mls: hours and frames per label of the training speech; perplexity per piece of every language model, alone and
where the text stands before it, stretched (see `pretraining.stretch`), and the word error rate when it then writes it.
"""

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import mean, median

import torch
from torch import nn
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.bert import MaskedLM
from common.demo.models import MULTILINGUAL
from common.demo.pretraining import causal_loss, stretch
from common.demo.speech import frames
from common.demo.vocabulary import frames_needed
from common.demo.words import CUES, SECOND, TWIN, USUAL
from common.metrics import word_errors
from common.running.corpora import Utterance, load_corpus
from common.running.pretrained import load_masked_lm, load_model, load_pieces, load_vocabulary
from common.text import WordPiece


def chosen_by_counts(train: list[str], dev: list[str], trigram: bool) -> float:
    """Share of the homophones in dev for which the counts of train prefer the word itself to its twin.

    trigram: the three trigrams that hold the homophone, interpolated with bigrams and unigrams. A tie counts one half.
    """
    counts = Counter()
    for line in map(padded, train):
        for n in (1, 2, 3):
            counts.update(tuple(line[i : i + n]) for i in range(len(line) - n + 1))
    total = sum(n for gram, n in counts.items() if len(gram) == 1)

    def log_prob(gram):  # of its last word after the others
        p = (counts[gram[-1:]] + 0.5) / total
        for n in (2, 3):
            context = counts[gram[-n:-1]]
            p = 0.3 * p + 0.7 * counts[gram[-n:]] / context if context else p
        return math.log(p)

    def score(line, i):
        if not trigram:
            return counts[line[i],]
        return sum(log_prob(tuple(line[j - 2 : j + 1])) for j in range(i, i + 3))

    right = []
    for line in map(padded, dev):
        for i, word in enumerate(line):
            if word in TWIN:
                itself, twin = score(line, i), score([*line[:i], TWIN[word], *line[i + 1 :]], i)
                right.append(0.5 if math.isclose(itself, twin) else float(itself > twin))
    return mean(right)


def padded(sentence: str) -> list[str]:
    return ["<s>", "<s>", *sentence.split(), "</s>", "</s>"]


def chosen_by_cues(dev: list[str]) -> float:
    """The same share for somebody who knows the scene of every cue word and the two scenes of every homophone."""
    right = []
    for sentence in dev:
        words = sentence.replace("'s", "").split()
        scenes = {CUES[word] for word in words if word in CUES}
        right += [bool(scenes & {USUAL[word], SECOND[word]}) for word in words if word in TWIN]
    return mean(right)


def fill_in(teacher: MaskedLM, texts: list[list[int]]) -> tuple[float, float]:
    """Of every token masked in turn: the share filled in right; of the homophones: the share preferred to the twin."""
    twin_of = {
        teacher.pieces.index(word): teacher.pieces.index(twin) for word, twin in TWIN.items()
    }
    right, chosen = [], []
    for ids in texts:
        logits = teacher.logits(
            [[teacher.cls, *ids, teacher.sep]] * len(ids), list(range(1, len(ids) + 1))
        )
        right += (logits.argmax(1) == torch.tensor(ids)).tolist()
        chosen += [
            bool(x[i] > x[twin_of[i]]) for i, x in zip(ids, logits, strict=True) if i in twin_of
        ]
    return mean(right), mean(chosen)


@torch.inference_mode()
def perplexity(
    model: nn.Module, sentences: list[str], encode: Callable[[str], list[int]]
) -> tuple[float, float]:
    """Per token, the end included; the share of homophones that make a likelier sentence than their twin."""

    def log_prob(words: list[str]) -> tuple[float, int]:
        ids = torch.tensor(
            [model.config.bos_token_id, *encode(" ".join(words)), model.config.eos_token_id]
        )
        log_probs = -nn.functional.cross_entropy(
            model(ids[None, :-1]).logits[0], ids[1:], reduction="none"
        )
        return log_probs.sum().item(), len(log_probs)

    total, tokens, chosen = 0.0, 0, []
    for words in map(str.split, sentences):
        itself, count = log_prob(words)
        total, tokens = total + itself, tokens + count
        twins = (
            [*words[:i], TWIN[word], *words[i + 1 :]]
            for i, word in enumerate(words)
            if word in TWIN
        )
        chosen += [itself > log_prob(twin)[0] for twin in twins]
    return math.exp(-total / tokens), mean(chosen)


def show_speech(train: list[Utterance], tokenizer) -> None:
    ratios: dict[str, list[float]] = {}
    for u in train:
        needed = frames_needed(tokenizer(u.text)["input_ids"])
        ratios.setdefault(u.language, []).append(frames(round(16000 * u.duration)) / needed)
    print("language     utterances   hours  seconds  frames per label: least, median")
    for language, some in [*ratios.items(), ("all", sum(ratios.values(), []))]:
        seconds = sum(u.duration for u in train if language in (u.language, "all"))
        print(f"{language:<12} {len(some):>10} {seconds / 3600:>7.2f} {seconds / len(some):>8.1f}  "
              f"{min(some):.2f}, {median(some):.2f}")  # fmt: skip


@torch.inference_mode()
def show_language_models(dev: list[Utterance], data: str, root: str, models: list[str]) -> None:
    for name in models:
        model = load_model(AutoModelForCausalLM, f"{data}/{name}", "--data", root)
        tokenizer = load_pieces(f"{data}/{name}", "--data", root)
        bos, eos, unk = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
        rng, rows, read_again, written = random.Random(0), [], [], []
        for u in dev:
            ids = tokenizer(u.text)["input_ids"]
            before = stretch(ids, range(4, len(tokenizer)), unk, rng)
            rows.append((0, [bos, *ids, eos]))
            read_again.append((len(before), [*before, bos, *ids, eos]))
        for u, (n, ids) in list(zip(dev, read_again, strict=True))[::4]:
            new = model.generate(
                torch.tensor([ids[: n + 1]]), max_new_tokens=80, do_sample=False, pad_token_id=eos
            )
            written.append((u.text, tokenizer.decode(new[0, n + 1 :], skip_special_tokens=True)))
        alone, again = (math.exp(causal_loss(model, some)) for some in (rows, read_again))
        size = sum(p.numel() for p in model.parameters())
        print(f"{name:<10} {size:>9,} parameters   perplexity {alone:.2f}, read again {again:.2f}; written: "
              f"{word_errors(*zip(*written, strict=True)).rate:.1f} % of words wrong", flush=True)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    parser.add_argument(
        "--data", default="demo", choices=["demo", "demo-smoke", "demo-mls", "demo-mls-smoke"]
    )
    parser.add_argument("--hours", type=float, help="of transcripts (absent: 1.8)")
    parser.add_argument(
        "--models", nargs="+", help="of demo-mls (absent: all)", default=MULTILINGUAL
    )
    arguments = parser.parse_args(argv)
    root, data = arguments.root, arguments.data
    corpus = load_corpus(data, root, arguments.hours)
    if data.startswith("demo-mls"):
        show_speech(corpus.train, load_pieces(data, "--data", root))
        show_language_models(corpus.dev, data, root, arguments.models)
        return
    train, dev = [u.text for u in corpus.train], [u.text for u in corpus.dev]
    shares = {"frequency": chosen_by_counts(train, dev, trigram=False)}
    shares |= {
        "a trigram": chosen_by_counts(train, dev, trigram=True),
        "the cues": chosen_by_cues(dev),
    }
    print(
        "right twin chosen: "
        + ", ".join(f"by {name} {100 * share:.0f} %" for name, share in shares.items())
    )

    pieces = load_vocabulary(data, "--data", root)
    tokenizer = WordPiece.from_vocabulary(pieces)
    ids = tokenizer.ids_in(pieces)

    def encode(text: str) -> list[int]:
        return [ids[label - 1] for label in tokenizer.encode(text)]

    sentences = list(map(encode, dev))
    pairs = groupby(zip(corpus.dev, sentences, strict=True), key=lambda pair: pair[0].session)
    conversations = [[i for _, sentence in session for i in sentence] for _, session in pairs]
    print("model    reads          tokens right   right twin chosen")
    for name in ("bert-a", "bert-b"):
        teacher = load_masked_lm(f"{data}/{name}", "--data", root, "cpu")
        for reads, texts in ("sentence", sentences), ("conversation", conversations):
            right, chosen = fill_in(teacher, texts)
            print(
                f"{name:<8} {reads:<14} {100 * right:>10.1f} %   {100 * chosen:>15.1f} %",
                flush=True,
            )
    lm = load_model(AutoModelForCausalLM, f"{data}/lm", "--data", root)
    per_token, chosen = perplexity(lm, dev, encode)
    print(f"lm       sentence       perplexity {per_token:.1f} per token   {100 * chosen:>6.1f} %")


if __name__ == "__main__":
    main()
