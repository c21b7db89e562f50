"""A small GPT-NeoX of the demo world, really pretrained on its text, and a tokenizer whose pieces spell every text.

    <s> the salty captain had her sail </s>                           half of the documents
    <s> the the sal captain had had h sail [SEP] the salty …  </s>    the other half: texts read again [choice]

A large language model has learnt from its texts to say again what it reads: a small one has not, and beside a frozen
one, or within minutes, no bridge can teach it. So half of the documents are a sentence, badly written (pieces
repeated, lost and mistaken), and the same sentence again behind [SEP], which later stands between speech and text.

The pieces are those of the world's BERTs, homophones whole; but words are split at spaces alone, so that apostrophes
come back where they were.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from common.demo.pretraining import adamw, publish, reproducible
from common.training import one_cycle

PAD, UNK, BEGIN, SEPARATOR, END = range(5)
SPECIAL = ["[PAD]", "[UNK]", "<s>", "[SEP]", "</s>"]
AGAIN = 0.5  # share of the documents that are a text read again
LOST, MISTAKEN, LONGEST = 0.05, 0.1, 3  # of the pieces of such a text; how often one stands there at most


class Recipe(NamedTuple):
    layers: int = 4
    dim: int = 96
    heads: int = 4
    steps: int = 900
    tokens: int = 2000  # per step, about
    lr: float = 3e-3  # peak


SMALL = {"layers": 2, "dim": 32, "heads": 2, "steps": 60, "tokens": 1000}  # for the smoke world


def pretrain_gpt(world: Path, model: str, small: bool, seed: int, progress: bool) -> None:
    """Trains on the text of `world` and puts model and tokenizer into WORLD/<model>."""
    recipe = Recipe()._replace(**SMALL if small else {})
    tokenizer = build_tokenizer((world / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1])
    lines = [line for line in (world / "text.txt").read_text(encoding="utf-8").splitlines() if line]
    with reproducible(seed):
        sentences = tokenizer(lines, add_special_tokens=False)["input_ids"]
        trained = train(recipe, len(tokenizer), sentences, random.Random(seed), progress)
    trained.generation_config.pad_token_id = PAD
    draft = world / f".building-{model}-tokenizer"
    tokenizer.save_pretrained(draft)
    publish(trained, world, model, sorted(draft.iterdir()))


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """vocabulary: of a BERT, whose first five are its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*SPECIAL, *vocabulary[len(SPECIAL) :], "##'"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece("##", cleanup=False)
    named = dict(zip(("pad_token", "unk_token", "bos_token", "sep_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


def train(
    recipe: Recipe, size: int, sentences: list[list[int]], rng: random.Random, progress: bool
) -> GPTNeoXForCausalLM:
    """One layer reads what the one below has written, as in the larger ones of Japanese (no parallel residual)."""
    network = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=size, hidden_size=recipe.dim, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.dim, max_position_embeddings=512, rotary_pct=1.0, use_parallel_residual=False,
            hidden_dropout=0.0, attention_dropout=0.0, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD,
        )
    ).train()  # fmt: skip
    optimizer = adamw(network)
    for step in tqdm(range(recipe.steps), "pretraining gpt", unit="step", disable=None if progress else True):
        optimizer.param_groups[0]["lr"] = recipe.lr * one_cycle((step + 1) / recipe.steps, 0.1)
        loss_of(network, draw(sentences, size, recipe.tokens, rng)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def draw(sentences: list[list[int]], size: int, tokens: int, rng: random.Random) -> Tensor:
    """About `tokens` ids (N, L), padded. Lengths are similar."""
    some, total = [], 0
    while total < 8 * tokens:  # eight batches' worth, sorted, of which one is taken: little padding
        text = rng.choice(sentences)
        first = [*read_badly(text, size, rng), SEPARATOR] if rng.random() < AGAIN else []
        some.append([BEGIN, *first, *text, END])
        total += len(some[-1])
    some.sort(key=len)
    start = rng.randrange(8) * len(some) // 8
    rows = [torch.tensor(ids) for ids in some[start : start + len(some) // 8]]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def read_badly(text: list[int], size: int, rng: random.Random) -> list[int]:
    """Every piece up to LONGEST times, some lost, some mistaken for another of `size`."""
    found = []
    for piece in text:
        if rng.random() < LOST:
            continue
        heard = rng.randrange(len(SPECIAL), size) if rng.random() < MISTAKEN else piece
        found += [heard] * rng.randint(1, LONGEST)
    return found


def loss_of(network: GPTNeoXForCausalLM, ids: Tensor) -> Tensor:
    """Cross-entropy of every next piece of ids (N, L), </s> included; what is badly written is learnt too."""
    logits = network(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
