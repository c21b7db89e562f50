"""Builds the demo world and says what is in it: `python -m common.demo --hours 1.8 --out data/demo`."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import soundfile

from common.demo import HOURS, MODELS, build, build_model
from common.demo.grammar import HELD_OUT
from common.demo.speech import frames
from common.demo.vocabulary import frames_needed
from common.demo.words import CUES, PAIRS, TWIN
from common.flags import UserError
from common.text import WordPiece


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m common.demo", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--hours", type=float, default=HOURS, help=f"training speech [{HOURS}]; more adds shards")
    parser.add_argument("--out", default="data/demo", metavar="DIR", help="where it is kept [data/demo]")
    parser.add_argument("--models", action="store_true", help="build the text models too")
    parser.add_argument("--small", action="store_true", help="few text, dev and test sentences: for quick tests")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world [0]")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        training = build(args.out, args.hours, args.small, args.seed)
        print(report(Path(args.out), training), flush=True)
        for name in MODELS if args.models else ():
            print(f"{name}: {build_model(args.out, name, args.small, args.seed)}", flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")


def report(folder: Path, training: list[str]) -> str:
    """What was built and how fast it is spoken."""
    tokenizer = WordPiece.from_vocabulary((folder / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split())
    lines = ["subset      utterances  minutes   words  homophones  frames per label: least, median"]
    for name, subsets in {"train": training, **{subset: [subset] for subset in HELD_OUT}}.items():
        corpus = [u for subset in subsets for u in read(folder / "LibriSpeech" / subset)]
        ratios = [frames(samples) / frames_needed(tokenizer.encode(text)) for text, samples in corpus]
        spoken = [word for text, _ in corpus for word in text.split()]
        lines.append(
            f"{name:<11} {len(corpus):>10}  {sum(n for _, n in corpus) / 16000 / 60:>7.1f}  {len(spoken):>6}  "
            f"{sum(word in TWIN for word in spoken):>10}  {min(ratios):.2f}, {statistics.median(ratios):.2f}"
        )
    text = (folder / "text.txt").read_text(encoding="utf-8").splitlines()
    lines.append(f"text        {sum(map(bool, text)):>10}           {sum(len(s.split()) for s in text):>6}")
    lines.append(f"{len(CUES)} cue words, {len(PAIRS)} homophone pairs, {tokenizer.size - 1} pieces")
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


if __name__ == "__main__":
    main()
