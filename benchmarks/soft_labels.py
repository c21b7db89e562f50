"""Asking BERT about every token quickly: python benchmarks/soft_labels.py

The masked copies of some sentences, asked as the scripts do (equal lengths together, the vocabulary head at the masked
position only), against the same batches with the head on every position, and against copies padded to the longest.
Medians of 5 interleaved repeats, and the largest difference of the probabilities.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from conformer import interleaved
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.bert import MaskedLM, by_length
from common.running.pretrained import load_masked_lm

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def untrained(config: BertConfig) -> MaskedLM:
    """A BERT of that size with a made-up vocabulary."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        BertForMaskedLM(config).save_pretrained(folder)
        pieces = [*SPECIAL, *map(str, range(config.vocab_size - len(SPECIAL)))]
        Path(folder, "vocab.txt").write_text("\n".join(pieces) + "\n")
        Path(folder, "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer"})
        )
        return load_masked_lm(folder, "--teacher", "data", "cpu")


def sparingly(teacher: MaskedLM, rows: list[list[int]], positions: list[int]) -> Tensor:
    """Probabilities (N, vocabulary) at one masked position of each of N rows, as the scripts ask for them."""
    found = torch.empty(len(rows), len(teacher.pieces))
    for part in by_length(rows):
        found[part] = teacher.logits([rows[i] for i in part], [positions[i] for i in part]).softmax(
            -1
        )
    return found


@torch.inference_mode()
def everywhere(teacher: MaskedLM, rows: list[list[int]], positions: list[int], pad: bool) -> Tensor:
    """The same with the library's own forward pass: logits at every position, then those at the mask."""
    longest, found = max(map(len, rows)), torch.empty(len(rows), len(teacher.pieces))
    padded = [row + [0] * (longest - len(row)) for row in rows] if pad else rows
    for part in by_length(padded):
        ids, at = (
            torch.tensor([padded[i] for i in part]),
            torch.tensor([positions[i] for i in part]),
        )
        real, each = (ids != 0).long(), torch.arange(len(part))
        ids[each, at] = teacher.mask
        found[part] = teacher.model(ids, real).logits[each, at].softmax(-1)
    return found


def compare(name: str, config: BertConfig, sentences: int) -> None:
    teacher, rng, rows, positions = untrained(config), random.Random(0), [], []
    for _ in range(sentences):
        ids = [rng.randrange(len(SPECIAL), config.vocab_size) for _ in range(rng.randint(8, 40))]
        rows += [[teacher.cls, *ids, teacher.sep]] * len(ids)
        positions += range(1, len(ids) + 1)
    found = {}
    variants = {
        "ours": lambda: found.update(ours=sparingly(teacher, rows, positions)),
        "head everywhere": lambda: found.update(
            everywhere=everywhere(teacher, rows, positions, pad=False)
        ),
        "padded, head everywhere": lambda: found.update(
            padded=everywhere(teacher, rows, positions, pad=True)
        ),
    }
    medians = interleaved(variants, 5)
    apart = max((probs - found["ours"]).abs().max().item() for probs in found.values())
    shown = ", ".join(
        f"{name} {s:.2f} s ({s / medians['ours']:.2f})" for name, s in medians.items()
    )
    print(f"{name}: {shown}; probabilities differ by {apart:.1e}", flush=True)


if __name__ == "__main__":
    demo = dict(num_hidden_layers=8, hidden_size=64, num_attention_heads=2, intermediate_size=256)
    compare("demo's BERT, V 311", BertConfig(vocab_size=311, **demo), 100)
    compare("demo's BERT, V 30522", BertConfig(vocab_size=30522, **demo), 20)
    compare("bert-base-uncased's size", BertConfig(), 2)
