"""Where in the encoder twins become separable: python benchmarks/probe.py RUN [RUN …]

For each layer of each run's exported encoder, a linear classifier per pair of homophones learns from the training
utterances which twin was meant, and is scored on test-clean. What it sees of a word is the mean of the layer's states
over the frames that CTC aligns with it. Twins sound the same: beyond which of them is more frequent (which it learns
too) it can only find context, or a little of the alignment, which is made with the right word. Prints the accuracy per
layer and that of always choosing the more frequent twin, and draws results/probe.png.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import ctc, figures  # noqa: E402
from common.running.batches import evaluation_batches, loader  # noqa: E402
from common.running.corpora import load_corpus  # noqa: E402
from common.running.process import Place  # noqa: E402
from common.running.runs import load_run  # noqa: E402


@torch.inference_mode()
def homophones(recogniser, config, utterances, twins) -> tuple[Tensor, list[str]]:
    """The states (N, layers, D) of all N homophones that CTC can align, and which words they are."""
    states, words, tokenizer = [], [], recogniser.tokenizer
    for batch in loader(evaluation_batches(utterances, config.batch_seconds), config):
        layers, lengths = recogniser(
            batch.waves, batch.samples, tuple(range(1, config.encoder.layers))
        )
        log_probs = recogniser.log_probs(layers[-1])
        for i, utterance in enumerate(batch.utterances):
            labels, n = tokenizer.encode(utterance.text), int(lengths[i])
            target = torch.tensor([labels])
            if ctc.required_frames(target, torch.tensor([len(labels)])) > n:
                continue
            for token in ctc.align(log_probs[i, :n], labels):
                word = tokenizer.pieces[token.label - 1]
                if word in twins:
                    states.append(
                        torch.stack([layer[i, token.start : token.end].mean(0) for layer in layers])
                    )
                    words.append(word)
    return torch.stack(states), words


def probe(
    train: tuple[Tensor, list[str]], test: tuple[Tensor, list[str]], twins: dict[str, str]
) -> list[float]:
    """Accuracy per layer, in per cent, of a logistic regression for each pair."""
    names = sorted(twins)
    index = {name: i for i, name in enumerate(names)}
    other = torch.tensor([index[twins[name]] for name in names])
    accuracies = []
    for layer in range(train[0].shape[1]):
        mean, std = train[0][:, layer].mean(0), train[0][:, layer].std(0) + 1e-5
        (x, y), (test_x, test_y) = (
            ((states[:, layer] - mean) / std, torch.tensor([index[word] for word in words]))
            for states, words in (train, test)
        )
        torch.manual_seed(0)
        linear = torch.nn.Linear(x.shape[1], len(names))
        optimizer = torch.optim.AdamW(linear.parameters(), lr=0.02, weight_decay=0.1)
        for _ in range(300):
            scores = linear(x)
            margin = scores.gather(1, y[:, None]) - scores.gather(
                1, other[y][:, None]
            )  # to the twin
            torch.nn.functional.softplus(-margin).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        scores = linear(test_x)
        right = scores.gather(1, test_y[:, None]) > scores.gather(1, other[test_y][:, None])
        accuracies.append(100 * right.float().mean().item())
    return accuracies


def main(folders: list[str]) -> None:
    found = {}
    for folder in folders:
        run = load_run(folder, Place(0, 1, torch.device("cpu")))
        config, recogniser = run.config, run.recogniser
        corpus = load_corpus(config.data, config.root, config.hours)
        sides = corpus.train, corpus.tests["test-clean"]
        train, test = (homophones(recogniser, config, side, corpus.homophones) for side in sides)
        found[Path(folder).name] = probe(train, test, corpus.homophones)
        counts = Counter(train[1])
        usual = sum(counts[word] > counts[corpus.homophones[word]] for word in test[1]) / len(
            test[1]
        )
        print(
            f"{Path(folder).name:24} the more frequent twin {100 * usual:.1f}",
            *(f"{x:6.1f}" for x in found[Path(folder).name]),
            "% right per layer",
        )
    layers = [f"layer {i + 1}" for i in range(len(next(iter(found.values()))))]
    figures.bars(
        ROOT / "results" / "probe.png",
        layers,
        found,
        "right twin by a linear probe, %",
        "test-clean",
    )


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
