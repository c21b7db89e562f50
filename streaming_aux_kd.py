"""Knowledge Distillation from Non-streaming to Streaming ASR Encoder using Auxiliary Non-streaming Layer.

Kyuhong Shim, Jinkyu Lee, Simyung Chang, Kyuwoong Hwang. Interspeech 2023. arXiv 2308.16415.

Idea
----
A streaming recogniser writes words while they are spoken, so it hears no future. A teacher that reads the whole
utterance knows more; but a student that has to match it frame by frame is asked for what it cannot hear. The paper
gives the student branches for training only: a layer that sees the whole utterance, put on top of a streaming layer.
Teacher and branch see the same, so they can be compared, and the gradient goes through the branch into the streaming
layer. An LSTM on top of the branch also predicts the teacher's next frames. At test time the branches are thrown away:
latency and size are those of a student trained from scratch.

Diagram
-------
    wave (B, N) --LogMel--> (B, F, 80) ---+--> causal subsampling --> block 1 … l … L (full context)    teacher, frozen
                                          |                                 |
                                          |                      h_l (B, T, D);  block l's Q, K, V (B, T, 3, H, D/H)
                                          |                                 |
                                          |     L_dis(h_l, z_l), L_kld(Q K V), L_apc(h_l n frames ahead, r_l)
                                          |                                 |
                                          |                 z_l --LSTM--> r_l (B, T, D)                 training only
                                          |                  |
                                          |           Transformer layer, full context, with its own Q, K, V
                                          |                  |
                                          |                 s_l (B, T, D)
                                          |                  |
                                          +--> causal subsampling --> block 1 … l … L (chunks of c frames)    student
                                                                            |
    <blank> y_1 … y_U --Predictor (embedding, LSTM)--> g (B, U+1, P) --Joint, tile by tile--> L_rnnt

Equations (the names are this file's own; each with its function, and its test in tests/test_streaming_aux_kd.py)
---------
    M(i, j)  = frame i attends frame j iff 0 <= floor(i/c) - floor(j/c) <= left/c    conformer.chunk_mask      test_mask
    L_rnnt   = -log sum over alignments of prod p(blank or y_{u+1} | t, u)           rnnt.transducer_loss      test_rnnt
    d(h, z)  = |h - z|_1 / D - log sigmoid(cos(h, z)), h and z normalised; 0.31 where they are equal
                                                                                     feature_distance          test_d
    L_dis    = sum_t d(h_t, z_t)                                                     branch_losses             test_dis
    L_kld    = sum_{X in Q,K,V} 1/A sum_{a,t} KL( softmax_k(x_at . x_ak / sqrt e) teacher || branch )
                                                                                     relation_loss             test_kld
    L_apc    = sum_{t < T-n} d(h_{t+n}, r_t)                                          branch_losses             test_apc
    loss     = L_rnnt + lam sum_l (alpha L_dis + beta L_kld + gamma L_apc)           compute_losses            test_loss
    comparators: layer_kd, the same with s_l in place of z_l and the block's own Q, K, V: no branch
    token_kd, with q(t,u) = (p(y_{u+1}), p(blank), the rest):
    L_token  = sum_{t,u} KL( q_teacher(t,u) || q_student(t+tau,u) )                  token_loss               test_token
    loss     = L_rnnt + lam delta L_token

    c chunk, in encoder frames of 40 ms;  A attention heads, e their width;  n --apc-steps;  lam --kd-weight
    alpha, beta, gamma, delta --dis-weight, --kld-weight, --apc-weight, --token-weight
    tau of 0 … --token-kd-delay the one with the smallest mean; the sum is then scaled to all nodes (C7 token)

Sources
-------
Written from the abstract, a summary by others and a second-hand account of the losses; we have not seen the paper's
body. Options say where their value comes from: [digest] a summary by others, [peer] a toolkit's recipe, [choice] ours,
as are all sizes of the demo. Symbols and metrics that all scripts share: README.md.

Choices (ours, marked again where they stand)
-------
    C1 frames     teacher and student share subsampling, depth and width, so that frames and layers line up
    C2 branches   on every 4th layer [choice]; teacher layer l teaches student layer l [digest]; their Transformer layer
                  is made of our Conformer's attention and feed-forward parts, norm first
    C3 norm       our blocks end without a norm and h_l grows with depth: h, z, s, r pass a LayerNorm without parameters
    C4 relations  softmax over all real frames; Q, K, V before rotation. They are projections of s_l and never pass the
                  branch's attention, so L_kld compares streaming context with full context; the teacher's are made
                  before layer l attends, so those of layer 1 have no context either
    C5 hole       in the branch, frame t may not attend t+1 … t+n, whatever the losses: the LSTM should not simply copy
                  its target. It still can by way of earlier frames, which attend beyond their own hole; with
                  --aux-mask causal it cannot
    C6 apc        with chunks of four frames, 3/4 of its targets (n 1), 1/2 (n 2), none (n 4) lie inside the chunk that
                  s_t has heard anyway: logged apart
    C7 token      three classes as in Panchapagesan et al. 2020 (arXiv 2011.06110); with --token-kd-delay the shift with
                  the smallest mean over nodes, after Delayed-KD (arXiv 2505.22069), which is for CTC
    C8 training   AdamW; the first epoch goes from short to long utterances; checkpoints are chosen by dev WER

Metrics (beside those of all scripts)
-------
    rnnt    the transducer's share of the loss;  kd: dis, kld, apc_inside, apc_beyond (the chunk), token
    emission_delay    ms by which words that both get right end later than the teacher's, mean over test-clean or the
                      first test set, if there are any; a chunk's words come when it is complete, up to --chunk-ms later

Run
---
    python streaming_aux_kd.py                                demo world, 19 minutes on two cores: teacher, scratch and
                                                              aux_kd side by side, about 13, 28 and 21 % WER
    python streaming_aux_kd.py --method aux_kd --losses dis apc --apc-steps 4 --seed 2
    python streaming_aux_kd.py --data librispeech --root ~/corpora --hours 960 --size M
    python streaming_aux_kd.py --checkpoint runs/x --stream a.wav         words as they come
    arecord -q -t raw -f S16_LE -r 16000 | python streaming_aux_kd.py --checkpoint runs/x --stream -
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.running.flags import (
    Count,
    Positive,
    RunConfig,
    Share,
    Speed,
    UserError,
    check_command_line,
    parse,
)

# ================================================================================================== configuration


class Size(NamedTuple):
    """Of encoder, prediction and joint network."""

    layers: int
    dim: int
    heads: int
    ff_dim: int
    kernel: int
    channels: int
    embedding_dim: int
    predictor_dim: int
    joint_dim: int


SIZES = {  # [choice], after NeMo's small and medium transducers; frames of 40 ms
    # layers, width, heads, feed-forward width, kernel, subsampling channels; embedding, LSTM; joint network
    "S": Size(16, 176, 4, 704, 31, 176, 320, 320, 320),
    "M": Size(16, 256, 4, 1024, 31, 256, 640, 640, 640),
    "demo": Size(4, 112, 4, 448, 15, 16, 16, 128, 128),
    "smoke": Size(2, 64, 2, 128, 7, 8, 16, 64, 64),
}


@dataclass(frozen=True)
class Config(RunConfig):
    # -- what to do --
    stream: str | None = (
        None  # a file, or - for 16-bit PCM from standard input: its words as they come
    )
    rate: Count = 16000  # Hz, of standard input
    # -- data --
    max_seconds: Positive = 20.0  # longer training utterances are left out [choice]
    update_seconds: Positive = 1600.0  # audio per update, over all ranks and micro-batches [choice]
    speeds: tuple[Speed, ...] = (
        0.9,
        1.0,
        1.1,
    )  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 10  # SpecAugment, each over 0 to 5 % of the utterance [peer]
    units: Count = 1024  # SentencePiece pieces [choice]; characters without room come on top
    # -- method --
    method: Literal["teacher", "scratch", "token_kd", "layer_kd", "aux_kd"] = (
        "aux_kd"  # row of the table
    )
    losses: tuple[Literal["dis", "kld", "apc"], ...] = (
        "dis",
        "kld",
        "apc",
    )  # of layer_kd and aux_kd
    kd_weight: float = 1.0  # lam; the others [digest] are relative to sums over frames [choice]
    dis_weight: float = 0.01  # alpha, of the distance between features [digest]
    kld_weight: float = 0.0005  # beta, of the attention's relations [digest]
    apc_weight: float = 0.005  # gamma, of the prediction of the teacher's future [digest]
    apc_steps: Count = 2  # n, frames ahead, and the width of the hole [choice] (C6 apc)
    kd_every: Count = 4  # every so many layers, one is taught (C2 branches)
    aux_mask: Literal["hole", "causal", "none"] = (
        "hole"  # what a branch's attention may not see (C5 hole)
    )
    token_weight: float = 0.001  # of token_kd, on the sum over nodes [choice]
    token_kd_delay: int = (
        0  # frames by which the student may be late, the best per utterance (C7 token)
    )
    # -- teacher --
    teacher: str = (
        "auto"  # finished run; auto: the one beside, else runs/…-teacher-s<seed>, trained if absent
    )
    control: Literal["none", "shuffle", "random"] = (
        "none"  # states of another utterance, or of an untrained teacher
    )
    # -- streaming --
    chunk_ms: Count = 160  # audio that is heard at once [digest]
    left_ms: int = 640  # past that attention sees, before the chunk [digest]
    # -- model --
    size: Literal["S", "M", "demo", "smoke"] = (
        "S"  # of encoder, prediction and joint network: 14 or 31 million
    )
    dropout: Share = 0.1  # of encoder and branches, but not on attention weights [peer]
    # -- optimisation --
    epochs: Count = 60  # passes over the training data [choice]
    lr: Positive = 1e-3  # peak learning rate, of AdamW [peer] (C8 training)
    weight_decay: float = 1e-3  # [peer]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "inverse-sqrt"  # of the learning rate [peer]
    warmup: Positive = (
        10000.0  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    )
    clip: Positive = (
        5.0  # largest norm of the gradient of recogniser and branches, each by itself [peer]
    )
    average: Count = 10  # epochs with the lowest dev error whose weights are averaged [peer]
    # -- decoding --
    decode: Literal["greedy"] = "greedy"  # as a stream has to

    def check(self) -> None:
        super().check()
        if self.chunk_ms % FRAME_MS or self.left_ms % self.chunk_ms:
            raise UserError(f"--chunk-ms is a multiple of {FRAME_MS}, and --left-ms of --chunk-ms.")
        if self.stream and not self.checkpoint:
            raise UserError("--stream needs --checkpoint, the folder of a finished run.")
        if self.stream and self.transcribe:
            raise UserError(
                "--stream writes words as they come, --transcribe whole files: give one of the two."
            )
        if self.kd_every > SIZES[self.size].layers:
            raise UserError(
                f"--kd-every {self.kd_every} is more than the {SIZES[self.size].layers} layers."
            )


FRAME_MS = 40  # of encoder frames
DEMO = dict(  # [choice] sizes that learn to recognise the demo world in about four minutes per row on one core
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    methods=("teacher", "scratch", "aux_kd"), units=100, size="demo", kd_every=2, dropout=0.0,
    epochs=4, lr=4.5e-3, weight_decay=1e-2, schedule="one-cycle", warmup=0.3, average=1,
)  # fmt: skip
# Few and long pieces, small updates, and a choice among many epochs: what a transducer needs to write its first words.
SMOKE = DEMO | dict(
    data="demo-smoke",
    hours=0.05,
    size="smoke",
    units=400,
    update_seconds=4.0,
    epochs=6,
    lr=6e-3,
    warmup=0.2,
)
PRESETS = {"smoke": SMOKE, "demo": DEMO}

if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import copy
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common import figures, metrics, rnnt
from common.conformer import (
    Conformer,
    Encoded,
    FeedForward,
    SelfAttention,
    Tap,
    chunk_mask,
    length_mask,
    rotary_table,
    subsampled,
)
from common.ctc import BLANK
from common.features import LogMel, num_frames, spec_augment
from common.running import decoding, evaluation, transcription
from common.running.batches import Batch, first_readable, read_corpus, sample_waves
from common.running.corpora import Corpus, Utterance, trainable
from common.running.decoding import Decoding, Transcript
from common.running.process import Place, Stage, earlier_stage, reseed, start
from common.running.training import Run, digest_of
from common.running.updates import add_up
from common.running.weights import load_recogniser
from common.streaming import dependencies, stream_words
from common.text import SentencePiece, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, prediction and joint network: a transducer, full-context or streaming."""

    decodes = Decoding()  # for evaluate.py and transcribe.py

    def __init__(self, config: Config, vocabulary: int, tokenizer: SentencePiece | None = None):
        super().__init__()
        size, self.tokenizer = SIZES[config.size], tokenizer
        self.masks = config.frequency_masks, config.time_masks
        streams = config.method != "teacher"
        self.frontend = LogMel()
        self.encoder = Conformer(
            dim=size.dim,
            layers=size.layers,
            heads=size.heads,
            ff_dim=size.ff_dim,
            kernel=size.kernel,
            dropout=config.dropout,
            subsampling=4,
            channels=size.channels,
            chunk=config.chunk_ms // FRAME_MS if streams else 0,
            left=config.left_ms // FRAME_MS if streams else 0,
            causal_subsampling=True,  # (C1 frames)
        )
        self.predictor = rnnt.Predictor(vocabulary, size.embedding_dim, size.predictor_dim)
        self.joint = rnnt.Joint(size.dim, size.predictor_dim, size.joint_dim, vocabulary)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised features (B, F, 80), augmented in training; frames (B,)."""
        features, frames = self.frontend(batch.waves, batch.samples)
        if self.training:
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        return features, frames

    def transcribe(self, batch: Batch, place: Place) -> list[Transcript]:
        with place.autocast():
            encoded = self.encoder(*self.features(batch))
        paths = rnnt.greedy(
            self.predictor, self.joint, self.joint.encode(encoded.output.float()), encoded.lengths
        )
        return [decoding.transcript_of(path, self.tokenizer, FRAME_MS / 1000) for path in paths]


class Branch(nn.Module):
    """On a streaming layer, for training: what is compared with the teacher's, and an LSTM that predicts on.

    aux_kd: of a Transformer layer that sees the whole utterance. layer_kd: of the streaming layer itself, no branch.
    """

    def __init__(self, dim: int, heads: int, ff_dim: int, config: Config):
        super().__init__()
        self.config, self.heads = config, heads
        if config.method == "aux_kd":
            self.attention = SelfAttention(dim, heads)
            self.feed_forward = FeedForward(dim, ff_dim, config.dropout)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(
        self, s: Tensor, qkv: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """s (B, T, D) and its layer's queries, keys, values (B, T, 3, H, D/H), not rotated -> z; qkv; r (B, T, D)."""
        z = s
        if self.config.method == "aux_kd":
            z, qkv = self.look_around(s, lengths)
        if "apc" not in self.config.losses:
            return z, qkv, None
        with torch.autocast(z.device.type, enabled=False):  # cuDNN's LSTM would take fp16 for bf16
            return z, qkv, self.lstm(z.float())[0]

    def look_around(self, s: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The Transformer layer: s (B, T, D) -> z (B, T, D) and its own queries, keys, values."""
        T, D = s.shape[1:]
        real = length_mask(lengths, T)  # (B, T)
        visible = branch_mask(T, self.config.aux_mask, self.config.apc_steps, s.device)  # (T, T)
        itself = torch.eye(
            T, dtype=torch.bool, device=s.device
        )  # or padding would have no key at all
        mask = (visible & real[:, None]) | itself  # (B, T, T)
        y, qkv = self.attention(s, mask[:, None], rotary_table(T, D // self.heads, s.device))
        x = s + y
        return x + self.feed_forward(x), qkv


def branch_mask(T: int, kind: str, steps: int, device=None) -> Tensor:
    """(T, T), True where frame t may attend frame k: all, none of the future, or all but the next `steps` (C5 hole)."""
    ahead = torch.arange(T, device=device) - torch.arange(T, device=device)[:, None]  # k - t
    return {"none": ahead > -T, "causal": ahead <= 0, "hole": (ahead <= 0) | (ahead > steps)}[kind]


def taught_layers(config: Config) -> list[int]:
    """Every --kd-every'th layer, counted from 1 (C2 branches); none without distillation of features."""
    layers = range(config.kd_every, SIZES[config.size].layers + 1, config.kd_every)
    return list(layers) if config.method in ("layer_kd", "aux_kd") else []


def build_models(
    config: Config, vocabulary: int, tokenizer: SentencePiece | None = None
) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `branches` of layer_kd and aux_kd.

    They come last, so that all students of a seed begin with the same weights.
    """
    size, models = (
        SIZES[config.size],
        nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)}),
    )
    if layers := taught_layers(config):
        sizes = size.dim, size.heads, size.ff_dim, config
        models["branches"] = nn.ModuleDict({str(layer): Branch(*sizes) for layer in layers})
    return models


def fits(samples: int, labels: list[int], text: str) -> bool:
    """A transducer needs one encoder frame, whatever the labels."""
    return subsampled(num_frames(samples), 4, causal=True) >= 1


# =========================================================================================================== loss


def feature_distance(h: Tensor, z: Tensor) -> Tensor:
    """d(h, z) = |h - z|_1 / D - log sigmoid(cos(h, z)) of normalised features: (B, T, D) twice -> (B, T) (C3 norm)."""
    h, z = (F.layer_norm(x.float(), x.shape[-1:]) for x in (h, z))
    return (h - z).abs().mean(-1) - F.logsigmoid(F.cosine_similarity(h, z, dim=-1))


def relation_loss(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """L_kld, summed over the frames of all utterances: (B, T, 3, H, d) twice, mask (B, T) (C4 relations)."""
    log_p = []
    for qkv in (teacher, student):
        x = qkv.float().permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        with torch.autocast(x.device.type, enabled=False):  # which would multiply in bf16
            scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5  # (3, B, H, T, T)
        log_p.append(scores.masked_fill(~mask[:, None, None], -1e9).log_softmax(-1))
    divergence = (log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1)  # (3, B, H, T)
    return (divergence * mask[:, None]).sum() / teacher.shape[3]


def branch_losses(
    teacher: Tap, z: Tensor, qkv: Tensor, r: Tensor | None, lengths: Tensor, config: Config
) -> dict[str, Tensor]:
    """{"dis", "kld", "apc_inside", "apc_beyond"} of one layer, summed over utterances and their frames.

    teacher: h (B, T, D) and its queries, keys, values; z, r: of the branch, (B, T, D). apc: by whether frame t + n lies
    in the chunk of frame t, which the student has heard (C6 apc).
    """
    h, T, n = teacher.raw.detach(), z.shape[1], config.apc_steps
    mask, found = length_mask(lengths, T), {}
    if "dis" in config.losses:
        found["dis"] = (feature_distance(h, z) * mask).sum()
    if "kld" in config.losses:
        found["kld"] = relation_loss(teacher.qkv.detach(), qkv, mask)
    if "apc" in config.losses:
        distance = (
            feature_distance(h[:, n:], r[:, : max(0, T - n)]) * mask[:, n:]
        )  # (B, T - n); none if T <= n
        chunk = torch.arange(T, device=h.device) // (config.chunk_ms // FRAME_MS)
        inside = chunk[n:] == chunk[: max(0, T - n)]
        found["apc_inside"], found["apc_beyond"] = (
            distance[:, inside].sum(),
            distance[:, ~inside].sum(),
        )
    return found


def collapse(
    joint: rnnt.Joint, encoded: Tensor, predicted: Tensor, targets: Tensor, tile: int = 16
) -> Tensor:
    """log of (p(y_{u+1}), p(blank), the rest) at every node (B, T, U+1, 3), `tile` frames at a time (C7 token).

    encoded (B, T, D), predicted (B, U+1, D), targets (B, U), zero-padded. Behind the last label, the first is 0.
    """
    labels = F.pad(targets, (0, 1), value=BLANK)[:, None, :, None]  # (B, 1, U+1, 1)

    def part(encoded: Tensor) -> Tensor:
        log_probs = (
            joint(encoded[:, :, None], predicted[:, None]).float().log_softmax(-1)
        )  # (B, t, U+1, V)
        index = labels.expand(*log_probs.shape[:3], 1)
        label = log_probs.gather(-1, index)[..., 0].masked_fill(labels[..., 0] == BLANK, -1e4)
        rest = log_probs.scatter(-1, index, -torch.inf)[..., BLANK + 1 :].logsumexp(
            -1
        )  # the blank is the first
        return torch.stack([label, log_probs[..., BLANK], rest], -1)

    return torch.cat([checkpoint(part, x, use_reentrant=False) for x in encoded.split(tile, 1)], 1)


def token_loss(
    teacher: Tensor, student: Tensor, lengths: Tensor, target_lengths: Tensor, delay: int
) -> Tensor:
    """L_token of each utterance (B,): both (B, T, U+1, 3) log-probabilities of `collapse`.

    delay: of the shifts 0 … delay of the student against the teacher, the one with the smallest mean over the nodes
    that both have counts, scaled to T (U+1) nodes; a sum would favour late shifts, which have fewer.
    """
    T, U = teacher.shape[1], teacher.shape[2] - 1
    real_u = length_mask(target_lengths + 1, U + 1)  # (B, U+1)
    means = []
    for d in range(min(delay, T - 1) + 1):
        p, q = teacher[:, : T - d], student[:, d:]
        divergence = (p.exp() * (p - q)).sum(-1)  # (B, T - d, U+1)
        real = length_mask((lengths - d).clamp(min=0), T - d)[..., None] & real_u[:, None]
        nodes = real.sum((1, 2))
        mean = (divergence * real).sum((1, 2)) / nodes.clamp(min=1)
        means.append(mean.masked_fill(nodes == 0, torch.inf) if d else mean)
    return torch.stack(means).min(0).values * lengths * (target_lengths + 1)


def compute_losses(
    models: nn.ModuleDict, batch: Batch, teacher: Recogniser | None, config: Config, place: Place
) -> tuple[Tensor, dict]:
    """The batch's loss; and its parts; all summed over its utterances. Networks may run in bf16, losses are fp32."""
    student, joint = models["recogniser"], models["recogniser"].joint
    with place.autocast():
        features, frames = student.features(batch)
        encoded = student.encoder(features, frames, taught_layers(config))
        predicted = joint.predict(student.predictor.all_states(batch.targets))
        losses, _ = rnnt.transducer_loss(
            joint,
            joint.encode(encoded.output),
            predicted,
            batch.targets,
            encoded.lengths,
            batch.target_lengths,
        )
        costs = (
            distil(models, teacher, features, frames, encoded, predicted, batch, config)
            if teacher
            else {}
        )
    weights = dict(dis=config.dis_weight, kld=config.kld_weight, token=config.token_weight)
    weights |= dict(apc_inside=config.apc_weight, apc_beyond=config.apc_weight)
    loss = losses.sum()
    kd = sum(weights[name] * cost for name, cost in costs.items())
    return loss + config.kd_weight * kd, {"rnnt": loss} | ({"kd": costs} if costs else {})


def distil(
    models: nn.ModuleDict, teacher: Recogniser, features: Tensor, frames: Tensor, encoded: Encoded, predicted: Tensor,
    batch: Batch, config: Config,
) -> dict[str, Tensor]:  # fmt: skip
    """The parts of the distillation by name, summed over utterances, not weighted.

    The teacher hears the features (B, F, 80) that the student has heard, augmented alike; encoded, predicted: what the
    student made of them and of the labels.
    """
    shift = int(config.control == "shuffle")
    with torch.no_grad():
        full = teacher.encoder(
            features.roll(shift, 0), frames.roll(shift, 0), taught_layers(config)
        )
    lengths = torch.minimum(
        encoded.lengths, full.lengths
    )  # of the shorter one, where another utterance teaches
    if shift and len(features) == 1:  # nobody else is there to teach
        lengths = lengths * 0
    if config.method == "token_kd":
        joint = models["recogniser"].joint
        with torch.no_grad():
            states = teacher.joint.predict(teacher.predictor.all_states(batch.targets))
            p = collapse(teacher.joint, teacher.joint.encode(full.output), states, batch.targets)
        q = collapse(joint, joint.encode(encoded.output), predicted, batch.targets)
        return {
            "token": token_loss(p, q, lengths, batch.target_lengths, config.token_kd_delay).sum()
        }
    costs = {}
    for layer, tap, target in zip(taught_layers(config), encoded.taps, full.taps, strict=True):
        z, qkv, r = models["branches"][str(layer)](tap.raw, tap.qkv, lengths)
        add_up(costs, branch_losses(target, z, qkv, r, lengths, config))
    return costs


# ======================================================================================================== teacher


# Options of the students, about which a teacher need not agree.
PART_OF_STUDENTS = (
    "losses", "kd_weight", "dis_weight", "kld_weight", "apc_weight", "apc_steps", "kd_every", "aux_mask", "control",
    "token_weight", "token_kd_delay", "chunk_ms", "left_ms",
)  # fmt: skip


def find_teacher(config: Config, utterances: list[Utterance], place: Place) -> Recogniser:
    """The teacher, frozen: an ordinary run of that row, which is trained first, or gone on with, if it is not finished.

    Raises UserError where it was trained with other options or on other data, or is another model than this run's.
    """
    stage = Stage("teacher", "--teacher", PRESETS, PART_OF_STUDENTS, digest_of(utterances))
    teacher = load(earlier_stage(config, place, stage, run_method, teacher="auto"), place)
    if config.control == "random":
        reseed(config.seed, 2)
        teacher.encoder.apply(
            lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None
        )
    return teacher.requires_grad_(False)


# ========================================================================================================== train


def train(config: Config, corpus: Corpus, place: Place) -> tuple[Recogniser, dict, dict]:
    """Returns the recogniser with the average of the best epochs' weights, what RESULT says of the training, and
    the figures of it, see figures.draw.
    """
    utterances = trainable(corpus.train, config.max_seconds)
    teacher = (
        find_teacher(config, utterances, place)
        if config.method in ("token_kd", "layer_kd", "aux_kd")
        else None
    )
    # A student writes its teacher's pieces and hears its features.
    tokenizer = (
        teacher.tokenizer
        if teacher
        else SentencePiece.build((u.text for u in utterances), config.units)
    )
    reseed(config.seed, int(config.method != "teacher"))
    models = build_models(config, tokenizer.size, tokenizer).to(place.device)
    recogniser = models["recogniser"]
    if teacher:
        recogniser.frontend.load_state_dict(teacher.frontend.state_dict())
    else:
        recogniser.frontend.fit(sample_waves(utterances, config))
    groups = [{"params": list(part.parameters()), "lr": config.lr} for part in models.values()]
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    run = Run(
        config,
        place,
        models=models,
        optimizer=optimizer,
        utterances=utterances,
        encode=tokenizer.encode,
        fits=fits,
    )
    for _ in run.epochs():
        for update in run.updates():
            for batch in update:
                loss, parts = compute_losses(models, batch, teacher, config, place)
                loss.backward()
                update.add(loss, parts)
            update.average_gradients()
            # Each part's gradient is clipped by itself: the branches must not slow the recogniser down.
            norms = [
                nn.utils.clip_grad_norm_(part.parameters(), config.clip).item()
                for part in models.values()
            ]
            update.log |= {"norm": norms[0], "lr": run.set_learning_rates()}
            if update.is_usable(norms):
                optimizer.step()
            optimizer.zero_grad()
        run.end_epoch(recogniser, evaluation.dev_scores(recogniser, corpus, config, place))
    drawings = {}
    if place.first and config.method == "aux_kd":
        last = copy.deepcopy(
            models
        )  # of the last epoch, as the branches are; what is scored is an average
        drawings["features.png"] = partial(draw_features, config, last, teacher, utterances, place)
    report = run.finish(recogniser)
    if teacher and config.control == "none":
        report["emission_delay"] = emission_delay(recogniser, teacher, corpus, config, place)
    return recogniser, report, drawings


def emission_delay(
    student: Recogniser, teacher: Recogniser, corpus: Corpus, config: Config, place: Place
) -> float | None:
    """ms by which words end later than the teacher's, mean over words of the first test set that both get right."""
    utterances, ends = next(iter(corpus.tests.values())), []
    for recogniser in (student, teacher):
        found = decoding.decode(recogniser, utterances, config, place)
        ends.append({})
        for u in utterances:
            if u.id in found:
                ends[-1] |= {
                    (u.id, i): found[u.id].words[j].end
                    for i, j in metrics.hits(u.text, found[u.id].text)
                }
    delays = [1000 * (end - ends[1][word]) for word, end in ends[0].items() if word in ends[1]]
    return round(fmean(delays), 1) if delays else None


# ======================================================================================================= figures


@torch.inference_mode()
def draw_dependencies(config: Config, recogniser: Recogniser, place: Place) -> None:
    """dependencies.png: the chunk mask, and which outputs change when a chunk of the input does."""
    encoder, chunk, n = recogniser.eval().encoder, config.chunk_ms // FRAME_MS, 16
    features = torch.zeros(n * 4 * chunk, 80, device=place.device)

    def outputs(x: Tensor) -> Tensor:
        return encoder(x[None], torch.tensor([len(x)], device=x.device)).output[0]

    measured = dependencies(outputs, features, 4 * chunk, chunk)  # (n, n)
    mask = (
        chunk_mask(n, 1, config.left_ms // config.chunk_ms)
        if encoder.chunk
        else torch.ones(n, n, dtype=torch.bool)
    )
    panels = {
        "one layer's attention": mask.float().numpy(),
        "the encoder, measured": measured.cpu().float().numpy(),
    }
    figures.matrices(
        Path(config.out) / "dependencies.png", panels, "chunk of the input", "chunk of the output"
    )


@torch.inference_mode()
def draw_features(
    config: Config,
    models: nn.ModuleDict,
    teacher: Recogniser,
    utterances: list[Utterance],
    place: Place,
) -> None:
    """features.png: the last taught layer of teacher, student and branch over the first readable utterance."""
    batch = first_readable(utterances, config).to(place.device)
    layer = taught_layers(config)[-1]
    features, frames = models.eval()["recogniser"].features(batch)
    student = models["recogniser"].encoder(features, frames, [layer])
    full = teacher.encoder(features, frames, [layer])
    z, *_ = models["branches"][str(layer)](
        student.taps[0].raw, student.taps[0].qkv, student.lengths
    )
    panels = {"teacher": full.taps[0].raw, "branch": z, "student": student.taps[0].raw}
    panels = {name: F.layer_norm(x[0], x.shape[-1:]).T.cpu().numpy() for name, x in panels.items()}
    figures.matrices(
        Path(config.out) / "features.png", panels, "frame", f"layer {layer}, dimension"
    )


# ============================================================================================================ main


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    tokenizer = load_tokenizer(config.checkpoint)
    return load_recogniser(Recogniser(config, tokenizer.size, tokenizer), config.checkpoint, place)


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint scores, transcribes or streams. Returns what RESULT says."""
    place = start(config)
    if config.stream:
        return stream_words(load(config, place), config, place)
    if config.transcribe:
        transcription.transcribe_files(load(config, place), list(config.transcribe), config, place)
        return {}
    corpus = read_corpus(config, place)
    if config.checkpoint:
        recogniser, report, drawings = load(config, place), {}, {}
    else:
        recogniser, report, drawings = train(config, corpus, place)
    result = {"script": "streaming_aux_kd", "method": config.method, "seed": config.seed}
    result |= evaluation.evaluate(recogniser, corpus, config, place) | report
    result = evaluation.report(result, config, place)
    if place.first and not config.checkpoint:
        drawings["dependencies.png"] = partial(draw_dependencies, config, recogniser, place)
        figures.draw(config.out, drawings)
    return result


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    if configs[0].summary:
        return evaluation.print_parameters(build_models(configs[-1], configs[-1].units + 1))
    return evaluation.compare_methods(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
