"""Builds the demo world and says what is in it: `python -m common.demo --hours 1.8 --out data/demo`."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from pathlib import Path

import soundfile

from common.demo import HOURS, MODELS, build, build_model
from common.demo.grammar import HELD_OUT
from common.demo.speech import frames
from common.demo.vocabulary import frames_needed
from common.demo.words import CUES, PAIRS, SECOND, TWIN, USUAL
from common.flags import UserError
from common.text import WordPiece


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common.demo", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--hours", type=float, default=HOURS, help=f"training speech [{HOURS}]; more adds shards")
    parser.add_argument("--out", default="data/demo", metavar="DIR", help="where it is kept [data/demo]")
    parser.add_argument("--models", action="store_true", help="build the text models too, and test them on dev")
    parser.add_argument("--small", action="store_true", help="few text, dev and test sentences: for quick tests")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world [0]")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        training = build(args.out, args.hours, args.small, args.seed)
    except UserError as error:
        sys.exit(str(error))
    print(report(Path(args.out), training))
    if args.models:
        for name in MODELS:
            build_model(args.out, name, args.small, args.seed)
        print(report_models(Path(args.out)))


def report(folder: Path, training: list[str]) -> str:
    """What was built, how fast it is spoken, and how far each kind of knowledge gets with the homophones of dev."""
    tokenizer = WordPiece.from_vocabulary((folder / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split())
    lines = ["subset      utterances  minutes   words  homophones  frames per label: least, median"]
    texts = {}
    held_out = [(subset, [subset]) for subset in HELD_OUT]
    for name, subsets in [("train", training), *held_out]:
        corpus = [u for subset in subsets for u in read(folder / "LibriSpeech" / subset)]
        texts[name] = [text for text, _ in corpus]
        ratios = [frames(samples) / frames_needed(tokenizer.encode(text)) for text, samples in corpus]
        spoken = " ".join(texts[name]).split()
        lines.append(
            f"{name:<11} {len(corpus):>10}  {sum(n for _, n in corpus) / 16000 / 60:>7.1f}  {len(spoken):>6}  "
            f"{sum(word in TWIN for word in spoken):>10}  {min(ratios):.2f}, {statistics.median(ratios):.2f}"
        )
    text = (folder / "text.txt").read_text(encoding="utf-8").splitlines()
    lines.append(f"text        {sum(map(bool, text)):>10}           {sum(len(s.split()) for s in text):>6}")
    lines.append(f"{len(CUES)} cue words, {len(PAIRS)} homophone pairs, {tokenizer.size - 1} pieces")
    known = {"its frequency": {}, "a trigram": {"trigram": True}}
    scores = {name: choose(texts["train"], texts["dev-clean"], **how) for name, how in known.items()}
    scores["the cues"] = choose_by_cues(texts["dev-clean"])
    told = ", ".join(f"by {name} {100 * right:.0f} %" for name, right in scores.items())
    lines.append(f"the right twin on dev is chosen: {told}")
    lines.append(f"it is in {folder}: LibriSpeech/, text.txt, bert-a/")
    return "\n".join(lines)


def read(subset: Path) -> list[tuple[str, int]]:
    """[(text in lower case, samples), ...] of a folder in LibriSpeech's layout."""
    found = []
    for transcript in sorted(subset.rglob("*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, text = line.split(" ", 1)
            found.append((text.lower(), soundfile.info(transcript.parent / f"{name}.flac").frames))
    return found


def choose(train: list[str], dev: list[str], trigram: bool = False) -> float:
    """Share of homophones in dev for which the counts of the transcripts prefer the word itself to its twin.

    Trigram: the three trigrams that hold the homophone, interpolated with bigrams and unigrams. A tie counts one half.
    """
    counts = Counter()
    for sentence in train:
        line = padded(sentence)
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
                twin = [*line[:i], TWIN[word], *line[i + 1 :]]
                mine, other = score(line, i), score(twin, i)
                right.append(0.5 if math.isclose(mine, other) else float(mine > other))
    return statistics.mean(right)


def padded(sentence: str) -> list[str]:
    return ["<s>", "<s>", *sentence.split(), "</s>", "</s>"]


def choose_by_cues(dev: list[str]) -> float:
    """The same share for somebody who knows the scene of every cue word and the two scenes of every homophone."""
    right = []
    for sentence in dev:
        line = sentence.replace("'s", "").split()
        scenes = {CUES[word] for word in line if word in CUES}
        right += [bool(scenes & {USUAL[word], SECOND[word]}) for word in line if word in TWIN]
    return statistics.mean(right)


def report_models(folder: Path) -> str:
    """How well the pretrained models know dev: every token masked in turn, in its sentence and in its conversation."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    from common.pretrained import quiet_bars

    quiet_bars()
    dev = folder / "LibriSpeech" / "dev-clean"
    told = [[text for text, _ in read(path.parent)] for path in sorted(dev.rglob("*.trans.txt"))]
    vocabulary = (folder / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split()
    lines = ["model    reads          tokens right   right twin chosen"]
    for name in ("bert-a", "bert-b"):
        model = AutoModelForMaskedLM.from_pretrained(folder / name).eval()
        for reads, texts in ("sentence", [[s] for s in sum(told, [])]), ("conversation", told):
            tokens, twins = fill_in(model, texts, vocabulary)
            lines.append(f"{name:<8} {reads:<14} {100 * tokens:>10.1f} %   {100 * twins:>15.1f} %")
    model = AutoModelForCausalLM.from_pretrained(folder / "lm").eval()
    perplexity, twins = judge(model, sum(told, []), vocabulary)
    lines.append(f"lm       sentence       perplexity {perplexity:.1f} per token   {100 * twins:>6.1f} %")
    return "\n".join(lines)


def fill_in(model, texts: list[list[str]], vocabulary: list[str]) -> tuple[float, float]:
    """Of every token masked in turn: the share filled in right; of the homophones: the share preferred to the twin."""
    import torch

    tokens, twins = [], []
    for sentences in texts:
        pieces = pieces_of(" ".join(sentences), vocabulary)
        ids = torch.tensor([[vocabulary.index(p) for p in ["[CLS]", *pieces, "[SEP]"]]]).repeat(len(pieces), 1)
        ids.diagonal(1).fill_(vocabulary.index("[MASK]"))
        with torch.inference_mode():
            logits = model(ids).logits.diagonal(1).T[: len(pieces)]  # (tokens, vocabulary) at the masked positions
        tokens += [vocabulary[best] == piece for best, piece in zip(logits.argmax(1).tolist(), pieces, strict=True)]
        for piece, scores in zip(pieces, logits, strict=True):
            if piece in TWIN:
                twins.append(bool(scores[vocabulary.index(piece)] > scores[vocabulary.index(TWIN[piece])]))
    return statistics.mean(tokens), statistics.mean(twins)


def judge(model, sentences: list[str], vocabulary: list[str]) -> tuple[float, float]:
    """Perplexity per token, [SEP] included; the share of homophones that make a likelier sentence than their twin."""
    import torch

    def score(words: list[str]) -> tuple[float, int]:
        pieces = ["[CLS]", *pieces_of(" ".join(words), vocabulary), "[SEP]"]
        ids = torch.tensor([vocabulary.index(p) for p in pieces])
        with torch.inference_mode():
            log_probs = model(ids[None, :-1]).logits[0].log_softmax(-1)
        return log_probs[torch.arange(len(ids) - 1), ids[1:]].sum().item(), len(ids) - 1

    scores = [score(s.split()) for s in sentences]
    twins = []
    for sentence, (mine, _) in zip(sentences, scores, strict=True):
        words = sentence.split()
        for i, word in enumerate(words):
            if word in TWIN:
                twins.append(mine > score([*words[:i], TWIN[word], *words[i + 1 :]])[0])
    return math.exp(-sum(s for s, _ in scores) / sum(n for _, n in scores)), statistics.mean(twins)


def pieces_of(text: str, vocabulary: list[str]) -> list[str]:
    tokenizer = WordPiece.from_vocabulary(vocabulary)
    ids = tokenizer.ids_in(vocabulary)
    return [vocabulary[ids[label - 1]] for label in tokenizer.encode(text)]


if __name__ == "__main__":
    main()
