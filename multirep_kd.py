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
    a comparator, --method soft_labels: rnnt_l + soft_lam soft_l
    q_u(v)     = p(v comes after the characters that u's piece has so far | BERT, that piece masked)
                                                                                  soft_labels              test_q
    soft_l     = - sum_u sum_v q_u(v) log p(v | c_u, no blank)                    soft_label_loss          test_soft

Sources
-------
Written from the abstract, the digest of a second reader, and neighbouring papers of the same group; we have not seen
the paper's body. Options say where their value comes from: [paper] the abstract, [digest] a summary by others, [peer]
a neighbouring paper (Saon et al. 2020, 2021) or a toolkit's published recipe, [choice] ours. The sizes of the demo
preset are all ours.

Symbols
-------
    B batch, N samples or BERT tokens, F feature frames, T encoder frames, U labels (characters), V outputs, D encoder's
    width, P prediction network's width, E BERT's width, L BERT's layers, k how many of them;  e BERT's states

Choices (ours, marked again where they stand)
-------
    C1  h and g meet at the expected time of emission, under the transducer's own posterior, which is detached
    C2  uniform(k) ends at the last layer: floor(i L / k + 1/2), i = 1 … k; random(k) draws anew every epoch
    C3  R_k: Linear, GELU, LayerNorm, Linear; their gradient is clipped apart from the recogniser's
    C4  lam rises over the first tenth of the run, while gamma is still diffuse
    C5  context is halved between past and future, and what one side does not use goes to the other
    C6  rotary positions, LayerNorm in the convolution module, no dropout on attention weights (common/conformer.py)
    C7  the first epoch goes from short to long utterances; checkpoints are chosen by dev WER
    C8  soft labels on label arcs: the joint network at the expected time of emission, among labels alone
    C9  a language model of any pieces in the beam, which looks ahead inside a word; its weight is tuned on dev

Metrics
-------
    loss    as above: summed over the utterances of an update, divided by their number (nats per utterance)
    rnnt    the transducer's share of it;  kd: the distance to each representation, named by teacher and layer
    norm    of the recogniser's gradient before clipping          lr    learning rate
    dev     word error rate of greedy decoding on the dev set, %, after every epoch;  dev_homophone_error: as below
    wer     the same on the test sets, with the average of the best epochs' weights (--decode beam: by beam search)
    homophone_error   of the reference's homophones that came out as themselves or their twin, the share of twins, %
    rtf     seconds to transcribe a second of audio: features + encoder + decoding, one utterance at a time
    teacher_seconds   reading all transcripts before training; 0 where BERT reads them anew at every step

Run
---
    python multirep_kd.py --preset smoke                      does all work? under a minute on two cores
    python multirep_kd.py                                     demo world: rnnt and multirep_kd side by side, 10 minutes;
                                                              12 and 9 % WER, 45 and 22 % of the homophones wrong
    python multirep_kd.py --method multirep_kd --teacher-layers last --n-layers 1     one representation, as before
    python multirep_kd.py --method multirep_kd --context 60 --teachers demo,demo/bert-b
    python multirep_kd.py --method soft_labels                the comparator
    python multirep_kd.py --data librispeech --root ~/corpora --hours 100
    python multirep_kd.py --data DIR                          DIR/train.jsonl, dev.jsonl, test*.jsonl
    torchrun --nproc-per-node 8 multirep_kd.py --data librispeech --root ~/corpora
    python multirep_kd.py --checkpoint runs/x                 scores it; with --decode beam --lm demo/lm: by beam search
    python multirep_kd.py --checkpoint runs/x --transcribe a.wav b.flac
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from common.flags import RunConfig, UserError, check_command_line, parse

# ================================================================================================== configuration

Rows = Literal["rnnt", "multirep_kd", "soft_labels"]


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: float = 30.0  # longer training utterances are left out, longer recordings cut at pauses [choice]
    batch_seconds: float = 400.0  # audio per forward pass and rank, padding included: what memory allows [choice]
    update_seconds: float = 400.0  # audio per update, over all ranks and micro-batches: about 64 utterances [peer]
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 5  # SpecAugment, each over 0 to 5 % of the utterance [peer]
    noise: float = 0.8  # share of the utterances into which another of the batch is mixed, at 0.4 of its power [peer]
    # -- method --
    method: tuple[Rows, ...] = ("multirep_kd",)  # row(s) of the table, one after the other
    lam: float = 1.0  # weight of the distances [choice]
    soft_lam: float = 0.3  # weight of the soft labels, in its place [choice]
    ramp: float = 0.1  # share of the run over which lam or soft_lam rises to its value (C4)
    distance: Literal["l1", "l2", "cosine"] = "l1"  # mean over dimensions, summed over tokens [choice]
    target_norm: bool = False  # BERT's states pass a LayerNorm first: its middle layers have a few huge dimensions
    head_dim: int = 1024  # width inside the regression networks, in training only (C3)
    # -- teacher --
    teachers: tuple[str, ...] = ("bert-base-uncased",)  # BERTs (hub names, folders, demo, demo/bert-b)
    teacher_layers: Literal["last", "first", "uniform", "random"] = "uniform"  # which of their layers [digest] (C2)
    n_layers: int = 2  # how many of them [choice]
    context: int = 0  # BERT tokens of the utterances before and after it that BERT reads too; the paper's: 60 [digest]
    context_sides: Literal["both", "past", "future"] = "both"  # where from (C5)
    context_mask: float = 0.15  # share of the context's tokens that are masked, drawn anew at every step [choice]
    control: Literal["none", "shuffle", "random"] = "none"  # another utterance's states, or an untrained BERT's
    # -- model --
    subsampling: Literal[4, 8] = 4  # feature frames per encoder frame: 4 is 40 ms, 8 is 80 ms [choice]
    channels: int = 128  # of the subsampling convolutions [choice]
    layers: int = 11  # Conformer blocks [choice] (C6)
    dim: int = 512  # width [choice]
    heads: int = 8  # of self-attention [choice]
    ff_dim: int = 2048  # width inside the feed-forward parts [choice]
    kernel: int = 31  # frames seen by the depthwise convolution, odd [choice]
    dropout: float = 0.1  # of the encoder, but not on its attention weights [choice]
    embedding_dim: int = 10  # of the prediction network [choice]
    predictor_dim: int = 768  # of its LSTM [choice]
    joint_dim: int = 256  # of the joint network [choice]
    joint: Literal["multiply", "add"] = "multiply"  # h and g [peer]
    # -- optimisation --
    epochs: int = 30  # passes over the training data [peer]
    lr: float = 5e-4  # peak learning rate, of AdamW [peer]
    weight_decay: float = 1e-2  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "one-cycle"  # of the learning rate [peer]
    warmup: float = 0.3  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    clip: float = 5.0  # largest norm of the gradient [choice]
    average: int = 5  # epochs with the lowest dev error whose weights are averaged [choice]
    save_steps: int = 1000  # updates between checkpoints; also one after every epoch [choice]
    # -- decoding of the test sets --
    decode: Literal["greedy", "beam"] = "greedy"  # beam: alignment-length synchronous beam search
    beam: int = 16  # hypotheses kept [peer]
    lm: str | None = None  # causal language model for the beam, of any pieces: hub name, folder, demo/lm (C9)
    lm_weight: tuple[float, ...] = (0.3, 0.6, 1.0)  # each is tried on 100 dev utterances [choice]
    bonus: tuple[float, ...] = (0.0, 0.5)  # per character, each is tried with each --lm-weight [choice]


DEMO = dict(  # [choice] sizes that learn to recognise the demo world in about four minutes per row on one core
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    noise=0.0, method=("rnnt", "multirep_kd"), lam=30.0, teachers=("demo",), head_dim=128, subsampling=8, channels=16,
    layers=4, dim=112, heads=4, ff_dim=448, kernel=15, dropout=0.0, embedding_dim=16, predictor_dim=128, joint_dim=128,
    joint="add", epochs=5, lr=4.5e-3, average=1,
)  # fmt: skip
SMOKE = DEMO | dict(teachers=("demo-smoke",), hours=0.1, layers=2, update_seconds=8.0, epochs=3)
PRESETS = {"smoke": SMOKE, "demo": DEMO}


if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common import ctc, metrics, rnnt, run
from common.conformer import Conformer, length_mask, subsampled
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
from common.pretrained import WordModel, load_model, load_pieces
from common.text import Characters, Tokenizer, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, prediction and joint network: a transducer. All that is exported."""

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.frontend = LogMel()
        self.encoder = Conformer(
            config.dim, config.layers, config.heads, config.ff_dim, config.kernel, config.dropout,
            config.subsampling, config.channels,
        )  # fmt: skip
        self.predictor = rnnt.Predictor(vocabulary, config.embedding_dim, config.predictor_dim)
        self.joint = rnnt.Joint(
            config.dim, config.predictor_dim, config.joint_dim, vocabulary, multiply=config.joint == "multiply"
        )
        self.masks, self.noise = (config.frequency_masks, config.time_masks), config.noise

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> h (B, T, D), lengths (B,)."""
        features, frames = self.frontend(waves, samples)  # (B, F, 80)
        if self.training:
            features = mix_utterances(features, frames, self.noise, self.frontend)
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        h, lengths, _ = self.encoder(features, frames)
        return h, lengths


def mix_utterances(features: Tensor, frames: Tensor, share: float, frontend: LogMel) -> Tensor:
    """Adds 0.4 of another utterance's power to `share` of the batch: "sequence noise injection", Saon et al. 2019.

    features (B, F, 80) normalised, frames (B,). log(e^x_i + 0.4 e^x_j) of the log-mel features themselves.
    """
    B, device = len(features), features.device
    if not share or B < 2:
        return features
    partner = torch.arange(B, device=device).roll(int(torch.randint(1, B, ())))  # drawn on the CPU
    chosen = (torch.rand(B) < share).to(device)
    both = length_mask(torch.minimum(frames, frames[partner]), features.shape[1]) & chosen[:, None]  # (B, F)
    x = features * frontend.std + frontend.mean
    mixed = (torch.logaddexp(x, x[partner] + math.log(0.4)) - frontend.mean) / frontend.std
    return torch.where(both[..., None], mixed, features)


class RegressionHead(nn.Sequential):
    """R_k: guesses a representation of BERT's from the transducer's features (C3). Needed for training only."""

    def __init__(self, student_dim: int, dim: int, teacher_dim: int):
        super().__init__(nn.Linear(student_dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, teacher_dim))


def build_models(config: Config, vocabulary: int, teachers: list[tuple[int, int]]) -> nn.ModuleDict:
    """What is trained: `recogniser`, and where there are teachers `heads`, named TEACHER-LAYER, one per representation.

    teachers: each one's layers and width. The heads come last, so that they leave the recogniser's first weights alone.
    """
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary)})
    if teachers:
        heads = nn.ModuleDict()
        for i, (depth, width) in enumerate(teachers):
            layers = choose_layers(config.teacher_layers, config.n_layers, depth, random.Random(0))
            for layer in range(1, depth + 1) if config.teacher_layers == "random" else layers:
                heads[f"{i}-{layer}"] = RegressionHead(config.dim + config.predictor_dim, config.head_dim, width)
        models["heads"] = heads
    return models


# =========================================================================================================== loss


def label_features(gamma: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """c_u = [sum_t gamma(t, u) h_t ; g_u]: what the transducer hears and has written when it emits label u+1 (C1).

    gamma (B, T, U), h (B, T, D), g (B, U+1, P) -> (B, U, D+P). No tensor over t and u together but gamma.
    """
    return torch.cat([gamma.transpose(1, 2).to(h.dtype) @ h, g[:, :-1]], -1)


def pool_spans(c: Tensor, spans: list[np.ndarray]) -> Tensor:
    """The mean of c_s … c_{e-1} for every token's span [s, e) of characters: c (B, U, S) -> (B, N, S), zero-padded."""
    bounds = [torch.as_tensor(its_spans) for its_spans in spans]  # (N, 2)
    start, end = nn.utils.rnn.pad_sequence(bounds, batch_first=True).to(c.device)[..., None].unbind(2)  # (B, N, 1)
    u = torch.arange(c.shape[1], device=c.device)
    return (((u >= start) & (u < end)) / (end - start).clamp(min=1)).to(c.dtype) @ c  # (B, N, U) @ (B, U, S)


def distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """(…, E), (…, E) -> (…): the mean over dimensions of |s - e| or (s - e)^2, or 1 - cos(s, e)."""
    if kind == "cosine":
        return 1 - nn.functional.cosine_similarity(student, teacher, -1)
    difference = student - teacher
    return (difference.abs() if kind == "l1" else difference.square()).mean(-1)


def distillation_loss(students: list[Tensor], targets: list[Tensor], real: Tensor, kind: str) -> list[Tensor]:
    """For each representation k, sum over tokens of dist(R_k(s_i), e_i^k); kd_l is their mean over k.

    students R_k(s) and targets e^k, each (B, N, E_k); real (B, N), True for tokens.
    """
    return [(distance(s, e.detach(), kind) * real).sum() for s, e in zip(students, targets, strict=True)]


def soft_label_loss(logits: Tensor, q: Tensor) -> Tensor:
    """soft_l, the cross-entropy of q to the distribution over labels: logits (B, U, V), the blank's among them (C8).

    q (B, U, V), 0 at the blank; where it is 0 for all labels, nothing is asked.
    """
    return -(q[..., 1:] * logits[..., 1:].float().log_softmax(-1)).sum()


def compute_losses(
    models: nn.ModuleDict, batch: Batch, config: Config, teachers: list[Teacher], layers: list[list[int]], lam: float,
    autocast: torch.dtype | None,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """The batch's loss; and its parts, rnnt_l and what each teacher's layers cost; all summed over its utterances.

    layers: of each teacher, none for soft labels; lam (or soft_lam): as large as it is by now. Networks may run in
    bf16; losses and distances are fp32.
    """
    recogniser, distances = models["recogniser"], []
    with torch.autocast(batch.waves.device.type, autocast, enabled=autocast is not None):
        h, lengths = recogniser(batch.waves, batch.samples)
        g = recogniser.predictor.all_states(batch.targets)
        joint = recogniser.joint
        losses, gamma = rnnt.transducer_loss(
            joint, joint.encode(h), joint.predict(g), batch.targets, lengths, batch.target_lengths
        )
        if teachers:
            c = label_features(gamma, h, g)
            for i, (teacher, its_layers) in enumerate(zip(teachers, layers, strict=True)):
                if not its_layers:
                    hears, has_written = c.split([h.shape[-1], g.shape[-1]], -1)
                    q = ask(teacher, [u.id for u in batch.utterances], [], config, batch.plan.epoch)
                    q = nn.utils.rnn.pad_sequence(q, batch_first=True)
                    distances.append(soft_label_loss(joint(joint.encode(hears), joint.predict(has_written)), q))
                    continue
                spans = [teacher.texts[u.id].spans for u in batch.utterances]
                pooled = pool_spans(c, spans)
                targets = represent(teacher, batch, its_layers, config)
                students = [models["heads"][f"{i}-{layer}"](pooled).float() for layer in its_layers]
                real = length_mask(torch.tensor([len(s) for s in spans], device=h.device), pooled.shape[1])
                distances += distillation_loss(students, targets, real, config.distance)
    rnnt_loss = losses.sum()
    loss = rnnt_loss + lam * sum(distances) / len(distances) if distances else rnnt_loss
    return loss, [x.item() for x in (rnnt_loss, *distances)]


# ======================================================================================================== teacher


class Text(NamedTuple):
    """A transcript in a teacher's word pieces. Arrays, since all of the training corpus is kept."""

    said: str  # the transcript
    ids: np.ndarray  # (N,)
    spans: np.ndarray  # (N, 2): of each piece, the characters [start, end) of the transcript


class Spelling(NamedTuple):
    """How a teacher's pieces are written with the recogniser's labels, for soft labels."""

    pieces: list[str]
    # (goes on with a word?, beginning) -> the pieces that begin so (M,), and the label that each writes next (M,)
    beginnings: dict[tuple[bool, str], tuple[Tensor, Tensor]]
    outputs: int


class Teacher(NamedTuple):
    """A frozen BERT, and what it may read."""

    name: str
    model: nn.Module
    longest: int  # tokens that it reads at once, beside [CLS] and [SEP]
    special: tuple[int, int, int]  # [CLS], [SEP], [MASK]
    texts: dict[str, Text]  # utterance -> its pieces
    around: dict[str, tuple[list[str], int]]  # utterance -> its session's utterances in order, and which of them it is
    partners: dict[str, str]  # utterance -> the one whose states it gets under --control shuffle, else itself
    spelling: Spelling | None  # for soft labels only
    known: dict[str, Tensor]  # utterance -> what it says of it; empty where it is asked anew at every step


def load_teachers(
    config: Config, utterances: list[Utterance], place: run.Place, labels: Characters | None = None
) -> list[Teacher]:
    """utterances: all of the training corpus, also those that are too long to learn from: BERT may read them.

    labels: the recogniser's, if these teachers give soft labels. Raises UserError where a teacher is no masked language
    model, or has fewer layers than asked for.
    """
    from transformers import AutoModelForMaskedLM

    sessions: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sessions.setdefault(utterance.session, []).append(utterance)
    around = {}
    for session in sessions.values():  # in the order of their beginnings, whatever their channel
        names = [u.id for u in sorted(session, key=lambda u: u.offset)]
        around |= {name: (names, i) for i, name in enumerate(names)}
    order = [u.id for u in utterances if u.text]
    random.Random(config.seed).shuffle(order)
    partners = dict(zip(order, order[1:] + order[:1] if config.control == "shuffle" else order, strict=True))
    teachers = []
    for name in config.teachers:
        with run.first_rank_first(place):
            tokenizer = load_pieces(name, "--teachers", config.root)
            model = load_model(AutoModelForMaskedLM, name, "--teachers", config.root)
        if config.control == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                model = type(model)(model.config).eval().requires_grad_(False)
        longest, texts = min(tokenizer.model_max_length, model.config.max_position_embeddings) - 2, {}
        for u in utterances:
            said = tokenizer(u.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids, spans = np.array(said["input_ids"], np.int32), np.array(said["offset_mapping"], np.int32)
            texts[u.id] = Text(u.text, ids[:longest], spans.reshape(-1, 2)[:longest])
        spelling = spell(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), labels) if labels else None
        if labels and not hasattr(model, "cls"):
            raise UserError(f"--teachers {name} is no BERT with its masked language model: give another.")
        special = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
        short = Path(name).name
        short = f"{short} {len(teachers) + 1}" if short in [teacher.name for teacher in teachers] else short
        teachers.append(Teacher(short, model.to(place.device), longest, special, texts, around, partners, spelling, {}))
    return teachers


def choose_layers(strategy: str, k: int, depth: int, draw: random.Random) -> list[int]:
    """k of a teacher's layers 1 … L, ascending (C2). Layer 0, the embedding, is never used.

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


def layers_of(config: Config, teachers: list[Teacher], draw: random.Random) -> list[list[int]]:
    """Of each teacher, the layers whose states are wanted; none for soft labels."""
    if config.method == ("soft_labels",):
        return [[] for _ in teachers]
    depths = [teacher.model.config.num_hidden_layers for teacher in teachers]
    return [choose_layers(config.teacher_layers, config.n_layers, depth, draw) for depth in depths]


def take_context(past: list[int], future: list[int], budget: int, sides: str) -> tuple[list[int], list[int]]:
    """The nearest `budget` tokens of past and future, half from each; what one has not got, the other gives (C5)."""
    past, future = (past if sides != "future" else []), (future if sides != "past" else [])
    n_past = min(len(past), max(budget // 2, budget - len(future)))
    n_future = min(len(future), budget - n_past)
    return past[len(past) - n_past :], future[:n_future]


def teacher_input(teacher: Teacher, name: str, config: Config, epoch: int) -> tuple[list[int], int]:
    """What a teacher reads for utterance `name`, [CLS] past target future [SEP], and where its target begins.

    Each token of the context becomes [MASK] with probability --context-mask, drawn anew every epoch; those of the
    target never do.
    """
    draw = random.Random(f"{config.seed}-{epoch}-{name}-context")
    cls, sep, mask = teacher.special
    target, (session, i) = teacher.texts[name].ids.tolist(), teacher.around[name]
    budget = min(config.context, teacher.longest - len(target))
    sides: list[list[int]] = []
    for neighbours in (session[i - 1 :: -1] if i else [], session[i + 1 :]):  # the nearest first
        tokens: list[list[int]] = []
        while len(tokens) < len(neighbours) and sum(map(len, tokens)) < budget:
            tokens.append(teacher.texts[neighbours[len(tokens)]].ids.tolist())
        ordered = tokens if sides else tokens[::-1]
        sides.append([token for text in ordered for token in text])
    past, future = take_context(*sides, budget, config.context_sides)
    past, future = ([mask if draw.random() < config.context_mask else x for x in side] for side in (past, future))
    return [cls, *past, *target, *future, sep], 1 + len(past)


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids in one tensor (B, N), and 1 where they are, 0 where padding is."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    return ids, length_mask(torch.tensor([len(row) for row in rows], device=device), ids.shape[1]).long()


def spell(pieces: list[str], labels: Characters) -> Spelling:
    """Which pieces begin with which characters. Where a piece ends, it is taken to write a space."""
    beginnings: dict[tuple[bool, str], tuple[list[int], list[int]]] = {}
    for i, piece in enumerate(pieces):
        letters = "" if re.fullmatch(r"\[.*\]", piece) else piece.removeprefix("##") + " "
        for j, letter in enumerate(letters):
            ids, following = beginnings.setdefault((piece.startswith("##"), letters[:j]), ([], []))
            if letter in labels.ids:
                ids.append(i)
                following.append(labels.ids[letter])
    return Spelling(pieces, {key: tuple(map(torch.tensor, value)) for key, value in beginnings.items()}, labels.size)


@torch.no_grad()
def soft_labels(teacher: Teacher, names: list[str], config: Config, epoch: int) -> list[Tensor]:
    """q of each utterance (U, V); 0 for all labels where the teacher's pieces do not spell the transcript.

    Every piece is masked once. That gives its characters, each given those before it, and the space behind a word.
    """
    mask, device = teacher.special[2], teacher.model.device
    questions, places = [], []
    for name in names:
        ids, start = teacher_input(teacher, name, config, epoch)
        for i in range(start, start + len(teacher.texts[name].ids)):
            questions.append([*ids[:i], mask, *ids[i + 1 :]])
            places.append(i)
    probabilities = []
    for i in range(0, len(questions), 256):
        some = places[i : i + 256]
        states = teacher.model.base_model(*padded(questions[i : i + 256], device)).last_hidden_state
        states = states[range(len(some)), some]
        probabilities += teacher.model.cls(states).float().softmax(-1).cpu()
    found, nothing, answers = [], (torch.zeros(0, dtype=torch.long),) * 2, iter(probabilities)
    for name in names:
        said, ids, spans = teacher.texts[name]
        q = torch.zeros(len(said), teacher.spelling.outputs)
        for piece, (start, end), p in zip(ids.tolist(), spans.tolist(), answers, strict=False):
            goes_on = teacher.spelling.pieces[piece].startswith("##")
            for u in range(start, end + (said[end : end + 1] == " ")):
                like_it, following = teacher.spelling.beginnings.get((goes_on, said[start:u]), nothing)
                q[u].index_add_(0, following, p[like_it])
        found.append((q / q.sum(-1, keepdim=True).clamp(min=1e-30)).to(device))
    return found


@torch.no_grad()
def read(teacher: Teacher, names: list[str], layers: list[int], config: Config, epoch: int) -> list[Tensor]:
    """A teacher's states e at the tokens of each utterance's transcript, (N, k, E) for k `layers`, fp32."""
    inputs = [teacher_input(teacher, name, config, epoch) for name in names]
    inside = padded([ids for ids, _ in inputs], teacher.model.device)
    states = teacher.model.base_model(*inside, output_hidden_states=True).hidden_states  # L + 1 times (B, ., E)
    wanted = torch.stack([states[layer].float() for layer in layers], 2)
    wanted = nn.functional.layer_norm(wanted, wanted.shape[-1:]) if config.target_norm else wanted
    ends = [start + len(teacher.texts[name].ids) for name, (_, start) in zip(names, inputs, strict=True)]
    return [e[start:end].clone() for e, (_, start), end in zip(wanted, inputs, ends, strict=True)]


def ask(teacher: Teacher, names: list[str], layers: list[int], config: Config, epoch: int) -> list[Tensor]:
    """What a teacher says of each utterance: its states at `layers` (N, k, E), or, of no layers, soft labels (U, V)."""
    if teacher.known:
        return [teacher.known[name] for name in names]
    return read(teacher, names, layers, config, epoch) if layers else soft_labels(teacher, names, config, epoch)


def ask_once(teacher: Teacher, names: list[str], layers: list[int], config: Config, place: run.Place) -> None:
    """Keeps what a teacher says of `names` where it is the same in every epoch and takes no more than 2 GB.

    In batches that depend on nothing else, so that every rank and a resumed run get the same bits.
    """
    if config.teacher_layers == "random" or (config.context and config.context_mask):
        return
    texts = [teacher.texts[name] for name in names]
    numbers = len(layers) * teacher.model.config.hidden_size * sum(len(text.ids) for text in texts)
    if not layers:
        numbers = teacher.spelling.outputs * sum(len(text.said) for text in texts)
    if 4 * numbers > 2e9:
        return
    order = sorted(names, key=lambda name: (len(teacher.texts[name].ids), name))
    parts, quiet = [order[i : i + 64] for i in range(0, len(order), 64)], None if place.first else True
    known: dict[str, Tensor] = {}
    for part in tqdm(parts, f"{teacher.name} reads", unit="batch", leave=False, delay=2, disable=quiet):
        known |= zip(part, ask(teacher, part, layers, config, 0), strict=True)
    teacher.known.update(known)


def represent(teacher: Teacher, batch: Batch, layers: list[int], config: Config) -> list[Tensor]:
    """For each of `layers`, the teacher's states e at the tokens of the batch's transcripts (B, N, E), fp32."""
    states = ask(teacher, [teacher.partners[u.id] for u in batch.utterances], layers, config, batch.plan.epoch)
    tokens = [torch.arange(len(teacher.texts[u.id].ids), device=batch.waves.device) for u in batch.utterances]
    found = [e[token % max(1, len(e))] for e, token in zip(states, tokens, strict=True)]  # e_i, unless shuffled
    return list(nn.utils.rnn.pad_sequence(found, batch_first=True).unbind(2))


# =========================================================================================================== data


class Batch(NamedTuple):
    """What one forward pass reads. An utterance that cannot be read or is too short has left; all may have left."""

    waves: Tensor  # (B, N) zero-padded
    samples: Tensor  # (B,)
    targets: Tensor  # (B, U) zero-padded
    target_lengths: Tensor  # (B,)
    utterances: list[Utterance]
    bad: dict[str, str]  # utterance -> why its audio could not be read
    infeasible: int  # utterances without a single encoder frame
    plan: MicroBatch

    def to(self, device: torch.device) -> Batch:
        return self._replace(**{f: getattr(self, f).to(device, non_blocking=True) for f in self._fields[:4]})


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
                if subsampled(num_frames(len(wave)), self.config.subsampling) < 1:
                    infeasible += 1
                    continue
            waves.append(wave)
            targets.append(target)
            kept.append(utterance)
        pad, none = nn.utils.rnn.pad_sequence, torch.zeros(0, 0)
        return Batch(
            pad(waves, batch_first=True) if waves else none, torch.tensor([len(w) for w in waves]),
            pad(targets, batch_first=True) if waves else none.long(), torch.tensor([len(t) for t in targets]),
            kept, bad, infeasible, plan,
        )  # fmt: skip


def batches(plan: list[MicroBatch], config: Config, *labels) -> DataLoader:
    workers = min(config.workers, len(plan), os.cpu_count() or 1)
    return DataLoader(
        Batches(plan, config, *labels), batch_size=None, num_workers=workers, worker_init_fn=run.ignore_signals
    )


# ========================================================================================================== train


class Trained(NamedTuple):
    recogniser: Recogniser  # with the average of the best epochs' weights
    tokenizer: Tokenizer
    report: dict  # what RESULT says about the training


def train(config: Config, corpus: Corpus, place: run.Place) -> Trained:
    """Trains until the last epoch (or --max-steps) and writes the average of the best epochs to --out."""
    utterances = [u for u in corpus.train if u.text and u.duration <= config.max_seconds]
    if not utterances or not corpus.dev:
        raise UserError(
            f"there is nothing to learn from or to check it on: {len(corpus.train)} training utterances, "
            f"{len(utterances)} of them no longer than --max-seconds {config.max_seconds:g}, {len(corpus.dev)} for dev."
        )
    tokenizer = Characters.build(u.text for u in utterances)
    folder = run.open_folder(config, place)
    soft, teachers = config.method == ("soft_labels",), []
    if config.method != ("rnnt",):
        teachers = load_teachers(config, corpus.train, place, tokenizer if soft else None)
    started = run.synchronise(place)
    for teacher, layers in zip(teachers, layers_of(config, teachers, random.Random()), strict=True):
        ask_once(teacher, [teacher.partners[u.id] for u in utterances], layers, config, place)
    reading = {"teacher_seconds": round(run.synchronise(place) - started, 4)} if teachers else {}
    run.reseed(config.seed)
    sizes = [(teacher.model.config.num_hidden_layers, teacher.model.config.hidden_size) for teacher in teachers]
    models = build_models(config, tokenizer.size, [] if soft else sizes).to(place.device)
    sample = random.Random(config.seed).sample(utterances, min(500, len(utterances)))
    singly = batches([MicroBatch([utterance]) for utterance in sample], config)
    models["recogniser"].frontend.fit(wave for batch in singly for wave in batch.waves)
    rates = dict(lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    groups = [{"params": list(part.parameters())} for part in models.values()]
    optimizer = torch.optim.AdamW(groups, **rates, fused=True)
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
            train_epoch(
                config, models, tokenizer, teachers, optimizer, plan(progress.epoch), steps, progress, place, bar
            )
            found = decode(config, models["recogniser"], tokenizer, corpus.dev, place)
            dev, homophones = metrics.score(references, found, corpus.homophones)
            progress.epoch, progress.update = progress.epoch + 1, 0
            progress.done = progress.step >= config.max_steps if config.max_steps else progress.epoch >= config.epochs
            if place.first:
                run.keep_epoch(folder, models["recogniser"], dev.rate, config.average, progress)  # (C7)
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
    return Trained(models["recogniser"], tokenizer, run.training_report(progress) | reading)


def train_epoch(
    config: Config, models: nn.ModuleDict, tokenizer: Tokenizer, teachers: list[Teacher],
    optimizer: torch.optim.Optimizer, plan: list[MicroBatch], steps: int, progress: run.Progress, place: run.Place,
    bar: tqdm,
) -> None:  # fmt: skip
    """The rest of an epoch, from update progress.update on. Raises UserError when the run is asked to stop.

    plan: of the whole epoch; steps: updates of the whole run.
    """
    folder, parameters = Path(config.out), list(models.parameters())
    rest = [part for part in plan if part.update >= progress.update and progress.step != config.max_steps]
    draw = random.Random(f"{config.seed}-{progress.epoch}-layers")
    layers = layers_of(config, teachers, draw)
    weight = config.soft_lam if config.method == ("soft_labels",) else config.lam
    names = [f"{t.name} {layer}" for t, its in zip(teachers, layers, strict=True) for layer in its or ["soft labels"]]
    sums = run.Sums(parts=[0.0] * (1 + len(names)))
    models.train()
    for batch in batches(rest, config, tokenizer, progress.bad):
        # Dropout and SpecAugment draw from here: they depend on where in the run we are, not on how we got here.
        run.reseed(config.seed, batch.plan.epoch, batch.plan.update, batch.plan.part, place.rank)
        if batch.utterances:
            lam = weight * min(1.0, (progress.step + 1) / max(1.0, config.ramp * steps))  # (C4)
            loss, parts = compute_losses(models, batch.to(place.device), config, teachers, layers, lam, place.autocast)
            loss.backward()
            sums.loss += loss.item()
            sums.parts = [a + b for a, b in zip(sums.parts, parts, strict=True)]
        sums.utterances += len(batch.utterances)
        sums.seconds += batch.samples.sum().item() / SAMPLE_RATE
        sums.infeasible += batch.infeasible
        sums.bad |= batch.bad
        if not batch.plan.ends_update:
            continue

        sums = run.sum_over_ranks(sums, place)
        run.sum_gradients(parameters, sums.utterances, place)
        # Each part's gradient is clipped by itself: what the heads do must not slow the recogniser down (C3).
        norms = [nn.utils.clip_grad_norm_(part.parameters(), config.clip).item() for part in models.values()]
        lr = config.lr * run.learning_rate(config.schedule, config.warmup, progress.step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        usable = sums.utterances > 0 and all(map(math.isfinite, norms))
        if usable:
            optimizer.step()
        optimizer.zero_grad()
        rnnt_l, *distances = (part / max(sums.utterances, 1) for part in sums.parts)
        parts = {"rnnt": rnnt_l} | ({"kd": dict(zip(names, distances, strict=True))} if names else {})
        run.count_update(folder, progress, sums, place, bar, norm=norms[0], lr=lr, usable=usable, **parts)
        if place.first and (sums.stop or progress.step % config.save_steps == 0):
            run.save_checkpoint(folder, models, optimizer, progress)
        if sums.stop:
            raise UserError(f"stopped after update {progress.step}: go on with --resume --out {folder}")
        if progress.step == config.max_steps:
            return
        sums = run.Sums(parts=[0.0] * (1 + len(names)))


# ======================================================================================================== evaluate


class Beam(NamedTuple):
    """How the beam search goes, see rnnt.beam_search."""

    beam: int
    lm: WordModel | None
    lm_weight: float
    bonus: float


@torch.inference_mode()
def recognise(
    model: Recogniser, waves: Tensor, samples: Tensor, place: run.Place, beam: Beam | None = None
) -> list[list[ctc.Token]]:
    """waves (B, N), samples (B,) -> tokens per utterance, greedy: at the frame that emits it; by the beam: expected."""
    model.eval()
    with torch.autocast(place.device.type, place.autocast, enabled=place.autocast is not None):
        h, lengths = model(waves.to(place.device), samples.to(place.device))
    predictor, joint = model.predictor, model.joint
    encoded = joint.encode(h.float())
    if beam is None:
        return rnnt.greedy(predictor, joint, encoded, lengths)
    utterances = [e[:length] for e, length in zip(encoded, lengths.tolist(), strict=True)]
    best = [rnnt.beam_search(predictor, joint, e, **beam._asdict())[0].labels if len(e) else [] for e in utterances]
    return [rnnt.align(predictor, joint, e, labels) for e, labels in zip(utterances, best, strict=True)]


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
        lm = WordModel(config.lm, "--lm", config.root, tokenizer, place.device) if config.lm else None
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


def draw(config: Config, corpus: Corpus, model: Recogniser, tokenizer: Tokenizer, place: run.Place) -> None:
    """loss.png; distances.png, of each representation; lattice.png: when which label of an utterance is emitted."""
    from common import figures

    folder, log = Path(config.out), run.read_log(Path(config.out))
    steps = [entry for entry in log if "loss" in entry]
    dev = [(entry["step"], entry["dev"]) for entry in log if "dev" in entry]
    figures.loss_curve(folder / "loss.png", [e["step"] for e in steps], [e["loss"] for e in steps], dev, folder.name)
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in steps:
        for name, value in entry.get("kd", {}).items():
            curves.setdefault(name, []).append((entry["step"], value))
    if curves:
        what = "cross-entropy" if config.method == ("soft_labels",) else f"{config.distance} distance"
        what += ", summed over an utterance"
        figures.curves(folder / "distances.png", curves, "update", what, folder.name)
    utterances = [u for utterances in [*corpus.tests.values(), corpus.dev] for u in utterances]
    short = [u for u in utterances if 0 < len(u.text) <= 60 and set(u.text) <= set(tokenizer.ids)]
    batch = Batches([MicroBatch(short[:1])], replace(config, speeds=(1.0,)), tokenizer)[0].to(place.device)
    if not batch.utterances:
        return
    model.eval()
    with torch.inference_mode():
        h, lengths = model(batch.waves, batch.samples)
        joint, g = model.joint, model.predictor.all_states(batch.targets)
        sizes = lengths, batch.target_lengths
        _, gamma = rnnt.transducer_loss(joint, joint.encode(h), joint.predict(g), batch.targets, *sizes)
    text = batch.utterances[0].text
    names = ["(space)" if c == " " else c for c in text]
    figures.posteriors(folder / "lattice.png", gamma[0].cpu().numpy(), names, config.subsampling * FRAME_SECONDS, text)


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
    """Prints the number of parameters by part, for 46 outputs (the blank and 45 characters), as on Switchboard."""
    teachers = [(12, 768)] * len(config.teachers) if config.method == ("multirep_kd",) else []  # as bert-base's
    models = build_models(config, 46, teachers)
    parts = run.parameters_by_part(models["recogniser"])
    for name, count in parts.items():
        print(f"{name:12}{count:>12,}")
    if "heads" in models:
        heads = run.parameters_by_part(models)["heads"]
        print(f"and {heads:,} in the regression networks, if the teachers are bert-base, for training only")
    return parts


def check(config: Config) -> None:
    """Refuses values that would fail late, or silently do nothing. Raises UserError."""
    one_cycle = config.schedule == "one-cycle"
    positive = ["epochs", "average", "save_steps", "lr", "warmup", "clip", "n_layers", "beam"]
    positive += ["max_seconds", "batch_seconds", "update_seconds"]
    wrong = {f"--{name.replace('_', '-')} must be more than 0": getattr(config, name) <= 0 for name in positive} | {
        "--max-steps must be at least 1": config.max_steps is not None and config.max_steps < 1,
        "--kernel must be odd": config.kernel % 2 == 0,
        "--heads must divide --dim": config.dim % config.heads != 0,
        "--noise, --ramp and --context-mask are shares, from 0 to 1": not all(
            0 <= share <= 1 for share in (config.noise, config.ramp, config.context_mask)
        ),
        "--lam, --soft-lam and --context must not be negative": min(config.lam, config.soft_lam, config.context) < 0,
        "--control shuffle goes with --method multirep_kd": config.control == "shuffle"
        and config.method == ("soft_labels",),
        "--teachers needs at least one": not config.teachers,
        "--lm-weight and --bonus need at least one value each": not (config.lm_weight and config.bonus),
        "--lm goes with --decode beam": config.lm is not None and config.decode != "beam",
        "--transcribe needs one --lm-weight and one --bonus": bool(config.transcribe)
        and config.decode == "beam"
        and (len(config.lm_weight) if config.lm else 1) * len(config.bonus) > 1,
        "--warmup is a share of the run, below 1, for --schedule one-cycle": one_cycle and config.warmup >= 1,
        "--warmup is a number of updates, at least 1, for --schedule inverse-sqrt": not one_cycle and config.warmup < 1,
        "--times goes with --transcribe": config.times and not config.transcribe,
    }
    for sentence, is_wrong in wrong.items():
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
    result = {"script": "multirep_kd", "method": config.method[0], "seed": config.seed}
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
