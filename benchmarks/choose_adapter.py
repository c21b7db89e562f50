"""Adapters on or off, chosen by the model itself: python benchmarks/choose_adapter.py RUN [RUN ...]

Each RUN is a finished run of hubert_gpt_bridge.py with --init and adapters in a GPT that is frozen otherwise, beside a
frozen HuBERT and bridge. It is scored on its test sets three times, with the adapters on, off, and as the model
chooses: it writes both answers, and keeps the one to which it gives the higher probability, with the adapters for the
answer with adapters. Prints in Markdown word errors in % by test set, and how often the adapters were chosen. "off" has
to be what the run of --init says of the same audio: whoever keeps it loses nothing at home.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import lora, metrics  # noqa: E402
from common.running import corpora  # noqa: E402
from common.running.batches import Batch, evaluation_batches, loader  # noqa: E402
from common.running.command_line import load_config  # noqa: E402
from common.running.process import Place, join  # noqa: E402
from common.running.runs import FinishedRun, load_run  # noqa: E402
from hubert_gpt_bridge import PRESETS, answer_losses  # noqa: E402


class Answer(NamedTuple):
    text: str
    log_prob: float  # of the text behind the audio, summed over its pieces


@contextmanager
def switched_off(recogniser: nn.Module) -> Iterator[None]:
    """Inside the block B of every adapter is zero, so that W x + 2 B A x is W x."""
    adapters = [part for part in recogniser.modules() if isinstance(part, lora.LoRA)]
    kept = [part.B.detach().clone() for part in adapters]
    for part in adapters:
        part.B.data.zero_()
    yield
    for part, b in zip(adapters, kept, strict=True):
        part.B.data.copy_(b)


def answers(run: FinishedRun, batch: Batch, place: Place) -> list[Answer]:
    recogniser = run.recogniser
    texts = [transcript.text for transcript in recogniser.transcribe(batch, place)]
    labels = [torch.tensor(recogniser.tokenizer.encode(text), dtype=torch.long) for text in texts]
    written = batch._replace(
        targets=nn.utils.rnn.pad_sequence(labels, batch_first=True),
        target_lengths=torch.tensor([len(row) for row in labels]),
    )
    h, lengths = recogniser.encode(batch)  # (B, T, D)
    losses = answer_losses(recogniser, h, lengths, written)  # (B,)
    return [Answer(text, -loss) for text, loss in zip(texts, losses.tolist(), strict=True)]


def answers_of_set(
    run: FinishedRun, utterances: list[corpora.Utterance], place: Place
) -> list[dict[str, Answer]]:
    """For every utterance the answers "on" and "off"."""
    found = {}
    plan = evaluation_batches(utterances, run.config.batch_seconds)
    for batch in tqdm(loader(plan, run.config), total=len(plan), leave=False):
        with torch.inference_mode():
            on = answers(run, batch, place)
            with switched_off(run.recogniser):
                off = answers(run, batch, place)
        for utterance, *pair in zip(batch.utterances, on, off, strict=True):
            found[utterance.id] = dict(zip(("on", "off"), pair, strict=True))
    return [found[utterance.id] for utterance in utterances]


def rate(references: list[str], found: list[Answer]) -> float:
    return metrics.word_errors(references, [answer.text for answer in found]).rate


def main(folders: list[str]) -> None:
    place = join("cpu", "fp32")
    print("| run | test set | on | off | as it chooses | chosen on, % |")
    print("|---" * 6 + "|")
    for folder in folders:
        run = load_run(folder, place)
        config = run.config
        corpus = corpora.load_corpus(config.data, config.root, scoring=True)
        home = load_config(config.init, PRESETS).data
        corpus = corpora.with_tests_of(corpus, config.data, home, config.root)
        for name, utterances in corpus.tests.items():
            found = answers_of_set(run, utterances, place)
            chosen = [max(pair, key=lambda which: pair[which].log_prob) for pair in found]
            references = [utterance.text for utterance in utterances]
            rates = [
                rate(references, [pair["on"] for pair in found]),
                rate(references, [pair["off"] for pair in found]),
                rate(references, [pair[w] for pair, w in zip(found, chosen, strict=True)]),
                100 * chosen.count("on") / len(chosen),
            ]
            cells = " | ".join(f"{x:.1f}" for x in rates)
            print(f"| {Path(folder).name} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
