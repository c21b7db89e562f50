"""HuBERT on batches: padding, normalised audio, and how short audio may be.

A HuBERT with layer norm in its CNN reads padded audio with a mask, and gives an
utterance the same states alone and in a batch, to 1e-4. One with group norm, such as
HuBERT base, was trained without a mask, and its norm is over time: padding changes all
of an utterance. For scoring, it reads utterances of equal length together; in training
it reads padding as it comes [choice], since hardly any two utterances are equally long.

Some, as facebook/hubert-large-ll60k, were trained on waves of mean 0 and variance 1. A
model's preprocessor_config.json says so by do_normalize, and `pretrained.load_model`
writes it into the model's configuration. So it is kept with a run and in a published
folder, and a run is scored as it was trained, whatever becomes of the file. A
configuration without that entry (of an older run, of rinna/nue-asr) means waves as they
are.

Where a folder has no such file, the default of transformers' Wav2Vec2FeatureExtractor
holds, which normalises. The demo world's own HuBERT was trained on waves as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from common.conformer import length_mask
from common.text import Characters


def wants_normalised(config: HubertConfig) -> bool:
    """Whether the model was trained on waves of mean 0 and variance 1."""
    return getattr(config, "do_normalize", False)


def hear_as(config: HubertConfig, other: HubertConfig) -> None:
    """Audio is normalised as for `other`, whose weights the model has got."""
    config.do_normalize = wants_normalised(other)


def normalise(waves: Tensor, samples: Tensor) -> Tensor:
    """waves (B, N) of `samples` (B,) -> (B, N), each of mean 0 and variance 1.

    Mean and variance are those of an utterance's real samples; what stands behind them
    becomes 0. As transformers' Wav2Vec2FeatureExtractor, with the same 1e-7.
    """
    real = length_mask(samples, waves.shape[1])
    count = samples.clamp(min=1)[:, None]
    mean = (waves * real).sum(1, keepdim=True) / count
    centred = (waves - mean) * real
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + 1e-7).sqrt()


def frames_of(hubert: HubertModel, samples: Tensor) -> Tensor:
    """The frames of so many samples, (B,)."""
    return hubert._get_feat_extract_output_lengths(samples)


def shortest_input(config: HubertConfig, layers: list[tuple[int, int]], frames: int = 1) -> int:
    """The samples from which HuBERT, and convolutions of these (kernel, stride) behind
    it, still make so many frames."""
    cnn = zip(config.conv_kernel, config.conv_stride, strict=True)
    for kernel, stride in reversed([*cnn, *layers]):
        frames = (frames - 1) * stride + kernel
    return frames


def fits(
    known: str | None,
    convolutions: tuple[tuple[int, int], ...],
    shortest: int,
    samples: int,
    labels: list[int],
    transcript: str,
) -> bool:
    """Whether a CTC head on characters can write the transcript of so many samples.

    CTC needs a frame for every character, and one more between equal ones; and another
    domain's text may have characters that the head does not know.

    known: the characters of the head; None: there is no head. convolutions: (kernel,
    stride) of HuBERT's CNN. shortest: samples to which shorter audio is padded.
    """
    if known is None:
        return True
    frames = max(samples, shortest)
    for kernel, stride in convolutions:
        frames = (frames - kernel) // stride + 1
    repeats = sum(a == b for a, b in pairwise(transcript))
    return set(transcript) <= set(known) and len(transcript) + repeats <= frames


def fits_of(config: HubertConfig, characters: Characters | None, shortest: int) -> Callable:
    """`fits` for a HuBERT and its CTC head: numbers, and no model, since it goes to the
    processes that read."""
    known = None if characters is None else characters.characters
    convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
    return partial(fits, known, convolutions, shortest)


def encode(
    hubert: HubertModel, waves: Tensor, samples: Tensor, shortest: int
) -> tuple[Tensor, Tensor]:
    """waves (B, N) zero-padded, samples (B,) -> last states (B, T, D), frames (B,).

    Audio of less than `shortest` samples is padded with silence.
    """
    if wants_normalised(hubert.config):
        waves = normalise(waves, samples)
    waves = nn.functional.pad(waves, (0, max(0, shortest - waves.shape[1])))
    samples = samples.clamp(min=shortest)
    if hubert.config.feat_extract_norm == "layer":
        mask = length_mask(samples, waves.shape[1]).long()
        states = hubert(waves, mask).last_hidden_state
    elif hubert.training:
        states = hubert(waves).last_hidden_state
    else:
        states = _by_equal_length(hubert, waves, samples)
    return states, frames_of(hubert, samples)


def _by_equal_length(hubert: HubertModel, waves: Tensor, samples: Tensor) -> Tensor:
    """States (B, T, D), of utterances of equal length together, without padding."""
    rows: dict[int, Tensor] = {}
    for n in samples.unique().tolist():
        same = (samples == n).nonzero()[:, 0].tolist()
        states = hubert(waves[same, :n]).last_hidden_state
        rows |= zip(same, states, strict=True)
    in_order = [rows[i] for i in range(len(waves))]
    return nn.utils.rnn.pad_sequence(in_order, batch_first=True)


def set_dropping(config: HubertConfig, layerdrop: float, mask_time: float) -> None:
    """Sets which share of layers and of frames is dropped in training.

    The library drops some by default. Frames are masked in stretches of ten.
    """
    config.layerdrop = layerdrop
    config.apply_spec_augment = mask_time > 0
    config.mask_time_prob = mask_time or config.mask_time_prob  # 0 would remove a parameter
    config.mask_time_min_masks = 0  # two stretches and more would hide too much of short audio
