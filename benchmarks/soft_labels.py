"""Asking BERT quickly: python benchmarks/soft_labels.py

The masked copies of some sentences, asked as the script does (equal lengths together, the vocabulary head at the masked
position only), against the same batches with the head on every position, and against copies padded to the longest.
Medians of 5 interleaved repeats, and the largest difference of the probabilities.
"""

import random
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from interaed_kd import label_tokens, soften


@torch.inference_mode()
def everywhere(teacher, questions, theirs, mask, k, tau, pad: bool) -> torch.Tensor:
    """The same soft labels with the library's own forward pass: logits at every position, then those at the mask."""
    copies = sorted(((ids, start + i) for ids, start, y in questions for i in range(len(y))), key=lambda c: len(c[0]))
    longest, kept, found, first = max(len(ids) for ids, _ in copies), theirs, [], 0
    while first < len(copies):
        length = longest if pad else len(copies[first][0])
        part = [c for c in copies[first : first + 2**14 // length] if pad or len(c[0]) == length]
        first += len(part)
        ids = torch.zeros(len(part), length, dtype=torch.long)
        for row, (text, _) in zip(ids, part, strict=True):
            row[: len(text)] = torch.tensor(text)
        rows, positions = torch.arange(len(part)), torch.tensor([position for _, position in part])
        real = (ids != 0).long()
        ids[rows, positions] = mask
        found.append(soften(teacher(ids, real).logits[rows, positions], kept, k, tau)[1])
    return torch.cat(found)


def compare(name: str, config: BertConfig, sentences: int, kept: int) -> None:
    torch.manual_seed(0)
    teacher = BertForMaskedLM(config).eval()
    rng = random.Random(0)
    theirs = torch.tensor([-1, *rng.sample(range(5, config.vocab_size), kept)])
    questions = []
    for _ in range(sentences):
        y = torch.tensor([rng.randint(1, kept) for _ in range(rng.randint(8, 40))])
        questions.append(([2, *theirs[y].tolist(), 3], 1, y))
    questions.sort(key=lambda question: len(question[0]))
    ways = {
        "ours": lambda: torch.cat([x.probs for x in label_tokens(teacher, questions, theirs, 4, 8, 3.0)]),
        "head everywhere": lambda: everywhere(teacher, questions, theirs, 4, 8, 3.0, pad=False),
        "padded, head everywhere": lambda: everywhere(teacher, questions, theirs, 4, 8, 3.0, pad=True),
    }
    seconds, results = {way: [] for way in ways}, {}
    with torch.inference_mode():
        for _ in range(5):
            for way, ask in ways.items():
                started = perf_counter()
                results[way] = ask()
                seconds[way].append(perf_counter() - started)
    medians = {way: median(s) for way, s in seconds.items()}
    apart = max((results[way] - results["ours"]).abs().max().item() for way in ways)
    shown = ", ".join(f"{way} {s:.2f} s ({s / medians['ours']:.2f})" for way, s in medians.items())
    print(f"{name}: {shown}; probabilities differ by {apart:.1e}", flush=True)


if __name__ == "__main__":
    demo = dict(num_hidden_layers=8, hidden_size=64, num_attention_heads=2, intermediate_size=256)
    compare("demo's BERT, V 311", BertConfig(vocab_size=311, **demo), 200, 300)
    compare("demo's BERT, V 30522", BertConfig(vocab_size=30522, **demo), 40, 5000)
    compare("bert-base-uncased's size", BertConfig(), 6, 5000)
