"""Our Conformer against torchaudio's and Hugging Face's at equal sizes: python benchmarks/conformer.py [--repeats 15]

Forward and backward of the blocks alone (no subsampling), medians of interleaved repeats on two threads. torchaudio's
has no positions and BatchNorm; Hugging Face's has rotary positions. Both drop attention weights too, ours does not.

With --stream MINUTES: how long one thread takes for 160 ms of a stream, from samples to encoder frames, in the first
minute and in the last, and what process and state take up then (streaming_aux_kd.py's size S, left context 640 ms).
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torchaudio
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoder,
)

from common.conformer import Conformer, length_mask
from common.features import SAMPLE_RATE
from common.streaming import StreamingEncoder
from streaming_aux_kd import Config, Recogniser


def interleaved(functions: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a slow moment hits all of them."""
    times = {name: [] for name in functions}
    for _ in range(repeats + 2):
        for name, function in functions.items():
            started = perf_counter()
            function()
            times[name].append(perf_counter() - started)
    return {name: median(values[2:]) for name, values in times.items()}  # the first two warm up


def compare(
    dim: int, layers: int, ff_dim: int, kernel: int, B: int, T: int, dropout: float, repeats: int
) -> None:
    heads = 4
    ours = Conformer(
        dim=dim, layers=layers, heads=heads, ff_dim=ff_dim, kernel=kernel, dropout=dropout
    )
    torchaudios = torchaudio.models.Conformer(dim, heads, ff_dim, layers, kernel, dropout=dropout)
    config = Wav2Vec2ConformerConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ff_dim,
        conv_depthwise_kernel_size=kernel, hidden_act="swish", position_embeddings_type="rotary", layerdrop=0.0,
        hidden_dropout=dropout, attention_dropout=dropout, activation_dropout=dropout, conformer_conv_dropout=dropout,
        attn_implementation="eager",
    )  # fmt: skip
    hugging_faces = Wav2Vec2ConformerEncoder(config)
    x, lengths = torch.randn(B, T, dim), torch.full((B,), T)
    lengths[1:] -= T // 10
    mask = length_mask(lengths, T)

    def run_ours():
        attended = ours.attention_mask(lengths, T)
        ours.run_blocks(x, lengths, attended, taps=()).output.sum().backward()

    times = interleaved(
        {
            "ours": run_ours,
            "torchaudio": lambda: torchaudios(x, lengths)[0].sum().backward(),
            "hugging face": lambda: hugging_faces(x, attention_mask=mask)[0].sum().backward(),
        },
        repeats,
    )
    print(
        f"{layers} x {dim}, B {B}, T {T}, dropout {dropout}: ours {1000 * times['ours']:.0f} ms;",
        end=" ",
    )
    print(
        "; ".join(
            f"{name} takes {times[name] / times['ours']:.2f} times as long"
            for name in list(times)[1:]
        )
    )


def stream(minutes: float) -> None:
    recogniser = Recogniser(Config(size="S"), vocabulary=2)
    streaming, wave = (
        StreamingEncoder(recogniser.frontend, recogniser.encoder),
        torch.randn(60 * SAMPLE_RATE),
    )
    streams, times = [streaming.start()], []
    for i in range(round(minutes * 375)):  # chunks of 160 ms
        samples = wave[2560 * (i % 375) :][:2560]
        started = perf_counter()
        _, streams = streaming.push(streams, [samples])
        times.append(perf_counter() - started)
        if i + 1 in (375, round(minutes * 375)):
            last = sorted(times[-375:])
            size = sum(part.nbytes for part in (*streams[0][:2], *streams[0].encoder))
            memory = (
                int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            )  # resident, where there is Linux
            print(
                f"minute {(i + 1) / 375:.0f}: a chunk takes {1000 * median(last):.1f} ms (95 % of them less than",
                end=" ",
            )
            print(
                f"{1000 * last[int(0.95 * len(last))]:.1f}); state {size / 1e3:.0f} kB, process {memory / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--stream", type=float, metavar="MINUTES")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.stream else 2)
    if args.stream:
        stream(args.stream)
        sys.exit()
    for dropout in (0.0, 0.1):
        compare(256, 4, 1024, 31, 8, 200, dropout, args.repeats)
        compare(112, 4, 448, 15, 16, 28, dropout, args.repeats)
