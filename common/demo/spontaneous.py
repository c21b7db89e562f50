"""Another domain beside the demo world: how people talk, in JSONL manifests.

    build("data/demo-talk")     train.jsonl, dev.jsonl, test.jsonl, homophones.txt, audio/, world.json

The sentences are of the same grammar, but of the second half of its scenes only, and of their cue words one in ten
are such as the demo world never has (NEW). They are spoken as people do: faster, with fillers ("uh", "you know"), words
said twice, and words begun and given up ("the doc doctor"), all of which the transcripts have. The speakers are those
of the demo world. No sentence of dev or test is one of train, with or without what came between.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from common.demo import grammar, speakers, words
from common.demo.building import SHARD, claim, speak
from common.files import write_atomically

VERSION = 4  # of the recipe: raise it whenever the same seed would give another world
FILLERS = ["uh", "um", "well", "you know", "i mean", "like", "so", "yeah"]
FILLER, REPEAT, BREAK_OFF = 0.1, 0.03, 0.03  # probability of each before a word [choice]
NEW_SHARE = 0.1  # of the cue words [choice]
FASTER = 10  # words per minute more than in the demo world
NEW = {  # scene: as in words.py
    "school": "dean janitor lecturer / cheated graduated lectured / canteen dormitory hostel / gifted studious dreamy",
    "hospital": "midwife orderly paramedic / sneezed recovered shivered / "
    "pharmacy sickroom surgery / drowsy feverish dizzy",
    "station": "steward mechanic commuter / boarded hurried queued / crossing garage viaduct / punctual noisy stranded",
    "theatre": "juggler usher fiddler / rehearsed whistled bowed / balcony ballroom circus / dazzling solemn magic",
    "forest": "forester poacher botanist / wandered camped whispered / clearing thicket meadow / mossy shady gloomy",
}
KINDS = {  # cue word -> the new ones of its kind
    word: slot.split()
    for scene, slots in NEW.items()
    for some, slot in zip(words.SCENES[scene].values(), slots.split("/"), strict=True)
    for word in some
}
SIZES = {
    False: {"train": 1000, "dev": 60, "test": 250},
    True: {"train": 40, "dev": 12, "test": 20},
}  # utterances
SPLITS = {"train": "known", "dev": "dev-clean", "test": "test-clean"}  # of grammar.py


def build(folder: str | Path, small: bool = False, seed: int = 0, progress: bool = True) -> Path:
    """Builds what is missing. Raises UserError if the folder holds another world."""
    world = {"version": VERSION, "seed": seed, "small": small}
    planned = {subset: plan(seed, subset, count) for subset, count in SIZES[small].items()}
    return build_manifests(Path(folder).absolute(), world, planned, progress)


def build_manifests(
    folder: Path, world: dict, planned: dict[str, list[dict]], progress: bool
) -> Path:
    """Speaks the utterances of every subset and lists them in <subset>.jsonl. Raises UserError."""
    claim(folder, world, "*.jsonl")
    missing = {
        f"audio/{subset}": some
        for subset, some in planned.items()
        if not (folder / "audio" / subset).exists()
    }
    if missing:
        speak(folder, missing, SHARD, lambda *_: None, progress)
    for subset, utterances in planned.items():
        manifest = folder / f"{subset}.jsonl"
        if not manifest.exists():
            keys = "text", "speaker", "session"
            lines = [
                {"audio_filepath": f"audio/{subset}/{u['path']}"} | {key: u[key] for key in keys}
                for u in utterances
            ]
            write_atomically(manifest, "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / "homophones.txt", "\n".join(map(" ".join, words.PAIRS)) + "\n")
    return folder


def plan(seed: int, subset: str, count: int) -> list[dict]:
    """What is spoken: {"path", "text", "plain" (without what people add), "speaker", "session", how it is recorded}."""
    rng, planned, seen = random.Random(f"{seed} spontaneous {subset}"), [], set()
    everybody, session = speakers.assign(rng, "dev-clean", count), 0
    while len(planned) < count:
        speaker, scene = everybody[session], rng.choice(list(NEW))
        until = len(planned) + rng.choice(grammar.SENTENCES_PER_CONVERSATION)
        while len(planned) < until:
            plain = with_new_words(grammar.draw(rng, scene), rng)
            if grammar.split_of(plain) != SPLITS[subset] or plain in seen:
                continue
            seen |= {plain} if subset != "train" else set()
            name = f"{subset}-{session:03d}"
            how = speakers.conditions(rng, "dev-clean", speaker)
            entry = {
                "path": f"{name}-{len(planned):04d}.flac",
                "text": as_people_talk(plain, rng),
                "plain": plain,
            }
            entry |= {"speaker": str(speaker.id), "session": name, "frames": 1}
            planned.append(entry | how | {"rate": how["rate"] + FASTER})
        session += 1
    return planned[:count]


def with_new_words(sentence: str, rng: random.Random) -> str:
    """Some cue words make room for a new one of their kind."""

    def change(word: str) -> str:
        body, apostrophe, rest = word.partition("'")
        return (
            rng.choice(KINDS[body]) + apostrophe + rest
            if body in KINDS and rng.random() < NEW_SHARE
            else word
        )

    return " ".join(change(word) for word in sentence.split())


def as_people_talk(sentence: str, rng: random.Random) -> str:
    said = []
    for word in sentence.split():
        if rng.random() < FILLER:
            said.append(rng.choice(FILLERS))
        if rng.random() < REPEAT:
            said.append(word)
        elif len(word) > 4 and "'" not in word and rng.random() < BREAK_OFF:
            said.append(word[: rng.choice((2, 3))])
        said.append(word)
    return " ".join(said)
