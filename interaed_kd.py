"""Keep Decoding Parallel with Effective Knowledge Distillation from Language Models to End-to-end Speech Recognisers.

Michael Hentschel, Yuta Nishikawa, Tatsuya Komatsu, Yusuke Fujita. ICASSP 2024. arXiv 2401.11700.

Idea
----
CTC predicts the labels of all frames at once, each independent of the other outputs given the audio: fast, but it
learns little about language. The paper lets a language model teach it. During training, an attention decoder reads the
encoder at intermediate layers and at the last one and learns the probabilities that BERT gives every token; the
gradient carries this knowledge into the encoder, down to its lower layers. At test time the decoder is thrown away
[digest], and CTC decodes in parallel as before.

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
    z_i    = BERT's logits at y_i, masked                                         label_tokens             test_z
    q_i    = softmax(z_i / tau) over the K student pieces with the largest z_i    soften                   test_q
    H_l(q) = - sum_{i=1}^{U+1} sum_v [(1-e) q_i(v) + e/V] log p_l(v | y_<i, x)    smoothed_cross_entropy   test_h
    att_l  = H_l(one-hot y),  kd_l = H_l(q);  y_{U+1} is <eos>, one-hot in both   mix_loss                 test_att_kd
    mix_l  = (1-a) att_l + a kd_l                                                 mix_loss                 test_mix
    loss   = lam [(1-w) ctc_last + w mean_taps ctc_l]
             + (1-lam) [(1-u) mix_last + u mean_taps mix_l]                       total_loss               test_loss

    lam, w, u, a: a row of the table each, see METHODS;  tau: temperature;  K: pieces in a soft label;  e: smoothing
    taps: encoder layers with losses of their own, counted from 1;  S layers (taps and last) that the decoder reads

Sources
-------
Written from the abstract, a summary by others and toolkits' recipes; we have not seen the paper's body. Options say
where their value comes from: [paper] the abstract, [digest] a summary by others, [peer] a toolkit's published recipe or
the predecessors' papers (Futami et al. 2020, 2022: soft labels of BERT), [choice] ours, as are all sizes of the demo.
Symbols and metrics that all scripts share: README.md.

Choices (ours, marked again where they stand)
-------
    C1 units      the teacher's own word pieces, pruned to those the training transcripts use
    C2 taps       at one and two thirds of the full preset's depth [peer]; the paper's are not known to us
    C3 weights    of the rows; the paper's are not known to us
    C4 Conformer  rotary positions, LayerNorm in the convolution module, no dropout on attention weights
    C5 training   AdamW; the first epoch goes from short to long utterances; checkpoints are chosen by dev WER
    C6 decoder    one for all layers, which are stacked on the batch axis; recogniser and decoder are clipped apart
    C7 reading    BERT reads [CLS] … [SEP] in the student's own pieces; the top K are taken among kept pieces

Metrics (beside those of all scripts)
-------
    teacher_top1, teacher_top_k   how often the transcript's piece is BERT's first guess, and among its K
    teacher_seconds               spent on all answers in this teacher's cache, in earlier runs too, summed over ranks

Run
---
    python interaed_kd.py                                     demo world, 7 minutes: ctc 19 % WER, interaed_kd 16 %
    python interaed_kd.py --method aed_kd --teacher-share 1 --seed 2      another row of the table
    python interaed_kd.py --data librispeech --root ~/corpora --hours 100
    python interaed_kd.py --checkpoint runs/x --decode beam --lm demo/lm    scores it by beam search
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.flags import Count, Extent, Positive, Real, RunConfig, Share, Speed, UserError, check_command_line, parse

# ================================================================================================== configuration


class Weights(NamedTuple):
    """A row of the table: what the total loss is made of."""

    lam: float  # share of CTC in the loss
    w: float  # share of the taps in CTC
    u: float  # share of the taps in the decoder's loss
    a: float  # share of the teacher in the decoder's loss


METHODS = {  # (C3 weights)
    "ctc": Weights(lam=1.0, w=0.0, u=0.0, a=0.0),
    "interctc": Weights(lam=1.0, w=0.66, u=0.0, a=0.0),
    "aed": Weights(lam=0.3, w=0.0, u=0.0, a=0.0),
    "aed_kd": Weights(lam=0.3, w=0.0, u=0.0, a=0.5),
    "interaed": Weights(lam=0.3, w=0.66, u=0.66, a=0.0),
    "interaed_kd": Weights(lam=0.3, w=0.66, u=0.66, a=0.5),
}


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: Positive = 30.0  # longer training utterances are left out [peer]
    update_seconds: Positive = 1600.0  # audio per update, over all ranks and micro-batches [peer]
    speeds: tuple[Speed, ...] = (0.9, 1.0, 1.1)  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 5  # SpecAugment, each over 0 to 5 % of the utterance; 10 for 960 h [peer]
    units: Count = 5000  # word pieces kept, the most frequent in the transcripts; characters come on top (C1 units)
    # -- method --
    method: Literal["ctc", "interctc", "aed", "aed_kd", "interaed", "interaed_kd"] = "interaed_kd"  # row of the table
    taps: tuple[Count, ...] = (6, 12)  # encoder layers with losses of their own (C2 taps)
    ctc_share: Share | None = None  # lam: CTC's share in the loss, beside a decoder; absent: the row's (C3 weights)
    tap_ctc_share: Share | None = None  # w: the taps' share in CTC; absent: the row's (C3 weights)
    tap_decoder_share: Share | None = None  # u: the taps' share in the decoder's loss; absent: the row's (C3 weights)
    teacher_share: Share | None = None  # a: the teacher's share in the decoder's loss; absent: the row's (C3 weights)
    kd_where: Literal["final", "inter", "both"] = "both"  # layers that learn from the teacher; the others: hard labels
    # -- teacher --
    teacher: str = "bert-base-uncased"  # BERT (hub name, folder, demo, demo/bert-b); its word pieces are the units (C1)
    teacher_context: Literal["utt", "full"] = "utt"  # it reads the utterance, or up to 256 tokens around it
    soft_labels: Literal["teacher", "uniform"] = "teacher"  # uniform: its top K, but all equally likely, as a control
    top_k: Count = 8  # pieces per token that a soft label keeps [peer]
    temperature: Positive = 3.0  # tau, of the soft labels [peer]
    smoothing: Share = 0.1  # e, below 1, of hard and soft labels [peer]
    # -- model --
    subsampling: Literal[4, 8] = 4  # feature frames per encoder frame: 4 is 40 ms [peer], 8 is 80 ms [choice]
    channels: Extent = 256  # of the subsampling convolutions [peer]
    layers: Extent = 18  # Conformer blocks [peer] (C4 Conformer)
    dim: Extent = 256  # width [peer]
    heads: Extent = 4  # of self-attention [peer]
    ff_dim: Extent = 1024  # width inside the feed-forward parts [peer]
    kernel: Extent = 31  # frames seen by the depthwise convolution, odd [peer]
    dropout: Share = 0.1  # of encoder and decoder, but not on the encoder's attention weights [peer]
    decoder_layers: Extent = 6  # blocks of the attention decoder, in training only [choice]
    decoder_ff_dim: Extent = 2048  # width inside its feed-forward parts [choice]
    decoder_sharing: Literal["shared", "separate"] = "shared"  # one for all layers, or one for each (C6 decoder)
    # -- optimisation --
    epochs: Count = 180  # passes over the data [peer]: 60 over data tripled by speed perturbation (C5 training)
    lr: Positive = 2e-3  # peak learning rate [peer], of AdamW (C5 training)
    weight_decay: float = 1e-6  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "inverse-sqrt"  # of the learning rate [peer]
    warmup: Positive = 15000.0  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    clip: Positive = 5.0  # largest norm of the gradient of recogniser and decoder, each by itself [peer] (C6 decoder)
    average: Count = 10  # epochs with the lowest dev WER whose weights are averaged [peer] (C5 training)
    # -- decoding --
    decode: Literal["greedy", "beam"] = "greedy"  # beam: CTC prefix beam search, with --lm the comparator
    lm: str | None = None  # causal language model for the beam, with the teacher's pieces: hub name, folder, demo/lm
    beam: Extent = 10  # prefixes kept per frame [choice]
    lm_weight: tuple[float, ...] = (0.2, 0.4, 0.6)  # each is tried on 100 dev utterances [choice]
    bonus: tuple[Real, ...] = (0.0, 0.5, 1.0)  # per piece, each is tried with each --lm-weight [choice]

    def check(self) -> None:
        super().check()
        weights, inner = row(self), range(1, self.layers)
        if self.smoothing == 1:
            raise UserError("--smoothing must be a share, below 1, not 1: nothing would be left to learn.")
        if (weights.w or weights.u) and not (set(self.taps) <= set(inner) and len(set(self.taps)) == len(self.taps)):
            raise UserError(f"--taps are layers from 1 to {self.layers - 1}, below the last, each once.")
        if weights.a and weights.lam < 1 and not any(teacher_share(self, i) for i in decoded_layers(self)):
            raise UserError(f"--kd-where {self.kd_where}: {self.method} has no decoder there that could learn.")


DEMO = dict(  # [choice] learns to recognise the demo world in three minutes on two cores; a scene has 10 homophones
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    methods=("ctc", "interaed_kd"), taps=(2,), ctc_share=0.8, teacher="demo", top_k=12, temperature=1.0,
    subsampling=8, channels=16, layers=4, dim=112, ff_dim=448, kernel=15, dropout=0.0, decoder_layers=1,
    decoder_ff_dim=448, epochs=5, lr=4.5e-3, schedule="one-cycle", warmup=0.3, average=1,
)  # fmt: skip
SMOKE = DEMO | dict(data="demo-smoke", teacher="demo-smoke", hours=0.1, layers=2, taps=(1,), update_seconds=8, epochs=6)
PRESETS = {"smoke": SMOKE, "demo": DEMO}


def row(config: Config) -> Weights:
    """The method's weights, overridden by options; a method without decoder takes only w, and ctc none of them."""
    weights = METHODS[config.method]
    given = Weights(config.ctc_share, config.tap_ctc_share, config.tap_decoder_share, config.teacher_share)._asdict()
    changeable = Weights._fields if weights.lam < 1 else ["w"] if weights.w else []
    return weights._replace(**{name: given[name] for name in changeable if given[name] is not None})


def taps(config: Config) -> tuple[int, ...]:
    """The encoder layers below the last whose states the row's loss reads."""
    lam, w, u, _ = row(config)
    return config.taps if lam * w or (1 - lam) * u else ()


def decoded_layers(config: Config) -> list[int]:
    """Which of the states (taps, then last layer) the decoder reads: those whose mix_l has a weight."""
    last, u = len(taps(config)), row(config).u
    return [i for i in range(last + 1) if (u < 1 if i == last else u > 0)]


def teacher_share(config: Config, i: int) -> float:
    """a at state i (taps, then last layer); 0 where --kd-where leaves hard labels."""
    where = "final" if i == len(taps(config)) else "inter"
    return row(config).a if config.kd_where in ("both", where) else 0.0


if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cache, ctc, scoring
from common.conformer import Conformer, length_mask, subsampled
from common.corpora import Corpus, Utterance, session_order, trainable
from common.data import Batch, read_corpus, read_one, sample_waves
from common.features import FRAME_SECONDS, LogMel, num_frames, spec_augment
from common.place import Place, first_rank_first, note, reseed, start, synchronise
from common.pretrained import LanguageModel, MaskedLM, by_length, load_vocabulary
from common.scoring import Transcript
from common.text import WordPiece, load_tokenizer
from common.training import Run
from common.weights import load_recogniser

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, and one CTC head for the last layer and all taps. All that is exported."""

    def __init__(self, config: Config, vocabulary: int, tokenizer: WordPiece | None = None):
        super().__init__()
        self.tokenizer, self.seconds = tokenizer, config.subsampling * FRAME_SECONDS  # of an encoder frame
        self.masks = config.frequency_masks, config.time_masks
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
        self.ctc_head = nn.Linear(config.dim, vocabulary)

    def forward(self, waves: Tensor, samples: Tensor, taps: tuple[int, ...] = ()) -> tuple[list[Tensor], Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> states (B, T, D) of taps and last layer; their lengths (B,)."""
        features, frames = self.frontend(waves, samples)  # (B, F, 80)
        if self.training:
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        encoded = self.encoder(features, frames, taps)
        return [*(tap.output for tap in encoded.taps), encoded.output], encoded.lengths

    def log_probs(self, state: Tensor) -> Tensor:
        """state (B, T, D) -> log p(piece or blank | frame) (B, T, V)."""
        return self.ctc_head(state).float().log_softmax(-1)

    def transcribe(self, batch: Batch, place: Place, **search) -> list[Transcript]:
        """search: see ctc.search."""
        with place.autocast():
            (state,), lengths = self(batch.waves, batch.samples)
            log_probs = self.log_probs(state)  # (B, T, V)
        paths = ctc.search(log_probs, lengths, **search)
        return [scoring.transcript_of(path, self.tokenizer, self.seconds) for path in paths]


class AttentionDecoder(nn.Module):
    """Writes the transcript piece by piece while it looks at an encoder layer. Needed for training only.

    Its losses reach the encoder through cross-attention: to help the decoder, a layer has to hold what tells the next
    piece, which is language knowledge. torch's Transformer blocks [choice]; label 0 is <sos> and <eos>.
    """

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.dim)
        sizes = config.dim, config.heads, config.decoder_ff_dim, config.dropout
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, vocabulary)

    def forward(self, states: list[Tensor], lengths: Tensor, targets: Tensor) -> list[Tensor]:
        """states: S times (B, T, D), lengths (B,), targets (B, U) -> S times log p(y_i | y_1 … y_i-1, x) (B, U+1, V).

        The layers are stacked on the batch axis (C6 decoder), so that the decoder runs once, whatever their number.
        """
        S, T, D = len(states), states[0].shape[1], states[0].shape[2]
        inputs = nn.functional.pad(targets, (1, 0))  # (B, U+1): <sos> y_1 … y_U
        x = self.embedding(inputs) + sinusoids(inputs.shape[1], D, inputs.device)  # (B, U+1, D)
        x, memory = x.repeat(S, 1, 1), torch.cat(states)  # (S B, U+1, D), (S B, T, D)
        padding = ~length_mask(lengths, T).repeat(S, 1)  # (S B, T); True where there is none, as torch's blocks want it
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)  # (U+1, U+1)
        for block in self.blocks:
            x = block(x, memory, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=padding)
        return list(self.output(self.norm(x)).float().log_softmax(-1).chunk(S))


def sinusoids(positions: int, dim: int, device: torch.device) -> Tensor:
    """(positions, dim): sines and cosines of position / 10000^(2i / dim). Vaswani et al. 2017."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angles = torch.arange(positions, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def build_models(config: Config, vocabulary: int, tokenizer: WordPiece | None = None) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `decoders` where the row has them (one, or one per layer that it reads)."""
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)})
    if row(config).lam < 1:
        count = 1 if config.decoder_sharing == "shared" else len(decoded_layers(config))
        models["decoders"] = nn.ModuleList(AttentionDecoder(config, vocabulary) for _ in range(count))
    return models


def fits(config: Config, samples: int, labels: list[int]) -> bool:
    """Whether CTC has a frame for every label, and one more between equal ones."""
    needed = ctc.required_frames(torch.tensor([labels], dtype=torch.long), torch.tensor([len(labels)]))
    return bool(needed <= subsampled(num_frames(samples), config.subsampling))


# =========================================================================================================== loss


class SoftLabel(NamedTuple):
    labels: Tensor  # (U+1, K), of a batch (B, U+1, K); the last row, <eos>, is a hard label: BERT has none
    probs: Tensor  # the same shape; each row sums to 1


def smoothed_cross_entropy(log_probs: Tensor, labels: Tensor, probs: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """- sum over tokens, sum over v of [(1-e) q(v) + e/V] log p(v): one number, summed over all tokens of the mask.

    log_probs (B, U+1, V); q is sparse: probs (B, U+1, K) on labels (B, U+1, K); mask (B, U+1) True for real tokens.
    """
    picked = (probs * log_probs.gather(-1, labels)).sum(-1)  # (B, U+1)
    return -(((1 - epsilon) * picked + epsilon * log_probs.mean(-1)) * mask).sum()


def mix_loss(log_probs: Tensor, batch: Batch, soft: SoftLabel | None, a: float, epsilon: float) -> Tensor:
    """mix_l = (1-a) att_l + a kd_l, summed over tokens; log_probs (B, U+1, V) of the decoder at layer l.

    att_l is the smoothed cross-entropy to the transcript y_1 … y_U <eos>, kd_l the one to BERT's soft labels.
    """
    hard = nn.functional.pad(batch.targets, (0, 1))[..., None]  # (B, U+1, 1); padding and <eos> are label 0
    mask = length_mask(batch.target_lengths + 1, hard.shape[1])  # (B, U+1)
    loss = log_probs.new_zeros(())
    if a < 1:
        loss = loss + (1 - a) * smoothed_cross_entropy(log_probs, hard, torch.ones_like(hard), mask, epsilon)
    if a > 0:
        loss = loss + a * smoothed_cross_entropy(log_probs, soft.labels, soft.probs, mask, epsilon)
    return loss


def total_loss(ctc_losses: list[Tensor], mix_losses: list[Tensor], weights: Weights) -> Tensor:
    """loss = lam [(1-w) ctc_last + w mean_taps ctc_l] + (1-lam) [(1-u) mix_last + u mean_taps mix_l].

    Both lists: one loss per tap, then the last layer's; a loss that has no weight may be 0.
    """
    (*ctc_taps, ctc_last), (*mix_taps, mix_last) = ctc_losses, mix_losses
    ctc_part = (1 - weights.w) * ctc_last + weights.w * sum(ctc_taps) / max(len(ctc_taps), 1)
    mix_part = (1 - weights.u) * mix_last + weights.u * sum(mix_taps) / max(len(mix_taps), 1)
    return weights.lam * ctc_part + (1 - weights.lam) * mix_part


def compute_losses(models: nn.ModuleDict, batch: Batch, soft: SoftLabel | None, config: Config, place: Place) -> Tensor:
    """The batch's loss, summed over its utterances. The forward pass may be bf16; the losses are fp32."""
    weights, recogniser, decoded = row(config), models["recogniser"], []
    with place.autocast():
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
        mix_losses[i] = mix_loss(lp, batch, soft, teacher_share(config, i), config.smoothing)
    return total_loss(ctc_losses, mix_losses, weights)


# ======================================================================================================== teacher


class Question(NamedTuple):
    """An utterance as BERT reads it (C7 reading)."""

    ids: list[int]  # [CLS] … y_1 … y_U … [SEP], in BERT's ids
    first: int  # where y_1 stands
    y: Tensor  # (U,) the labels

    def asked(self, piece_of: Tensor, longest: int) -> Tensor:
        """(U,) True where BERT has the piece and reads so far; elsewhere the soft label is replaced by the hard one."""
        return (piece_of[self.y] >= 0) & (self.first + torch.arange(len(self.y)) < longest)


def questions_of(config: Config, tokenizer: WordPiece, bert: MaskedLM, utterances: list[Utterance]) -> list[Question]:
    """Each alone, or with --teacher-context full among its session's neighbours, as many as fit in 256 tokens."""
    piece_of, longest = tokenizer.ids_in(bert.pieces), min(256, bert.longest)
    targets = {u.id: tokenizer.encode(u.text) for u in utterances}
    texts = {name: [p if (p := piece_of[y - 1]) >= 0 else bert.unk for y in ys] for name, ys in targets.items()}
    sessions, questions = session_order(utterances), []
    for u in utterances:
        session, i = sessions[u.id]
        before, after, room = i, i + 1, longest - 2 - len(texts[u.id])  # session[before:after] is read
        while config.teacher_context == "full":
            nearest = sorted((before - 1, after), key=lambda j: abs(j - i))  # in turn
            fitting = [j for j in nearest if 0 <= j < len(session) and len(texts[session[j]]) <= room]
            if not fitting:
                break
            before, after = min(before, fitting[0]), max(after, fitting[0] + 1)
            room -= len(texts[session[fitting[0]]])
        ids = [bert.cls, *(piece for name in session[before:after] for piece in texts[name]), bert.sep]
        start = 1 + sum(len(texts[name]) for name in session[before:i])
        questions.append(Question(ids, start, torch.tensor(targets[u.id])))
    return questions


def soften(logits: Tensor, kept: Tensor, k: int, tau: float) -> tuple[Tensor, Tensor]:
    """q_i = softmax(z / tau) over the K kept pieces with the largest logits z -> labels (N, K), probs (N, K).

    logits (N, teacher's vocabulary) at masked positions; kept (V,): the teacher's piece of each label, or -1.
    Cutting off at K makes q surer of what it keeps than the teacher is (a bias; --top-k).
    """
    labels = (kept >= 0).nonzero()[:, 0]  # special, unused and dropped pieces have no label
    top = logits[:, kept[labels]].float().topk(k)
    return labels[top.indices], (top.values / tau).softmax(-1)


def label_tokens(teacher: MaskedLM, questions: list[Question], piece_of: Tensor, k: int, tau: float) -> list[SoftLabel]:
    """Asks the teacher about every token -> (U, K) each. piece_of (V,): the teacher's piece of each label, or -1.

    Several labels may share a piece (the three apostrophes): its probability goes to the transcript's own label if that
    is one of them, else to the first.
    """
    first = {piece: label for label, piece in reversed([*enumerate(piece_of.tolist())])}  # the first label with a piece
    kept = torch.tensor([p if first[p] == v else -1 for v, p in enumerate(piece_of.tolist())])
    kept, sizes = kept.to(teacher.model.device), [len(q.y) for q in questions]
    rows = [q.ids[: teacher.longest] for q in questions for _ in q.y]
    positions = [min(q.first + i, teacher.longest - 1) for q in questions for i in range(len(q.y))]
    labels, probs = torch.zeros(len(rows), k, dtype=torch.long), torch.zeros(len(rows), k)
    for part in by_length(rows):
        answer = soften(teacher.logits([rows[i] for i in part], [positions[i] for i in part]), kept, k, tau)
        labels[part], probs[part] = answer[0].cpu(), answer[1].cpu()
    y = torch.cat([q.y for q in questions])[:, None]  # (tokens, 1)
    asked = torch.cat([q.asked(piece_of, teacher.longest) for q in questions])[:, None]
    labels = torch.where(piece_of[labels] == piece_of[y], y, labels)
    labels = torch.where(asked, labels, y * torch.eye(1, k, dtype=torch.long))  # hard: y with probability 1
    probs = torch.where(asked, probs, torch.eye(1, k))
    return [SoftLabel(*pair) for pair in zip(labels.short().split(sizes), probs.split(sizes), strict=True)]


def soft_labels(
    config: Config, tokenizer: WordPiece, utterances: list[Utterance], place: Place
) -> tuple[dict[str, SoftLabel], dict[str, float]]:
    """{utterance: its soft labels}, and what RESULT says about the teacher. Nothing is ever asked twice.

    Answers are kept in ROOT/soft-labels under the teacher's weights, the kept pieces, K and tau. Ranks share the work.
    """
    with first_rank_first(place):
        teacher = MaskedLM(config.teacher, "--teacher", config.root, place.device)
    piece_of, k = torch.tensor([-1, *tokenizer.ids_in(teacher.pieces)]), config.top_k
    if tokenizer.size > 2**15:
        raise UserError(f"{tokenizer.size} outputs are more than soft labels can name (32768): lower --units.")
    if k > len(set(piece_of.tolist()) - {-1}):
        raise UserError(f"--top-k {k} is more than the {tokenizer.size - 1} pieces kept: lower it.")
    weights = cache.digest(*(p.cpu().numpy().tobytes() for p in teacher.model.parameters()))
    key = cache.digest(weights, repr(tokenizer.pieces), repr((k, config.temperature)))
    folder = Path(os.path.expanduser(config.root)) / "soft-labels" / key
    questions = questions_of(config, tokenizer, teacher, utterances)
    keys = [cache.digest(repr((q.ids, q.first, q.y.tolist()))) for q in questions]
    by_key = dict(sorted(zip(keys, questions, strict=True), key=lambda item: len(item[1].ids)))
    for part in cache.missing(folder, list(by_key), place, "asking the teacher"):
        started = synchronise(place)
        answers = label_tokens(teacher, [by_key[key] for key in part], piece_of, k, config.temperature)
        named = {key: answer._asdict() for key, answer in zip(part, answers, strict=True)}
        cache.add(folder, named, synchronise(place) - started)
    known, seconds = cache.load(folder)
    found = [SoftLabel(**known[key]) for key in keys]
    asked = torch.cat([q.asked(piece_of, teacher.longest) for q in questions])
    right = (torch.cat([x.labels for x in found]) == torch.cat([q.y for q in questions])[:, None])[asked]
    top1, top_k = right[:, 0].float().mean().item(), right.any(1).float().mean().item()
    if place.first:
        note(f"the teacher's first guess is right at {top1:.0%} of the tokens, one of its top K at {top_k:.0%}")
    if config.soft_labels == "uniform":
        rows = zip(found, asked.split([len(q.y) for q in questions]), strict=True)
        found = [x._replace(probs=torch.where(a[:, None], torch.tensor(1 / k), x.probs)) for x, a in rows]
    end = torch.zeros(1, k, dtype=torch.short), torch.eye(1, k)
    found = [SoftLabel(*(torch.cat(pair) for pair in zip(x, end, strict=True))) for x in found]
    report = {"teacher_seconds": seconds, "teacher_top1": top1, "teacher_top_k": top_k}
    return {u.id: x for u, x in zip(utterances, found, strict=True)}, {name: round(x, 4) for name, x in report.items()}


def padded(soft: dict[str, SoftLabel], batch: Batch) -> SoftLabel:
    """The soft labels of a batch (B, U+1, K)."""
    labels, probs = zip(*(soft[u.id] for u in batch.utterances), strict=True)
    pad, device = nn.utils.rnn.pad_sequence, batch.waves.device
    return SoftLabel(pad(labels, batch_first=True).long().to(device), pad(probs, batch_first=True).to(device))


# ========================================================================================================== train


def train(config: Config, corpus: Corpus, place: Place) -> tuple[Recogniser, dict]:
    """Returns the recogniser with the average of the best epochs' weights, and what RESULT says of the training."""
    utterances = trainable(corpus.train, config.max_seconds)
    with first_rank_first(place):
        vocabulary = load_vocabulary(config.teacher, "--teacher", config.root)
    tokenizer = WordPiece.prune(vocabulary, (u.text for u in utterances), config.units)
    taught = row(config).lam < 1 and row(config).a > 0
    soft, report = soft_labels(config, tokenizer, utterances, place) if taught else ({}, {})
    reseed(config.seed)
    models = build_models(config, tokenizer.size, tokenizer).to(place.device)
    recogniser = models["recogniser"]
    recogniser.frontend.fit(sample_waves(utterances, config))
    groups = [{"params": list(part.parameters()), "lr": config.lr} for part in models.values()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    run = Run(config, place, models, optimizer, utterances, tokenizer.encode, partial(fits, config))
    for _ in run.epochs():
        for update in run.updates():
            for batch in update:
                loss = compute_losses(models, batch, padded(soft, batch) if taught else None, config, place)
                loss.backward()
                update.add(loss)
            update.average_gradients()
            # Each part's gradient is clipped by itself: the decoder must not slow the recogniser down (C6 decoder).
            norms = [nn.utils.clip_grad_norm_(part.parameters(), config.clip).item() for part in models.values()]
            update.log |= {"norm": norms[0], "lr": run.set_learning_rates()}
            if update.usable(*norms):
                optimizer.step()
            optimizer.zero_grad()
        run.end_epoch(recogniser, scoring.dev_scores(recogniser, corpus, config, place))
    if place.first and taught and decoded_layers(config)[-1] == len(taps(config)):
        draw_soft_label(config, models, corpus, soft)
    return recogniser, report | run.finish(recogniser)


# ======================================================================================================= figures


def draw_soft_label(config: Config, models: nn.ModuleDict, corpus: Corpus, soft: dict[str, SoftLabel]) -> None:
    """soft_label.png: what BERT, from the words around, and the decoder, from the audio, expect at a homophone."""
    from common import figures

    recogniser, tokenizer = models["recogniser"], models["recogniser"].tokenizer
    utterance = next((u for u in corpus.train if u.id in soft and set(u.text.split()) & set(corpus.homophones)), None)
    if utterance is None or not (batch := read_one(utterance, config)).utterances:
        return
    words, device = utterance.text.split(), next(models.parameters()).device
    n = next(n for n, word in enumerate(words) if word in corpus.homophones)
    step, target = len(tokenizer.encode(" ".join(words[:n]))), torch.tensor([tokenizer.encode(utterance.text)])
    models.eval()
    with torch.inference_mode():
        states, lengths = recogniser(batch.waves.to(device), batch.samples.to(device))
        decoder = models["decoders"][-1](states, lengths, target.to(device))[0][0, step].exp().cpu()  # (V,)
    labels, probs = (x[step] for x in soft[utterance.id])
    teacher = torch.zeros_like(decoder).index_put((labels.long(),), probs, accumulate=True)
    shown = sorted({*labels.tolist(), *decoder.topk(config.top_k).indices.tolist()}, key=lambda v: -teacher[v])
    bars = {"BERT's soft label": teacher[shown].tolist(), "decoder at the last layer": decoder[shown].tolist()}
    names = [tokenizer.pieces[v - 1] if v else "<eos>" for v in shown]
    title = " ".join("[MASK]" if i == n else word for i, word in enumerate(words)) + f"   ({words[n]})"
    figures.bars(Path(config.out) / "soft_label.png", names, bars, "probability", title)


# ============================================================================================================ main


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    tokenizer = load_tokenizer(config.checkpoint)
    return load_recogniser(Recogniser(config, tokenizer.size, tokenizer), config.checkpoint, place)


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint scores or transcribes. Returns what RESULT says."""
    place = start(config)
    if config.transcribe:
        return scoring.transcribe_files(load(config, place), config, place, LanguageModel)
    corpus = read_corpus(config, place)
    recogniser, report = (load(config, place), {}) if config.checkpoint else train(config, corpus, place)
    result = {"script": "interaed_kd", "method": config.method, "seed": config.seed, "weights": row(config)._asdict()}
    result |= scoring.evaluate(recogniser, corpus, config, place, LanguageModel) | report
    return scoring.report(result, config, place)


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    if configs[0].summary:
        return scoring.print_parameters(build_models(configs[-1], configs[-1].units + 1))
    return scoring.compare(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
