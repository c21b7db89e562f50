"""Errors by language, and what a stride costs: python benchmarks/llm_prompt_asr.py RUN [RUN ...]

Each RUN is the folder of a finished run. Prints the WER of every language and run in Markdown and writes languages.png
into the last. Then, for every run of llm: seconds of decoding so many test utterances one by one over those in batches
of 16, in turn, and whether the answers are the same; and for half a minute of speech the vectors of its prompt, the
bytes of keys and values that the language model keeps of them, and the seconds that it reads.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import llm_prompt_asr as script  # noqa: E402
from common import figures  # noqa: E402
from common.running.batches import MicroBatch, loader, read_corpus  # noqa: E402
from common.running.process import join, synchronise  # noqa: E402
from common.running.runs import load_run  # noqa: E402

BATCH, REPEATS, LONG = 16, 3, 30.0  # utterances; interleaved; seconds


def show_languages(runs: list[Path]) -> None:
    rates = {run.name: json.loads((run / "result.json").read_text())["wer"] for run in runs}
    splits = list(dict.fromkeys(split for some in rates.values() for split in some))
    print("| run | " + " | ".join(split.removeprefix("test-") for split in splits) + " |")
    print("|---" * (len(splits) + 1) + "|")
    for name, some in rates.items():
        print(
            f"| {name} | "
            + " | ".join(f"{some[s]:.1f}" if s in some else "" for s in splits)
            + " |"
        )
    series = {name: [some.get(split, 0.0) for split in splits] for name, some in rates.items()}
    names = [split.removeprefix("test-") for split in splits]
    figures.bars(runs[-1] / "languages.png", names, series, "word error rate, %", "by language")


def decode(recogniser, utterances: list, size: int, config, place) -> tuple[float, list[str]]:
    """Seconds, and the texts; without reading the audio."""
    groups = [utterances[i : i + size] for i in range(0, len(utterances), size)]
    batches = list(loader([MicroBatch(group) for group in groups], config))
    clock, texts = synchronise(place), []
    for batch in batches:
        texts += [
            transcript.text for transcript in recogniser.transcribe(batch.to(place.device), place)
        ]
    return synchronise(place) - clock, texts


@torch.inference_mode()
def show_costs(run: Path, root: str, count: int) -> None:
    place = join("auto", "auto")
    config, recogniser = load_run(run, place, root)[2:]
    utterances = sum(read_corpus(config, place).tests.values(), [])  # of all languages
    utterances = random.Random(0).sample(utterances, min(count, len(utterances)))
    utterances.sort(
        key=lambda u: u.duration
    )  # as everywhere, those of a batch are of similar length
    pairs = [
        [decode(recogniser, utterances, size, config, place) for size in (1, BATCH)]
        for _ in range(REPEATS)
    ]
    ratio, same = (
        np.median([one[0] / many[0] for one, many in pairs]),
        pairs[0][0][1] == pairs[0][1][1],
    )
    frames = int(LONG * 1000 / script.FRAME_MS)
    h = torch.randn(1, frames, config.conformer.dim, device=place.device)
    stacked, lengths = script.stack(
        h, torch.tensor([frames], device=place.device), recogniser.stride
    )
    sequences = recogniser.sequences(recogniser.projection(stacked), lengths, texts=None)
    seconds = []
    for _ in range(REPEATS + 1):  # the first warms up
        clock = synchronise(place)
        kept = recogniser.lm(inputs_embeds=sequences.inputs, use_cache=True).past_key_values
        seconds.append(synchronise(place) - clock)
    size = sum(x.nbytes for layer in kept.layers for x in (layer.keys, layer.values))
    print(f"{run.name}: one by one takes {ratio:.1f} x the time of batches of {BATCH}, "
          f"answers {'the same' if same else 'DIFFER'}; {LONG:.0f} s of speech: {sequences.inputs.shape[1]} positions, "
          f"{size / 1024:.0f} KiB of keys and values, read in {1000 * np.median(seconds[1:]):.1f} ms")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--utterances", type=int, default=64, help="to be decoded [64]")
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args(argv)
    show_languages(arguments.runs)
    for run in arguments.runs:
        if json.loads((run / "result.json").read_text())["method"] == "llm":
            show_costs(run, arguments.root, arguments.utterances)


if __name__ == "__main__":
    main()
