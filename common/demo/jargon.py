"""A second domain whose language is new, in JSONL manifests: every cue word is one that the demo world never has.

    build("data/demo-jargon")     train.jsonl, dev.jsonl, test.jsonl, homophones.txt, audio/, world.json

The sentences are of the same grammar and of the second half of its scenes; speakers, pace and rooms are those of the
demo world. But a school has proctors that cram in a cloakroom. No text of the demo world has these words: neither its
GPT nor its HuBERT has met them (GPT has met others, see spontaneous.py). A fifth of them (UNHEARD) is held out of train
and comes in dev and test alone: do adapters learn words, or to listen to new ones? The homophones are the old ones.

    demo-jargon-10, demo-jargon-30    10 or 30 % of the cue words are new, not all
"""

from __future__ import annotations

import random
from pathlib import Path

from common.demo import grammar, speakers, words
from common.demo.spontaneous import build_manifests

VERSION = 1  # of the recipe: raise it whenever the same seed would give another world
NEW = {  # scene: as in words.py
    "school": "proctor bursar prefect / crammed dabbled debated / lectern cloakroom playground / diligent tardy witty",
    "hospital": "intern oculist matron / wheezed fasted bled / infirmary morgue incubator / pale swollen bruised",
    "station": "conductor signalman courier / departed swerved idled / terminus junction tunnel / hasty rusty delayed",
    "theatre": "acrobat mime soprano / recited waltzed mumbled / foyer arena wardrobe / tragic gaudy nimble",
    "forest": "lumberjack falconer druid / prowled trekked sheltered / ravine grove marsh / leafy thorny damp",
}
KINDS = {  # cue word -> the new ones of its kind
    word: slot.split()
    for scene, slots in NEW.items()
    for some, slot in zip(words.SCENES[scene].values(), slots.split("/"), strict=True)
    for word in some
}
WORDS = [word for slots in NEW.values() for word in slots.replace("/", " ").split()]
UNHEARD = set(WORDS[2::5])  # never in train
SIZES = {
    False: {"train": 1000, "dev": 60, "test": 250},
    True: {"train": 40, "dev": 12, "test": 20},
}  # utterances
SPLITS = {"train": "known", "dev": "dev-clean", "test": "test-clean"}  # of grammar.py


def build(
    folder: str | Path,
    small: bool = False,
    share: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Builds what is missing. share: of the cue words that are new.

    Raises UserError if the folder holds another world.
    """
    world = {"world": "jargon", "version": VERSION, "seed": seed, "small": small, "share": share}
    planned = {subset: plan(seed, subset, count, share) for subset, count in SIZES[small].items()}
    return build_manifests(Path(folder).absolute(), world, planned, progress)


def plan(seed: int, subset: str, count: int, share: float = 1.0) -> list[dict]:
    """What is spoken: {"path", "text", "speaker", "session", and how it is recorded}."""
    rng, planned, seen = random.Random(f"{seed} jargon {subset}"), [], set()
    everybody, session = speakers.assign(rng, "dev-clean", count), 0
    while len(planned) < count:
        speaker, scene = everybody[session], rng.choice(list(NEW))
        until = len(planned) + rng.choice(grammar.SENTENCES_PER_CONVERSATION)
        while len(planned) < until:
            text = with_new_words(grammar.draw(rng, scene), rng, share, subset == "train")
            if grammar.split_of(text) != SPLITS[subset] or text in seen:
                continue
            seen |= {text} if subset != "train" else set()
            name = f"{subset}-{session:03d}"
            entry = {"path": f"{name}-{len(planned):04d}.flac", "text": text, "frames": 1}
            entry |= {"speaker": str(speaker.id), "session": name}
            planned.append(entry | speakers.conditions(rng, "dev-clean", speaker))
        session += 1
    return planned[:count]


def with_new_words(sentence: str, rng: random.Random, share: float, heard_only: bool) -> str:
    """Cue words make room for new ones of their kind; heard_only: for none of UNHEARD."""

    def change(word: str) -> str:
        body, apostrophe, rest = word.partition("'")
        if body not in KINDS or rng.random() >= share:
            return word
        choices = [new for new in KINDS[body] if not (heard_only and new in UNHEARD)]
        return rng.choice(choices) + apostrophe + rest

    return " ".join(change(word) for word in sentence.split())
