"""Sentences of the demo world: conversations that stay in their scene, split so that no test sentence is ever seen.

    conversations(seed, "train-003") -> ["the salty captain was there with this sail", ...], [...], ...

Every stream is a function of (seed, subset) alone. A function of its letters (`split_of`) decides in which subset a
sentence may stand: a held-out sentence occurs neither in text nor in transcripts, whatever the seed and the amount.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from hashlib import blake2b

from common.demo.words import DETERMINERS, ONE_HOMOPHONE, SCENES, SECOND, TWO_HOMOPHONES, USUAL

HELD_OUT = {
    "dev-clean": range(16),
    "test-clean": range(16, 32),
    "test-other": range(32, 48),
}  # of 256
SECOND_SCENE_IN_TRANSCRIPTS = 0.2  # weight of a homophone in its second scene; 1 everywhere else
SENTENCES_PER_CONVERSATION = range(4, 7)


def conversations(seed: int, subset: str) -> Iterator[list[str]]:
    """Endless conversations (lists of lower-case sentences) for "train-NNN", "dev-clean", "test-…", "text" or "text-b".

    Transcripts for training seldom hold a homophone in its second scene; text, dev and test hold both scenes equally.
    Within dev and test no sentence comes twice. text-b is another domain: it speaks of the first half of the scenes.
    """
    rng = random.Random(f"{seed} {subset}")
    scenes = list(SCENES)[: len(SCENES) // 2] if subset == "text-b" else list(SCENES)
    rare = SECOND_SCENE_IN_TRANSCRIPTS if subset.startswith("train") else 1
    seen = set()
    while True:
        scene, sentences = rng.choice(scenes), []
        length = rng.choice(SENTENCES_PER_CONVERSATION)
        while len(sentences) < length:
            sentence = draw(rng, scene, rare)
            if (
                split_of(sentence) == (subset if subset in HELD_OUT else "known")
                and sentence not in seen
            ):
                sentences.append(sentence)
                seen |= {sentence} if subset in HELD_OUT else set()
        yield sentences


def take(seed: int, subset: str, count: int) -> list[list[str]]:
    """The first conversations of a stream, the last one cut so that there are `count` sentences."""
    taken = []
    for sentences in conversations(seed, subset):
        taken.append(sentences[:count])
        count -= len(taken[-1])
        if not count:
            return taken


def draw(rng: random.Random, scene: str, rare: float = 1) -> str:
    """One sentence of `scene`; a homophone in its second scene is drawn with weight `rare`, in its usual one with 1."""
    pattern = rng.choice(rng.choice((ONE_HOMOPHONE, TWO_HOMOPHONES)))
    words = [w for w in USUAL if scene in (USUAL[w], SECOND[w])]
    weights = [1 if USUAL[w] == scene else rare for w in words]
    homophones = []
    while len(homophones) < pattern.count("{h}"):
        (word,) = rng.choices(words, weights)
        if word not in homophones:
            homophones.append(word)

    def fill(slot: re.Match) -> str:
        if slot[1] == "h":
            return homophones.pop()
        return rng.choice(DETERMINERS if slot[1] == "d" else SCENES[scene][slot[1]])

    return re.sub(r"{(\w+)}", fill, pattern)


def split_of(sentence: str, held_out: dict[str, range] = HELD_OUT) -> str:
    """The one held-out subset that may hold this sentence, or "known": training transcripts and text."""
    byte = blake2b(sentence.encode(), digest_size=1).digest()[0]
    return next((subset for subset, bytes_ in held_out.items() if byte in bytes_), "known")
