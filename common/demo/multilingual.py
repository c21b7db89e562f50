"""The multilingual demo world: the eight languages of MLS, small grammars, more speech for some than for others.

    languages = build("data/demo-mls")  # ["english", "german", …, "polish"]

It is built on first use, in the layout of OpenSLR 94:

    FOLDER/mls_<language>/train/ dev/ test/   transcripts.txt, segments.txt, audio/<speaker>/<book>/<id>.flac
    FOLDER/text.txt                           text only: a sentence per line, a blank line between documents, languages
                                              mixed
    FOLDER/english.txt                        the English ones among them

    FOLDER/homophones.txt                     words that sound alike, a pair per line

    build_nonsense("data/demo-mls-nonsense")  # mls_<language>/test alone: sentences without sense, see languages.py

Sentences of dev and test stand in no training transcript and in no text; the voices of test are new. Every subset is a
function of the seed alone, grows in a hidden folder and is renamed when complete.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import soundfile

from common.demo import languages as grammar
from common.demo.building import SHARD, claim, speak
from common.demo.speakers import PITCH_AND_RATE, Speaker, conditions
from common.errors import UserError
from common.files import write_atomically

VERSION = 3  # of the recipe: raise it whenever the same seed would give another world
# Training utterances [choice]: in MLS's order, but MLS has 400 times as much English as Polish.
TRAIN = {"english": 720, "german": 600, "dutch": 525, "french": 465, "spanish": 420, "italian": 375, "portuguese": 330,
         "polish": 300}  # fmt: skip
# Variants of eSpeak NG's voices, none with breath (see speakers.py). Many, so that new ones are understood at all.
VARIANTS = ("", "m1", "m3", "m4", "m6", "m7", "m8", "Alex", "Andy", "f1", "f4", "belinda", "steph")
NEW_VARIANTS = ("m2", "Mike", "Annie")  # of test
SIZES = {  # utterances of each language; sentences of text
    False: {"dev": 40, "test": 200, "text": 6000, "nonsense": 100},
    True: {"dev": 4, "test": 6, "text": 300, "nonsense": 4},
}
SMALLER = 24  # times less training speech in the small world
CHARACTERS_PER_FRAME = (
    1.6  # of 80 ms at most: then CTC has a path through pieces of two characters, sped up or not
)


def build(
    folder: str | Path,
    languages: Sequence[str] = (),
    small: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """Builds what is missing of some languages (none given: all) and returns those, in MLS's order.

    small: little of everything, for quick tests. Raises UserError if a language is unknown, the folder holds another
    world or cannot be written, or where eSpeak NG is missing.
    """
    folder = Path(folder).absolute()
    languages = _chosen(languages)
    build_text(folder, small, seed)
    _write_homophones(folder)
    subsets = {
        f"mls_{language}/{split}": (language, split)
        for language in languages
        for split in ("train", "dev", "test")
    }
    _speak_missing(folder, subsets, small, seed, progress)
    return languages


def build_nonsense(
    folder: str | Path,
    languages: Sequence[str] = (),
    small: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """As `build`, but only test sets, of sentences in which verb and object do not belong together."""
    folder = Path(folder).absolute()
    languages = _chosen(languages)
    claim(
        folder, {"world": "mls nonsense", "version": VERSION, "seed": seed, "small": small}, "mls_*"
    )
    _write_homophones(folder)
    subsets = {f"mls_{language}/test": (language, "nonsense") for language in languages}
    _speak_missing(folder, subsets, small, seed, progress)
    return languages


def _chosen(languages: Sequence[str]) -> list[str]:
    """These languages in MLS's order; none given: all. Raises UserError for one that is unknown."""
    if unknown := sorted(set(languages) - set(TRAIN)):
        raise UserError(f"the demo world has no {unknown[0]}: it has {', '.join(TRAIN)}.")
    return [x for x in TRAIN if x in languages or not languages]


def _speak_missing(
    folder: Path, subsets: dict[str, tuple[str, str]], small: bool, seed: int, progress: bool
) -> None:
    """subsets: path in the folder -> language and split."""
    missing = {path: names for path, names in subsets.items() if not (folder / path).exists()}
    if missing:
        planned = {path: plan_utterances(seed, *names, small) for path, names in missing.items()}
        speak(folder, planned, SHARD, _write_lists, progress)


def _write_homophones(folder: Path) -> None:
    path = folder / "homophones.txt"
    if not path.exists():
        lines = [" ".join(pair) + "\n" for pair in grammar.twins_of(TRAIN)]
        write_atomically(path, "".join(lines))


def build_text(folder: str | Path, small: bool = False, seed: int = 0) -> None:
    """Writes text.txt and english.txt, once. Raises UserError."""
    folder = Path(folder).absolute()
    claim(folder, {"world": "mls", "version": VERSION, "seed": seed, "small": small}, "mls_*")
    if not (folder / "text.txt").exists():
        count = SIZES[small]["text"]
        texts = {language: grammar.take(seed, "text", language, count) for language in TRAIN}
        mixed = [document for documents in texts.values() for document in documents]
        random.Random(f"{seed} text").shuffle(mixed)
        for name, documents in {
            "english": texts["english"],
            "text": mixed,
        }.items():  # text.txt last
            write_atomically(folder / f"{name}.txt", "\n\n".join(map("\n".join, documents)) + "\n")


def plan_utterances(seed: int, language: str, split: str, small: bool) -> list[dict]:
    """What is spoken: {"path" in the subset, "text", "frames" it needs, and how it is recorded}, in order.

    A book is a document, read by one speaker.
    """
    count = (
        SIZES[small][split] if split != "train" else TRAIN[language] // (SMALLER if small else 1)
    )
    rng, planned = random.Random(f"{seed} {split} {language} speakers"), []
    books = grammar.take(seed, split, language, count)
    speakers = speakers_of(language, new=split in ("test", "nonsense"))
    order = [
        s
        for _ in range(len(books) // len(speakers) + 1)
        for s in rng.sample(speakers, len(speakers))
    ]
    first = 1000 * (1 + ("train", "dev", "test", "nonsense").index(split))
    for i, (speaker, sentences) in enumerate(zip(order, books, strict=False), start=first):
        for j, text in enumerate(sentences):
            path = f"audio/{speaker.id}/{i}/{speaker.id}_{i}_{j:06d}.flac"
            frames = round(len(text) / CHARACTERS_PER_FRAME)
            planned.append(
                {"path": path, "text": text, "frames": frames} | conditions(rng, split, speaker)
            )
    return planned


def speakers_of(language: str, new: bool) -> list[Speaker]:
    """The speakers of train and dev, or (new) of test: a variant of the language's accent, with a pitch and a pace."""
    accent, pace = grammar.LANGUAGES[language].voice, grammar.LANGUAGES[language].rate
    first = 1000 * (1 + list(TRAIN).index(language)) + 500 * new
    usual = PITCH_AND_RATE[0][1]  # of the slowest speaker of the English world
    return [
        Speaker(first + 10 * i + j, f"{accent}+{variant}".rstrip("+"), pitch, pace + rate - usual)
        for i, variant in enumerate(NEW_VARIANTS if new else VARIANTS)
        for j, (pitch, rate) in enumerate(PITCH_AND_RATE)
    ]


def _write_lists(subset: Path, planned: list[dict]) -> None:
    """transcripts.txt: id, text; segments.txt: id, address of the recording, start and end in seconds; by tabs."""
    end, transcripts, segments = {}, [], []
    for utterance in planned:
        path = subset / utterance["path"]
        start = end.get(path.parent, 0.0)
        end[path.parent] = start + soundfile.info(path).duration
        book = f"https://example.org/{path.parent.name}.mp3"
        transcripts.append(f"{path.stem}\t{utterance['text']}\n")
        segments.append(f"{path.stem}\t{book}\t{start:.2f}\t{end[path.parent]:.2f}\n")
    (subset / "transcripts.txt").write_text("".join(transcripts), encoding="utf-8")
    (subset / "segments.txt").write_text("".join(segments), encoding="utf-8")
