"""Log-mel against torch.stft alone and torchaudio's MelSpectrogram: python benchmarks/features.py [--repeats 25]

16 utterances of 15 seconds, medians of interleaved repeats on two threads.
"""

import argparse

import torch
import torchaudio
from conformer import interleaved

from common.features import HOP, SAMPLE_RATE, WINDOW, LogMel

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(2)
    waves, frontend, window = torch.randn(16, 15 * SAMPLE_RATE), LogMel(), torch.hann_window(WINDOW)
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, WINDOW, WINDOW, HOP, n_mels=80)
    times = interleaved(
        {
            "ours": lambda: frontend.log_mel(waves),
            "torch.stft": lambda: torch.stft(
                waves, WINDOW, HOP, WINDOW, window, center=False, return_complex=True
            ),
            "MelSpectrogram": lambda: mel(waves),
        },
        repeats,
    )
    print(
        f"ours {1000 * times['ours']:.1f} ms for {waves.numel() / SAMPLE_RATE:.0f} s of audio",
        end="; ",
    )
    print(
        "; ".join(
            f"{name} takes {times[name] / times['ours']:.2f} times as long"
            for name in list(times)[1:]
        )
    )
