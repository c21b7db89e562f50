"""Share of padded frames in the batches of one epoch: python benchmarks/padding.py [--root data]

On the demo world with its preset's batches, and on 20,000 made-up durations that spread like LibriSpeech's (1 to 17 s).
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.running.batches import Order, plan_epoch
from common.running.corpora import Utterance, load_corpus
from interaed_kd import DEMO, Config


def waste(utterances, update_seconds: float, batch_seconds: float, epoch: int) -> float:
    plan = plan_epoch(utterances, epoch, 1, Order(update_seconds, batch_seconds))
    padded = sum(len(p.utterances) * max(u.duration for u in p.utterances) for p in plan)
    return 100 * (1 - sum(u.duration for u in utterances) / padded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    demo, rng = load_corpus("demo", parser.parse_args().root).train, random.Random(0)
    long = [Utterance(str(i), "", "", 1 + 16 * rng.betavariate(3, 1.5)) for i in range(20_000)]
    for name, utterances, sizes in (
        ("demo", demo, (DEMO.training.update_seconds, DEMO.batch_seconds)),
        ("full", long, (Config.training.update_seconds, Config.batch_seconds)),
    ):
        shares = (
            f"epoch {epoch}: {waste(utterances, *sizes, epoch):.2f} % padding"
            for epoch in (0, 1, 2)
        )
        print(name, *shares, sep="; ")
