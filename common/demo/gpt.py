"""A small GPT-NeoX of the demo world, really pretrained on its text, and a tokenizer whose pieces spell every text.

    <s> the salty captain had her sail </s>                                    half of the documents
    <s> the the sal [UNK] captain had h sail [SEP] the salty captain … </s>    the other half: see `train_causal`

A quarter of its sentences are as people talk (see spontaneous.py), so that a filler or a new word is not impossible.
[SEP] is what later stands between speech and text, as in rinna/nue-asr. The pieces are those of the world's BERTs,
homophones whole; but words are split at spaces alone, so that apostrophes come back where they were.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPTNeoXConfig, PreTrainedTokenizerFast

from common.demo.grammar import split_of
from common.demo.pretraining import INITIAL, publish, train_causal
from common.demo.spontaneous import as_people_talk, with_new_words
from common.text import read_lines

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "bos_token": "<s>",
    "sep_token": "[SEP]",
    "eos_token": "</s>",
}
AGAIN = 0.5  # share of the documents that are a text read again [choice]
TALK = 0.25  # share of the sentences as people talk [choice]


class Recipe(NamedTuple):
    layers: int = 4
    dim: int = 96
    heads: int = 4
    steps: int = 1200


SMALL = {"layers": 2, "dim": 32, "heads": 2, "steps": 60}  # for the smoke world


def pretrain_gpt(world: Path, model: str, small: bool, seed: int, progress: bool) -> None:
    """Trains on the text of `world` and puts model and tokenizer into WORLD/<model>."""
    recipe = Recipe()._replace(**SMALL if small else {})
    tokenizer = build_tokenizer(
        (world / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    )
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(piece) for name, piece in SPECIAL.items()}
    config = GPTNeoXConfig(  # one half of a layer reads what the other has written, as in rinna's
        vocab_size=len(tokenizer), hidden_size=recipe.dim, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, intermediate_size=4 * recipe.dim, max_position_embeddings=512, rotary_pct=1.0,
        use_parallel_residual=False, hidden_dropout=0.0, attention_dropout=0.0, initializer_range=INITIAL, **ids,
    )  # fmt: skip
    lines = [line for line in read_lines(world / "text.txt") if line]
    rng = random.Random(seed)
    lines = [spoken(line, rng) if rng.random() < TALK else line for line in lines]
    texts = tokenizer(lines, add_special_tokens=False)["input_ids"]
    title = f"pretraining {model}" if progress else ""
    trained = train_causal(
        config, texts, recipe.steps, seed, AGAIN, ids["unk_token_id"], progress=title
    )
    draft = world / f".building-{model}-tokenizer-{os.getpid()}"
    tokenizer.save_pretrained(draft)
    publish(trained, world, model, draft.iterdir())
    shutil.rmtree(draft)


def spoken(sentence: str, rng: random.Random) -> str:
    """The sentence as somebody might say it, with a new word now and then.

    It keeps its own words if the new ones would make it a sentence of dev or test.
    """
    plain = with_new_words(sentence, rng)
    return as_people_talk(plain if split_of(plain) == "known" else sentence, rng)


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """vocabulary: of a BERT, whose first five are its special tokens."""
    pieces = [*SPECIAL.values(), *vocabulary[len(SPECIAL) :], "##'"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL
    )
