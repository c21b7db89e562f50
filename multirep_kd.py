"""Multiple Representation Transfer from Large Language Models to End-to-End ASR Systems.

Takuma Udagawa, Masayuki Suzuki, Gakuto Kurata, Masayasu Muraoka, George Saon. arXiv 2309.04031.

Idea
----
A transducer learns its language from transcripts alone. Earlier work lets it imitate what BERT makes of a sentence: a
small regression network has to guess BERT's last layer from the transducer's own acoustic and text features. But a text
has many representations: BERT's layers differ, it says other things when it sees more context, and another BERT knows
other things. The paper transfers several of them at once. At test time the regression networks are thrown away, and
nothing about decoding has changed. For comparison there are soft labels: what BERT expects as the next letter of a
word that is hidden from it.

Diagram
-------
    wave (B, N) --LogMel--> (B, F, 80) --Conformer--> h (B, T, D) ---------------+------------------+
                                                                                 |                  |
    <blank> y_1 … y_U --Predictor (embedding, LSTM)--> g (B, U+1, P) ----+-------|--------+         |
                                                                         |       |        |         |
                                                                         Joint, tile by tile        |
                                                                    rnnt_l, gamma (B, T, U)         |
                       what is exported ends here                                 |                 |
                                                        gamma: when is which character spoken?      |
                                                                                  |                 |
                       [h at that time ; g_u]  c (B, U, D+P)  <-------------------+-----------------+
                       mean over the characters of a BERT token
                                                         |
                       student (B, N, D+P) --k regression networks--> (k, B, N, E)   training only
                                                                          |
                                                                    kd_l  | distance
                                                                          |
    [CLS] context transcript context [SEP] ---BERT, k of its layers--> e (k, B, N, E)

Equations (the names are this file's own; each with its function, and its test in tests/test_multirep_kd.py)
---------
    rnnt_l     = -log sum over alignments of prod p(blank or y_{u+1} | t, u)      rnnt.transducer_loss     test_rnnt_l
    gamma(t,u) = p(y_{u+1} is emitted at frame t | x, y)                          rnnt.transducer_loss     test_gamma
    c_u        = [ sum_t gamma(t,u) h_t ; g_u ]                                   label_features           test_c
    s_i        = mean of c_u over the characters u of BERT's token i              pool_spans               test_s
    layers     = last, first, uniform or random k of BERT's L                     choose_layers            test_layers
    kd_l       = mean_k sum_i dist(R_k(s_i), e_i^k)                               distillation_loss        test_kd
    loss       = rnnt_l + lam kd_l                                                compute_losses           test_loss
    a comparator, --method soft_labels: rnnt_l + lam soft_l
    q_u(v)     = p(v comes after the characters that u's piece has so far | BERT, that piece masked)
                                                                                  soft_labels              test_q
    soft_l     = - sum_u sum_v q_u(v) log p(v | c_u, no blank)                    soft_label_loss          test_soft

    P prediction network's width;  E BERT's width, L its layers, k how many of them, e its states;  lam: --kd-weight

Sources
-------
Written from the abstract, a summary by others and neighbouring papers of the same group; we have not seen the paper's
body. Options say where their value comes from: [paper] the abstract, [digest] a summary by others, [peer] a paper of
the same group (Saon et al. 2020, 2021) or a toolkit's published recipe, [choice] ours, as are all sizes of the demo.
Symbols and metrics that all scripts share: README.md.

Choices (ours, marked again where they stand)
-------
    C1 meeting    h and g meet at the expected time of emission, under the transducer's own posterior, which is detached
    C2 layers     uniform(k) ends at the last layer: floor(i L / k + 1/2), i = 1 … k; random(k) draws anew every epoch
    C3 heads      R_k: Linear, GELU, LayerNorm, Linear; their gradient is clipped apart
    C4 ramp       lam rises over the first tenth of the run, while gamma is still diffuse
    C5 context    is halved between past and future, and what one side does not use goes to the other
    C6 Conformer  rotary positions, LayerNorm in the convolution module, no dropout on attention weights
    C7 training   the first epoch goes from short to long utterances; checkpoints are chosen by dev WER
    C8 soft       labels on label arcs: the joint network at the expected time of emission, among labels alone
    C9 beam       a language model of any pieces, which looks ahead inside a word; its weight is tuned on dev

Metrics (beside those of all scripts)
-------
    rnnt    the transducer's share of the loss;  kd: the distance to each representation, named by teacher and layer
    teacher_seconds   reading all transcripts before training; 0 where BERT reads them anew at every step

Run
---
    python multirep_kd.py                                     demo world, 10 minutes: rnnt 12 % WER, multirep_kd 9 %
    python multirep_kd.py --method multirep_kd --teacher-layers last --n-layers 1     one representation, as before
    python multirep_kd.py --method multirep_kd --context 60 --teachers demo demo/bert-b
    python multirep_kd.py --data librispeech --root ~/corpora --hours 100
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.running.flags import (
    Count,
    Extent,
    Positive,
    Real,
    RunConfig,
    Share,
    Speed,
    UserError,
    check_command_line,
    parse,
)

# ================================================================================================== configuration


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: Positive = 30.0  # longer training utterances are left out [choice]
    update_seconds: Positive = (
        400.0  # audio per update, over all ranks and micro-batches: about 64 utterances [peer]
    )
    speeds: tuple[Speed, ...] = (
        0.9,
        1.0,
        1.1,
    )  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 5  # SpecAugment, each over 0 to 5 % of the utterance [peer]
    noise: Share = 0.8  # share of the utterances into which another of the batch is mixed, at 0.4 of its power [peer]
    # -- method --
    method: Literal["rnnt", "multirep_kd", "soft_labels"] = "multirep_kd"  # row of the table
    kd_weight: float = 1.0  # lam, of the distances [choice]
    soft_label_weight: float = 0.3  # lam of the soft labels [choice]
    ramp: Share = 0.1  # share of the run over which lam rises to its value (C4 ramp)
    distance: Literal["l1", "l2", "cosine"] = (
        "l1"  # mean over dimensions, summed over tokens [choice]
    )
    target_norm: bool = (
        False  # BERT's states pass a LayerNorm first: its middle layers have a few huge dimensions
    )
    head_dim: Extent = 1024  # width inside the regression networks, in training only (C3 heads)
    # -- teacher --
    teachers: tuple[str, ...] = (
        "bert-base-uncased",
    )  # BERTs (hub names, folders, demo, demo/bert-b)
    teacher_layers: Literal["last", "first", "uniform", "random"] = (
        "uniform"  # which of theirs [digest] (C2 layers)
    )
    n_layers: Extent = 2  # how many of them [choice]
    context: int = 0  # BERT tokens of the utterances before and after it that BERT reads too; the paper's: 60 [digest]
    context_sides: Literal["both", "past", "future"] = "both"  # where from (C5 context)
    context_mask: Share = (
        0.15  # share of the context's tokens that are masked, drawn anew at every step [choice]
    )
    control: Literal["none", "shuffle", "random"] = (
        "none"  # another utterance's states, or an untrained BERT's
    )
    # -- model --
    subsampling: Literal[4, 8] = (
        4  # feature frames per encoder frame: 4 is 40 ms, 8 is 80 ms [choice]
    )
    channels: Extent = 128  # of the subsampling convolutions [choice]
    layers: Extent = 11  # Conformer blocks [choice] (C6 Conformer)
    dim: Extent = 512  # width [choice]
    heads: Extent = 8  # of self-attention [choice]
    ff_dim: Extent = 2048  # width inside the feed-forward parts [choice]
    kernel: Extent = 31  # frames seen by the depthwise convolution, odd [choice]
    dropout: Share = 0.1  # of the encoder, but not on its attention weights [choice]
    embedding_dim: Extent = 10  # of the prediction network [choice]
    predictor_dim: Extent = 768  # of its LSTM [choice]
    joint_dim: Extent = 256  # of the joint network [choice]
    joint: Literal["multiply", "add"] = "multiply"  # h and g [peer]
    # -- optimisation --
    epochs: Count = 30  # passes over the training data [peer]
    lr: Positive = 5e-4  # peak learning rate, of AdamW [peer]
    weight_decay: float = 1e-2  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "one-cycle"  # of the learning rate [peer]
    warmup: Positive = (
        0.3  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    )
    clip: Positive = (
        5.0  # largest norm of the gradient of recogniser and heads, each by itself [choice]
    )
    average: Count = 5  # epochs with the lowest dev error whose weights are averaged [choice]
    # -- decoding --
    decode: Literal["greedy", "beam"] = "greedy"  # beam: alignment-length synchronous beam search
    lm: str | None = (
        None  # causal language model for the beam, of any pieces: hub name, folder, demo/lm (C9 beam)
    )
    beam: Extent = 16  # hypotheses kept [peer]
    lm_weight: tuple[float, ...] = (0.3, 0.6, 1.0)  # each is tried on 100 dev utterances [choice]
    bonus: tuple[Real, ...] = (
        0.0,
        0.5,
    )  # per character, each is tried with each --lm-weight [choice]

    def check(self) -> None:
        super().check()
        if self.control == "shuffle" and self.method == "soft_labels":
            raise UserError("--control shuffle goes with --method multirep_kd.")


DEMO = dict(  # [choice] sizes that learn to recognise the demo world in about four minutes per row on one core
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    noise=0.0, methods=("rnnt", "multirep_kd"), kd_weight=30.0, teachers=("demo",), head_dim=128, subsampling=8,
    channels=16, layers=4, dim=112, heads=4, ff_dim=448, kernel=15, dropout=0.0, embedding_dim=16, predictor_dim=128,
    joint_dim=128, joint="add", epochs=5, lr=4.5e-3, average=1,
)  # fmt: skip
SMOKE = DEMO | dict(
    data="demo-smoke", teachers=("demo-smoke",), hours=0.1, layers=2, update_seconds=8.0, epochs=3
)
PRESETS = {"smoke": SMOKE, "demo": DEMO}


if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import random
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import figures, rnnt, rnnt_beam
from common.conformer import Conformer, length_mask, subsampled
from common.features import FRAME_SECONDS, LogMel, mix_utterances, num_frames, spec_augment
from common.running import decoding, evaluation, transcription
from common.running.batches import Batch, first_readable, read_corpus, sample_waves
from common.running.corpora import Corpus, Utterance, session_order, trainable
from common.running.decoding import Decoding, Transcript
from common.running.options import Search
from common.running.pretrained import WordModel, load_masked_lm
from common.running.process import Place, first_rank_first, reseed, start, synchronise
from common.running.training import Run
from common.running.weights import load_recogniser
from common.text import Characters, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, prediction and joint network: a transducer. All that is exported."""

    decodes = Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        lm=WordModel,
        own=Search(beam=16, lm_weight=(0.3, 0.6, 1.0), bonus=(0.0, 0.5)),
    )

    def __init__(self, config: Config, vocabulary: int, tokenizer: Characters | None = None):
        super().__init__()
        self.tokenizer, self.seconds = (
            tokenizer,
            config.subsampling * FRAME_SECONDS,
        )  # of an encoder frame
        self.masks, self.noise = (config.frequency_masks, config.time_masks), config.noise
        self.frontend = LogMel()
        self.encoder = Conformer(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            ff_dim=config.ff_dim,
            kernel=config.kernel,
            dropout=config.dropout,
            subsampling=config.subsampling,
            channels=config.channels,
        )
        self.predictor = rnnt.Predictor(vocabulary, config.embedding_dim, config.predictor_dim)
        sizes = config.dim, config.predictor_dim, config.joint_dim, vocabulary
        self.joint = rnnt.Joint(*sizes, multiply=config.joint == "multiply")

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> h (B, T, D), lengths (B,)."""
        features, frames = self.frontend(waves, samples)  # (B, F, 80)
        if self.training:
            features = mix_utterances(features, frames, self.noise, self.frontend)
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        encoded = self.encoder(features, frames)
        return encoded.output, encoded.lengths

    def transcribe(
        self, batch: Batch, place: Place, beam: int | None = None, **search
    ) -> list[Transcript]:
        """Greedily, or with a beam; search: see rnnt_beam.search."""
        with place.autocast():
            h, lengths = self(batch.waves, batch.samples)
        encoded = self.joint.encode(h.float())  # (B, T, J)
        paths = rnnt_beam.search(self.predictor, self.joint, encoded, lengths, beam, **search)
        return [decoding.transcript_of(path, self.tokenizer, self.seconds) for path in paths]


class RegressionHead(nn.Sequential):
    """R_k: guesses a representation of BERT's from the transducer's features (C3 heads). Needed for training only."""

    def __init__(self, student_dim: int, dim: int, teacher_dim: int):
        super().__init__(
            nn.Linear(student_dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, teacher_dim)
        )


def build_models(
    config: Config,
    vocabulary: int,
    sizes: list[tuple[int, int]],
    tokenizer: Characters | None = None,
) -> nn.ModuleDict:
    """What is trained: `recogniser`, and for --method multirep_kd `heads`, one per representation: TEACHER-LAYER.

    sizes: each teacher's layers and width. The heads come last, and leave the recogniser's first weights alone.
    """
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)})
    if config.method == "multirep_kd":
        models["heads"] = heads = nn.ModuleDict()
        for i, (depth, width) in enumerate(sizes):
            layers = choose_layers(config.teacher_layers, config.n_layers, depth, random.Random(0))
            for layer in range(1, depth + 1) if config.teacher_layers == "random" else layers:
                heads[f"{i}-{layer}"] = RegressionHead(
                    config.dim + config.predictor_dim, config.head_dim, width
                )
    return models


def fits(subsampling: int, samples: int, labels: list[int], text: str) -> bool:
    """A transducer needs one encoder frame, whatever the labels."""
    return subsampled(num_frames(samples), subsampling) >= 1


# =========================================================================================================== loss


def label_features(gamma: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """c_u = [sum_t gamma(t, u) h_t ; g_u]: what both networks know when label u+1 is emitted (C1 meeting).

    gamma (B, T, U), h (B, T, D), g (B, U+1, P) -> (B, U, D+P). No tensor over t and u together but gamma.
    """
    return torch.cat([gamma.transpose(1, 2).to(h.dtype) @ h, g[:, :-1]], -1)


def pool_spans(c: Tensor, spans: list[np.ndarray]) -> Tensor:
    """The mean of c_s … c_{e-1} for every token's span [s, e) of characters: c (B, U, S) -> (B, N, S), zero-padded."""
    bounds = [torch.as_tensor(pairs) for pairs in spans]  # (N, 2)
    start, end = (
        nn.utils.rnn.pad_sequence(bounds, batch_first=True).to(c.device)[..., None].unbind(2)
    )  # (B, N, 1)
    u = torch.arange(c.shape[1], device=c.device)
    return (((u >= start) & (u < end)) / (end - start).clamp(min=1)).to(
        c.dtype
    ) @ c  # (B, N, U) @ (B, U, S)


def distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """(…, E), (…, E) -> (…): the mean over dimensions of |s - e| or (s - e)^2, or 1 - cos(s, e)."""
    if kind == "cosine":
        return 1 - nn.functional.cosine_similarity(student, teacher, -1)
    difference = student - teacher
    return (difference.abs() if kind == "l1" else difference.square()).mean(-1)


def distillation_loss(
    students: list[Tensor], targets: list[Tensor], real: Tensor, kind: str
) -> list[Tensor]:
    """For each representation k, sum over tokens of dist(R_k(s_i), e_i^k); kd_l is their mean over k.

    students R_k(s) and targets e^k, each (B, N, E_k); real (B, N), True for tokens.
    """
    return [
        (distance(s, e.detach(), kind) * real).sum() for s, e in zip(students, targets, strict=True)
    ]


def soft_label_loss(logits: Tensor, q: Tensor) -> Tensor:
    """soft_l, cross-entropy of q to the distribution over labels: logits (B, U, V), the blank's among them (C8 soft).

    q (B, U, V), 0 at the blank; where it is 0 for all labels, nothing is asked.
    """
    return -(q[..., 1:] * logits[..., 1:].float().log_softmax(-1)).sum()


def compute_losses(
    models: nn.ModuleDict,
    batch: Batch,
    teachers: list[Teacher],
    lam: float,
    config: Config,
    place: Place,
) -> tuple[Tensor, dict]:
    """The batch's loss; and its parts, rnnt_l and what each representation costs; all summed over its utterances.

    lam: as large as it is by now. Networks may run in bf16; losses and distances are fp32.
    """
    recogniser, joint, costs = models["recogniser"], models["recogniser"].joint, {}
    names, epoch = [u.id for u in batch.utterances], batch.plan.epoch
    with place.autocast():
        h, lengths = recogniser(batch.waves, batch.samples)
        g = recogniser.predictor.all_states(batch.targets)
        sizes = batch.targets, lengths, batch.target_lengths
        losses, gamma = rnnt.transducer_loss(joint, joint.encode(h), joint.predict(g), *sizes)
        c = label_features(gamma, h, g) if teachers else None
        for i, teacher in enumerate(teachers):
            if config.method == "soft_labels":
                acoustics, text = c.split([h.shape[-1], g.shape[-1]], -1)
                q = nn.utils.rnn.pad_sequence(teacher.ask(names, epoch), batch_first=True)
                logits = joint(joint.encode(acoustics), joint.predict(text))
                costs[f"{teacher.name} soft labels"] = soft_label_loss(logits, q)
                continue
            layers = teacher.layers(epoch)
            spans = [teacher.texts[name].spans for name in names]
            pooled = pool_spans(c, spans)
            students = [models["heads"][f"{i}-{layer}"](pooled).float() for layer in layers]
            real = length_mask(
                torch.tensor([len(s) for s in spans], device=h.device), pooled.shape[1]
            )
            distances = distillation_loss(
                students, teacher.targets(names, epoch), real, config.distance
            )
            costs |= zip([f"{teacher.name} {layer}" for layer in layers], distances, strict=True)
    loss = losses.sum()
    if not teachers:
        return loss, {"rnnt": loss}
    return loss + lam * sum(costs.values()) / len(costs), {"rnnt": loss, "kd": costs}


# ======================================================================================================== teacher


def choose_layers(strategy: str, k: int, depth: int, draw: random.Random) -> list[int]:
    """k of a teacher's layers 1 … L, ascending (C2 layers). Layer 0, the embedding, is never used.

    last: L-k+1 … L; first: 1 … k; uniform: floor(i L / k + 1/2) for i = 1 … k; random: k drawn from `draw`.
    Raises UserError for k > L.
    """
    if k > depth:
        raise UserError(f"--n-layers {k} is more than the {depth} layers of the teacher: lower it.")
    if strategy == "random":
        return sorted(draw.sample(range(1, depth + 1), k))
    return {
        "last": list(range(depth - k + 1, depth + 1)),
        "first": list(range(1, k + 1)),
        "uniform": [math.floor(i * depth / k + 0.5) for i in range(1, k + 1)],
    }[strategy]


def take_context(
    past: list[int], future: list[int], budget: int, sides: str
) -> tuple[list[int], list[int]]:
    """The nearest `budget` tokens of past and future, half from each; what one lacks, the other gives (C5 context)."""
    past, future = (past if sides != "future" else []), (future if sides != "past" else [])
    n_past = min(len(past), max(budget // 2, budget - len(future)))
    n_future = min(len(future), budget - n_past)
    return past[len(past) - n_past :], future[:n_future]


class Text(NamedTuple):
    """A transcript in a teacher's word pieces. Arrays, since all of the training corpus is kept."""

    text: str
    ids: np.ndarray  # (N,)
    spans: np.ndarray  # (N, 2): of each piece, the characters [start, end) of the transcript


class Teacher:
    """A frozen BERT, all transcripts as it reads them, and what it says of them."""

    def __init__(
        self,
        name: str,
        config: Config,
        utterances: list[Utterance],
        labels: Characters,
        place: Place,
    ):
        """utterances: all of the training corpus, also those too long to learn from: BERT may read them.

        labels: the recogniser's, for soft labels. Raises UserError where it is no BERT or has too few layers.
        """
        with first_rank_first(place):
            untrained = config.seed if config.control == "random" else None
            self.lm = load_masked_lm(name, "--teachers", config.root, place.device, untrained)
        self.name, self.config, self.soft = name, config, config.method == "soft_labels"
        self.longest = self.lm.longest - 2  # beside [CLS] and [SEP]
        self.labels, self.beginnings = labels, spell(self.lm.pieces, labels) if self.soft else {}
        self.depth, self.width = (
            getattr(self.lm.model.config, x) for x in ("num_hidden_layers", "hidden_size")
        )
        self.texts: dict[str, Text] = {}
        for u in utterances:
            pieces = self.lm.tokenizer(
                u.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids, spans = (
                np.array(pieces[key], np.int32) for key in ("input_ids", "offset_mapping")
            )
            self.texts[u.id] = Text(
                u.text, ids[: self.longest], spans.reshape(-1, 2)[: self.longest]
            )
        self.around = session_order(
            utterances
        )  # utterance -> its session's in order, and which of them it is
        order = [u.id for u in utterances if u.text]
        random.Random(config.seed).shuffle(order)
        shifted = order[1:] + order[:1] if config.control == "shuffle" else order
        self.partners = dict(
            zip(order, shifted, strict=True)
        )  # utterance -> the one whose states it gets
        self.known: dict[
            str, Tensor
        ] = {}  # utterance -> states or soft labels; empty where it is asked at every step

    def layers(self, epoch: int) -> list[int]:
        """Those whose states are wanted in this epoch."""
        draw = random.Random(f"{self.config.seed}-{epoch}-layers")
        return choose_layers(self.config.teacher_layers, self.config.n_layers, self.depth, draw)

    def reads(self, name: str, epoch: int) -> tuple[list[int], int]:
        """What it reads for utterance `name`, [CLS] past target future [SEP], and where its target begins.

        Each token of the context becomes [MASK] with probability --context-mask, drawn anew every epoch; those of the
        target never do.
        """
        draw = random.Random(f"{self.config.seed}-{epoch}-{name}-context")
        target, (session, i) = self.texts[name].ids.tolist(), self.around[name]
        budget = min(self.config.context, self.longest - len(target))
        sides = session[max(0, i - budget) : i], session[i + 1 : i + 1 + budget]
        past, future = ([x for n in side for x in self.texts[n].ids.tolist()] for side in sides)
        sides = take_context(past, future, budget, self.config.context_sides)
        share, mask = self.config.context_mask, self.lm.mask
        past, future = ([mask if draw.random() < share else x for x in side] for side in sides)
        return [self.lm.cls, *past, *target, *future, self.lm.sep], 1 + len(past)

    def states(self, names: list[str], epoch: int) -> list[Tensor]:
        """Its states e at the tokens of each utterance's transcript, (N, k, E), fp32."""
        inputs = [self.reads(name, epoch) for name in names]
        states = self.lm.layers([ids for ids, _ in inputs], self.layers(epoch))  # (B, ., k, E)
        states = (
            nn.functional.layer_norm(states, states.shape[-1:])
            if self.config.target_norm
            else states
        )
        ends = [
            first + len(self.texts[name].ids)
            for name, (_, first) in zip(names, inputs, strict=True)
        ]
        return [
            e[first:end].clone() for e, (_, first), end in zip(states, inputs, ends, strict=True)
        ]

    def ask(self, names: list[str], epoch: int) -> list[Tensor]:
        """What it says of each utterance: its states (N, k, E), or with --method soft_labels q (U, V)."""
        if self.known:
            return [self.known[name] for name in names]
        return soft_labels(self, names, epoch) if self.soft else self.states(names, epoch)

    def targets(self, names: list[str], epoch: int) -> list[Tensor]:
        """For each layer, its states at the tokens of the batch's transcripts (B, N, E); e_i, unless shuffled."""
        states = self.ask([self.partners[name] for name in names], epoch)
        tokens = [
            torch.arange(len(self.texts[name].ids), device=states[0].device) for name in names
        ]
        found = [e[token % max(1, len(e))] for e, token in zip(states, tokens, strict=True)]
        return list(nn.utils.rnn.pad_sequence(found, batch_first=True).unbind(2))

    def ask_once(self, names: list[str], place: Place) -> None:
        """Keeps what it says of `names` where that is the same in every epoch and takes no more than 2 GB.

        In batches that depend on nothing else, so that every rank and a resumed run get the same bits.
        """
        config, texts = self.config, [self.texts[self.partners[name]] for name in names]
        states = config.n_layers * self.width * sum(len(text.ids) for text in texts)  # numbers
        numbers = self.labels.size * sum(len(text.text) for text in texts) if self.soft else states
        drawn = (config.context and config.context_mask) or (
            config.teacher_layers == "random" and not self.soft
        )
        if drawn or 4 * numbers > 2e9:
            return
        order = sorted(
            (self.partners[name] for name in names),
            key=lambda name: (len(self.texts[name].ids), name),
        )
        parts, quiet = (
            [order[i : i + 64] for i in range(0, len(order), 64)],
            None if place.first else True,
        )
        known: dict[str, Tensor] = {}
        for part in tqdm(
            parts, f"{self.name} reads", unit="batch", leave=False, delay=2, disable=quiet
        ):
            known |= zip(part, self.ask(part, 0), strict=True)
        self.known = known


def spell(pieces: list[str], labels: Characters) -> dict[tuple[bool, str], tuple[Tensor, Tensor]]:
    """(goes on with a word?, beginning) -> pieces that begin so (M,), and the label that each writes next (M,)."""
    beginnings: dict[tuple[bool, str], tuple[list[int], list[int]]] = {}
    for i, piece in enumerate(pieces):
        letters = (
            "" if re.fullmatch(r"\[.*\]", piece) else piece.removeprefix("##") + " "
        )  # a space at its end
        for j, letter in enumerate(letters):
            ids, following = beginnings.setdefault((piece.startswith("##"), letters[:j]), ([], []))
            if letter in labels.ids:
                ids.append(i)
                following.append(labels.ids[letter])
    return {key: tuple(map(torch.tensor, value)) for key, value in beginnings.items()}


@torch.no_grad()
def soft_labels(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """q of each utterance (U, V); 0 for all labels where the teacher's pieces do not spell the transcript.

    Every piece is masked once. That gives its characters, each given those before it, and the space behind a word.
    """
    rows, positions = [], []
    for name in names:
        ids, first = teacher.reads(name, epoch)
        rows += [ids] * len(teacher.texts[name].ids)
        positions += range(first, first + len(teacher.texts[name].ids))
    answers: list[Tensor] = []  # (vocabulary,) per piece
    for i in range(0, len(rows), 256):
        answers += (
            teacher.lm.logits(rows[i : i + 256], positions[i : i + 256]).float().softmax(-1).cpu()
        )
    found, nothing, probabilities = [], (torch.zeros(0, dtype=torch.long),) * 2, iter(answers)
    for name in names:
        text, ids, spans = teacher.texts[name]
        q = torch.zeros(len(text), teacher.labels.size)
        for piece, (first, end), p in zip(
            ids.tolist(), spans.tolist(), probabilities, strict=False
        ):
            goes_on = teacher.lm.pieces[piece].startswith("##")
            for u in range(first, end + (text[end : end + 1] == " ")):
                pieces, following = teacher.beginnings.get((goes_on, text[first:u]), nothing)
                q[u].index_add_(0, following, p[pieces])
        found.append((q / q.sum(-1, keepdim=True).clamp(min=1e-30)).to(teacher.lm.model.device))
    return found


# ========================================================================================================== train


def train(config: Config, corpus: Corpus, place: Place) -> tuple[Recogniser, dict]:
    """Returns the recogniser with the average of the best epochs' weights, and what RESULT says of the training."""
    utterances = trainable(corpus.train, config.max_seconds)
    tokenizer, report = Characters.build(u.text for u in utterances), {}
    names = () if config.method == "rnnt" else dict.fromkeys(config.teachers)
    teachers = [Teacher(name, config, corpus.train, tokenizer, place) for name in names]
    started = synchronise(place)
    for teacher in teachers:
        teacher.ask_once([u.id for u in utterances], place)
        report = {"teacher_seconds": round(synchronise(place) - started, 4)}
    reseed(config.seed)
    sizes = [(teacher.depth, teacher.width) for teacher in teachers]
    models = build_models(config, tokenizer.size, sizes, tokenizer).to(place.device)
    recogniser = models["recogniser"]
    recogniser.frontend.fit(sample_waves(utterances, config))
    groups = [{"params": list(part.parameters()), "lr": config.lr} for part in models.values()]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    weight = config.soft_label_weight if config.method == "soft_labels" else config.kd_weight
    run = Run(
        config,
        place,
        models=models,
        optimizer=optimizer,
        utterances=utterances,
        encode=tokenizer.encode,
        fits=partial(fits, config.subsampling),
    )
    for _ in run.epochs():
        for update in run.updates():
            lam = weight * min(1.0, update.step / max(1.0, config.ramp * run.steps))  # (C4 ramp)
            for batch in update:
                loss, parts = compute_losses(models, batch, teachers, lam, config, place)
                loss.backward()
                update.add(loss, parts)
            update.average_gradients()
            # Each part's gradient is clipped by itself: the heads must not slow the recogniser down (C3 heads).
            norms = [
                nn.utils.clip_grad_norm_(part.parameters(), config.clip).item()
                for part in models.values()
            ]
            update.log |= {"norm": norms[0], "lr": run.set_learning_rates()}
            if update.is_usable(norms):
                optimizer.step()
            optimizer.zero_grad()
        run.end_epoch(recogniser, evaluation.dev_scores(recogniser, corpus, config, place))
    return recogniser, report | run.finish(recogniser)


# ======================================================================================================= figures


def draw_distances(config: Config) -> None:
    """distances.png, of each representation over training."""
    what = "cross-entropy" if config.method == "soft_labels" else f"{config.distance} distance"
    figures.log_curves(
        Path(config.out) / "distances.png", "kd", f"{what}, summed over an utterance"
    )


@torch.inference_mode()
def draw_lattice(config: Config, recogniser: Recogniser, corpus: Corpus, place: Place) -> None:
    """lattice.png: when which label of a text is emitted."""
    known, joint = set(recogniser.tokenizer.ids), recogniser.joint
    utterances = [
        u
        for split in corpus.tests.values()
        for u in split
        if 0 < len(u.text) <= 60 and set(u.text) <= known
    ]
    batch = first_readable(utterances, config).to(place.device)
    text = batch.utterances[0].text
    target = torch.tensor([recogniser.tokenizer.encode(text)]).to(place.device)
    h, lengths = recogniser.eval()(batch.waves, batch.samples)
    predicted = joint.predict(recogniser.predictor.all_states(target))
    sizes = lengths, torch.tensor([len(text)], device=place.device)
    _, gamma = rnnt.transducer_loss(joint, joint.encode(h), predicted, target, *sizes)
    names = ["(space)" if c == " " else c for c in text]
    figures.posteriors(
        Path(config.out) / "lattice.png", gamma[0].cpu().numpy(), names, recogniser.seconds, text
    )


# ============================================================================================================ main


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    tokenizer = load_tokenizer(config.checkpoint)
    return load_recogniser(Recogniser(config, tokenizer.size, tokenizer), config.checkpoint, place)


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint scores or transcribes. Returns what RESULT says."""
    place = start(config)
    if config.transcribe:
        recogniser = load(config, place)
        transcription.transcribe_files(recogniser, list(config.transcribe), config, place)
        return {}
    corpus = read_corpus(config, place)
    recogniser, report = (
        (load(config, place), {}) if config.checkpoint else train(config, corpus, place)
    )
    result = {"script": "multirep_kd", "method": config.method, "seed": config.seed}
    result |= evaluation.evaluate(recogniser, corpus, config, place) | report
    result = evaluation.report(result, config, place)
    if place.first and not config.checkpoint:
        drawings = (
            {} if config.method == "rnnt" else {"distances.png": partial(draw_distances, config)}
        )
        drawings["lattice.png"] = partial(draw_lattice, config, recogniser, corpus, place)
        figures.draw(config.out, drawings)
    return result


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    if (
        configs[0].summary
    ):  # for 46 outputs (the blank and 45 characters), as on Switchboard, and teachers as bert-base
        return evaluation.print_parameters(
            build_models(configs[-1], 46, [(12, 768)] * len(configs[-1].teachers))
        )
    return evaluation.compare_methods(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
