"""HuBERT on batches: how short audio may be, and one that knows no mask.

A HuBERT with layer norm in its CNN reads audio padded with zeros and a mask, and gives an utterance the same states
alone and in a batch, to 1e-4. One with group norm, such as HuBERT base, was trained without a mask, and its norm is
over time: padding changes all of an utterance. To be scored, it reads utterances of equal length together; in training
it reads padding as it comes [choice], for hardly any two utterances are equally long.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from common.conformer import length_mask


def frames_of(hubert: HubertModel, samples: Tensor) -> Tensor:
    """Frames of so many samples, (B,)."""
    return hubert._get_feat_extract_output_lengths(samples)


def shortest_input(config: HubertConfig, layers: list[tuple[int, int]], frames: int = 1) -> int:
    """Samples from which convolutions of these (kernel, stride) above HuBERT still make so many frames."""
    for kernel, stride in reversed([*zip(config.conv_kernel, config.conv_stride, strict=True), *layers]):
        frames = (frames - 1) * stride + kernel
    return frames


def encode(hubert: HubertModel, waves: Tensor, samples: Tensor, shortest: int) -> tuple[Tensor, Tensor]:
    """waves (B, N) zero-padded, samples (B,) -> last states (B, T, D), frames (B,); silence behind what is shorter."""
    waves = nn.functional.pad(waves, (0, max(0, shortest - waves.shape[1])))
    samples = samples.clamp(min=shortest)
    if hubert.config.feat_extract_norm == "layer":
        states = hubert(waves, length_mask(samples, waves.shape[1]).long()).last_hidden_state
    elif hubert.training:
        states = hubert(waves).last_hidden_state
    else:
        rows: dict[int, Tensor] = {}
        for n in samples.unique().tolist():
            same = (samples == n).nonzero()[:, 0].tolist()
            rows |= zip(same, hubert(waves[same, :n]).last_hidden_state, strict=True)
        states = nn.utils.rnn.pad_sequence([rows[i] for i in range(len(waves))], batch_first=True)
    return states, frames_of(hubert, samples)


def set_dropping(config: HubertConfig, layerdrop: float, mask_time: float) -> None:
    """Of layers and of stretches of ten frames in training, which the library does by default."""
    config.layerdrop, config.apply_spec_augment = layerdrop, mask_time > 0
    config.mask_time_prob = mask_time or config.mask_time_prob  # 0 would take a parameter away
    config.mask_time_min_masks = 0  # of two and more stretches short audio would be masked too much
