"""What a finished student does in other chunks, and when its words come: python benchmarks/streaming_aux_kd.py RUN

RUN is the folder of a finished streaming row, trained with one --chunk-ms and --left-ms; here it is decoded with
others, without learning anew. Writes RUN/context.png (WER against chunk and left context) and RUN/emission.png (by how
much words that student and teacher both get right end later), and prints both in Markdown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import streaming_aux_kd as script  # noqa: E402
from common import figures, metrics  # noqa: E402
from common.running import decoding  # noqa: E402
from common.running.batches import read_corpus  # noqa: E402
from common.running.corpora import trainable  # noqa: E402
from common.running.process import join  # noqa: E402
from common.running.runs import load_run  # noqa: E402

CHUNKS, LEFTS = (
    (80, 160, 320, 640),
    (0, 320, 640, 1280),
)  # ms; those where left is a multiple of the chunk


def word_errors(recogniser, utterances, config, place) -> float:
    found = decoding.texts_of(decoding.decode(recogniser, utterances, config, place))
    return metrics.score({u.id: u.text for u in utterances}, found, {})[0].rate


def delays(student, teacher, utterances, config, place) -> tuple[list[int], list[int]]:
    """ms by which each word that both get right ends later than the teacher's; ms until its chunk is complete."""
    found = [
        decoding.decode(recogniser, utterances, config, place) for recogniser in (student, teacher)
    ]
    late, until = [], []
    for u in utterances:
        mine, other = (some[u.id] for some in found)
        right = dict(metrics.hits(u.text, other.text))
        for i, j in metrics.hits(u.text, mine.text):
            if i in right:
                end, others = (round(1000 * x.end) for x in (mine.words[j], other.words[right[i]]))
                late.append(end - others)
                until.append(-end % config.chunk_ms)
    return late, until


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--utterances", type=int, default=200, help="of the first test set [200]")
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args(argv)
    place = join("auto", "auto")
    run = load_run(arguments.run, place, arguments.root)
    config, student = run.config, run.recogniser
    corpus = read_corpus(config, place)
    utterances = next(iter(corpus.tests.values()))[: arguments.utterances]
    rates = np.full((len(LEFTS), len(CHUNKS)), np.nan)
    for i, left in enumerate(LEFTS):
        for j, chunk in enumerate(CHUNKS):
            if left % chunk == 0:
                student.encoder.chunk, student.encoder.left = (
                    chunk // script.FRAME_MS,
                    left // script.FRAME_MS,
                )
                rates[i, j] = word_errors(student, utterances, config, place)
    print(
        "| left context, ms | "
        + " | ".join(f"chunk {chunk} ms" for chunk in CHUNKS)
        + " |\n"
        + "|---" * 5
        + "|"
    )
    for left, row in zip(LEFTS, rates, strict=True):
        print(f"| {left} | " + " | ".join("" if np.isnan(x) else f"{x:.1f}" for x in row) + " |")
    bars = {f"chunk {chunk} ms": rates[:, j].tolist() for j, chunk in enumerate(CHUNKS)}
    names, title = (
        [f"left {left} ms" for left in LEFTS],
        f"trained with {config.chunk_ms} + {config.left_ms} ms",
    )
    figures.bars(arguments.run / "context.png", names, bars, "word error rate, %", title)
    student = script.load(config, place)
    learned = trainable(corpus.train, config.training.max_seconds)
    teacher = script.find_teacher(config, learned, place)  # the one beside
    late, until = delays(student, teacher, utterances, config, place)
    edges = np.arange(-200, 241, 40)
    counts = np.histogram(late, [-np.inf, *edges, np.inf])[0] / max(len(late), 1)
    labels = [f"before {edges[0]}", *(f"{a} to {a + 40}" for a in edges[:-1]), f"from {edges[-1]}"]
    bars = {"words": (100 * counts).tolist()}
    figures.bars(
        arguments.run / "emission.png", labels, bars, "% of words", "ms after the teacher's"
    )
    print(f"\n{len(late)} words: {np.mean(late):.1f} ms later than the teacher's (median {np.median(late):.0f}); "
          f"their chunk is complete {np.mean(until):.0f} ms after their end")  # fmt: skip


if __name__ == "__main__":
    main()
