"""The English demo world, in which sound alone cannot tell "sail" from "sale", but the words around can.

    subsets = build("data/demo", hours=1.8)  # ["train-000", ..., "train-031"]

It is built on first use:

    FOLDER/LibriSpeech/train-000/ train-001/ …   100 utterances (about 3.6 minutes) each, in LibriSpeech's layout
    FOLDER/LibriSpeech/dev-clean/ test-clean/    sentences that stand in no training transcript and in no text
    FOLDER/LibriSpeech/test-other/               the same, with new voices, faster and in more noise
    FOLDER/LibriSpeech/homophones.txt            one pair per line: "sail sale"
    FOLDER/text.txt                              text only: one sentence per line, a blank line between conversations
    FOLDER/bert-a/                               the tokenizer of its BERTs (models.py puts the model beside it)
    FOLDER/world.json                            which world this is: version, seed, small

A shard is a function of the seed and its number: more hours add shards, nothing that exists is built again, and text,
dev and test never change with the hours. Each subset grows in a hidden folder and is renamed when it is complete. So a
build that is killed leaves no half of one, and two builds at once do the same work twice but disturb nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

from common.demo import grammar, speakers, vocabulary, words
from common.demo.building import SHARD, claim, speak
from common.errors import UserError
from common.files import write_atomically
from common.text import WordPiece, read_lines

VERSION = 1  # of the recipe: raise it whenever the same seed would give another world
HOURS = 1.8  # training speech by default
SHARD_HOURS = 0.0557
SPARE = 1.1  # frames there must be for each that CTC needs: speed perturbation by 1.1 leaves every utterance feasible
SIZES = {  # in sentences
    False: {
        "text": 80_000,
        "text-b": 40_000,
        "dev-clean": 200,
        "test-clean": 720,
        "test-other": 720,
    },
    True: {"text": 3_000, "text-b": 1_500, "dev-clean": 60, "test-clean": 60, "test-other": 60},
}


def build(
    folder: str | Path,
    hours: float = HOURS,
    small: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """Builds what is missing of the demo world and returns the training subsets that make up `hours`.

    hours: training speech, rounded to whole shards (at least one). small: few text, dev and test sentences, for quick
    tests. Raises UserError if the folder holds another world, cannot be written, or where eSpeak NG is missing.
    """
    if not hours > 0:
        raise UserError(f"--hours must be more than 0, not {hours}.")
    folder, sizes = Path(folder).absolute(), SIZES[small]
    build_tokenizer(folder, small, seed)
    training = [f"train-{i:03d}" for i in range(max(1, round(hours / SHARD_HOURS)))]
    subsets = [*grammar.HELD_OUT, *training]
    missing = {s: sizes.get(s, SHARD) for s in subsets if not (folder / "LibriSpeech" / s).exists()}
    if missing:
        pieces = (folder / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split()
        planned = {
            f"LibriSpeech/{name}": plan_utterances(seed, name, count, pieces)
            for name, count in missing.items()
        }
        speak(folder, planned, SHARD, _write_transcripts, progress)
    return training


def build_tokenizer(folder: str | Path, small: bool = False, seed: int = 0) -> Path:
    """Builds what needs no speech, text and tokenizer. Returns the folder of the tokenizer. Raises UserError."""
    folder = Path(folder).absolute()
    claim(folder, {"version": VERSION, "seed": seed, "small": small}, "LibriSpeech/*")
    (folder / "LibriSpeech").mkdir(exist_ok=True)
    homophones, tokenizer = folder / "LibriSpeech" / "homophones.txt", folder / "bert-a"
    if not homophones.exists():
        write_atomically(homophones, "\n".join(map(" ".join, words.PAIRS)) + "\n")
    text = write_text(folder, "text", small, seed)
    if not (tokenizer / "vocab.txt").exists():
        tokenizer.mkdir(exist_ok=True)
        for name, content in vocabulary.tokenizer_files(read_lines(text)).items():
            write_atomically(tokenizer / name, content)  # vocab.txt last
    return tokenizer


def write_text(folder: Path, stream: str, small: bool, seed: int) -> Path:
    """FOLDER/<stream>.txt, written once."""
    path = folder / f"{stream}.txt"
    if not path.exists():
        conversations = grammar.take(seed, stream, SIZES[small][stream])
        write_atomically(path, "\n\n".join(map("\n".join, conversations)) + "\n")
    return path


def plan_utterances(seed: int, subset: str, count: int, pieces: Iterable[str]) -> list[dict]:
    """What is spoken in a subset: {"path" in the subset, "text", "frames" it needs, and how it is recorded}, in order.

    pieces: the WordPiece vocabulary, which says how many frames a text needs. A chapter is one conversation.
    """
    tokenizer, rng, planned = (
        WordPiece.from_vocabulary(pieces),
        random.Random(f"{seed} {subset} speakers"),
        [],
    )
    conversations = grammar.take(seed, subset, count)
    assigned = speakers.assign(rng, subset, len(conversations))
    held_out = list(grammar.HELD_OUT)
    shard = (
        held_out.index(subset) + 1
        if subset in held_out
        else 10 + int(subset.removeprefix("train-"))
    )
    for i, (speaker, sentences) in enumerate(zip(assigned, conversations, strict=True)):
        chapter = f"{speaker.id}/{1000 * shard + i}"
        for j, text in enumerate(sentences):
            path = f"{chapter}/{chapter.replace('/', '-')}-{j:04d}.flac"
            frames = math.ceil(SPARE * vocabulary.frames_needed(tokenizer.encode(text)))
            planned.append(
                {"path": path, "text": text, "frames": frames}
                | speakers.conditions(rng, subset, speaker)
            )
    return planned


def _write_transcripts(folder: Path, planned: list[dict]) -> None:
    """One <speaker>-<chapter>.trans.txt per chapter: "ID TEXT", in capitals as in LibriSpeech."""
    chapters: dict[Path, list[str]] = {}
    for utterance in planned:
        path = folder / utterance["path"]
        chapters.setdefault(path.parent, []).append(f"{path.stem} {utterance['text'].upper()}\n")
    for chapter, lines in chapters.items():
        name = f"{chapter.parent.name}-{chapter.name}.trans.txt"
        (chapter / name).write_text("".join(lines), encoding="utf-8")
