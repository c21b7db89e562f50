"""Domains before and after adaptation, and where the time goes: python benchmarks/hubert_gpt_bridge.py RUN [RUN ...]

Each RUN is the folder of a scored run, the first before adaptation (evaluate.py), the others after. Writes domains.png into
the last (WER of every test set; that of people talking also without fillers, which may be all that was learnt) and
prints it in Markdown. Then the seconds per second of audio of the last run that has weights, on utterances of its own
dev set one by one: HuBERT and bridge; GPT reading the prompt; GPT writing.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from common import figures, metrics, prompting  # noqa: E402
from common.demo.spontaneous import FILLERS  # noqa: E402
from common.running.batches import read_one  # noqa: E402
from common.running.corpora import load_corpus  # noqa: E402
from common.running.hypotheses import read_hypotheses  # noqa: E402
from common.running.process import join, synchronise  # noqa: E402
from common.running.runs import load_run  # noqa: E402


def without_fillers(text: str) -> str:
    return " ".join(re.sub(rf"\b({'|'.join(FILLERS)})\b", " ", text).split())


def word_errors(run: Path) -> dict[str, float]:
    """{test set: WER in per cent} from a run's hypotheses."""
    rates = {}
    for path in sorted(run.glob("hyp_*.tsv")):
        split = path.stem.removeprefix("hyp_")
        _, references, hypotheses = zip(*read_hypotheses(path), strict=True)
        rates[split] = metrics.word_errors(references, hypotheses).rate
        if split == "test":  # of demo-talk
            bare = [list(map(without_fillers, side)) for side in (references, hypotheses)]
            rates["test, without fillers"] = metrics.word_errors(*bare).rate
    return rates


@torch.inference_mode()
def time_parts(run: Path, root: str, count: int) -> dict[str, float]:
    """Seconds per second of audio, over so many dev utterances."""
    place = join("auto", "auto")
    config, recogniser = load_run(run, place, root)[2:]
    seconds = 0.0
    sums = dict.fromkeys(("HuBERT and bridge", "prompt", "writing"), 0.0)
    for i, utterance in enumerate(load_corpus(config.data, config.root).dev[: count + 3]):
        batch = read_one(utterance, config).to(place.device)
        clock = [synchronise(place)]
        a, sizes = recogniser.bridge(*recogniser.encode(batch))
        sequences = recogniser.sequences(a, sizes, None)
        clock.append(synchronise(place))
        recogniser.llm(
            inputs_embeds=sequences.inputs, attention_mask=sequences.mask.long(), use_cache=True
        )
        clock.append(synchronise(place))
        prompting.write(
            recogniser.llm, sequences, recogniser.limits(batch.samples), recogniser.frame().end
        )
        clock.append(synchronise(place))
        if i >= 3:  # the first ones warm up
            parts = [b - a for a, b in zip(clock, clock[1:], strict=False)]
            parts[2] -= parts[1]  # generate reads the prompt too
            seconds += utterance.duration
            for name, part in zip(sums, parts, strict=True):
                sums[name] += part
    return {name: total / seconds for name, total in sums.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--utterances", type=int, default=40, help="to be timed [40]")
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args(argv)
    found = {run.name: word_errors(run) for run in arguments.runs}
    splits = list(dict.fromkeys(split for rates in found.values() for split in rates))
    print("| run | " + " | ".join(splits) + " |\n" + "|---" * (len(splits) + 1) + "|")
    for name, rates in found.items():
        print(
            f"| {name} | "
            + " | ".join(f"{rates[s]:.1f}" if s in rates else "" for s in splits)
            + " |"
        )
    shown = {
        name: [rates.get(split, math.nan) for split in splits] for name, rates in found.items()
    }
    figures.bars(
        arguments.runs[-1] / "domains.png",
        splits,
        shown,
        "word error rate, %",
        "before and after adaptation",
    )
    trained = [run for run in arguments.runs if (run / "model.safetensors").exists()]
    if trained:
        parts = time_parts(trained[-1], arguments.root, arguments.utterances)
        print(
            f"\n{trained[-1].name}: "
            + ", ".join(f"{name} {x:.4f}" for name, x in parts.items())
            + " s per s of audio"
        )


if __name__ == "__main__":
    main()
