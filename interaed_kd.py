"""Keep Decoding Parallel with Effective Knowledge Distillation from Language Models to End-to-end Speech Recognisers.

Michael Hentschel, Yuta Nishikawa, Tatsuya Komatsu, Yusuke Fujita. ICASSP 2024. arXiv 2401.11700.

Idea
----
CTC writes all words of an utterance at once: fast, but no word can look at the others, so CTC knows little about
language. The paper lets a language model teach it. During training, an attention decoder reads the encoder at
intermediate layers and at the last one and learns the probabilities that BERT gives every token; the gradient carries
this knowledge into the encoder, down to its lower layers. At test time the decoder is thrown away, and CTC decodes in
parallel as before.

Diagram
-------
    wave (B, N) --LogMel--> (B, F, 80) --Subsampling--> (B, T, D) --block 1 … l … L--> (B, T, D)
                                                                       |               |
                                                                   LayerNorm       LayerNorm      one LayerNorm
                                                                       |               |
                                         states of the S layers:   (B, T, D)       (B, T, D)
                                                                       |               |
      Linear(D, V), one for all layers  <------------------------------+---------------+--> what is exported ends here
      ctc_l, ctc_last                                                  |               |
                                                                  stacked on the batch axis       training only
                                                                          (S B, T, D)
    <sos> y_1 … y_U   ----------> AttentionDecoder  <---cross-attention---+
                                  log p_l(y_i | y_<i, x) (S B, U+1, V)
                                         |
    y_1 … y_U <eos>   ---att_l-----------+--> mix_l = (1-a) att_l + a kd_l
    q_1 … q_U <eos>   ---kd_l------------+
     |
     +-- BERT([CLS] y_1 … [MASK] … y_U [SEP]): top K pieces at the mask, softmax(z / tau)

Equations (the names are this file's own; each with its function, and its test in tests/test_interaed_kd.py)
---------
    ctc_l  = -log sum over paths that collapse to y of prod_t p_l(path_t | x)     ctc.ctc_loss             test_ctc_l
    z_i    = BERT's logits at y_i, masked                                         ask_teacher              test_z
    q_i    = softmax(z_i / tau) over the K kept pieces with the largest z_i       soften                   test_q
    H_l(q) = - sum_i sum_v [(1-e) q_i(v) + e/V] log p_l(v | y_<i, x)              smoothed_cross_entropy   test_h
    att_l  = H_l(one-hot y),  kd_l = H_l(q);  <eos> is one-hot in both            mix_loss                 test_att_kd
    mix_l  = (1-a) att_l + a kd_l                                                 mix_loss                 test_mix
    loss   = lam [(1-w) ctc_last + w mean_taps ctc_l]
             + (1-lam) [(1-u) mix_last + u mean_taps mix_l]                       total_loss               test_loss

Sources
-------
Written from the abstract, the digest of a second reader, and the recipes of toolkits that train the same kind of model;
we have not seen the paper's body. Options say where their value comes from: [paper] the abstract, [digest] a summary by
others, [peer] a toolkit's published recipe or the predecessors' papers (Futami et al. 2020, 2022: soft labels of BERT),
[choice] ours. The sizes of the demo preset are all ours.

Symbols
-------
    B batch, N samples, F feature frames, T encoder frames, U labels, V outputs (blank + pieces), D width
    taps: encoder layers with losses of their own, counted from 1;  S layers (taps and last) that the decoder reads
    lam, w, u, a: weights of the loss, a row of the table each;  tau temperature, K kept pieces, e label smoothing

Choices (ours, marked again where they stand)
-------
    C1  the units are the teacher's own word pieces, pruned to those the training transcripts use
    C2  taps at one third and two thirds of the full preset's depth
    C3  the weights of the rows; the paper's are not known to us
    C4  rotary positions, LayerNorm in the convolution module, no dropout on attention weights (common/conformer.py)
    C5  AdamW; the first epoch goes from short to long utterances; checkpoints are chosen by dev WER
    C6  one decoder for all layers, which are stacked on the batch axis
    C7  BERT reads [CLS] … [SEP] in the student's own pieces; special, unused and dropped pieces leave before the top K

Metrics
-------
    loss    as above: summed over the utterances of an update, divided by their number (nats per utterance)
    norm    of the gradient before clipping          lr    learning rate
    dev     word error rate of greedy CTC on the dev set, %, after every epoch;  dev_homophone_error: as below
    wer     the same on the test sets, with the average of the best epochs' weights (--decode beam: by beam search)
    homophone_error   of the reference's homophones that came out as themselves or their twin, the share of twins, %
    rtf     seconds to transcribe a second of audio: features + encoder + decoding, one utterance at a time
    teacher_top1, teacher_top_k   how often the transcript's piece is BERT's first guess, and among its K
    teacher_seconds               what asking for all answers kept under this teacher cost, summed over ranks
    weights                       lam, w, u, a of the row

Run
---
    python interaed_kd.py --preset smoke                      does all work? under a minute on two cores
    python interaed_kd.py                                     demo world: ctc and interaed_kd side by side, 7 minutes
    python interaed_kd.py --method aed_kd --a 1 --seed 2      another row of the table
    python interaed_kd.py --data librispeech --root ~/corpora --hours 100
    python interaed_kd.py --data DIR                          DIR/train.jsonl, dev.jsonl, test*.jsonl
    torchrun --nproc-per-node 8 interaed_kd.py --data librispeech --root ~/corpora
    python interaed_kd.py --checkpoint runs/x                 scores it; with --decode beam --lm demo/lm: by beam search
    python interaed_kd.py --checkpoint runs/x --transcribe a.wav b.flac
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from common.flags import RunConfig, UserError, check_command_line, parse

# ================================================================================================== configuration

Rows = Literal["ctc", "interctc", "aed", "aed_kd", "interaed", "interaed_kd"]


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: float = 30.0  # longer training utterances are left out, longer recordings cut at pauses [peer]
    batch_seconds: float = 400.0  # audio per forward pass and rank, padding included: what memory allows [choice]
    update_seconds: float = 1600.0  # audio per update, over all ranks and micro-batches [peer]
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 5  # SpecAugment, each over 0 to 5 % of the utterance; 10 for 960 h [peer]
    units: int = 5000  # word pieces kept, the most frequent in the transcripts; characters come on top [choice]
    # -- method --
    method: tuple[Rows, ...] = ("interaed_kd",)  # row(s) of the table, one after the other
    taps: tuple[int, ...] = (6, 12)  # encoder layers with losses of their own (C2)
    lam: float | None = None  # share of CTC in the loss of rows with a decoder; absent: the row's (C3)
    w: float | None = None  # share of the taps in CTC; absent: the row's (C3)
    u: float | None = None  # share of the taps in the decoder's loss; absent: the row's (C3)
    a: float | None = None  # share of the teacher in the decoder's loss; absent: the row's (C3)
    kd_where: Literal["final", "inter", "both"] = "both"  # layers that learn from the teacher; the others: hard labels
    # -- teacher --
    teacher: str = "bert-base-uncased"  # BERT (hub name, folder, demo, demo/bert-b); its word pieces are the units (C1)
    teacher_context: Literal["utt", "full"] = "utt"  # it reads the utterance, or up to 256 tokens around it
    soft_labels: Literal["teacher", "uniform"] = "teacher"  # uniform: its top K, but all equally likely, as a control
    top_k: int = 8  # pieces per token that a soft label keeps [peer]
    tau: float = 3.0  # temperature of the soft labels [peer]
    smoothing: float = 0.1  # of hard and soft labels [peer]
    # -- model --
    subsampling: Literal[4, 8] = 4  # feature frames per encoder frame: 4 is 40 ms [peer], 8 is 80 ms [choice]
    channels: int = 256  # of the subsampling convolutions [peer]
    layers: int = 18  # Conformer blocks [peer] (C4)
    dim: int = 256  # width [peer]
    heads: int = 4  # of self-attention [peer]
    ff_dim: int = 1024  # width inside the feed-forward parts [peer]
    kernel: int = 31  # frames seen by the depthwise convolution, odd [peer]
    dropout: float = 0.1  # of encoder and decoder, but not on the encoder's attention weights [peer]
    decoder_layers: int = 6  # blocks of the attention decoder, in training only [choice]
    decoder_ff_dim: int = 2048  # width inside its feed-forward parts [choice]
    decoder_sharing: Literal["shared", "separate"] = "shared"  # one decoder for all layers, or one for each (C6)
    # -- optimisation --
    epochs: int = 180  # passes over the training data; the peers' 60 passes over three copies of other speed [peer]
    lr: float = 2e-3  # peak learning rate [peer], of AdamW (C5)
    weight_decay: float = 1e-6  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "inverse-sqrt"  # of the learning rate [peer]
    warmup: float = 15000.0  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    clip: float = 5.0  # largest norm of the gradient [peer]
    average: int = 10  # epochs with the lowest dev error whose weights are averaged [peer]
    save_steps: int = 1000  # updates between checkpoints; also one after every epoch [choice]
    # -- decoding of the test sets --
    decode: Literal["greedy", "beam"] = "greedy"  # beam: CTC prefix beam search, the paper's comparator
    lm: str | None = None  # causal language model for the beam, with the teacher's pieces: hub name, folder, demo/lm
    beam: int = 10  # prefixes kept per frame [choice]
    lm_weight: tuple[float, ...] = (0.2, 0.4, 0.6)  # each is tried on 100 dev utterances [choice]
    bonus: tuple[float, ...] = (0.0, 0.5, 1.0)  # per piece, each is tried with each --lm-weight [choice]


DEMO = dict(  # [choice] sizes that learn to recognise the demo world in about three minutes on two cores
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    method=("ctc", "interaed_kd"), taps=(2,), lam=0.8, teacher="demo", top_k=12, tau=1.0,  # ten homophones per scene
    subsampling=8, channels=16, layers=4, dim=112, ff_dim=448, kernel=15, dropout=0.0, decoder_layers=1,
    decoder_ff_dim=448, epochs=5, lr=4.5e-3, schedule="one-cycle", warmup=0.3, average=1,
)  # fmt: skip
SMOKE = DEMO | dict(teacher="demo-smoke", hours=0.1, layers=2, taps=(1,), update_seconds=8.0, epochs=6)
PRESETS = {"smoke": SMOKE, "demo": DEMO}


class Weights(NamedTuple):
    """A row of the table: what the total loss is made of. The values are ours (C3)."""

    lam: float  # share of CTC in the loss
    w: float  # share of the taps in CTC
    u: float  # share of the taps in the decoder's loss
    a: float  # share of the teacher in the decoder's loss


METHODS = {
    "ctc": Weights(lam=1.0, w=0.0, u=0.0, a=0.0),
    "interctc": Weights(lam=1.0, w=0.66, u=0.0, a=0.0),
    "aed": Weights(lam=0.3, w=0.0, u=0.0, a=0.0),
    "aed_kd": Weights(lam=0.3, w=0.0, u=0.0, a=0.5),
    "interaed": Weights(lam=0.3, w=0.66, u=0.66, a=0.0),
    "interaed_kd": Weights(lam=0.3, w=0.66, u=0.66, a=0.5),
}


def row(config: Config) -> Weights:
    """The weights of the row, but for those that options give: no decoder comes to a row without, no taps to ctc."""
    weights = METHODS[config.method[0]]
    free = Weights._fields if weights.lam < 1 else ["w"] if weights.w else []
    given = {name: getattr(config, name) for name in free}
    return weights._replace(**{name: x for name, x in given.items() if x is not None})


def taps(config: Config) -> tuple[int, ...]:
    """The encoder layers below the last whose states the row's loss reads."""
    lam, w, u, _ = row(config)
    return config.taps if lam * w or (1 - lam) * u else ()


if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import os
import random
import sys
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common import cache, ctc, metrics, run
from common.conformer import Conformer, subsampled
from common.corpora import Corpus, MicroBatch, Utterance, evaluation_batches, load_corpus, plan_epoch
from common.features import (
    FRAME_SECONDS,
    SAMPLE_RATE,
    AudioError,
    LogMel,
    change_speed,
    num_frames,
    read_audio,
    spec_augment,
    split_at_pauses,
)
from common.pretrained import LanguageModel, load_model, load_vocabulary
from common.text import Tokenizer, WordPiece, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, and one CTC head for the last layer and all taps. All that is exported."""

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.frontend = LogMel()
        self.encoder = Conformer(
            config.dim, config.layers, config.heads, config.ff_dim, config.kernel, config.dropout,
            config.subsampling, config.channels,
        )  # fmt: skip
        self.ctc_head = nn.Linear(config.dim, vocabulary)
        self.masks = config.frequency_masks, config.time_masks

    def forward(self, waves: Tensor, samples: Tensor, taps: tuple[int, ...] = ()) -> tuple[list[Tensor], Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> states (B, T, D) of taps and last layer; their lengths (B,)."""
        features, frames = self.frontend(waves, samples)  # (B, F, 80)
        if self.training:
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        last, lengths, tapped = self.encoder(features, frames, taps)
        return [*tapped, last], lengths

    def log_probs(self, state: Tensor) -> Tensor:
        """state (B, T, D) -> log p(piece or blank | frame) (B, T, V)."""
        return self.ctc_head(state).float().log_softmax(-1)


class AttentionDecoder(nn.Module):
    """Writes the transcript piece by piece while it looks at an encoder layer. Needed for training only.

    Its losses reach the encoder through cross-attention: to help the decoder, a layer has to hold what tells the next
    piece, which is language knowledge. "A TransformerDecoder" [choice]; label 0 is <sos> and <eos>.
    """

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.dim)
        block = nn.TransformerDecoderLayer(
            config.dim, config.heads, config.decoder_ff_dim, config.dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerDecoder(block, config.decoder_layers, nn.LayerNorm(config.dim))
        for copy in self.blocks.layers[1:]:  # all are copies of the first, values included
            for weight in copy.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_uniform_(weight)
        self.output = nn.Linear(config.dim, vocabulary)

    def forward(self, states: list[Tensor], lengths: Tensor, targets: Tensor) -> list[Tensor]:
        """states: S times (B, T, D), lengths (B,), targets (B, U) -> S times log p(y_i | y_1 … y_i-1, x) (B, U+1, V).

        The layers are stacked on the batch axis (C6), so that the decoder runs once, whatever their number.
        """
        S, T, D = len(states), states[0].shape[1], states[0].shape[2]
        inputs = nn.functional.pad(targets, (1, 0))  # (B, U+1): <sos> y_1 … y_U
        x = self.embedding(inputs) + sinusoids(inputs.shape[1], D, inputs.device)  # (B, U+1, D)
        padding = torch.arange(T, device=lengths.device) >= lengths[:, None]  # (B, T)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # (U+1, U+1)
        x = self.blocks(
            x.repeat(S, 1, 1), torch.cat(states), tgt_mask=future, tgt_is_causal=True,
            memory_key_padding_mask=padding.repeat(S, 1),
        )  # (S B, U+1, D)  # fmt: skip
        return list(self.output(x).float().log_softmax(-1).chunk(S))


def sinusoids(positions: int, dim: int, device: torch.device) -> Tensor:
    """(positions, dim): sines and cosines of position / 10000^(2i / dim). Vaswani et al. 2017."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(positions, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def build_models(config: Config, vocabulary: int) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `decoders` where the row has them (one, or one per layer that it reads)."""
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary)})
    if row(config).lam < 1:
        count = 1 if config.decoder_sharing == "shared" else len(decoded_layers(config))
        models["decoders"] = nn.ModuleList(AttentionDecoder(config, vocabulary) for _ in range(count))
    return models


def decoded_layers(config: Config) -> list[int]:
    """Which of the states (taps, then last layer) the decoder reads: those whose mix_l has a weight."""
    last = len(taps(config))
    return [i for i in range(last + 1) if (row(config).u < 1 if i == last else row(config).u > 0)]


# =========================================================================================================== loss


def smoothed_cross_entropy(log_probs: Tensor, labels: Tensor, probs: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """- sum over tokens, sum over v of [(1-e) q(v) + e/V] log p(v): one number, summed over all tokens of the mask.

    log_probs (B, U+1, V); q is sparse: probs (B, U+1, K) on labels (B, U+1, K); mask (B, U+1) True for real tokens.
    """
    picked = (probs * log_probs.gather(-1, labels)).sum(-1)  # (B, U+1)
    return -(((1 - epsilon) * picked + epsilon * log_probs.mean(-1)) * mask).sum()


def mix_loss(log_probs: Tensor, batch: Batch, a: float, epsilon: float) -> Tensor:
    """mix_l = (1-a) att_l + a kd_l, summed over tokens; log_probs (B, U+1, V) of the decoder at layer l.

    att_l is the smoothed cross-entropy to the transcript y_1 … y_U <eos>, kd_l the one to BERT's soft labels.
    """
    hard = nn.functional.pad(batch.targets, (0, 1))[..., None]  # (B, U+1, 1); padding and <eos> are label 0
    mask = torch.arange(hard.shape[1], device=hard.device) <= batch.target_lengths[:, None]  # (B, U+1)
    loss = log_probs.new_zeros(())
    if a < 1:
        loss = loss + (1 - a) * smoothed_cross_entropy(log_probs, hard, torch.ones_like(hard), mask, epsilon)
    if a > 0:
        loss = loss + a * smoothed_cross_entropy(log_probs, batch.soft_labels, batch.soft_probs, mask, epsilon)
    return loss


def total_loss(ctc_losses: list[Tensor], mix_losses: list[Tensor], weights: Weights) -> Tensor:
    """loss = lam [(1-w) ctc_last + w mean_taps ctc_l] + (1-lam) [(1-u) mix_last + u mean_taps mix_l].

    Both lists: one loss per tap, then the last layer's; a loss that has no weight may be 0.
    """
    (*ctc_taps, ctc_last), (*mix_taps, mix_last) = ctc_losses, mix_losses
    ctc_part = (1 - weights.w) * ctc_last + weights.w * sum(ctc_taps) / max(len(ctc_taps), 1)
    mix_part = (1 - weights.u) * mix_last + weights.u * sum(mix_taps) / max(len(mix_taps), 1)
    return weights.lam * ctc_part + (1 - weights.lam) * mix_part


def compute_losses(models: nn.ModuleDict, batch: Batch, config: Config, autocast: torch.dtype | None) -> Tensor:
    """The batch's loss, summed over its utterances. The forward pass may be bf16; the losses are fp32."""
    weights, recogniser, decoded = row(config), models["recogniser"], []
    with torch.autocast(batch.waves.device.type, autocast, enabled=autocast is not None):
        states, lengths = recogniser(batch.waves, batch.samples, taps(config))
        last = len(states) - 1
        weighted = [i for i in range(len(states)) if weights.lam * (1 - weights.w if i == last else weights.w)]
        log_probs = {i: recogniser.log_probs(states[i]) for i in weighted}
        if "decoders" in models:
            layers = decoded_layers(config)
            shares = [layers] if len(models["decoders"]) == 1 else [[layer] for layer in layers]
            for decoder, share in zip(models["decoders"], shares, strict=True):
                decoded += zip(share, decoder([states[i] for i in share], lengths, batch.targets), strict=True)
    ctc_losses, mix_losses = [0.0] * len(states), [0.0] * len(states)
    for i, lp in log_probs.items():
        ctc_losses[i] = ctc.ctc_loss(lp, lengths, batch.targets, batch.target_lengths).sum()
    for i, lp in decoded:
        learns = config.kd_where in ("both", "final" if i == last else "inter")
        mix_losses[i] = mix_loss(lp, batch, weights.a if learns else 0.0, config.smoothing)
    return total_loss(ctc_losses, mix_losses, weights)


# ======================================================================================================== teacher


ASKED_AT_ONCE = 500  # utterances: how much a killed run has to ask again


class SoftLabel(NamedTuple):
    """What BERT expects at each token of an utterance. For the decoder, a row for <eos> is added: U+1."""

    labels: Tensor  # (U, K) int16
    probs: Tensor  # (U, K) float32, each row sums to 1


def soften(logits: Tensor, kept: Tensor, k: int, tau: float) -> tuple[Tensor, Tensor]:
    """q_i = softmax(z / tau) over the K kept pieces with the largest logits z -> labels (N, K), probs (N, K).

    logits (N, teacher's vocabulary) at masked positions; kept (V,): the teacher's piece of each label, or -1.
    Cutting off at K makes q surer of what it keeps than the teacher is (a bias; --top-k).
    """
    labels = (kept >= 0).nonzero()[:, 0]  # special, unused and dropped pieces have no label
    top = logits[:, kept[labels]].float().topk(k)
    return labels[top.indices], (top.values / tau).softmax(-1)


def ask_teacher(teacher: nn.Module, inputs: Tensor, positions: Tensor, mask: int) -> Tensor:
    """Masks one token per row and gives the teacher's logits there: inputs (N, L), positions (N,) -> (N, vocabulary).

    Rows are equally long, so nothing is padded, and the vocabulary head runs at the masked positions only.
    """
    rows = torch.arange(len(inputs), device=inputs.device)
    masked = inputs.clone()
    masked[rows, positions] = mask
    states = teacher.base_model(masked, torch.ones_like(masked)).last_hidden_state  # (N, L, D)
    return teacher.cls(states[rows, positions])


@torch.inference_mode()
def label_tokens(
    teacher: nn.Module, questions: list[tuple[list[int], int, Tensor]], theirs: Tensor, mask: int, k: int, tau: float
) -> list[SoftLabel]:
    """Asks the teacher about every token. questions: (its input [CLS] … [SEP], where y_1 stands in it, y (U,)).

    theirs (V,): the teacher's piece of each label, or -1. Several labels may have the same (the apostrophes): what the
    teacher says of it is meant for the transcript's own one, elsewhere for the first. A token without a piece, or
    beyond the teacher's longest input, keeps its hard label.
    """
    first = {piece: label for label, piece in reversed([*enumerate(theirs.tolist())])}  # the first label with a piece
    kept = torch.tensor([p if first[p] == v else -1 for v, p in enumerate(theirs.tolist())], device=theirs.device)
    longest = teacher.config.max_position_embeddings
    copies = [(ids[:longest], start + i) for ids, start, y in questions for i in range(len(y))]
    labels, probs = torch.zeros(len(copies), k, dtype=torch.long), torch.zeros(len(copies), k)
    by_length = sorted(range(len(copies)), key=lambda c: len(copies[c][0]))
    for length, same in groupby(by_length, key=lambda c: len(copies[c][0])):
        same = list(same)
        for part in (same[i : i + 2**14 // length] for i in range(0, len(same), 2**14 // length)):  # 16,384 tokens
            inputs = torch.tensor([copies[c][0] for c in part], device=theirs.device)
            positions = torch.tensor([min(copies[c][1], length - 1) for c in part], device=theirs.device)
            answer = soften(ask_teacher(teacher, inputs, positions, mask), kept, k, tau)
            labels[part], probs[part] = answer[0].cpu(), answer[1].cpu()
    theirs, y = theirs.cpu(), torch.cat([y for *_, y in questions])[:, None]  # (tokens, 1)
    labels = torch.where(theirs[labels] == theirs[y], y, labels)
    seen = torch.tensor([position < longest for _, position in copies])[:, None]
    known = (theirs[y] >= 0) & seen
    labels = torch.where(known, labels, y * torch.eye(1, k, dtype=torch.long))
    probs = torch.where(known, probs, torch.eye(1, k))
    sizes = [len(y) for *_, y in questions]
    return [SoftLabel(*pair) for pair in zip(labels.short().split(sizes), probs.split(sizes), strict=True)]


def teacher_inputs(
    config: Config, tokenizer: WordPiece, vocabulary: list[str], utterances: list[Utterance], longest: int = 256
) -> list[tuple[list[int], int, Tensor]]:
    """For each utterance ([CLS] … [SEP] in the teacher's ids, where in it y_1 stands, y (U,)).

    (C7) --teacher-context full: with the utterances before and after it in its session, as many as fit into 256 tokens.
    """
    theirs, (cls, sep, unk) = tokenizer.ids_in(vocabulary), map(vocabulary.index, ("[CLS]", "[SEP]", "[UNK]"))
    targets = [tokenizer.encode(u.text) for u in utterances]
    texts = [[theirs[y - 1] if theirs[y - 1] >= 0 else unk for y in target] for target in targets]
    sessions, found = [u.session for u in utterances], []
    for i, target in enumerate(targets):
        before, after, room = i, i + 1, longest - 2 - len(target)  # utterances [before, after) are read
        while config.teacher_context == "full":
            fits = [
                j for j in (before - 1, after)
                if 0 <= j < len(texts) and sessions[j] == sessions[i] and len(texts[j]) <= room
            ]  # fmt: skip
            if not fits:
                break
            j = min(fits, key=lambda j: abs(j - i))  # in turn
            before, after, room = min(before, j), max(after, j + 1), room - len(texts[j])
        ids = [cls, *(piece for text in texts[before:after] for piece in text), sep]
        found.append((ids, 1 + sum(map(len, texts[before:i])), torch.tensor(target)))
    return found


def soft_labels(
    config: Config, tokenizer: WordPiece, utterances: list[Utterance], place: run.Place
) -> tuple[dict[str, SoftLabel], dict[str, float]]:
    """{utterance: its soft labels}, and what RESULT says about the teacher. Nothing is ever asked twice.

    Answers are kept in ROOT/soft-labels under the teacher's weights, the kept pieces, K and tau. Ranks share the work.
    """
    from transformers import AutoModelForMaskedLM

    with run.first_rank_first(place):
        vocabulary = load_vocabulary(config.teacher, "--teacher", config.root)
        teacher = load_model(AutoModelForMaskedLM, config.teacher, "--teacher", config.root).to(place.device)
    theirs = torch.tensor([-1, *tokenizer.ids_in(vocabulary)], device=place.device)
    if not hasattr(teacher, "cls") or not {"[CLS]", "[SEP]", "[UNK]", "[MASK]"} <= set(vocabulary):
        raise UserError(f"--teacher {config.teacher} is no BERT with its masked language model: give another.")
    if tokenizer.size > 2**15:
        raise UserError(f"{tokenizer.size} outputs are more than soft labels can name (32768): lower --units.")
    if config.top_k > len(set(theirs.tolist()) - {-1}):
        raise UserError(f"--top-k {config.top_k} is more than the {tokenizer.size - 1} pieces kept: lower it.")
    weights = cache.digest(*(p.cpu().numpy().tobytes() for p in teacher.parameters()))
    folder = Path(config.root).expanduser() / "soft-labels"
    folder /= cache.digest(weights, repr(tokenizer.pieces), repr((config.top_k, config.tau)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"soft labels cannot be kept in {folder} ({error}): give another --root.") from None
    longest = min(256, teacher.config.max_position_embeddings)
    questions = teacher_inputs(config, tokenizer, vocabulary, utterances, longest)
    keys = [cache.digest(repr((ids, start, y.tolist()))) for ids, start, y in questions]
    known, _ = cache.load(folder)
    missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
    mine = {key: question for key, question in missing.items() if int(key, 16) % place.ranks == place.rank}
    missing = sorted(mine.items(), key=lambda item: len(item[1][0]))
    total, quiet = sum(len(y) for _, (*_, y) in missing), None if place.first else True
    with tqdm(desc="asking the teacher", total=total, unit="token", disable=quiet) as bar:
        for i in range(0, len(missing), ASKED_AT_ONCE):
            started, part = run.synchronise(place), missing[i : i + ASKED_AT_ONCE]
            asked = [question for _, question in part]
            answers = label_tokens(teacher, asked, theirs, vocabulary.index("[MASK]"), config.top_k, config.tau)
            named = {key: answer._asdict() for (key, _), answer in zip(part, answers, strict=True)}
            cache.add(folder, named, run.synchronise(place) - started)
            bar.update(sum(len(answer.labels) for answer in answers))
    run.barrier(place)
    known, seconds = cache.load(folder)
    found = [SoftLabel(**known[key]) for key in keys]
    labels, y = torch.cat([x.labels for x in found]), torch.cat([y for *_, y in questions])[:, None]
    report = {"teacher_seconds": seconds, "teacher_top1": (labels[:, :1] == y).float().mean().item()}
    report["teacher_top_k"] = (labels == y).any(1).float().mean().item()
    if place.first:
        told = "the teacher's first guess is right at {teacher_top1:.0%} of the tokens, one of its top K at "
        run.note((told + "{teacher_top_k:.0%}; asking took {teacher_seconds:.0f} s").format(**report))
    if config.soft_labels == "uniform":
        even = torch.tensor(1 / config.top_k)
        found = [x._replace(probs=torch.where(x.probs[:, -1:] > 0, even, x.probs)) for x in found]
    end = torch.zeros(1, config.top_k, dtype=torch.short), torch.eye(1, config.top_k)  # BERT has no <eos>: a hard label
    found = [SoftLabel(*(torch.cat(pair) for pair in zip(x, end, strict=True))) for x in found]
    return {u.id: x for u, x in zip(utterances, found, strict=True)}, {k: round(x, 4) for k, x in report.items()}


# =========================================================================================================== data


class Batch(NamedTuple):
    """What one forward pass reads. An utterance that cannot be read or aligned has left; all may have left."""

    waves: Tensor  # (B, N) zero-padded
    samples: Tensor  # (B,)
    targets: Tensor  # (B, U) zero-padded
    target_lengths: Tensor  # (B,)
    soft_labels: Tensor  # (B, U+1, K) what the teacher expects; empty where the row has no teacher
    soft_probs: Tensor  # (B, U+1, K)
    utterances: list[Utterance]
    bad: dict[str, str]  # utterance -> why its audio could not be read
    infeasible: int  # utterances with fewer frames than CTC needs
    plan: MicroBatch

    def to(self, device: torch.device) -> Batch:
        return self._replace(**{f: getattr(self, f).to(device, non_blocking=True) for f in self._fields[:6]})


class Batches(Dataset):
    """Reads the micro-batches of a plan: audio, speed perturbation, labels, padding. Runs in the worker processes."""

    def __init__(self, plan: list[MicroBatch], config: Config, tokenizer: Tokenizer | None = None, known_bad=()):
        """Without a tokenizer there are no labels, and no speed perturbation: for scoring."""
        self.plan, self.config, self.tokenizer, self.known_bad = plan, config, tokenizer, set(known_bad)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        plan, bad, infeasible = self.plan[index], {}, 0
        waves, targets, kept = [], [], []
        for utterance in plan.utterances:
            if utterance.id in self.known_bad:
                continue
            try:
                wave = read_audio(utterance.audio, utterance.offset, utterance.duration, utterance.channel)
            except AudioError as error:
                bad[utterance.id] = str(error)
                continue
            target = torch.zeros(0, dtype=torch.long)
            if self.tokenizer:
                draw = random.Random(f"{self.config.seed}-{plan.epoch}-{utterance.id}")
                wave = change_speed(wave, draw.choice(self.config.speeds))
                target = torch.tensor(self.tokenizer.encode(utterance.text))
                T = subsampled(num_frames(len(wave)), self.config.subsampling)
                if ctc.required_frames(target[None], torch.tensor([len(target)])) > T:
                    infeasible += 1
                    continue
            waves.append(wave)
            targets.append(target)
            kept.append(utterance)
        pad, none = nn.utils.rnn.pad_sequence, torch.zeros(0, 0)
        return Batch(
            pad(waves, batch_first=True) if waves else none, torch.tensor([len(w) for w in waves]),
            pad(targets, batch_first=True) if waves else none.long(), torch.tensor([len(t) for t in targets]),
            none, none, kept, bad, infeasible, plan,
        )  # fmt: skip


def with_soft_labels(batch: Batch, soft: dict[str, SoftLabel]) -> Batch:
    """Adds what the teacher expects. Not done by the reading processes, which would each need a copy of all of it."""
    pad, found = nn.utils.rnn.pad_sequence, [soft[u.id] for u in batch.utterances]
    labels, probs = ([x.labels.long() for x in found], [x.probs for x in found])
    return batch._replace(soft_labels=pad(labels, batch_first=True), soft_probs=pad(probs, batch_first=True))


def batches(plan: list[MicroBatch], config: Config, *labels) -> DataLoader:
    workers = min(config.workers, len(plan), os.cpu_count() or 1)
    return DataLoader(
        Batches(plan, config, *labels), batch_size=None, num_workers=workers, worker_init_fn=run.ignore_signals
    )


# ========================================================================================================== train


class Trained(NamedTuple):
    recogniser: Recogniser  # with the average of the best epochs' weights
    tokenizer: WordPiece
    report: dict  # what RESULT says about the training


def train(config: Config, corpus: Corpus, place: run.Place) -> Trained:
    """Trains until the last epoch (or --max-steps) and writes the average of the best epochs to --out."""
    utterances = [u for u in corpus.train if u.text and u.duration <= config.max_seconds]
    if not utterances or not corpus.dev:
        raise UserError(
            f"there is nothing to learn from or to check it on: {len(corpus.train)} training utterances, "
            f"{len(utterances)} of them no longer than --max-seconds {config.max_seconds:g}, {len(corpus.dev)} for dev."
        )
    with run.first_rank_first(place):
        vocabulary = load_vocabulary(config.teacher, "--teacher", config.root)
    tokenizer = WordPiece.prune(vocabulary, (u.text for u in utterances), config.units)
    folder = run.open_folder(config, place)
    soft, report = {}, {}
    if row(config).lam < 1 and row(config).a > 0:
        soft, report = soft_labels(config, tokenizer, utterances, place)
    run.reseed(config.seed)
    models = build_models(config, tokenizer.size).to(place.device)
    sample = random.Random(config.seed).sample(utterances, min(500, len(utterances)))
    singly = batches([MicroBatch([utterance]) for utterance in sample], config)
    models["recogniser"].frontend.fit(wave for batch in singly for wave in batch.waves)
    rates = dict(lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(models.parameters(), **rates, fused=True)
    progress = run.Progress(utterances=len(utterances))
    if config.resume:
        progress = run.load_checkpoint(folder, models, optimizer, progress, place)

    def plan(epoch: int) -> list[MicroBatch]:
        seconds = config.update_seconds, config.batch_seconds
        return plan_epoch(utterances, epoch, config.seed, *seconds, place.rank, place.ranks)

    steps = config.max_steps or config.epochs * (plan(1)[-1].update + 1)  # epochs differ by an update or so
    references = {u.id: u.text for u in corpus.dev}
    with run.stop_on_signals(), run.progress_bar(progress, steps, place) as bar:
        while not progress.done:
            train_epoch(config, models, tokenizer, soft, optimizer, plan(progress.epoch), steps, progress, place, bar)
            found = decode(config, models["recogniser"], tokenizer, corpus.dev, place)
            dev, homophones = metrics.score(references, found, corpus.homophones)
            progress.epoch, progress.update = progress.epoch + 1, 0
            progress.done = progress.step >= config.max_steps if config.max_steps else progress.epoch >= config.epochs
            if place.first:
                run.keep_epoch(folder, models["recogniser"], dev.rate, config.average, progress)
                entry = {"dev": dev.rate} | ({"dev_homophone_error": homophones.rate} if corpus.homophones else {})
                run.write_log(folder, progress, step=progress.step, epoch=progress.epoch, **entry)
                run.save_checkpoint(folder, models, optimizer, progress)
                run.drop_epochs(folder, progress)
                run.note(
                    f"epoch {progress.epoch}: dev WER {dev.rate:.1f} %, {progress.train_seconds:.0f} s of training"
                )
    if place.first:
        tokenizer.save(folder)
        run.save_weights(folder / "model.safetensors", run.average_best_epochs(folder, progress))
    run.barrier(place)
    models["recogniser"].load_state_dict(run.load_weights(folder / "model.safetensors"))
    example = [u for u in utterances if set(u.text.split()) & set(corpus.homophones)]
    if place.first and soft and example:
        draw_soft_label(config, models, tokenizer, example[0], soft[example[0].id], corpus.homophones, place)
    return Trained(models["recogniser"], tokenizer, run.training_report(progress) | report)


def train_epoch(
    config: Config, models: nn.ModuleDict, tokenizer: WordPiece, soft: dict[str, SoftLabel],
    optimizer: torch.optim.Optimizer, plan: list[MicroBatch], steps: int, progress: run.Progress, place: run.Place,
    bar: tqdm,
) -> None:  # fmt: skip
    """The rest of an epoch, from update progress.update on. Raises UserError when the run is asked to stop.

    plan: of the whole epoch; steps: updates of the whole run.
    """
    folder, parameters = Path(config.out), list(models.parameters())
    rest = [part for part in plan if part.update >= progress.update and progress.step != config.max_steps]
    sums = run.Sums()
    models.train()
    for batch in batches(rest, config, tokenizer, progress.bad):
        # Dropout and SpecAugment draw from here: they depend on where in the run we are, not on how we got here.
        run.reseed(config.seed, batch.plan.epoch, batch.plan.update, batch.plan.part, place.rank)
        if batch.utterances:
            batch = with_soft_labels(batch, soft) if soft else batch
            loss = compute_losses(models, batch.to(place.device), config, place.autocast)
            loss.backward()
            sums.loss += loss.item()
        sums.utterances += len(batch.utterances)
        sums.seconds += batch.samples.sum().item() / SAMPLE_RATE
        sums.infeasible += batch.infeasible
        sums.bad |= batch.bad
        if not batch.plan.ends_update:
            continue

        sums = run.sum_over_ranks(sums, place)
        run.sum_gradients(parameters, sums.utterances, place)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip).item()
        lr = config.lr * run.learning_rate(config.schedule, config.warmup, progress.step, steps)
        optimizer.param_groups[0]["lr"] = lr
        usable = sums.utterances > 0 and math.isfinite(norm)
        if usable:
            optimizer.step()
        optimizer.zero_grad()
        run.count_update(folder, progress, sums, place, bar, norm=norm, lr=lr, usable=usable)
        if place.first and (sums.stop or progress.step % config.save_steps == 0):
            run.save_checkpoint(folder, models, optimizer, progress)
        if sums.stop:
            raise UserError(f"stopped after update {progress.step}: go on with --resume --out {folder}")
        if progress.step == config.max_steps:
            return
        sums = run.Sums()


# ======================================================================================================== evaluate


class Beam(NamedTuple):
    """How the beam search goes, see ctc.prefix_beam_search."""

    beam: int
    lm: LanguageModel | None
    lm_weight: float
    bonus: float


@torch.inference_mode()
def recognise(
    model: Recogniser, waves: Tensor, samples: Tensor, place: run.Place, beam: Beam | None = None
) -> list[list[ctc.Token]]:
    """waves (B, N), samples (B,) -> tokens per utterance, greedy or by the beam."""
    model.eval()
    with torch.autocast(place.device.type, place.autocast, enabled=place.autocast is not None):
        (state,), lengths = model(waves.to(place.device), samples.to(place.device))
        log_probs = model.log_probs(state)
    if beam is None:
        return ctc.greedy(log_probs, lengths)
    utterances = [lp[:n] for lp, n in zip(log_probs, lengths.tolist(), strict=True)]
    best = [ctc.prefix_beam_search(lp, **beam._asdict())[0].labels for lp in utterances]
    return [ctc.align(lp, labels) for lp, labels in zip(utterances, best, strict=True)]


def decode(
    config: Config, model: Recogniser, tokenizer: Tokenizer, utterances: list[Utterance], place: run.Place,
    beam: Beam | None = None,
) -> dict[str, str]:  # fmt: skip
    """{utterance: what was recognised}, shared out over the ranks. What cannot be read is named, and not in it."""
    plan, found = evaluation_batches(utterances, config.batch_seconds, place.rank, place.ranks), {}
    quiet = None if place.first else True
    for batch in tqdm(batches(plan, config), "decoding", unit="batch", leave=False, delay=2, disable=quiet):
        for reason in batch.bad.values():
            run.note(f"not scored: {reason}")
        if batch.utterances:
            paths = recognise(model, batch.waves, batch.samples, place, beam)
            for utterance, path in zip(batch.utterances, paths, strict=True):
                found[utterance.id] = tokenizer.decode([token.label for token in path])
    return {name: text for part in run.gather(found, place) for name, text in part.items()}


def tune_beam(config: Config, corpus: Corpus, model: Recogniser, tokenizer: Tokenizer, place: run.Place) -> Beam | None:
    """None for --decode greedy; else the --lm-weight and --bonus with the fewest errors on 100 dev utterances."""
    if config.decode == "greedy":
        return None
    with run.first_rank_first(place):
        lm = LanguageModel(config.lm, "--lm", config.root, tokenizer, place.device) if config.lm else None
    weights = config.lm_weight if lm else (0.0,)
    beams = [Beam(config.beam, lm, weight, bonus) for weight in weights for bonus in config.bonus]
    if len(beams) == 1:
        return beams[0]
    if not corpus.dev:
        raise UserError("there is no dev set to tune the beam search on: give one --lm-weight and one --bonus.")
    some = random.Random(config.seed).sample(corpus.dev, min(100, len(corpus.dev)))
    references = {u.id: u.text for u in some}
    found = [decode(config, model, tokenizer, some, place, beam) for beam in beams]
    rates = [metrics.score(references, texts, {})[0].rate for texts in found]
    for beam, rate in zip(beams, rates, strict=True) if place.first else ():
        run.note(f"dev WER {rate:.1f} % with --lm-weight {beam.lm_weight:g} --bonus {beam.bonus:g}")
    return beams[rates.index(min(rates))]


def evaluate(config: Config, corpus: Corpus, model: Recogniser, tokenizer: Tokenizer, place: run.Place) -> dict:
    """Scores every test set, writes hyp_<split>.txt, prints a line and some errors of each. Returns RESULT's scores."""
    folder, scores = Path(config.out), {"wer": {}, "homophone_error": {}, "not_scored": 0}
    beam = tune_beam(config, corpus, model, tokenizer, place)
    folder.mkdir(parents=True, exist_ok=True)
    for split, utterances in corpus.tests.items():
        found = decode(config, model, tokenizer, utterances, place, beam)
        references = {u.id: u.text for u in utterances}
        errors, homophones = run.score_split(folder, split, references, found, corpus.homophones, place)
        scores["wer"][split] = round(errors.rate, 2)
        scores["not_scored"] += len(utterances) - len(found)
        if corpus.homophones:
            scores["homophone_error"][split] = round(homophones.rate, 2)
    scores |= {"decode": config.decode, "rtf": real_time_factor(config, corpus, model, tokenizer, place, beam)}
    if beam:
        greedy = real_time_factor(config, corpus, model, tokenizer, place)
        scores |= {"greedy_rtf": greedy, "lm": config.lm, "lm_weight": beam.lm_weight, "bonus": beam.bonus}
    return scores


def real_time_factor(
    config: Config, corpus: Corpus, model: Recogniser, tokenizer: Tokenizer, place: run.Place, beam: Beam | None = None
) -> float | None:
    """Seconds per second of audio for features, encoder and decoding, one utterance at a time, reading excluded."""

    def once(wave: Tensor) -> None:  # (1, N)
        paths = recognise(model, wave, torch.tensor([wave.shape[1]]), place, beam)
        tokenizer.decode([token.label for token in paths[0]])

    some = [u for utterances in corpus.tests.values() for u in utterances][:50]
    audio = [batch.waves for batch in Batches([MicroBatch([u]) for u in some], config) if batch.utterances]
    for wave in audio[:3]:  # warms up
        once(wave)
    started = run.synchronise(place)
    for wave in audio:
        once(wave)
    seconds = sum(wave.shape[1] for wave in audio) / SAMPLE_RATE
    return round((run.synchronise(place) - started) / seconds, 5) if audio else None


def draw(config: Config, corpus: Corpus, model: Recogniser, tokenizer: WordPiece, place: run.Place) -> None:
    """loss.png, and posteriors.png: when the network believes in which piece, for the first test utterance."""
    from common import figures

    folder, log = Path(config.out), run.read_log(Path(config.out))
    steps = [entry for entry in log if "loss" in entry]
    dev = [(entry["step"], entry["dev"]) for entry in log if "dev" in entry]
    figures.loss_curve(folder / "loss.png", [e["step"] for e in steps], [e["loss"] for e in steps], dev, folder.name)
    utterance = [u for utterances in [*corpus.tests.values(), corpus.dev] for u in utterances][0]
    batch = Batches([MicroBatch([utterance])], config)[0]
    if batch.utterances:
        with torch.inference_mode():
            (state,), lengths = model.eval()(batch.waves.to(place.device), batch.samples.to(place.device))
            log_probs = model.log_probs(state)
        path = ctc.greedy(log_probs, lengths)[0]
        labels = list(dict.fromkeys([ctc.BLANK, *(token.label for token in path)]))
        names = ["(blank)", *(tokenizer.pieces[label - 1] for label in labels[1:])]
        seconds = config.subsampling * FRAME_SECONDS
        probabilities = log_probs[0, :, labels].exp().cpu().numpy()
        figures.posteriors(folder / "posteriors.png", probabilities, names, seconds, utterance.text)


def draw_soft_label(
    config: Config, models: nn.ModuleDict, tokenizer: Tokenizer, utterance: Utterance, soft: SoftLabel,
    homophones: dict[str, str], place: run.Place,
) -> None:  # fmt: skip
    """soft_label.png: what BERT, who sees the words around it, and the decoder, who hears it, expect at a homophone."""
    from common import figures

    batch = Batches([MicroBatch([utterance])], config, tokenizer)[0].to(place.device)
    if not batch.utterances:
        return
    words = utterance.text.split()
    n = next(n for n, word in enumerate(words) if word in homophones)
    step = len(tokenizer.encode(" ".join(words[:n])))
    models.eval()
    with torch.inference_mode():
        states, lengths = models["recogniser"](batch.waves, batch.samples)
        heard = models["decoders"][-1](states, lengths, batch.targets)[0][0, step].exp().cpu()  # (V,)
    told = torch.zeros_like(heard).index_put((soft.labels[step].long(),), soft.probs[step], accumulate=True)
    labels = sorted({*soft.labels[step].tolist(), *heard.topk(config.top_k).indices.tolist()}, key=lambda v: -told[v])
    bars = {"BERT's soft label": told[labels].tolist(), "decoder at the last layer": heard[labels].tolist()}
    names = [tokenizer.pieces[v - 1] if v else "<eos>" for v in labels]
    title = " ".join("[MASK]" if i == n else word for i, word in enumerate(words)) + f"   ({words[n]})"
    figures.bars(Path(config.out) / "soft_label.png", names, bars, "probability", title)


# ============================================================================================================ main


def load(config: Config, place: run.Place) -> Trained:
    """The finished model in --checkpoint. Raises UserError."""
    weights = run.load_weights(Path(config.checkpoint) / "model.safetensors")
    tokenizer = load_tokenizer(config.checkpoint)
    model = Recogniser(config, tokenizer.size).to(place.device)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"the weights in {config.checkpoint} do not fit its config.json: was it edited?") from None
    return Trained(model, tokenizer, {})


def transcribe(config: Config, place: run.Place) -> int:
    """Prints file<TAB>text, or with --times file<TAB>start<TAB>end<TAB>word. Returns how many files were unreadable."""
    model, tokenizer, _ = load(config, place)
    beam = tune_beam(config, Corpus([], [], {}, {}), model, tokenizer, place)
    frame, failed = config.subsampling * FRAME_SECONDS, 0  # seconds
    for path in config.transcribe:
        try:
            wave = read_audio(path)
        except AudioError as error:
            failed += 1
            run.note(f"error: {error}")
            continue
        words = []
        for start, end in split_at_pauses(wave, config.max_seconds):
            paths = recognise(model, wave[None, start:end], torch.tensor([end - start]), place, beam)
            for word, first, last in ctc.word_times(paths[0], tokenizer.decode):
                words.append((start / SAMPLE_RATE + first * frame, start / SAMPLE_RATE + last * frame, word))
        if config.times:
            for start, end, word in words:
                print(f"{path}\t{start:.2f}\t{end:.2f}\t{word}")
        else:
            print(f"{path}\t{' '.join(word for *_, word in words)}", flush=True)
    return failed


def summary(config: Config) -> dict[str, int]:
    """Prints the number of parameters by part, for V = --units + 1 outputs; transcripts may use fewer."""
    models = build_models(config, config.units + 1)
    parts = run.parameters_by_part(models["recogniser"])
    for name, count in parts.items():
        print(f"{name:12}{count:>12,}")
    if "decoders" in models:
        print(f"and {run.parameters_by_part(models)['decoders']:,} in the attention decoder, for training only")
    return parts


def check(config: Config) -> None:
    """Refuses values that would fail late, or silently do nothing. Raises UserError."""
    one_cycle, inner = config.schedule == "one-cycle", range(1, config.layers)
    positive = ["epochs", "average", "save_steps", "lr", "warmup", "clip"]
    positive += ["max_seconds", "batch_seconds", "update_seconds", "tau", "top_k", "beam", "decoder_layers"]
    shares = {f"--{name} is a share, from 0 to 1": not 0 <= x <= 1 for name, x in row(config)._asdict().items()}
    wrong = {f"--{name.replace('_', '-')} must be more than 0": getattr(config, name) <= 0 for name in positive} | {
        "--max-steps must be at least 1": config.max_steps is not None and config.max_steps < 1,
        "--kernel must be odd": config.kernel % 2 == 0,
        "--heads must divide --dim": config.dim % config.heads != 0,
        f"--taps are layers from 1 to {config.layers - 1}, below the last, each once": bool(
            row(config).w or row(config).u
        )
        and not (config.taps and set(config.taps) <= set(inner) and len(set(config.taps)) == len(config.taps)),
        "--lm-weight and --bonus need at least one value each": not (config.lm_weight and config.bonus),
        "--smoothing is a share, below 1": not 0 <= config.smoothing < 1,
        "--lm goes with --decode beam": config.lm is not None and config.decode != "beam",
        "--transcribe needs one --lm-weight and one --bonus": bool(config.transcribe)
        and config.decode == "beam"
        and (len(config.lm_weight) if config.lm else 1) * len(config.bonus) > 1,
        "--warmup is a share of the run, below 1, for --schedule one-cycle": one_cycle and config.warmup >= 1,
        "--warmup is a number of updates, at least 1, for --schedule inverse-sqrt": not one_cycle and config.warmup < 1,
        "--times goes with --transcribe": config.times and not config.transcribe,
    }
    for sentence, is_wrong in (wrong | shares).items():
        if is_wrong:
            raise UserError(f"{sentence}.")


def main(argv: list[str] | None = None) -> dict:
    """Trains and scores, or scores, transcribes, or counts parameters. Returns what RESULT says, on the first rank.

    With several methods: {method: what RESULT says}, after showing them side by side.
    """
    config = parse(Config, PRESETS, __doc__, argv)
    if len(config.method) > 1 and not config.summary:
        for method in config.method:
            check(replace(config, method=(method,)))
        results = {method: main(command) for method, command in run.one_by_one(config, argv)}
        run.compare(Path(config.out), results)
        return results
    check(config)
    if config.summary:
        return summary(replace(config, method=config.method[-1:]))
    place = run.start(config)
    if config.transcribe:
        if failed := transcribe(config, place):
            raise UserError(f"{failed} of {len(config.transcribe)} files could not be read.")
        return {}
    with run.first_rank_first(place):
        corpus = load_corpus(
            config.data, config.root, config.hours, config.download, config.seed, small=config.preset == "smoke",
            scoring=config.checkpoint is not None,
        )  # fmt: skip
    trained = load(config, place) if config.checkpoint else train(config, corpus, place)
    result = {
        "script": "interaed_kd",
        "method": config.method[0],
        "seed": config.seed,
        "weights": row(config)._asdict(),
    }
    result |= evaluate(config, corpus, trained.recogniser, trained.tokenizer, place)
    result |= {"normaliser": metrics.NORMALISER, "params": run.parameters_by_part(trained.recogniser)["total"]}
    result |= trained.report
    if place.first:
        run.report(Path(config.out), result)
        if not config.checkpoint:
            draw(config, corpus, trained.recogniser, trained.tokenizer, place)
    return result


if __name__ == "__main__":
    try:
        main()
        run.finish()
    except UserError as error:
        sys.exit(f"error: {error}")
