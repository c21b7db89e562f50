"""Builds a demo world and says what is in it: `python -m common.demo --hours 1.8 --out data/demo`, or `--world mls`."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import soundfile

from common.demo import english, multilingual
from common.demo.english import HOURS
from common.demo.grammar import HELD_OUT
from common.demo.speech import frames
from common.demo.vocabulary import frames_needed
from common.demo.words import CUES, PAIRS, TWIN
from common.errors import UserError
from common.text import WordPiece, read_lines


def build_parser() -> argparse.ArgumentParser:
    title = (__doc__ or "Builds a demo world").split(":")[0]  # python -OO takes docstrings away
    parser = argparse.ArgumentParser(prog="python -m common.demo", description=f"{title}.")
    parser.add_argument(
        "--world",
        default="english",
        choices=["english", "mls"],
        help="of how many languages [english]",
    )
    parser.add_argument(
        "--hours",
        type=float,
        default=HOURS,
        help=f"English training speech [{HOURS}]; more adds shards",
    )
    parser.add_argument("--out", metavar="DIR", help="where it is kept [data/demo, data/demo-mls]")
    parser.add_argument("--models", action="store_true", help="build the text models too")
    parser.add_argument(
        "--small", action="store_true", help="few text, dev and test sentences: for quick tests"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world [0]")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        if args.world == "mls":
            out = Path(args.out or "data/demo-mls")
            languages = multilingual.build(out, small=args.small, seed=args.seed)
            print(report_languages(out, languages), flush=True)
        else:
            out = Path(args.out or "data/demo")
            print(report(out, english.build(out, args.hours, args.small, args.seed)), flush=True)
        if args.models:
            build_models(args, out)
    except UserError as error:
        sys.exit(f"error: {error}")


def build_models(args: argparse.Namespace, world: Path) -> None:
    """Trains all models of the world; imported here, since torch takes seconds."""
    from common.demo import models

    names, build = models.ENGLISH, models.build_english
    if args.world == "mls":
        names, build = models.MULTILINGUAL, models.build_multilingual
    for name in names:
        print(f"{name}: {build(world, name, args.small, args.seed)}", flush=True)


def report(folder: Path, training: list[str]) -> str:
    """What was built and how fast it is spoken."""
    tokenizer = WordPiece.from_vocabulary(
        (folder / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split()
    )
    lines = ["subset      utterances  minutes   words  homophones  frames per label: least, median"]
    for name, subsets in {"train": training, **{subset: [subset] for subset in HELD_OUT}}.items():
        corpus = [u for subset in subsets for u in read(folder / "LibriSpeech" / subset)]
        ratios = [
            frames(samples) / frames_needed(tokenizer.encode(text)) for text, samples in corpus
        ]
        spoken = [word for text, _ in corpus for word in text.split()]
        lines.append(
            f"{name:<11} {len(corpus):>10}  {sum(n for _, n in corpus) / 16000 / 60:>7.1f}  {len(spoken):>6}  "
            f"{sum(word in TWIN for word in spoken):>10}  {min(ratios):.2f}, {statistics.median(ratios):.2f}"
        )
    text = read_lines(folder / "text.txt")
    lines.append(
        f"text        {sum(map(bool, text)):>10}           {sum(len(s.split()) for s in text):>6}"
    )
    lines.append(
        f"{len(CUES)} cue words, {len(PAIRS)} homophone pairs, {tokenizer.size - 1} pieces"
    )
    lines.append(f"it is in {folder}: LibriSpeech/, text.txt, bert-a/")
    return "\n".join(lines)


def report_languages(folder: Path, languages: list[str]) -> str:
    """How much there is of every language."""
    lines = ["language       train: utterances, minutes         dev        test"]
    for language in languages:
        row = []
        for split in ("train", "dev", "test"):
            seconds = [
                soundfile.info(path).duration
                for path in (folder / f"mls_{language}" / split).rglob("*.flac")
            ]
            row.append(f"{len(seconds)}, {sum(seconds) / 60:.1f}")
        lines.append(f"{language:<12}{row[0]:>29}{row[1]:>12}{row[2]:>12}")
    return "\n".join([*lines, f"it is in {folder}: mls_<language>/, text.txt, english.txt"])


def read(subset: Path) -> list[tuple[str, int]]:
    """[(text in lower case, samples), ...] of a folder in LibriSpeech's layout."""
    found = []
    for transcript in sorted(subset.rglob("*.trans.txt")):
        for line in read_lines(transcript):
            name, text = line.split(" ", 1)
            found.append((text.lower(), soundfile.info(transcript.parent / f"{name}.flac").frames))
    return found


if __name__ == "__main__":
    main()
