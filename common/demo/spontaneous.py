"""Another domain beside the demo world: how people talk, in JSONL manifests.

    build("data/demo-spontaneous")     train.jsonl, dev.jsonl, test.jsonl, homophones.txt, audio/, world.json

The sentences are of the same grammar, but of the second half of its scenes only, and half of their cue words are such
as the demo world never has (NEW). They are spoken as people do: faster, with fillers ("uh", "you know"), words said
twice, and words begun and given up ("the doc doctor"), all of which the transcripts have. The speakers are those of the
demo world. No sentence of dev or test is one of train, with or without what came between.

The folder grows hidden and is renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.demo import SHARD, grammar, run_speech, speakers, words
from common.flags import UserError

VERSION = 1  # of the recipe: raise it whenever the same seed would give another world
FILLERS = ["uh", "um", "well", "you know", "i mean", "like", "so", "yeah"]
FILLER, REPEAT, BREAK_OFF = 0.14, 0.06, 0.05  # probability of each before a word [choice]
FASTER = 25  # words per minute more than in the demo world
NEW = {  # scene: as in words.py
    "school": "dean janitor lecturer / cheated graduated lectured / canteen dormitory hostel / gifted studious dreamy",
    "hospital": "midwife orderly paramedic / sneezed recovered shivered / "
    "pharmacy sickroom surgery / drowsy feverish dizzy",
    "station": "steward mechanic commuter / boarded hurried queued / crossing garage viaduct / punctual noisy stranded",
    "theatre": "juggler usher fiddler / rehearsed whistled bowed / balcony ballroom circus / dazzling solemn magic",
    "forest": "forester poacher botanist / wandered camped whispered / clearing thicket meadow / mossy shady gloomy",
}
SIZES = {False: {"train": 500, "dev": 60, "test": 250}, True: {"train": 40, "dev": 12, "test": 20}}  # utterances
SPLITS = {"train": "known", "dev": "dev-clean", "test": "test-clean"}  # of grammar.py


def build(folder: str | Path, small: bool = False, seed: int = 0) -> Path:
    """Builds the domain where it is missing, in half a minute. Raises UserError where the folder holds another."""
    folder = Path(folder).absolute()
    world = {"version": VERSION, "seed": seed, "small": small}
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".building-{folder.name}-", dir=folder.parent))
            try:
                _write(draft, world)
                draft.chmod(0o755)
                if not folder.exists():
                    draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise UserError(f"The demo world cannot be kept in {folder} ({error.strerror}): free some space.") from None
    mark = folder / "world.json"
    if not mark.exists() or json.loads(mark.read_text()) != world:
        raise UserError(f"{folder} holds another demo world than the one asked for: delete it or give another --root.")
    return folder


def _write(folder: Path, world: dict) -> None:
    planned = {subset: plan(world["seed"], subset, count) for subset, count in SIZES[world["small"]].items()}
    (folder / "audio").mkdir()
    jobs = [utterances[i : i + SHARD] for utterances in planned.values() for i in range(0, len(utterances), SHARD)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        absolute = [[u | {"path": str(folder / u["path"])} for u in job] for job in jobs]
        list(pool.map(run_speech, [{"utterances": job} for job in absolute]))
    for subset, utterances in planned.items():
        lines = [
            {"audio_filepath": u["path"], "text": u["text"], "id": Path(u["path"]).stem}
            | {name: u[name] for name in ("speaker", "session")}
            for u in utterances
        ]
        (folder / f"{subset}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "homophones.txt").write_text("\n".join(map(" ".join, words.PAIRS)) + "\n")
    (folder / "world.json").write_text(json.dumps(world) + "\n")


def plan(seed: int, subset: str, count: int) -> list[dict]:
    """What is spoken: {"path", "text", "plain" (without what people add), "speaker", "session", how it is recorded}."""
    rng, planned, seen = random.Random(f"{seed} spontaneous {subset}"), [], set()
    everybody, session = speakers.assign(rng, "dev-clean", count), 0
    while len(planned) < count:
        speaker, scene = everybody[session], rng.choice(list(NEW))
        until = len(planned) + rng.choice(grammar.SENTENCES_PER_CONVERSATION)
        while len(planned) < until:
            plain = with_new_words(grammar.draw(rng, scene), scene, rng)
            if grammar.split_of(plain) != SPLITS[subset] or plain in seen:
                continue
            seen |= {plain} if subset != "train" else set()
            name = f"{subset}-{session:03d}"
            how = speakers.conditions(rng, "dev-clean", speaker)
            entry = {
                "path": f"audio/{name}-{len(planned):04d}.flac",
                "text": as_people_talk(plain, rng),
                "plain": plain,
            }
            entry |= {"speaker": str(speaker.id), "session": name, "frames": 1}
            planned.append(entry | how | {"rate": how["rate"] + FASTER})
        session += 1
    return planned[:count]


def with_new_words(sentence: str, scene: str, rng: random.Random) -> str:
    """Every other cue word makes room for a new one of its kind."""
    slots = dict(zip(words.SCENES[scene], (slot.split() for slot in NEW[scene].split("/")), strict=True))
    kinds = {word: slots[kind] for kind, some in words.SCENES[scene].items() for word in some}

    def change(word: str) -> str:
        body, apostrophe, rest = word.partition("'")
        return rng.choice(kinds[body]) + apostrophe + rest if body in kinds and rng.random() < 0.5 else word

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
