"""A small HuBERT of the demo world, really pretrained: masked prediction of k-means clusters, from audio alone.

    wave --CNN--> frames of 20 ms --masked--> 4 Transformer layers --> which of 64 clusters was here?

After Hsu et al. 2021, HuBERT, arXiv 2106.07447, its first iteration: the clusters are those of log-mel features (there:
of MFCCs), found once. Transcripts are never read. Two things differ [choice]: frames that are not masked are asked too,
with the same weight, which gives the CNN something to learn from at once; and layer norm in the CNN with an attention
mask, as in HuBERT Large, makes an utterance give the same states alone and in a padded batch.

The same seed gives the same bytes on the same machine, as for the text models in pretraining.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from common.demo.pretraining import INITIAL, adamw, publish, reproducible
from common.features import LogMel
from common.running.audio import audio_seconds, read_audio
from common.running.schedules import one_cycle

MASK_LENGTH, MASK_STARTS = (
    10,
    0.065,
)  # frames; share of the frames at which a mask begins: about half are masked


class Recipe(NamedTuple):
    steps: int = 600
    seconds: float = 32.0  # of audio per step
    clusters: int = 64
    layers: int = 4
    dim: int = 112
    lr: float = 2e-3  # peak


SMALL = {"steps": 20, "seconds": 8.0, "clusters": 16, "layers": 2, "dim": 32}  # for the smoke world


def pretrain_hubert(
    world: Path, model: str, subsets: list[str], small: bool, seed: int, progress: bool
) -> None:
    """Trains on the audio of these subsets of `world` and puts the model into WORLD/<model>."""
    recipe = Recipe()._replace(**SMALL if small else {})
    files = sorted(
        path for subset in subsets for path in (world / "LibriSpeech" / subset).rglob("*.flac")
    )
    with reproducible(seed):
        trained = train(recipe, files, random.Random(seed), progress)
    heard = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    heard.save_pretrained(world / model)  # waves as they are
    publish(trained, world, model)


def train(recipe: Recipe, files: list[Path], rng: random.Random, progress: bool) -> HubertModel:
    frontend = LogMel()
    frontend.fit(read_audio(path) for path in rng.sample(files, min(200, len(files))))
    sample = [
        targets_of(frontend, read_audio(path)) for path in rng.sample(files, min(200, len(files)))
    ]
    centres = k_means(torch.cat(sample), recipe.clusters)
    network = HubertModel(configuration(recipe)).train()
    head = nn.Linear(recipe.dim, recipe.clusters)
    both = nn.ModuleList([network, head])
    optimizer = adamw(both)
    batches = draw(files, recipe.seconds, rng)
    for step in tqdm(
        range(recipe.steps), "pretraining hubert", unit="step", disable=None if progress else True
    ):
        optimizer.param_groups[0]["lr"] = recipe.lr * one_cycle((step + 1) / recipe.steps, 0.1)
        loss, _ = loss_of(network, head, frontend, centres, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def configuration(recipe: Recipe) -> HubertConfig:
    """Frames of 20 ms as in the real ones, by a lighter CNN of four layers."""
    return HubertConfig(
        hidden_size=recipe.dim, num_hidden_layers=recipe.layers, num_attention_heads=4,
        intermediate_size=4 * recipe.dim, conv_dim=(16, 32, 64, recipe.dim), conv_kernel=(20, 8, 8, 4),
        conv_stride=(10, 4, 4, 2), num_feat_extract_layers=4, num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16, feat_extract_norm="layer", do_stable_layer_norm=True, layerdrop=0.0,
        initializer_range=INITIAL, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        feat_proj_dropout=0.0,
    )  # fmt: skip


def draw(files: list[Path], seconds: float, rng: random.Random) -> Iterator[list[Tensor]]:
    """Waves of similar length, about so many seconds together, for ever."""
    sizes = sorted((audio_seconds(path), path) for path in files)
    while True:
        i, some, total = rng.randrange(len(sizes)), [], 0.0
        while total < seconds and i < len(sizes):
            some.append(read_audio(sizes[i][1]))
            total, i = total + sizes[i][0], i + 1
        yield some


def targets_of(frontend: LogMel, wave: Tensor) -> Tensor:
    """(samples,) -> (F', 80): what is clustered, one row per 20 ms, two frames whose middle is that of HuBERT's."""
    features = frontend(wave[None], torch.tensor([len(wave)]))[0][0]  # (F, 80)
    return (features[1:-1:2] + features[2::2]) / 2


def k_means(points: Tensor, clusters: int, rounds: int = 20) -> Tensor:
    """(N, D) -> (clusters, D), from points drawn at random. MacQueen 1967."""
    centres = points[torch.randperm(len(points))[:clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=clusters)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def loss_of(
    network: HubertModel, head: nn.Linear, frontend: LogMel, centres: Tensor, waves: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Cross-entropy at masked plus at other frames, each averaged; and the accuracy at the masked ones."""
    pad, sizes = nn.utils.rnn.pad_sequence, [len(wave) for wave in waves]
    heard = pad([torch.ones(n, dtype=torch.long) for n in sizes], batch_first=True)
    frames = network._get_feat_extract_output_lengths(torch.tensor(sizes)).tolist()
    clusters = [
        torch.cdist(targets_of(frontend, wave)[:n], centres).argmin(1)
        for wave, n in zip(waves, frames, strict=True)
    ]
    clusters = pad(clusters, batch_first=True, padding_value=-1)  # (B, T)
    starts = (torch.rand(clusters.shape) < MASK_STARTS).float()
    masked = (
        nn.functional.max_pool1d(nn.functional.pad(starts, (MASK_LENGTH - 1, 0)), MASK_LENGTH, 1)
        > 0
    )
    masked &= clusters >= 0
    states = network(
        pad(waves, batch_first=True), heard, mask_time_indices=masked
    ).last_hidden_state
    logits = head(states)  # (B, T, clusters)
    others = ~masked & (clusters >= 0)
    losses = [
        nn.functional.cross_entropy(logits[some], clusters[some])
        for some in (masked, others)
        if some.any()
    ]
    right = logits.argmax(-1) == clusters
    return sum(losses), right[masked].float().mean()
