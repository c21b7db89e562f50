"""Multiple Representation Transfer
from Large Language Models to End-to-End ASR Systems.

T. Udagawa, M. Suzuki, G. Kurata, M. Muraoka, G. Saon. ICASSP 2024. arXiv 2309.04031.
[paper] its abstract; [digest] a summary by others; [peer] papers of the same group
(Saon et al. 2020, 2021) and recipes of toolkits; [choice] ours. We have not read the
body of the paper.

Idea
----
A transducer learns its language from transcripts alone. In earlier work it also learns
to imitate one representation of BERT [paper]: a small regression network predicts it
from the acoustic and text features of the transducer [digest]. But BERT has many
representations of a text: its layers differ, its output changes with context, and
another BERT has learned other things. The paper transfers several of them at once
[paper]. For decoding the regression networks are thrown away, and the transducer works
as before [digest]. Claims: several layers beat one, context and a second BERT help, and
all help less where there is much audio [digest].

Diagram
-------
  wave (B, N) --LogMel--> (B, F, 80) --Conformer--> h (B, T, D) ---+
                                                                   |
  <blank> y_1 ... y_U --embedding, LSTM--> g (B, U+1, P) ----+     |
                                                             |     |
                                         Joint(h, g) --> rnnt_l, gamma (B, T, U)
                                                                   |
                    gamma: the probable times of each character y_(u+1)
                                                                   |
      [h, averaged over these times ; g_u] = c_u (B, U, D+P) <-----+
          --mean over the characters of BERT's token i--> s_i (B, I, D+P)
          --regression networks R_k, in training only--> R_k(s_i) (B, I, E)
                                                             |
                                                            kd_l
                                                             |
  [CLS] context transcript context [SEP] --BERT, layer k--> e_ik (B, I, E)
  exported: features, Conformer, embedding, LSTM and Joint

Equations (our names; right: the function, and its test in tests/test_multirep_kd.py)
---------
    rnnt_l     = -log sum over alignments of p      rnnt.transducer_loss   test_rnnt_l
    gamma(t,u) = p(y_(u+1) is emitted at t | x, y)  rnnt.transducer_loss   test_gamma
    c_u        = [sum_t gamma(t,u) h_t ; g_u]       label_features         test_c
    s_i        = mean of c_u, for u in token i      pool_spans             test_s
    k          = last, first, uniform or random     choose_layers          test_layers
    dist_ik    = mean of |R_k(s_i) - e_ik| over E   distance               test_distance
    kd_k       = sum over i of dist_ik              representation_losses  test_kd
    kd_l       = mean over k of kd_k                compute_losses         test_loss
    loss       = rnnt_l + lam kd_l                  compute_losses         test_loss

    k: a representation, that is a layer of a teacher;  i: one of the I tokens of BERT
    x: the audio;  y: the transcript, U characters;  e: BERT's states, E their width
    P: width of the prediction network;  lam rises at the beginning, see `weight_at`
    all losses sum over tokens; `train` divides by the number of utterances of an update

Our own choices (`choice: times` in the code points to the line `times`)
---------------
    units     characters, the space included: the labels of the transducer
    times     h and g meet at the times of gamma, through which no gradient flows
    distance  the mean of the absolute differences
    mean      kd_l is a mean over k: several representations weigh as much as one
    layers    uniform: floor(k L / n + 1/2) for n of L layers; random: anew every epoch
    heads     Linear, GELU, LayerNorm, Linear; their gradient is clipped separately
    ramp      lam rises over the first tenth of the run, while gamma is still diffuse
    context   half from each side; what one side does not use goes to the other
    encoder   the Conformer has rotary positions, and LayerNorm in its convolutions

Run
---
    python multirep_kd.py       demo, 10 minutes: rnnt 12 % WER, multirep_kd 9 %; errors
        at homophones 44 and 22 % (seed 1, see RESULTS.md)
    python multirep_kd.py --method multirep_kd --teacher-layers last --n-layers 1
    python multirep_kd.py --data librispeech --root ~/corpora --hours 100
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import bert, conformer, features, figures, rnnt, rnnt_beam, text
from common.errors import UserError
from common.running import (
    batches,
    beam_models,
    command_line,
    corpora,
    decoding,
    evaluation,
    options,
    pretrained,
    training,
    variants,
    weights,
)
from common.running.batches import Batch
from common.running.options import (
    Augmentation,
    ConformerSizes,
    Count,
    Extent,
    Positive,
    Share,
    TransducerSizes,
)
from common.running.process import Place, first_rank_first, reseed, start, synchronise

# ================================================================================ configuration

Method = Literal["rnnt", "multirep_kd"]
METHODS: dict[Method, bool] = {  # whether BERT teaches
    "rnnt": False,  # the baseline: a transducer that learns from transcripts alone
    "multirep_kd": True,  # the paper's idea; with --n-layers 1 it is the earlier work
}


@dataclass(frozen=True)
class Config(options.RunConfig):
    """The preset `full`; options.RunConfig adds --data, --seed, --out and the like.

    The comment behind an option is its help. `config.method` is the first of `methods`.
    """

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("multirep_kd",)  # rows of METHODS
    kd_weight: float = 1.0  # lam after its rise [choice]
    ramp: Share = 0.1  # share of the run in which lam rises from 0; choice: ramp
    teachers: tuple[str, ...] = ("bert-base-uncased",)  # BERTs: hub name, folder or demo/bert-b
    teacher_layers: Literal["last", "first", "uniform", "random"] = "uniform"  # which [digest]
    n_layers: Count = 2  # the number of layers, from each teacher [choice]
    context: int = 0  # tokens around the utterance that BERT reads, too; the paper: 60 [digest]
    context_mask: Share = 0.15  # share of these tokens that is masked, drawn every epoch [choice]
    head_dim: Extent = 1024  # width inside the regression networks; choice: heads
    noise: Share = 0.8  # share of utterances with another one added at 0.4 of its power [peer]
    joint: Literal["multiply", "add"] = "multiply"  # how the joint network combines h and g [peer]
    encoder: ConformerSizes = ConformerSizes(  # [choice]; 71 million parameters in all [digest]
        subsampling=4,
        channels=128,
        layers=11,
        dim=512,
        heads=8,
        ff_dim=2048,
        kernel=31,
        dropout=0.1,
    )
    transducer: TransducerSizes = TransducerSizes(  # [choice]
        embedding_dim=10, predictor_dim=768, joint_dim=256
    )
    lr: Positive = 5e-4  # peak learning rate of AdamW [peer]
    training: options.Training = options.Training(  # [peer]; clip, average, weight decay: [choice]
        epochs=30,
        update_seconds=400.0,  # about 64 utterances
        max_seconds=30.0,  # [choice]
        schedule="one-cycle",
        warmup=0.3,
        clip=5.0,
        average=5,
        weight_decay=1e-2,
    )
    augmentation: Augmentation = Augmentation(  # [peer]
        speeds=(0.9, 1.0, 1.1), frequency_masks=2, time_masks=5
    )


def has_teacher(config: Config) -> bool:
    return METHODS[config.method]


# ====================================================================================== teacher


def choose_layers(strategy: str, n: int, depth: int, draw: random.Random) -> list[int]:
    """n of a teacher's layers 1 ... L, ascending (choice: layers). L: depth.

    last: L-n+1 ... L; first: 1 ... n; uniform: floor(k L / n + 1/2) for k = 1 ... n;
    random: n layers from `draw`. Layer 0, the embedding, is never used. Raises
    UserError for n > L.
    """
    if n > depth:
        raise UserError(f"--n-layers {n} is more than the {depth} layers of the teacher: lower it.")
    if strategy == "last":
        return list(range(depth - n + 1, depth + 1))
    if strategy == "first":
        return list(range(1, n + 1))
    if strategy == "uniform":
        return [math.floor(k * depth / n + 0.5) for k in range(1, n + 1)]
    return sorted(draw.sample(range(1, depth + 1), n))


def take_context(past: list[int], future: list[int], budget: int) -> tuple[list[int], list[int]]:
    """The nearest `budget` tokens of past and future (choice: context)."""
    # Half of the budget, or more if the future is short.
    n_past = min(len(past), max(budget // 2, budget - len(future)))
    n_future = min(len(future), budget - n_past)
    return past[len(past) - n_past :], future[:n_future]


class Tokens(NamedTuple):
    """A transcript in the I word pieces of a teacher."""

    ids: np.ndarray  # (I,); arrays, because the whole corpus is kept
    spans: np.ndarray  # (I, 2): the characters [start, end) of the transcript, of each piece


class Teacher:
    """A frozen BERT, and the transcripts in its word pieces.

    utterances: all of the training corpus. Those that are too long for training may
    still be context.
    """

    def __init__(
        self, name: str, lm: bert.MaskedLM, config: Config, utterances: list[corpora.Utterance]
    ):
        self.name = name
        self.lm = lm
        self.config = config
        self.depth = lm.model.config.num_hidden_layers
        self.width = lm.model.config.hidden_size
        self.longest = lm.longest - 2  # tokens beside [CLS] and [SEP]
        self.transcripts = {utterance.id: utterance.text for utterance in utterances}
        self.tokens: dict[str, Tokens] = {}
        for utterance in utterances:
            self.tokens[utterance.id] = self.tokenize(utterance.text)
        self.sessions = corpora.session_order(utterances)
        self.known: dict[str, Tensor] = {}  # utterance -> its states, see `remember`

    def tokenize(self, transcript: str) -> Tokens:
        """The pieces of a transcript, as many as BERT reads."""
        pieces = self.lm.tokenizer(
            transcript, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = np.array(pieces["input_ids"], np.int32)
        spans = np.array(pieces["offset_mapping"], np.int32).reshape(-1, 2)
        return Tokens(ids[: self.longest], spans[: self.longest])

    def layers(self, epoch: int) -> list[int]:
        """The layers whose states the transducer imitates in this epoch."""
        config = self.config
        draw = random.Random(f"{config.seed}-{epoch}-layers")
        return choose_layers(config.teacher_layers, config.n_layers, self.depth, draw)

    def read(self, name: str, epoch: int) -> tuple[list[int], int]:
        """[CLS] past transcript future [SEP], and where the transcript begins in it.

        That is what BERT reads for the utterance `name`. Every token of the context is
        replaced by [MASK] with the probability --context-mask, drawn anew in every
        epoch; the transcript is never masked.
        """
        own = self.tokens[name].ids.tolist()
        budget = min(self.config.context, self.longest - len(own))
        session, index = self.sessions[name]  # all utterances of the session; which one this is
        # More than `budget` neighbours on a side are never needed.
        past = []
        for neighbour in session[max(0, index - budget) : index]:
            past += self.tokens[neighbour].ids.tolist()
        future = []
        for neighbour in session[index + 1 : index + 1 + budget]:
            future += self.tokens[neighbour].ids.tolist()
        past, future = take_context(past, future, budget)

        draw = random.Random(f"{self.config.seed}-{epoch}-{name}-context")
        past = self.hide(past, draw)
        future = self.hide(future, draw)
        return [self.lm.cls, *past, *own, *future, self.lm.sep], 1 + len(past)

    def hide(self, ids: list[int], draw: random.Random) -> list[int]:
        """The tokens, some of them replaced by [MASK]."""
        share = self.config.context_mask
        return [self.lm.mask if draw.random() < share else i for i in ids]

    def is_fixed(self) -> bool:
        """Whether BERT's states of an utterance are the same in every epoch."""
        is_masked = self.config.context > 0 and self.config.context_mask > 0
        return not is_masked and self.config.teacher_layers != "random"


def states_of(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """e_ik, BERT's states at the tokens of each transcript: (I, n, E), in fp32."""
    if teacher.known.keys() >= set(names):
        return [teacher.known[name] for name in names]
    rows, firsts = [], []
    for name in names:
        row, first = teacher.read(name, epoch)
        rows.append(row)
        firsts.append(first)
    states = teacher.lm.layers(rows, teacher.layers(epoch))  # (B, tokens read, n, E)
    found = []
    for name, first, its_states in zip(names, firsts, states, strict=True):
        end = first + len(teacher.tokens[name].ids)
        found.append(its_states[first:end].clone())
    return found


def in_batches(teacher: Teacher, names: list[str], place: Place) -> Iterator[list[str]]:
    """64 utterances of similar length at a time, with a progress bar.

    The batches depend on the utterances alone: all ranks and resumed runs get the same
    bits from BERT.
    """
    order = sorted(names, key=lambda name: (len(teacher.tokens[name].ids), name))
    parts = [order[i : i + 64] for i in range(0, len(order), 64)]
    quiet = None if place.first else True  # None: quiet if stderr is no terminal
    title = f"{teacher.name} reads"
    yield from tqdm(parts, title, unit="batch", leave=False, delay=2, disable=quiet)


def remember(teacher: Teacher, names: list[str], place: Place) -> None:
    """Keeps the states of these utterances, if they are fixed and fit into 2 GB."""
    tokens = sum(len(teacher.tokens[name].ids) for name in names)
    gigabytes = 4e-9 * tokens * teacher.config.n_layers * teacher.width
    if not teacher.is_fixed() or gigabytes > 2:
        return
    known = {}
    for part in in_batches(teacher, names, place):
        known |= zip(part, states_of(teacher, part, epoch=0), strict=True)
    teacher.known = known


def padded_states(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """e_k for each of the n layers, padded with 0: (B, I, E)."""
    states = states_of(teacher, names, epoch)  # (I, n, E) each
    return list(nn.utils.rnn.pad_sequence(states, batch_first=True).unbind(2))


def load_teacher(name: str, config: Config, place: Place) -> bert.MaskedLM:
    """The BERT of this name. Raises UserError where it is none."""
    return pretrained.load_bert(name, "--teachers", config.root, place.device)


def build_teachers(
    config: Config, utterances: list[corpora.Utterance], place: Place
) -> list[Teacher]:
    """One per name, in the order of --teachers; none for a method without a teacher."""
    teachers = []
    if has_teacher(config):
        for name in dict.fromkeys(config.teachers):  # without repeated names
            with first_rank_first(place):
                lm = load_teacher(name, config, place)
            teachers.append(Teacher(name, lm, config, utterances))
    return teachers


# ======================================================================================== model


class Recogniser(nn.Module):
    """The exported model: features, Conformer, prediction and joint network."""

    def __init__(self, config: Config, vocabulary: int, tokenizer: text.Characters | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.seconds_per_frame = config.encoder.subsampling * features.FRAME_SECONDS
        self.augmentation = config.augmentation
        self.noise = config.noise
        self.frontend = features.LogMel()
        sizes = config.encoder
        self.encoder = conformer.Conformer(  # choice: encoder
            dim=sizes.dim,
            layers=sizes.layers,
            heads=sizes.heads,
            ff_dim=sizes.ff_dim,
            kernel=sizes.kernel,
            dropout=sizes.dropout,
            subsampling=sizes.subsampling,
            channels=sizes.channels,
        )
        transducer = config.transducer
        self.predictor = rnnt.Predictor(
            vocabulary, embedding_dim=transducer.embedding_dim, dim=transducer.predictor_dim
        )
        self.joint = rnnt.Joint(
            encoder_dim=sizes.dim,
            predictor_dim=transducer.predictor_dim,
            dim=transducer.joint_dim,
            vocabulary=vocabulary,
            multiply=config.joint == "multiply",
        )

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> h (B, T, D), lengths (B,)."""
        mel, frames = self.frontend(waves, samples)  # (B, F, 80), (B,)
        if self.training:
            masks = self.augmentation
            mel = features.mix_utterances(mel, frames, self.noise, self.frontend)
            mel = features.spec_augment(
                mel,
                frames,
                frequency_masks=masks.frequency_masks,
                frequency_width=27,  # of 80 channels, at most [peer]
                time_masks=masks.time_masks,
                time_share=0.05,  # of the utterance, at most [peer]
            )
        encoded = self.encoder(mel, frames)
        return encoded.output, encoded.lengths

    decodes = decoding.Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        lm=beam_models.WordModel,
        own=options.Search(beam=16, lm_weight=(0.3, 0.6, 1.0), bonus=(0.0, 0.5)),  # beam: [peer]
    )

    def transcribe(
        self, batch: Batch, place: Place, beam: int | None = None, **search
    ) -> list[decoding.Transcript]:
        """The batch's transcripts with word times; greedy if there is no `beam`.

        search: see `rnnt_beam.search`.
        """
        with place.autocast():
            h, lengths = self(batch.waves, batch.samples)
        encoded = self.joint.encode(h.float())  # (B, T, J)
        paths = rnnt_beam.search(self.predictor, self.joint, encoded, lengths, beam, **search)
        transcripts = []
        for path in paths:
            transcripts.append(decoding.transcript_of(path, self.tokenizer, self.seconds_per_frame))
        return transcripts


class RegressionHead(nn.Sequential):
    """R_k, which predicts e_k. Only training needs it (choice: heads)."""

    def __init__(self, student_dim: int, dim: int, teacher_dim: int):
        super().__init__(
            nn.Linear(student_dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, teacher_dim)
        )


def build_heads(config: Config, sizes: list[tuple[int, int]]) -> nn.ModuleDict:
    """An R_k for every representation k, named "0-4": layer 4 of the first teacher.

    sizes: depth and width of each teacher.
    """
    student_dim = config.encoder.dim + config.transducer.predictor_dim  # D+P
    heads = nn.ModuleDict()
    for number, (depth, width) in enumerate(sizes):
        chosen = choose_layers(config.teacher_layers, config.n_layers, depth, random.Random(0))
        if config.teacher_layers == "random":  # every layer may be drawn in some epoch
            chosen = list(range(1, depth + 1))
        for layer in chosen:
            heads[f"{number}-{layer}"] = RegressionHead(student_dim, config.head_dim, width)
    return heads


def build_models(
    config: Config,
    vocabulary: int,
    sizes: list[tuple[int, int]],
    tokenizer: text.Characters | None = None,
) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `heads` if the method has a teacher.

    The heads are made last: the recogniser begins with the same weights in every
    method. sizes: depth and width of each teacher.
    """
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)})
    if has_teacher(config):
        models["heads"] = build_heads(config, sizes)
    return models


def fits(subsampling: int, samples: int, labels: list[int], transcript: str) -> bool:
    """Whether there is a frame: one is enough for any number of labels."""
    return conformer.subsampled(features.num_frames(samples), subsampling) >= 1


# ======================================================================================= losses


def label_features(gamma: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """c_u = [sum_t gamma(t, u) h_t ; g_u] (choice: times).

    This is what both networks know when y_(u+1) is emitted. gamma (B, T, U), h (B, T,
    D), g (B, U+1, P) -> (B, U, D+P). Only gamma has both a t and a u axis, so this
    needs little memory.
    """
    acoustic = gamma.transpose(1, 2).to(h.dtype) @ h  # (B, U, T) @ (B, T, D) = (B, U, D)
    text_features = g[:, :-1]  # (B, U, P): g_u predicts y_(u+1), g_U nothing
    return torch.cat([acoustic, text_features], -1)


def pool_spans(c: Tensor, spans: list[np.ndarray]) -> Tensor:
    """s_i, the mean of c_u over the characters u of token i.

    c (B, U, D+P) -> (B, I, D+P), zero behind an utterance's last token. spans: for each
    utterance (I, 2), the characters [start, end) of its tokens. The mean is a product
    with a matrix whose row i is 1 / (end - start) at the characters of token i, and 0
    elsewhere.
    """
    pairs = [torch.as_tensor(pair) for pair in spans]
    bounds = nn.utils.rnn.pad_sequence(pairs, batch_first=True).to(c.device)  # (B, I, 2)
    start = bounds[:, :, 0, None]  # (B, I, 1); padding is the empty span [0, 0)
    end = bounds[:, :, 1, None]
    u = torch.arange(c.shape[1], device=c.device)  # (U,)
    inside = (u >= start) & (u < end)  # (B, I, U)
    length = (end - start).clamp(min=1)  # (B, I, 1)
    means = (inside / length).to(c.dtype)
    return means @ c  # (B, I, U) @ (B, U, D+P)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of |student - teacher| over E: (..., E), (..., E) -> (...).

    student: R_k(s_i), teacher: e_ik (choice: distance).
    """
    return (student - teacher).abs().mean(-1)


def representation_losses(
    models: nn.ModuleDict, c: Tensor, teachers: list[Teacher], batch: Batch
) -> dict[str, Tensor]:
    """{"demo 4": kd_k of layer 4 of the teacher demo, ...}: kd_k = sum_i dist_ik.

    c (B, U, D+P). kd_k is summed over the tokens of all utterances of the batch.
    """
    names = [utterance.id for utterance in batch.utterances]
    epoch = batch.plan.epoch
    losses = {}
    for number, teacher in enumerate(teachers):
        spans = [teacher.tokens[name].spans for name in names]
        s = pool_spans(c, spans)  # (B, I, D+P)
        sizes = torch.tensor([len(pairs) for pairs in spans], device=c.device)
        mask = conformer.length_mask(sizes, s.shape[1])  # (B, I), True for tokens
        states = padded_states(teacher, names, epoch)  # (B, I, E) for each layer
        for layer, e in zip(teacher.layers(epoch), states, strict=True):
            guess = models["heads"][f"{number}-{layer}"](s).float()  # (B, I, E)
            losses[f"{teacher.name} {layer}"] = (distance(guess, e) * mask).sum()
    return losses


def compute_losses(
    models: nn.ModuleDict,
    batch: Batch,
    teachers: list[Teacher],
    lam: float,
    place: Place,
) -> tuple[Tensor, dict]:
    """loss = rnnt_l + lam kd_l, summed over the utterances of the batch.

    Returns the loss and its parts for the log: "rnnt", and "kd" with the part of every
    representation. Networks may run in bf16; the losses are fp32. The transducer's loss
    runs its joint network itself, tile by tile, so it stands inside autocast.
    """
    recogniser = models["recogniser"]
    joint = recogniser.joint
    with place.autocast():
        h, lengths = recogniser(batch.waves, batch.samples)  # (B, T, D), (B,)
        g = recogniser.predictor.all_states(batch.targets)  # (B, U+1, P)
        losses, gamma = rnnt.transducer_loss(
            joint,
            joint.encode(h),
            joint.predict(g),
            batch.targets,
            lengths,
            batch.target_lengths,
        )  # (B,), (B, T, U)
        rnnt_loss = losses.sum()
        if not teachers:
            return rnnt_loss, {"rnnt": rnnt_loss}
        c = label_features(gamma, h, g)  # (B, U, D+P)
        kd_losses = representation_losses(models, c, teachers, batch)
    kd_loss = sum(kd_losses.values()) / len(kd_losses)  # choice: mean
    return rnnt_loss + lam * kd_loss, {"rnnt": rnnt_loss, "kd": kd_losses}


def weight_at(step: int, steps: int, config: Config) -> float:
    """lam at an update, counted from 1, of `steps` (choice: ramp)."""
    return config.kd_weight * min(1.0, step / max(1.0, config.ramp * steps))


# ===================================================================================== training


def prepare(
    config: Config,
    utterances: list[corpora.Utterance],
    tokenizer: text.Characters,
    teachers: list[Teacher],
    place: Place,
) -> tuple[nn.ModuleDict, torch.optim.Optimizer, training.Run]:
    """The models on their device, the optimiser, and the run: new, or resumed."""
    reseed(config.seed)
    sizes = [(teacher.depth, teacher.width) for teacher in teachers]
    models = build_models(config, tokenizer.size, sizes, tokenizer).to(place.device)
    # Mean and variance of the features, from 500 utterances; they are stored with the model.
    models["recogniser"].frontend.fit(batches.sample_waves(utterances, config))
    optimizer = torch.optim.AdamW(
        models.parameters(),
        lr=config.lr,
        betas=(0.9, 0.98),  # [peer]
        weight_decay=config.training.weight_decay,
        fused=True,
    )
    run = training.Run(
        config,
        place,
        models=models,
        optimizer=optimizer,
        utterances=utterances,
        encode=tokenizer.encode,
        fits=partial(fits, config.encoder.subsampling),
    )
    return models, optimizer, run


def train(
    config: Config, corpus: corpora.Corpus, place: Place
) -> tuple[Recogniser, dict[str, float], figures.Drawings]:
    """Returns the recogniser, numbers for RESULT, and the figures to be drawn.

    The recogniser has the mean weights of the best epochs.
    """
    utterances = corpora.trainable(corpus.train, config.training.max_seconds)
    tokenizer = text.Characters.build(u.text for u in utterances)  # choice: units
    teachers = build_teachers(config, corpus.train, place)
    report = {}
    if teachers:
        started = synchronise(place)
        for teacher in teachers:
            remember(teacher, [utterance.id for utterance in utterances], place)
        # About 0 if BERT reads in every epoch instead.
        report["teacher_seconds"] = round(synchronise(place) - started, 4)
    models, optimizer, run = prepare(config, utterances, tokenizer, teachers, place)
    recogniser = models["recogniser"]
    for _ in run.epochs():
        for update in run.updates():  # a step of the optimiser; --resume skips what is done
            lam = weight_at(update.step, run.steps, config)
            for batch in update:  # this GPU's micro-batches, none of them empty
                loss, parts = compute_losses(models, batch, teachers, lam, place)
                loss.backward()
                update.add(loss, parts)
            # The gradient of the mean loss per utterance: over all micro-batches and all GPUs.
            update.average_gradients()

            # A large gradient of the heads must not shrink the recogniser's (choice: heads).
            norms = {}
            for name, part in models.items():
                norm = nn.utils.clip_grad_norm_(part.parameters(), config.training.clip)
                norms[name] = norm.item()
            learning_rate = run.set_learning_rates()
            # The log also has the loss and its parts, from update.add.
            update.log.update(norm=norms["recogniser"], lr=learning_rate)
            if update.is_usable(norms.values()):  # all are finite, and there was an utterance
                optimizer.step()
            optimizer.zero_grad()
        scores = evaluation.dev_scores(recogniser, corpus, config, place)
        run.end_epoch(recogniser, scores)
    report |= run.finish(recogniser)
    drawings = {"lattice.png": partial(draw_lattice, config, recogniser, corpus, place)}
    if teachers:
        path = Path(config.out) / "distances.png"
        what = "kd of a representation, per utterance"
        drawings["distances.png"] = partial(figures.log_curves, path, "kd", what)
    return recogniser, report, drawings


@torch.inference_mode()
def draw_lattice(
    config: Config, recogniser: Recogniser, corpus: corpora.Corpus, place: Place
) -> None:
    """lattice.png: gamma, the times of each character, in a short test utterance."""
    known = set(recogniser.tokenizer.ids)
    utterances = []
    for split in corpus.tests.values():
        utterances += [u for u in split if 0 < len(u.text) <= 60 and set(u.text) <= known]
    batch = batches.first_readable(utterances, config).to(place.device)
    transcript = batch.utterances[0].text
    target = torch.tensor([recogniser.tokenizer.encode(transcript)]).to(place.device)  # (1, U)
    h, lengths = recogniser.eval()(batch.waves, batch.samples)
    g = recogniser.predictor.all_states(target)
    joint = recogniser.joint
    size = torch.tensor([len(transcript)], device=place.device)
    _, gamma = rnnt.transducer_loss(
        joint, joint.encode(h), joint.predict(g), target, lengths, size
    )  # (1, T, U)
    names = ["(space)" if c == " " else c for c in transcript]
    path = Path(config.out) / "lattice.png"
    times = gamma[0].cpu().numpy()
    figures.posteriors(path, times, names, recogniser.seconds_per_frame, transcript)


# ====================================================================================== presets

DEMO_SIZES = ConformerSizes(
    subsampling=8, channels=16, layers=4, dim=112, heads=4, ff_dim=448, kernel=15, dropout=0.0
)
DEMO_TRAINING = options.Training(
    epochs=5,
    update_seconds=32.0,
    max_seconds=8.0,
    schedule="one-cycle",
    warmup=0.3,
    clip=5.0,
    average=1,
    weight_decay=1e-2,
)
DEMO = Config(  # [choice] sizes and schedule: four minutes of training a method on one core
    methods=("rnnt", "multirep_kd"),
    # lam and the joint network differ from `full` (choice; lam was tuned on dev, see RESULTS.md).
    # kd_l is a mean over dimensions: of a smoke run it begins at 8, rnnt_l at 120 an utterance.
    kd_weight=30.0,
    joint="add",
    noise=0.0,
    teachers=("demo",),
    head_dim=128,
    encoder=DEMO_SIZES,
    transducer=TransducerSizes(embedding_dim=16, predictor_dim=128, joint_dim=128),
    lr=4.5e-3,
    training=DEMO_TRAINING,
    augmentation=Augmentation(speeds=(1.0,), frequency_masks=0, time_masks=0),
    workers=0,
    batch_seconds=60.0,
)
SMOKE = options.with_values(
    DEMO,
    data="demo-smoke",
    teachers=("demo-smoke",),
    hours=0.1,
    layers=2,
    update_seconds=8.0,
    epochs=3,
)
PRESETS = {"full": Config(), "demo": DEMO, "smoke": SMOKE}


# ========================================================================================= main


def load(config: Config, place: Place) -> Recogniser:
    """The recogniser of a finished run; `config.out` is its folder."""
    tokenizer = text.load_tokenizer(config.out)
    recogniser = Recogniser(config, tokenizer.size, tokenizer)
    return weights.load_recogniser(recogniser, config.out, place)


def run_method(config: Config) -> dict:
    """Trains one method and scores it on the test sets; returns what RESULT says."""
    place = start(config)
    corpus = batches.read_corpus(config, place)
    recogniser, report, drawings = train(config, corpus, place)
    result = evaluation.head_of_result(config)
    result |= evaluation.evaluate(recogniser, corpus, config, place)
    result |= report
    evaluation.report(result, config, place)
    if place.first:
        figures.draw(config.out, drawings)
    return result


def main(argv: list[str] | None = None, replace: variants.Replacements | None = None) -> dict:
    """Trains the methods on the command line, one after another, and compares them.

    replace: {function of this script: another}, see `variants/`. Returns what RESULT
    says, by method if there are several.
    """
    with variants.replaced(__name__, replace) as variant:
        configs = command_line.parse(PRESETS, __doc__, argv, variant.name)
        if configs[0].summary:
            last = configs[-1]
            # Without the training data: the blank and 45 characters, about as many as Switchboard
            # has, and teachers of the size of bert-base.
            sizes = [(12, 768) for _ in last.teachers]
            return evaluation.print_parameters(build_models(last, vocabulary=46, sizes=sizes))
        results = [run_method(config) for config in configs]
        variant.check_called()
    return evaluation.compare_methods(configs, results)


if __name__ == "__main__":
    main()
