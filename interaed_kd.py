"""Keep Decoding Parallel with Effective Knowledge Distillation
from Language Models to End-to-end Speech Recognisers.

M. Hentschel, Y. Nishikawa, T. Komatsu, Y. Fujita. ICASSP 2024. arXiv 2401.11700.
[paper] its abstract; [digest] a summary by others; [peer] earlier papers and recipes of
toolkits; [choice] ours. We have not read the body of the paper.

Idea
----
Given the audio, CTC predicts the label of each frame independently of the others. This
is fast, but a CTC model learns little about language. The paper lets a language model,
BERT, teach it [paper]. An attention decoder reads intermediate layers of the encoder
and the last one. At each piece of the transcript it learns a soft label: not only the
right piece, but how likely BERT finds each piece there, from the words on both sides.
The decoder itself sees only the words before, and the audio. Its loss reaches the
encoder through cross-attention. For decoding it is thrown away [digest]: CTC decodes in
parallel. Claim: 7 % fewer word errors than distillation at the last layer [digest].

Diagram
-------
  once, before training:
    BERT([CLS] y_1 ... [MASK] ... y_U [SEP]) --K best pieces at the mask--> q_1 ... q_U
  in training (S layers: the taps and the last one):
    wave (B, N) --LogMel--> (B, F, 80) --Subsampling--> (B, T, D) --blocks--> S states
                                                                    (B, T, D) each
    S states --LayerNorm--> Linear(D, V) --> log p^ctc_l (B, T, V) ------------> ctc_l
        |
        +--concatenated: (S B, T, D)--> cross-attention
                                             |
    <sos> y_1 ... y_U ----------> AttentionDecoder --> log p^dec_l (S B, U+1, V)
                                                          |
                           y_1 ... y_U <eos> ---att_l-----+--> (1-a) att_l + a kd_l
                           q_1 ... q_U <eos> ---kd_l------+
  exported: features, encoder, LayerNorm and Linear; decoded from the last layer

Equations (our names; right: the function, and its test in tests/test_interaed_kd.py)
---------
    z_i    = BERT's K largest logits at y_i, masked  label_tokens            test_z
    q_i    = softmax(z_i / tau); other pieces: 0     soften                  test_q
    ctc_l  = -log sum of p^ctc_l over paths to y     ctc.ctc_loss            test_ctc_l
    H_l(q) = - sum_i sum_v [(1-e) q_i(v) + e/V] log p^dec_l(v | y_<i, audio)
                                                     smoothed_cross_entropy  test_h
    att_l  = H_l(one-hot y)                          hard_label              test_att_kd
    kd_l   = H_l(q)                                  compute_losses          test_att_kd
    mix_l  = (1-a) att_l + a kd_l                    mix_losses              test_mix
    M_s(L) = (1-s) L_last + s mean over taps of L_l  weigh                   test_weigh
    loss   = lam M_w(ctc) + (1-lam) M_u(mix)         compute_losses          test_loss

    l: a tap or the last layer;  i: 1 ... U+1, where y_(U+1) is <eos>, a hard label
    label 0: the blank of CTC, <sos> and <eos> of the decoder, and padding
    lam, w, u, a: four weights per method, see METHODS;  e: smoothing
    tau flattens BERT only, and the minimum of kd is the entropy of q, not 0
    H sums over tokens; `train` divides by the number of utterances of an update

Our own choices (`choice: taps` in the code points to the line `taps`)
---------------
    encoder  a Conformer (digest: Transformer); all layers share CTC head and LayerNorm
    units    BERT's word pieces, pruned to those of the training transcripts
    taps     the layers at one and two thirds of the depth; they have CTC losses, too
    weights  the four numbers of each method, and the form of the whole loss
    targets  hard and soft labels mixed; the digest reads as if soft ones alone
    decoder  one decoder reads all layers; its gradient is clipped separately
    reading  BERT reads one transcript between [CLS] and [SEP], in the student's pieces

Run
---
    python interaed_kd.py                            demo, 7 minutes: ctc 19 % WER, then
        interaed_kd 16 % (seed 1; the gain is the taps', not BERT's, see RESULTS.md)
    python interaed_kd.py --method aed_kd --seed 2   another row of METHODS
    python interaed_kd.py --data librispeech --root ~/corpora --hours 100
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from common import bert, conformer, ctc, features, figures, text
from common.errors import UserError
from common.running import (
    batches,
    beam_models,
    cache,
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
from common.running.options import Augmentation, ConformerSizes, Count, Extent, Positive, Share
from common.running.process import Place, first_rank_first, note, reseed, start

# ================================================================================ configuration


class Weights(NamedTuple):
    """What a method's loss is made of. With two taps, w = 0.66 gives each layer one
    third."""

    lam: float  # share of CTC in the loss; 1: there is no decoder
    w: float  # share of the taps in CTC
    u: float  # share of the taps in the decoder's loss
    a: float  # share of the teacher in the decoder's loss


Method = Literal["ctc", "interctc", "aed", "aed_kd", "interaed", "interaed_kd"]
METHODS: dict[Method, Weights] = {  # choice: weights
    "ctc": Weights(lam=1.0, w=0.0, u=0.0, a=0.0),  # the baseline
    "interctc": Weights(lam=1.0, w=0.66, u=0.0, a=0.0),  # CTC at the taps too, no decoder
    "aed": Weights(lam=0.3, w=0.0, u=0.0, a=0.0),  # a decoder at the last layer, no teacher
    "aed_kd": Weights(lam=0.3, w=0.0, u=0.0, a=0.5),  # conventional distillation
    "interaed": Weights(lam=0.3, w=0.66, u=0.66, a=0.0),  # a decoder at the taps, no teacher
    "interaed_kd": Weights(lam=0.3, w=0.66, u=0.66, a=0.5),  # the paper's idea
}


@dataclass(frozen=True)
class Config(options.RunConfig):
    """The preset `full`; options.RunConfig adds --data, --seed, --out and the like.

    The comment behind an option is its help. `config.method` is the first of `methods`.
    """

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("interaed_kd",)  # rows of METHODS
    taps: tuple[Count, ...] = (6, 12)  # encoder layers with losses of their own; choice: taps
    ctc_share: Share | None = None  # lam, beside a decoder; None: as in METHODS
    units: Count = 5000  # word pieces kept; single characters are added; choice: units
    teacher: str = "bert-base-uncased"  # BERT: hub name, folder, demo or demo/bert-b
    top_k: Count = 8  # K, the pieces that a soft label keeps [peer]
    temperature: Positive = 3.0  # tau [peer]
    smoothing: Share = 0.1  # e, of hard and soft labels [peer]
    decoder_layers: Extent = 6  # blocks of the attention decoder [choice]
    decoder_ff_dim: Extent = 2048  # width inside its feed-forward modules [choice]
    encoder: ConformerSizes = ConformerSizes(  # [peer]
        subsampling=4,
        channels=256,
        layers=18,
        dim=256,
        heads=4,
        ff_dim=1024,
        kernel=31,
        dropout=0.1,
    )
    lr: Positive = 2e-3  # peak learning rate of AdamW [peer]
    training: options.Training = options.Training(  # [peer]; 180 passes, each at one of 3 speeds
        epochs=180,
        update_seconds=1600.0,
        max_seconds=30.0,
        schedule="inverse-sqrt",
        warmup=15000.0,
        clip=5.0,
        average=10,
    )
    augmentation: Augmentation = Augmentation(  # [peer]; 10 time masks for 960 hours
        speeds=(0.9, 1.0, 1.1), frequency_masks=2, time_masks=5
    )

    def check(self) -> None:
        """Raises UserError for values that would fail late, or do nothing."""
        super().check()
        if self.ctc_share == 0:
            raise UserError("--ctc-share must be above 0: CTC would learn nothing.")
        if self.smoothing == 1:
            raise UserError("--smoothing must be below 1: at 1 the labels say nothing.")
        below_the_last = set(range(1, self.encoder.layers))
        are_valid = set(self.taps) <= below_the_last and len(set(self.taps)) == len(self.taps)
        if taps_of(self) and not are_valid:
            last = self.encoder.layers - 1
            raise UserError(f"--taps are layers from 1 to {last}, below the last, each once.")


def weights_of(config: Config) -> Weights:
    """The four weights of the configuration's method; --ctc-share changes lam, beside a
    decoder."""
    row = METHODS[config.method]
    if row.lam < 1 and config.ctc_share is not None:
        return row._replace(lam=config.ctc_share)
    return row


def taps_of(config: Config) -> tuple[int, ...]:
    """The layers below the last that have a loss in this method."""
    row = weights_of(config)
    return config.taps if row.w > 0 or row.u > 0 else ()


def has_decoder(config: Config) -> bool:
    return weights_of(config).lam < 1


def has_teacher(config: Config) -> bool:
    return has_decoder(config) and weights_of(config).a > 0


# ====================================================================================== teacher


class SoftLabel(NamedTuple):
    """Distributions q_1 ... q_(U+1) over K labels each; a hard label has K = 1. In a
    batch: (B, U+1, K)."""

    labels: Tensor  # (U+1, K)
    probs: Tensor  # (U+1, K); each row sums to 1, other labels have probability 0


def questions_of(
    tokenizer: text.WordPiece, pieces: bert.SharedPieces, utterances: list[corpora.Utterance]
) -> list[bert.Question]:
    """Every transcript by itself: [CLS] y_1 ... y_U [SEP] (choice: reading)."""
    teacher = pieces.teacher
    questions = []
    for utterance in utterances:
        labels = tokenizer.encode(utterance.text)  # y_1 ... y_U
        ids = (teacher.cls, *pieces.read(labels), teacher.sep)
        questions.append(bert.Question(ids, first=1, labels=tuple(labels)))
    return questions


def label_tokens(
    pieces: bert.SharedPieces, questions: list[bert.Question], k: int
) -> list[bert.Answer]:
    """z_i: every token is masked in turn, and BERT predicts it from the words on both
    sides.

    Of BERT's pieces we keep those that the student also has, and of these the K most
    likely, perhaps without the right one. `bert.SharedPieces` tells which tokens keep a
    hard label.
    """
    rows, positions = [], []
    for question in questions:
        for i in range(len(question.labels)):
            position = question.first + i
            row = list(question.ids)
            row[position] = pieces.teacher.mask
            rows.append(row)
            positions.append(position)
    labels, logits = pieces.top_k(rows, positions, k)  # (N, K), for the N tokens of all questions
    sizes = [len(question.labels) for question in questions]
    answers = []
    for parts in zip(questions, labels.split(sizes), logits.split(sizes), strict=True):
        answers.append(pieces.with_exceptions(*parts))
    return answers


def soften(logits: Tensor, tau: float) -> Tensor:
    """q_i = softmax(z_i / tau): (U, K) -> (U, K). A logit of -inf has probability 0."""
    return (logits / tau).softmax(-1)


def soft_label_of(answer: bert.Answer, tau: float) -> SoftLabel:
    """An utterance's answers, softened. BERT cannot be asked about <eos>: it is a hard
    label."""
    k = answer.labels.shape[1]
    eos_labels = torch.zeros(1, k, dtype=torch.long)  # label 0 is <eos> ...
    eos_probs = torch.zeros(1, k)
    eos_probs[0, 0] = 1.0  # ... and has all of the probability
    probs = torch.cat([soften(answer.logits, tau), eos_probs])  # (U+1, K)
    return SoftLabel(torch.cat([answer.labels, eos_labels]), probs)


def soft_labels_of(
    config: Config, tokenizer: text.WordPiece, utterances: list[corpora.Utterance], place: Place
) -> tuple[dict[str, SoftLabel], dict[str, float]]:
    """{utterance: its soft label}, and numbers about the teacher for RESULT.

    ROOT/soft-labels keeps BERT's answers for these weights, pieces and K, so that it is
    asked once. `teacher_top1` and `teacher_top_k`: how often the token is BERT's first
    guess, and among its K. `teacher_seconds` includes earlier runs, and is a sum over
    GPUs.
    """
    with first_rank_first(place):
        teacher = pretrained.load_masked_lm(config.teacher, "--teacher", config.root, place.device)
    pieces = bert.SharedPieces(tokenizer, teacher)
    if config.top_k > len(pieces.labels):
        raise UserError(f"--top-k must be at most {len(pieces.labels)}, the pieces that are kept.")
    questions = questions_of(tokenizer, pieces, utterances)

    def ask(part: list[bert.Question]) -> list[dict[str, Tensor]]:
        return [answer._asdict() for answer in label_tokens(pieces, part, config.top_k)]

    known_weights = weights.digest_in_memory(teacher.model)
    name = cache.digest(known_weights, repr(tokenizer.pieces), repr(config.top_k))
    folder = Path(config.root).expanduser() / "soft-labels" / name
    short_first = sorted(questions, key=lambda question: len(question.ids))
    known, seconds = cache.remember(folder, short_first, ask, place, "asking BERT")
    answers = [bert.Answer(**known[question]) for question in questions]
    found = {}
    for utterance, answer in zip(utterances, answers, strict=True):
        found[utterance.id] = soft_label_of(answer, config.temperature)
    top1, top_k = pieces.accuracy(questions, answers)
    if place.first:
        note(
            f"BERT's first guess is right at {top1:.0%} of the tokens, one of its K at {top_k:.0%}"
        )
    report = {"teacher_seconds": seconds, "teacher_top1": top1, "teacher_top_k": top_k}
    return found, {key: round(value, 4) for key, value in report.items()}


def pad_soft_labels(soft: dict[str, SoftLabel], batch: Batch) -> SoftLabel:
    """The soft labels of a batch: (B, U+1, K) each, on its device."""
    mine = [soft[utterance.id] for utterance in batch.utterances]
    pad = nn.utils.rnn.pad_sequence
    labels = pad([q.labels for q in mine], batch_first=True)  # (B, U+1, K)
    probs = pad([q.probs for q in mine], batch_first=True)
    return SoftLabel(labels.to(batch.waves.device), probs.to(batch.waves.device))


# ======================================================================================== model


class Recogniser(nn.Module):
    """Log-mel features, a Conformer and one CTC head: the exported model."""

    def __init__(self, config: Config, vocabulary: int, tokenizer: text.WordPiece | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.seconds_per_frame = config.encoder.subsampling * features.FRAME_SECONDS
        self.augmentation = config.augmentation
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
        self.ctc_head = nn.Linear(sizes.dim, vocabulary)

    def forward(
        self, waves: Tensor, samples: Tensor, taps: tuple[int, ...] = ()
    ) -> tuple[list[Tensor], Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> states (B, T, D); their lengths
        (B,).

        There is a state for every tap and one for the last layer, in this order, all
        normalised by one LayerNorm.
        """
        mel, frames = self.frontend(waves, samples)  # (B, F, 80), (B,)
        if self.training:
            masks = self.augmentation
            mel = features.spec_augment(
                mel,
                frames,
                frequency_masks=masks.frequency_masks,
                frequency_width=27,  # of 80 channels, at most [peer]
                time_masks=masks.time_masks,
                time_share=0.05,  # of the utterance, at most [peer]
            )
        encoded = self.encoder(mel, frames, taps)
        states = [tap.output for tap in encoded.taps]
        return [*states, encoded.output], encoded.lengths

    def log_probs(self, state: Tensor) -> Tensor:
        """state (B, T, D) -> log p(piece or blank | frame) (B, T, V), in fp32."""
        return self.ctc_head(state).float().log_softmax(-1)

    decodes = decoding.Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        lm=beam_models.LanguageModel,
        own=options.Search(beam=10, lm_weight=(0.2, 0.4, 0.6), bonus=(0.0, 0.5, 1.0)),  # [choice]
    )

    def transcribe(self, batch: Batch, place: Place, **search) -> list[decoding.Transcript]:
        """The batch's transcripts with word times. search: none for greedy, or see
        `ctc.search`."""
        with place.autocast():
            states, lengths = self(batch.waves, batch.samples)
            log_probs = self.log_probs(states[-1])  # (B, T, V)
        paths = ctc.search(log_probs, lengths, **search)
        transcripts = []
        for path in paths:
            transcripts.append(decoding.transcript_of(path, self.tokenizer, self.seconds_per_frame))
        return transcripts


class AttentionDecoder(nn.Module):
    """Predicts the transcript piece by piece from an encoder layer. Only training needs
    it.

    It reads the true words before each position (teacher forcing), and the encoder by
    cross-attention, through which its losses reach the encoder. The hope is that the
    encoder comes to hold what predicts the next piece; the decoder may also learn that
    by itself. The blocks are torch's, with the norm first [choice].
    """

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        dim = config.encoder.dim
        self.embedding = nn.Embedding(vocabulary, dim)
        blocks = []
        for _ in range(config.decoder_layers):
            block = nn.TransformerDecoderLayer(
                d_model=dim,
                nhead=config.encoder.heads,
                dim_feedforward=config.decoder_ff_dim,
                dropout=config.encoder.dropout,
                batch_first=True,
                norm_first=True,
            )
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, vocabulary)

    def forward(self, states: list[Tensor], lengths: Tensor, targets: Tensor) -> list[Tensor]:
        """states: S times (B, T, D), lengths (B,), targets (B, U)
        -> S times log p_l(y_i | y_1 ... y_(i-1), x) (B, U+1, V), in fp32.

        The S states are concatenated along the batch axis, so that the decoder runs
        once. The causal mask also hides the padding behind a transcript from the tokens
        before it.
        """
        S = len(states)
        T = states[0].shape[1]
        D = states[0].shape[2]
        inputs = nn.functional.pad(targets, (1, 0))  # (B, U+1): <sos> y_1 ... y_U
        x = self.embedding(inputs)  # (B, U+1, D)
        x = x + sinusoids(inputs.shape[1], D, inputs.device)
        x = x.repeat(S, 1, 1)  # (S B, U+1, D)
        memory = torch.cat(states)  # (S B, T, D)
        # torch's blocks want True for padding, the opposite of our masks.
        padding = ~conformer.length_mask(lengths, T).repeat(S, 1)  # (S B, T)
        ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        future = ones.triu(1)  # (U+1, U+1), True where a position must not look
        for block in self.blocks:
            x = block(
                x, memory, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=padding
            )
        log_probs = self.output(self.norm(x)).float().log_softmax(-1)  # (S B, U+1, V)
        return list(log_probs.chunk(S))


def sinusoids(positions: int, dim: int, device: torch.device) -> Tensor:
    """Position code (positions, dim): all sines, then all cosines. Vaswani et al.
    2017."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(positions, device=device)[:, None] * rates  # (positions, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


def build_decoder(config: Config, vocabulary: int) -> nn.Module:
    """One decoder for all layers (choice: decoder). A variant replaces this
    function."""
    return AttentionDecoder(config, vocabulary)


def build_models(
    config: Config, vocabulary: int, tokenizer: text.WordPiece | None = None
) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `decoder` if the method has one.

    The decoder is made last: the recogniser begins with the same weights in every
    method.
    """
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)})
    if has_decoder(config):
        models["decoder"] = build_decoder(config, vocabulary)
    return models


def fits(subsampling: int, samples: int, labels: list[int], transcript: str) -> bool:
    """Whether CTC has a frame for every label, and one for the blank between two equal
    labels."""
    frames = conformer.subsampled(features.num_frames(samples), subsampling)
    targets = torch.tensor([labels], dtype=torch.long)
    return bool(ctc.required_frames(targets, torch.tensor([len(labels)])) <= frames)


# ======================================================================================= losses


def smoothed_cross_entropy(log_probs: Tensor, q: SoftLabel, mask: Tensor, epsilon: float) -> Tensor:
    """H(q) = - sum_i sum_v [(1-e) q_i(v) + e/V] log p(v | y_<i, x), over all tokens of
    the batch.

    log_probs (B, U+1, V); q holds K labels of the V, (B, U+1, K), where one may stand
    twice, as <eos> does; mask (B, U+1) is True for real tokens. att_l is H of the hard
    label, kd_l is H of BERT's soft label.
    """
    picked = (q.probs * log_probs.gather(-1, q.labels)).sum(-1)  # (B, U+1): sum_v q(v) log p(v)
    even = log_probs.mean(-1)  # (B, U+1): sum_v 1/V log p(v)
    return -(((1 - epsilon) * picked + epsilon * even) * mask).sum()


def hard_label(targets: Tensor) -> SoftLabel:
    """The transcript y_1 ... y_U <eos> with probability 1: targets (B, U) -> (B, U+1,
    1).

    targets is padded with 0, so that the first 0 behind y_U is its <eos>.
    """
    y = nn.functional.pad(targets, (0, 1))[..., None]
    return SoftLabel(y, torch.ones(y.shape, device=y.device))


def mix_losses(att_losses: list[Tensor], kd_losses: list[Tensor], a: float) -> list[Tensor]:
    """mix_l = (1-a) att_l + a kd_l, for every tap and the last layer.

    H is linear in q: this is one cross-entropy to (1-a) one-hot + a q.
    """
    mixed = []
    for att, kd in zip(att_losses, kd_losses, strict=True):
        mixed.append((1 - a) * att + a * kd)
    return mixed


def weigh(losses: list[Tensor], tap_share: float) -> Tensor:
    """M_s = (1-s) last + s mean(taps); `losses` has one loss per tap, then the last
    layer's."""
    *tap_losses, last_loss = losses
    if not tap_losses:
        return last_loss
    return (1 - tap_share) * last_loss + tap_share * sum(tap_losses) / len(tap_losses)


def compute_losses(
    models: nn.ModuleDict, batch: Batch, soft: SoftLabel | None, config: Config, place: Place
) -> tuple[Tensor, dict[str, Tensor]]:
    """loss = lam M_w(ctc) + (1-lam) M_u(mix), summed over the utterances of the batch.

    Returns the loss and its parts for the log, "ctc", "att" and "kd". soft: absent
    without a teacher. Networks may run in bf16; the losses are fp32.
    """
    row = weights_of(config)
    recogniser = models["recogniser"]
    with place.autocast():
        # A state (B, T, D) for every layer that has a loss: the taps, then the last one.
        states, lengths = recogniser(batch.waves, batch.samples, taps_of(config))
        ctc_log_probs = [recogniser.log_probs(state) for state in states]  # (B, T, V) each
    ctc_losses = []
    for log_probs in ctc_log_probs:
        losses = ctc.ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths)  # (B,)
        ctc_losses.append(losses.sum())
    ctc_part = weigh(ctc_losses, row.w)
    if "decoder" not in models:
        return ctc_part, {"ctc": ctc_part}

    # With CTC alone at the taps (variant aed_kd_with_taps) the decoder reads the last layer.
    decoded = states if row.u > 0 else states[-1:]
    with place.autocast():
        decoder_log_probs = models["decoder"](decoded, lengths, batch.targets)  # (B, U+1, V) each
    hard = hard_label(batch.targets)
    mask = conformer.length_mask(batch.target_lengths + 1, hard.labels.shape[1])  # (B, U+1)
    e = config.smoothing
    att_losses = [smoothed_cross_entropy(lp, hard, mask, e) for lp in decoder_log_probs]
    parts = {"ctc": ctc_part, "att": weigh(att_losses, row.u)}
    mixed = att_losses
    if soft is not None:
        kd_losses = [smoothed_cross_entropy(lp, soft, mask, e) for lp in decoder_log_probs]
        parts["kd"] = weigh(kd_losses, row.u)
        mixed = mix_losses(att_losses, kd_losses, row.a)
    return row.lam * ctc_part + (1 - row.lam) * weigh(mixed, row.u), parts


# ===================================================================================== training


def build_tokenizer(
    config: Config, utterances: list[corpora.Utterance], place: Place
) -> text.WordPiece:
    """The teacher's word pieces, pruned to those of the transcripts (choice: units)."""
    with first_rank_first(place):
        vocabulary = pretrained.load_vocabulary(config.teacher, "--teacher", config.root)
    transcripts = (utterance.text for utterance in utterances)
    return text.WordPiece.prune(vocabulary, transcripts, config.units)


def prepare(
    config: Config, utterances: list[corpora.Utterance], tokenizer: text.WordPiece, place: Place
) -> tuple[nn.ModuleDict, torch.optim.Optimizer, training.Run]:
    """The models on their device, the optimiser, and the run: new, or as a checkpoint
    left it."""
    reseed(config.seed)
    models = build_models(config, tokenizer.size, tokenizer).to(place.device)
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
    """Returns the recogniser with the mean weights of the best epochs, numbers for
    RESULT, and the figures to be drawn.
    """
    utterances = corpora.trainable(corpus.train, config.training.max_seconds)
    tokenizer = build_tokenizer(config, utterances, place)
    soft, report = None, {}
    if has_teacher(config):
        soft, report = soft_labels_of(config, tokenizer, utterances, place)
    models, optimizer, run = prepare(config, utterances, tokenizer, place)
    recogniser = models["recogniser"]
    for _ in run.epochs():
        for update in run.updates():  # a step of the optimiser; --resume skips what is done
            for batch in update:  # this GPU's micro-batches, none of them empty
                batch_soft = None if soft is None else pad_soft_labels(soft, batch)
                loss, parts = compute_losses(models, batch, batch_soft, config, place)
                loss.backward()
                update.add(loss, parts)
            # The gradient of the mean loss per utterance: over all micro-batches and all GPUs.
            update.average_gradients()

            # A large gradient of the decoder must not shrink the recogniser's (choice: decoder).
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
    drawings = {}
    if place.first and soft is not None and corpus.homophones:
        last = copy.deepcopy(models)  # of the last epoch, as the decoder is; the score is of a mean
        drawings["soft_label.png"] = partial(draw_soft_label, config, last, corpus, soft)
    return recogniser, report | run.finish(recogniser), drawings


def draw_soft_label(
    config: Config, models: nn.ModuleDict, corpus: corpora.Corpus, soft: dict[str, SoftLabel]
) -> None:
    """soft_label.png: what BERT and the decoder expect at the first homophone of a
    sentence.

    BERT sees the words around it, the decoder the words before it and the audio.
    """
    twins = corpus.homophones
    utterances = [u for u in corpus.train if u.id in soft and set(u.text.split()) & set(twins)]
    batch = batches.first_readable(utterances, config)
    models.cpu().eval()
    utterance = batch.utterances[0]
    words = utterance.text.split()
    n = next(n for n, word in enumerate(words) if word in twins)
    tokenizer = models["recogniser"].tokenizer
    step = len(tokenizer.encode(" ".join(words[:n])))  # of the homophone's first piece
    targets = torch.tensor([tokenizer.encode(utterance.text)])
    with torch.inference_mode():
        states, lengths = models["recogniser"](batch.waves, batch.samples)
        log_probs = models["decoder"](states[-1:], lengths, targets)[0]  # (1, U+1, V)
    decoder = log_probs[0, step].exp().cpu()  # (V,)
    mine = soft[utterance.id]
    teacher = torch.zeros_like(decoder)
    teacher.index_add_(0, mine.labels[step], mine.probs[step])
    words[n] = "[MASK]"
    title = " ".join(words)
    figures.expectations(
        Path(config.out) / "soft_label.png", title, tokenizer.pieces, teacher, decoder
    )


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
)
DEMO = Config(  # [choice] sizes and schedule: three minutes of training a method on two cores
    methods=("ctc", "interaed_kd"),
    # lam, tau and K differ from `full` (choice; tuned on dev, see results/notebook.md). With lam
    # 0.3 the encoder learns its alignments late. At tau 3 the soft labels of this small BERT are
    # nearly uniform. In the demo world up to ten words fit a place alike: the right one is always
    # among BERT's first 12 pieces, but among its first 8 in 81 % of the cases only.
    ctc_share=0.8,
    temperature=1.0,
    top_k=12,
    taps=(2,),
    teacher="demo",
    decoder_layers=1,
    decoder_ff_dim=448,
    encoder=DEMO_SIZES,
    lr=4.5e-3,
    training=DEMO_TRAINING,
    augmentation=Augmentation(speeds=(1.0,), frequency_masks=0, time_masks=0),
    workers=0,
    batch_seconds=60.0,
)
SMOKE = options.with_values(
    DEMO,
    data="demo-smoke",
    teacher="demo-smoke",
    hours=0.1,
    layers=2,
    taps=(1,),
    update_seconds=8.0,
    epochs=6,
)
PRESETS = {"full": Config(), "demo": DEMO, "smoke": SMOKE}


# ========================================================================================= main


def load(config: Config, place: Place) -> Recogniser:
    """The recogniser of a finished run; `config.out` is its folder. Raises
    UserError."""
    tokenizer = text.load_tokenizer(config.out)
    recogniser = Recogniser(config, tokenizer.size, tokenizer)
    return weights.load_recogniser(recogniser, config.out, place)


def run_method(config: Config) -> dict:
    """Trains one method and scores it on the test sets; returns what RESULT says."""
    place = start(config)
    corpus = batches.read_corpus(config, place)
    recogniser, report, drawings = train(config, corpus, place)
    result = evaluation.head_of_result(config)
    result["weights"] = weights_of(config)._asdict()
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
            # Without the training data: single characters come on top of --units.
            return evaluation.print_parameters(build_models(last, vocabulary=last.units + 1))
        results = [run_method(config) for config in configs]
        variant.check_called()
    return evaluation.compare_methods(configs, results)


if __name__ == "__main__":
    main()
