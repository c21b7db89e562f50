"""The pretrained models of the demo worlds, by name. Each is trained on first use, once.

    find("demo", "bert-a", Path("data"))                  -> data/demo/bert-a
    find("demo", "bert-a", Path("data"), tokenizer=True)  -> the same folder, with its tokenizer at least

They are Hugging Face folders beside the corpus of their world. This room imports what trains them, and with it torch
and transformers; the rooms that build text and speech do not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.demo import english, gpt, hubert, llama, multilingual, pretraining
from common.errors import UserError

BERT_PIECES = ("bert-a", "bert-b", "lm")  # they share a tokenizer, which is there before they are
ENGLISH = (*BERT_PIECES, "gpt", "hubert")
MULTILINGUAL = tuple(llama.RECIPES)


def build_english(
    folder: str | Path, model: str, small: bool = False, seed: int = 0, progress: bool = True
) -> Path:
    """Trains a model on the text of the English world, or hubert on its audio. Returns the folder of the model.

    Raises UserError for a name that is none of ENGLISH.
    """
    if model not in ENGLISH:
        raise UserError(f"the demo world has no model {model!r}: it has {', '.join(ENGLISH)}.")
    folder = Path(folder).absolute()
    english.build_tokenizer(folder, small, seed)
    if not (folder / model / "model.safetensors").exists():
        english.write_text(folder, "text-b" if model == "bert-b" else "text", small, seed)
        if model == "hubert":
            hours = english.SHARD_HOURS if small else english.HOURS
            subsets = english.build(folder, hours, small, seed, progress)
            hubert.pretrain_hubert(folder, model, subsets, small, seed, progress)
        elif model == "gpt":
            gpt.pretrain_gpt(folder, model, small, seed, progress)
        else:
            pretraining.pretrain(folder, model, small, seed, progress)
    return folder / model


def english_tokenizer(folder: Path, model: str, small: bool) -> Path:
    """A folder with the tokenizer of the model, which is only trained if it has a tokenizer of its own."""
    if model in BERT_PIECES:
        return english.build_tokenizer(folder, small)
    return build_english(folder, model, small)


def build_multilingual(
    folder: str | Path, model: str, small: bool = False, seed: int = 0, progress: bool = True
) -> Path:
    """Trains a model on the text of the multilingual world. Returns the folder of the model.

    Raises UserError for a name that is none of MULTILINGUAL.
    """
    if model not in MULTILINGUAL:
        raise UserError(
            f"the multilingual demo world has no model {model!r}: it has {', '.join(MULTILINGUAL)}."
        )
    folder = Path(folder).absolute()
    multilingual.build_text(folder, small, seed)
    llama.build_tokenizer(folder)
    if not (folder / model / "model.safetensors").exists():
        llama.pretrain(folder, model, small, seed, progress)
    return folder / model


def multilingual_tokenizer(folder: Path, model: str, small: bool) -> Path:
    """The folder of the tokenizer, which all models of the multilingual world share."""
    multilingual.build_text(folder, small)
    return llama.build_tokenizer(folder)


class Models(NamedTuple):
    """The models of a world."""

    names: tuple[str, ...]  # the first is taken where none is named
    build: Callable[[Path, str, bool], Path]  # folder of the world, model, small
    tokenizer: Callable[[Path, str, bool], Path]
    small: bool


WORLDS = {
    "demo": Models(ENGLISH, build_english, english_tokenizer, small=False),
    "demo-smoke": Models(ENGLISH, build_english, english_tokenizer, small=True),
    "demo-mls": Models(MULTILINGUAL, build_multilingual, multilingual_tokenizer, small=False),
    "demo-mls-smoke": Models(MULTILINGUAL, build_multilingual, multilingual_tokenizer, small=True),
}


def find(world: str, model: str, root: Path, tokenizer: bool = False) -> Path:
    """The folder of a model of WORLDS, built in ROOT/<world> if it is missing.

    model: "" for the first of the world. tokenizer: only the tokenizer is needed. Raises UserError.
    """
    models = WORLDS[world]
    build = models.tokenizer if tokenizer else models.build
    return build((root / world).absolute(), model or models.names[0], models.small)
