"""Language models of the multilingual demo world, shaped as LLaMA, and the tokenizer that they share.

    lm-s lm-m lm-l   a family of three sizes, on text.txt, most of it read again (see `pretraining.train_causal`)
    lm-english       as lm-m, on english.txt
    lm-plain         as lm-m, without texts read again
    lm-short         as lm-m, with a third of its updates
    lm-untrained     as lm-m, as it was before: a control

The tokenizer is a SentencePiece unigram model of the text, written down for Hugging Face.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from common.demo import building
from common.demo.pretraining import publish, train_causal
from common.text import read_lines

PIECES = 700  # half of the words are one; 2.5 frames of 80 ms: shorter ones are easily guessed, and nothing need listen
SPECIAL = {
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}  # ids 0 to 3


class Recipe(NamedTuple):
    layers: int
    dim: int
    text: str = "text.txt"
    again: float = 0.8  # share of the steps on texts read again
    steps: int = 3600  # with a third of them it knows too little, and loses to what it cannot hear


RECIPES = {  # the first where none is named
    "lm-m": Recipe(4, 96),
    "lm-s": Recipe(2, 64),
    "lm-l": Recipe(6, 128),
    "lm-english": Recipe(4, 96, text="english.txt"),
    "lm-plain": Recipe(4, 96, again=0.0),
    "lm-short": Recipe(4, 96, steps=1200),
    "lm-untrained": Recipe(4, 96, steps=0),
}
SMALL = {"layers": 2, "dim": 32, "steps": 60}  # for the smoke world


def build_tokenizer(world: Path) -> Path:
    """Trains the tokenizer on text.txt, once; returns its folder, which AutoTokenizer reads."""
    folder = world / "tokenizer"
    if not folder.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(read_sentences(world / "text.txt")), model_writer=model, vocab_size=PIECES,
            character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=3, normalization_rule_name="identity",
            num_threads=1, minloglevel=2,
        )  # fmt: skip
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        scores = [
            (pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())
        ]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        draft = world / f".building-tokenizer-{os.getpid()}"
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            model_max_length=512,
            **SPECIAL,
        ).save_pretrained(draft)
        building.publish(draft, folder)
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def pretrain(world: Path, model: str, small: bool, seed: int, progress: bool) -> None:
    """Trains `model` on the text of `world` and puts it into WORLD/<model>."""
    recipe = RECIPES[model]._replace(**SMALL if small else {})
    folder = build_tokenizer(world)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.dim, intermediate_size=8 * recipe.dim // 3,
        num_hidden_layers=recipe.layers, num_attention_heads=4, max_position_embeddings=512,
        initializer_range=0.05, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    texts = tokenizer(read_sentences(world / recipe.text), add_special_tokens=False)["input_ids"]
    title = f"pretraining {model}" if progress else ""
    trained = train_causal(
        config, texts, recipe.steps, seed, recipe.again, tokenizer.unk_token_id, progress=title
    )
    publish(trained, world, model, folder.iterdir())


def read_sentences(path: Path) -> list[str]:
    return [line for line in read_lines(path) if line]
