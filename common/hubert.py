"""HuBERT on batches: how short audio may be, one that knows no mask, and one that wants normalised audio.

A HuBERT with layer norm in its CNN reads audio padded with zeros and a mask, and gives an utterance the same states
alone and in a batch, to 1e-4. One with group norm, such as HuBERT base, was trained without a mask, and its norm is
over time: padding changes all of an utterance. To be scored, it reads utterances of equal length together; in training
it reads padding as it comes [choice], for hardly any two utterances are equally long.

Some, as facebook/hubert-large-ll60k, have heard waves of mean 0 and variance 1. A
model's preprocessor_config.json says so by do_normalize, and `pretrained.load_model`
writes it into the model's configuration. So it is kept with a run and in a published
folder, and a run is scored as it was trained, whatever becomes of the file. A
configuration that does not say it (of an older run, of rinna/nue-asr) means waves as they
are.

Where a folder has no such file, the default of transformers' Wav2Vec2FeatureExtractor
holds, which normalises. The demo world's own HuBERT has heard waves as they are.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from common.conformer import length_mask
from common.running.pretrained import find, has_preprocessor, load_model
from common.running.process import Place, note


def load(name: str, flag: str, root: str, place: Place) -> HubertModel:
    """A pretrained HuBERT to be trained, in fp32, which knows whether it wants normalised audio.

    name: see `pretrained.find`. Raises UserError.
    """
    model = load_model(HubertModel, name, flag, root).requires_grad_(True)
    known = has_preprocessor(Path(find(name, flag, root)))
    if place.first and not known and wants_normalised(model.config):
        note(
            f"{flag} {name} has no preprocessor_config.json: its audio gets mean 0 and variance 1, "
            "as transformers does it by default"
        )
    return model


def wants_normalised(config: HubertConfig) -> bool:
    return getattr(config, "do_normalize", False)


def hear_as(config: HubertConfig, other: HubertConfig) -> None:
    """A HuBERT with another one's weights is given its audio as that other one had it."""
    config.do_normalize = wants_normalised(other)


def normalise(waves: Tensor, samples: Tensor) -> Tensor:
    """waves (B, N) of so many samples (B,) -> (B, N), each of mean 0 and variance 1.

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
    """Frames of so many samples, (B,)."""
    return hubert._get_feat_extract_output_lengths(samples)


def shortest_input(config: HubertConfig, layers: list[tuple[int, int]], frames: int = 1) -> int:
    """Samples from which convolutions of these (kernel, stride) above HuBERT still make so many frames."""
    for kernel, stride in reversed(
        [*zip(config.conv_kernel, config.conv_stride, strict=True), *layers]
    ):
        frames = (frames - 1) * stride + kernel
    return frames


def encode(
    hubert: HubertModel, waves: Tensor, samples: Tensor, shortest: int
) -> tuple[Tensor, Tensor]:
    """waves (B, N) zero-padded, samples (B,) -> last states (B, T, D), frames (B,); silence behind what is shorter."""
    if wants_normalised(hubert.config):
        waves = normalise(waves, samples)
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
