"""Text models of the demo world, really pretrained: two BERTs and a causal language model, in a minute or so each.

    bert-a   8 layers, on text.txt: the teacher
    bert-b   4 layers, on text-b.txt, which speaks of half the scenes only: a teacher from another domain
    lm       4 layers, causal, on text.txt: for decoding by beam search

and `train_causal`, which makes a causal language model from any configuration: see llama.py.

All have the world's written vocabulary and are saved as Hugging Face folders. BERT learns to fill masked tokens in
single sentences and in whole conversations, in turn: a conversation tells more about its scene, and without it the
model needs several times as long to find out which words belong together. The LM reads [CLS] sentence [SEP].

Eight layers learn slowly from scratch. So bert-a begins with four, which are then put on top of themselves and trained
on (progressive stacking, Gong et al. 2019).

The same seed gives the same bytes on the same machine, whatever the number of threads it is called with.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
)

from common.running.process import quiet_bars
from common.running.schedules import one_cycle
from common.text import WordPiece

PAD, UNK, CLS, SEP, MASK = range(5)  # the vocabulary begins with them
MASKED = 0.25  # share of the tokens; more than BERT's 0.15, since the time is short
INITIAL = 0.05  # standard deviation of the first weights; with 0.02 learning starts late, with 0.1 it never does


class Recipe(NamedTuple):
    text: str  # file
    layers: int
    steps: int
    grow: int = (
        0  # step at which the network, until then of half the depth, is put on top of itself
    )
    dim: int = 64
    heads: int = 2
    tokens: int = 1500  # per step, about
    lr: float = 3e-3  # peak


RECIPES = {
    "bert-a": Recipe("text.txt", layers=8, steps=850, grow=650),
    "bert-b": Recipe("text-b.txt", layers=4, steps=700, dim=48),
    "lm": Recipe("text.txt", layers=4, steps=600),
}
SMALL = {"layers": 2, "dim": 32, "steps": 60, "grow": 0, "tokens": 1000}  # for the smoke world


def pretrain(world: Path, model: str, small: bool, seed: int, progress: bool) -> None:
    """Trains `model` on the text of `world` and puts it into WORLD/<model>."""
    recipe = RECIPES[model]._replace(**SMALL if small else {})
    vocabulary = (world / "bert-a" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    conversations = read_conversations(world / recipe.text, vocabulary)
    with reproducible(seed):
        trained = train(
            model, recipe, len(vocabulary), conversations, random.Random(seed), progress
        )
    publish(
        trained,
        world,
        model,
        [world / "bert-a" / name for name in ("vocab.txt", "tokenizer_config.json")],
    )


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Inside the block, torch draws from the seed, and sums do not depend on the number of threads."""
    threads = torch.get_num_threads()
    # The order of additions, and with it every byte, depends on the number of threads. One is nearly as fast as two for
    # matrices this small, and far faster where another program keeps a core busy.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def publish(trained: nn.Module, world: Path, model: str, files: Iterable[Path] = ()) -> None:
    """WORLD/<model> with these files beside the model; the weights come last, and in one move."""
    draft = (
        world / f".building-{model}-{os.getpid()}"
    )  # cleared away some day if this build is killed
    quiet_bars()
    trained.save_pretrained(draft)
    for path in files:
        shutil.copy(path, draft)
    (world / model).mkdir(exist_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        path.replace(world / model / path.name)
    draft.rmdir()


def read_conversations(path: Path, vocabulary: list[str]) -> list[list[list[int]]]:
    """The vocabulary's ids of every sentence of every conversation, without [CLS] and [SEP]."""
    tokenizer = WordPiece.from_vocabulary(vocabulary)
    ids, known = tokenizer.ids_in(vocabulary), {}

    def encode(word: str) -> list[int]:
        if word not in known:
            known[word] = [ids[label - 1] for label in tokenizer.encode(word)]
        return known[word]

    texts = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [
        [[i for word in line.split() for i in encode(word)] for line in text.split("\n")]
        for text in texts
    ]


def train(
    model: str,
    recipe: Recipe,
    size: int,
    conversations: list[list[list[int]]],
    rng: random.Random,
    progress: bool,
) -> nn.Module:
    build, loss_of = (gpt2, gpt2_loss) if model == "lm" else (bert, bert_loss)
    network = build(recipe._replace(layers=recipe.layers // 2) if recipe.grow else recipe, size)
    optimizer = adamw(network)
    for step in tqdm(
        range(recipe.steps), f"pretraining {model}", unit="step", disable=None if progress else True
    ):
        if recipe.grow and step == recipe.grow:
            network = stack(network, build(recipe, size))
            optimizer = adamw(network)
        if step < recipe.grow:
            share = min(1.0, 10 * (step + 1) / recipe.grow)
        else:
            share = one_cycle((step - recipe.grow + 1) / (recipe.steps - recipe.grow), 0.1)
        optimizer.param_groups[0]["lr"] = recipe.lr * share
        whole = model != "lm" and step % 2 == 1
        loss_of(network, draw(conversations, recipe.tokens, rng, whole)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def adamw(network: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def stack(shallow: nn.Module, deep: nn.Module) -> nn.Module:
    """`deep` with the weights of `shallow`, whose layers it gets twice, one set above the other."""
    state, half = shallow.state_dict(), shallow.config.num_hidden_layers
    for name in list(state):
        if found := re.match(r"(.*\.layer\.)(\d+)(\..*)", name):
            state[f"{found[1]}{int(found[2]) + half}{found[3]}"] = state[name]
    deep.load_state_dict(state)
    return deep.train()


def draw(
    conversations: list[list[list[int]]], tokens: int, rng: random.Random, whole: bool
) -> Tensor:
    """About `tokens` ids (N, L): [CLS] a sentence, or a whole conversation, [SEP], padded. Lengths are similar."""
    texts, size = [], 0
    while size < 8 * tokens:  # eight batches' worth, sorted, of which one is taken: little padding
        conversation = rng.choice(conversations)
        texts.append(sum(conversation, []) if whole else rng.choice(conversation))
        size += len(texts[-1]) + 2
    texts.sort(key=len)
    first = rng.randrange(8) * len(texts) // 8
    some = [torch.tensor([CLS, *text, SEP]) for text in texts[first : first + len(texts) // 8]]
    return nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=PAD)


def bert(recipe: Recipe, size: int) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=size, hidden_size=recipe.dim, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.dim, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=256, initializer_range=INITIAL, pad_token_id=PAD,
    )  # fmt: skip
    return BertForMaskedLM(config).train()


def bert_loss(network: BertForMaskedLM, ids: Tensor) -> Tensor:
    """Cross-entropy of the masked tokens of ids (N, L). 80 % [MASK], 10 % another, 10 % the same, as Devlin et al."""
    chosen = (torch.rand(ids.shape) < MASKED) & (ids > MASK)
    how = torch.rand(ids.shape)
    shown = torch.where(chosen & (how < 0.8), MASK, ids)
    other = torch.randint(MASK + 1, network.config.vocab_size, ids.shape)
    shown = torch.where(chosen & (how >= 0.9), other, shown)
    states = network.bert(shown, (ids != PAD).long()).last_hidden_state  # (N, L, D)
    return nn.functional.cross_entropy(network.cls(states[chosen]), ids[chosen])


def gpt2(recipe: Recipe, size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=size, n_embd=recipe.dim, n_layer=recipe.layers, n_head=recipe.heads, n_positions=256,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=CLS, eos_token_id=SEP, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def gpt2_loss(network: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Cross-entropy of every next token of ids (N, L), [SEP] included."""
    logits = network(ids[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


# ------------------------------------------------------------------------------------------- causal language models

# Texts read again [choice]: each piece is lost or another one now and then, stands there once or more often, and may be
# followed by a blank, much as what CTC says of 80-ms frames: about 1.8 as long as the text.
LOST, WRONG, BLANK = 0.05, 0.05, 0.4
REPEATS, REPEAT_WEIGHTS = (1, 2, 3), (6, 3, 1)
NO_TARGET = -100


def train_causal(
    config: PretrainedConfig, texts: list[list[int]], steps: int, seed: int, again: float, blank: int,
    tokens: int = 1500, lr: float = 3e-3, progress: str = "",
) -> nn.Module:  # fmt: skip
    """A causal language model of any family, trained from scratch on the ids of texts: `<s> X </s>`.

    again: share of texts read again, `X' <s> X </s>` where X' is X as `stretch` makes it, without loss at X'. A tiny
    frozen model can only say what it reads if it has learnt to, as large ones have [choice]; where the configuration
    has a separator, `<s> X' [SEP] X </s>`. blank: an id that stands for no text, such as the unknown piece. tokens: per
    step, about; lr: peak; progress: title of a bar, none without.
    """
    rng, known = random.Random(seed), sorted({i for ids in texts for i in ids})
    bos, separator = config.bos_token_id, getattr(config, "sep_token_id", None)
    with reproducible(seed):
        network = AutoModelForCausalLM.from_config(config).train()
        optimizer = adamw(network)
        for step in tqdm(range(steps), progress, unit="step", disable=None if progress else True):
            rows, read_again = [], rng.random() < again
            while (
                sum(len(ids) for _, ids in rows) < 8 * tokens
            ):  # of which one batch of similar lengths is taken
                text = rng.choice(texts)
                before = stretch(text, known, blank, rng) if read_again else []
                if read_again and separator is not None:
                    before = [bos, *before]
                middle = separator if before and before[0] == bos else bos
                rows.append((len(before), [*before, middle, *text, config.eos_token_id]))
            rows.sort(key=lambda row: len(row[1]))
            first = rng.randrange(8) * len(rows) // 8
            rows = rows[first : first + len(rows) // 8]
            optimizer.param_groups[0]["lr"] = lr * one_cycle((step + 1) / steps, 0.1)
            causal_loss(network, rows).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()


def stretch(ids: list[int], known: list[int], blank: int, rng: random.Random) -> list[int]:
    """The text as a recogniser might put it, frame by frame. known: pieces that may stand for another."""
    stretched = []
    for i in ids:
        draw = rng.random()
        if draw >= LOST:
            piece = i if draw >= LOST + WRONG else rng.choice(known)
            stretched += [piece] * rng.choices(REPEATS, REPEAT_WEIGHTS)[0] + [blank] * (
                rng.random() < BLANK
            )
    return stretched


def causal_loss(network: nn.Module, rows: list[tuple[int, list[int]]]) -> Tensor:
    """Mean cross-entropy of every next id of N rows (n, ids), but for the first n of each."""
    # Causal: no position sees what is padded on its right, so nothing has to be masked.
    inputs = nn.utils.rnn.pad_sequence(
        [torch.tensor(ids[:-1]) for _, ids in rows], batch_first=True
    )  # (N, L)
    targets = [torch.tensor([*[NO_TARGET] * n, *ids[n + 1 :]]) for n, ids in rows]
    targets = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=NO_TARGET)
    logits = network(inputs, use_cache=False).logits.float()
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET
    )
