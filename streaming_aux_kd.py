"""Knowledge Distillation from Non-streaming to Streaming ASR Encoder
using Auxiliary Non-streaming Layer.

K. Shim, J. Lee, S. Chang, K. Hwang. Interspeech 2023. arXiv 2308.16415.
[paper] its abstract; [digest] a summary by others; [account] a second-hand account of
the losses; [peer] recipes of toolkits; [choice] ours. We have not read the body.

Idea
----
A streaming recogniser writes words while they are spoken, so it cannot use what comes
later. A teacher that reads the whole utterance knows more, but a student that has to
match it frame by frame is asked for what it cannot know. The paper adds branches for
training only: a layer on top of a streaming layer that sees the whole utterance
[paper]. Branch and teacher both read the whole utterance, the branch from streaming
features, so they can be compared, and the gradient flows through the branch into the
streaming layer. An LSTM on the branch also predicts the teacher's next frames
(autoregressive predictive coding, APC) [digest]. For decoding the branches are thrown
away: delay and size stay the same.

Diagram
-------
  wave (B, N) --LogMel--> (B, F, 80) --causal subsampling x4--> (B, T, D), T = F/4

  teacher   block 1 ... block l ... block L           frozen, sees the whole utterance
                           |-----> Q, K, V of block l
                          h_l           :
              L_dis(h_l, z_l)         L_kld        L_apc(h_l n frames later, r_l)
                          z_l           :                       r_l <--LSTM-- z_l
                           |      Q, K, V of the branch
                    full-context layer                branch, for training only
                          s_l (B, T, D), with its gradient
                           |
  student   block 1 ... block l ... block L           chunks of c frames
                                       |
  <blank> y_1 ... y_U --> predictor --> Joint --> L_rnnt

Equations (our names; right: the function; its test in tests/test_streaming_aux_kd.py)
---------
    M(i, j) = 0 <= floor(i/c) - floor(j/c) <= left/c  conformer.chunk_mask  test_mask
    L_rnnt  = -log sum over alignments of p           rnnt.transducer_loss  test_rnnt
    d(h, z) = |h - z|_1 / D - log sigmoid(cos(h, z))  feature_distance      test_d
    L_dis   = sum_t d(h_t, z_t)                       distance_loss         test_dis
    P_X     = softmax_k(x_t . x_k / sqrt(D/H))        relations             test_kld
    L_kld   = sum_X 1/H sum_{heads,t} KL(P_X teacher || P_X)
                                                      relation_loss         test_kld
    L_apc   = sum_{t < T-n} d(h_{t+n}, r_t)           future_loss           test_apc
    loss    = L_rnnt + lam sum_l (w_dis L_dis + w_kld L_kld + w_apc L_apc)
                                                      compute_losses        test_loss
  token_kd, a baseline, with q(t,u) = (p(y_{u+1}), p(blank), p(the rest)):
    L_token = sum_{t,u} KL(q_teacher(t,u) || q(t,u))  token_loss            test_token
    loss    = L_rnnt + lam w_token L_token            compute_losses        test_loss

    M: frame i may attend frame j;  c: chunk, in frames of 40 ms
    d, L_dis, L_kld, L_apc: [account]; h and z pass a LayerNorm first (choice: norm)
    d is 0.31 for equal vectors;  n: --apc-steps;  lam, w: --kd-weight, --dis-weight ...
    X: queries, keys or values: Q.Q, K.K, V.V say which frames resemble which
    all losses sum over frames (as means they would vanish at these weights); `train`
    divides by the number of utterances of an update

Our own choices (`choice: norm` in the code points to the line `norm`)
---------------
    frames    teacher and student have the same depth, width and causal subsampling
    features  they also get the same augmented features
    streaming it takes the chunks' mask, causal convolutions with LayerNorm in them, and
              features normalised by constants. A frame waits 0 to 160 ms for its chunk.
              Training masks whole utterances; common/streaming.py computes the same
              chunk by chunk (`transcribe.py --stream`)
    layers    every 4th layer is taught; by the teacher's layer of its number [digest]
    norm      h, z, s and r pass a LayerNorm without parameters before they are compared
    relations softmax over all real frames. Block l makes the teacher's Q, K, V of its
              input, the branch its own of s_l, block l's output: one layer higher, and
              before it attends, so L_kld compares streaming context with full context
    hole      in the branch frame t may not attend t+1 ... t+n, up to the LSTM's target.
              It leaks, see --aux-mask
    token     three classes as in Panchapagesan et al. 2020, arXiv 2011.06110

Run
---
    python streaming_aux_kd.py      demo, 19 minutes: teacher 13 %, scratch 28 %, aux_kd
        21 % WER (seed 1; an untrained teacher teaches nearly as well, see RESULTS.md)
    python streaming_aux_kd.py --method aux_kd --losses dis
    python -m variants.streaming_aux_kd.shuffled_teacher --method aux_kd
    python streaming_aux_kd.py --data librispeech --root ~/corpora --hours 960 --size M
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common import conformer, dependencies, features, figures, rnnt, text
from common.ctc import BLANK
from common.errors import UserError, note
from common.running import (
    batches,
    command_line,
    corpora,
    decoding,
    delays,
    evaluation,
    options,
    stages,
    training,
    variants,
    weights,
)
from common.running.batches import Batch
from common.running.options import Augmentation, Count, Extent, Positive, Share, TransducerSizes
from common.running.process import Place, reseed, start

# ================================================================================ configuration


class Row(NamedTuple):
    """What a method trains."""

    streams: bool  # the encoder sees chunks, not the whole utterance
    lesson: Literal["none", "tokens", "layers", "branches"]  # what the teacher is compared with


Method = Literal["teacher", "scratch", "token_kd", "layer_kd", "aux_kd"]
METHODS: dict[Method, Row] = {
    "teacher": Row(streams=False, lesson="none"),  # the students of a seed share one
    "scratch": Row(streams=True, lesson="none"),  # the baseline: a student without a teacher
    "token_kd": Row(streams=True, lesson="tokens"),  # conventional: the transducer's outputs
    "layer_kd": Row(streams=True, lesson="layers"),  # h_l is compared with s_l itself: no branch
    "aux_kd": Row(streams=True, lesson="branches"),  # the paper's idea
}


class EncoderSizes(NamedTuple):
    layers: int
    dim: int
    heads: int
    ff_dim: int
    kernel: int  # frames seen by the depthwise convolution
    channels: int  # of the subsampling convolutions


class Size(NamedTuple):
    encoder: EncoderSizes
    transducer: TransducerSizes


SIZES = {  # [choice] S and M after NeMo's small and medium transducers: 14 and 31 million
    "S": Size(
        EncoderSizes(layers=16, dim=176, heads=4, ff_dim=704, kernel=31, channels=176),
        TransducerSizes(embedding_dim=320, predictor_dim=320, joint_dim=320),
    ),
    "M": Size(
        EncoderSizes(layers=16, dim=256, heads=4, ff_dim=1024, kernel=31, channels=256),
        TransducerSizes(embedding_dim=640, predictor_dim=640, joint_dim=640),
    ),
    "demo": Size(
        EncoderSizes(layers=4, dim=112, heads=4, ff_dim=448, kernel=15, channels=16),
        TransducerSizes(embedding_dim=16, predictor_dim=128, joint_dim=128),
    ),
    "smoke": Size(
        EncoderSizes(layers=2, dim=64, heads=2, ff_dim=128, kernel=7, channels=8),
        TransducerSizes(embedding_dim=16, predictor_dim=64, joint_dim=64),
    ),
}
SUBSAMPLING = 4  # feature frames (10 ms) per encoder frame [choice]
FRAME_MS = 40  # of encoder frames


@dataclass(frozen=True)
class Config(options.RunConfig):
    """The preset `full`; options.RunConfig adds --data, --seed, --out and the like.

    The comment behind an option is its help. `config.method` is the first of `methods`.
    """

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("aux_kd",)  # rows of METHODS
    losses: tuple[Literal["dis", "kld", "apc"], ...] = ("dis", "kld", "apc")  # of layer_kd, aux_kd
    kd_weight: float = 1.0  # lam, of all losses from the teacher [choice]
    dis_weight: float = 0.01  # w_dis, of the distance between features [account]
    kld_weight: float = 0.0005  # w_kld, of the attention's relations [account]
    apc_weight: float = 0.005  # w_apc, of the prediction of the teacher's future [account]
    token_weight: float = 0.001  # w_token, of token_kd [choice]
    apc_steps: Count = 2  # n, frames ahead, and the width of the hole [choice]
    kd_every: Extent = 4  # one layer in so many is taught; choice: layers
    # The hole is not tight: z_t sees s_{t+n+1}, which may have read frame t+n in its chunk, and
    # the LSTM remembers z_{t-1}, which sees s_{t+n}. causal closes both; what stays is the rest of
    # its own chunk, which s_t has read.
    aux_mask: Literal["hole", "causal", "none"] = "hole"  # what a branch does not see; choice: hole
    teacher: str = "auto"  # finished run of teacher; auto: the one beside this run, or trained anew
    chunk_ms: Count = 160  # audio that is read at once [digest]
    left_ms: int = 640  # past that attention sees before the chunk [digest]
    size: Literal["S", "M", "demo", "smoke"] = "S"  # of encoder, prediction and joint network
    dropout: Share = 0.1  # of encoder and branches, but not on attention weights [peer]
    units: Count = 1024  # SentencePiece pieces [choice]; characters without room come on top
    lr: Positive = 1e-3  # peak learning rate of AdamW [peer]
    training: options.Training = options.Training(  # [peer]; epochs and seconds: [choice]
        epochs=60,
        update_seconds=1600.0,
        max_seconds=20.0,
        schedule="inverse-sqrt",
        warmup=10000.0,
        clip=5.0,
        average=10,
        weight_decay=1e-3,
    )
    augmentation: Augmentation = Augmentation(  # [peer]
        speeds=(0.9, 1.0, 1.1), frequency_masks=2, time_masks=10
    )

    def check(self) -> None:
        """Raises UserError for values that would fail late."""
        super().check()
        if self.chunk_ms % FRAME_MS or self.left_ms % self.chunk_ms:
            raise UserError(f"--chunk-ms is a multiple of {FRAME_MS}, and --left-ms of --chunk-ms.")
        layers = SIZES[self.size].encoder.layers
        if compares_layers(self) and self.kd_every > layers:
            raise UserError(f"--kd-every {self.kd_every} is more than the {layers} layers.")


def has_teacher(config: Config) -> bool:
    return METHODS[config.method].lesson != "none"


def compares_layers(config: Config) -> bool:
    return METHODS[config.method].lesson in ("layers", "branches")


def taught_layers(config: Config) -> list[int]:
    """The layers, counted from 1, whose features the teacher is compared with (choice:
    layers)."""
    if not compares_layers(config):
        return []
    return list(range(config.kd_every, SIZES[config.size].encoder.layers + 1, config.kd_every))


# ====================================================================================== teacher

# A teacher is an ordinary run of the row `teacher`. It need not agree on what students alone use.
TEACHER = stages.Stage(
    method="teacher",
    flag="--teacher",
    may_differ=(
        "teacher",
        "losses",
        "kd_weight",
        "dis_weight",
        "kld_weight",
        "apc_weight",
        "token_weight",
        "apc_steps",
        "kd_every",
        "aux_mask",
        "chunk_ms",
        "left_ms",
    ),
)


def find_teacher(config: Config, utterances: list[corpora.Utterance], place: Place) -> Recogniser:
    """The teacher, frozen. It is trained first, or its run goes on, if that is
    necessary.

    Raises UserError where it was trained with other options or on other data.
    """
    earlier = stages.find_run(config, TEACHER, PRESETS, place)
    if stages.is_finished(earlier):
        stages.check_corpus(earlier, TEACHER, utterances, place)
    else:
        if place.first:
            note(f"teacher first, in {earlier.out}")
        with variants.plain(__name__):
            run_method(earlier)
    return load(earlier, place).requires_grad_(False)


@torch.no_grad()
def ask_teacher(
    teacher: Recogniser, mel: Tensor, frames: Tensor, layers: list[int]
) -> conformer.Encoded:
    """The outputs of the teacher's encoder, for the student's augmented features
    (B, F, 80) (choice: features)."""
    return teacher.encoder(mel, frames, layers)


# ======================================================================================== model


class Recogniser(nn.Module):
    """Log-mel features, a Conformer, a prediction and a joint network: the exported
    model.

    It is a transducer with full context (the teacher) or with chunks (a student).
    """

    def __init__(
        self, config: Config, vocabulary: int, tokenizer: text.SentencePiece | None = None
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.augmentation = config.augmentation
        streams = METHODS[config.method].streams
        self.frontend = features.LogMel()
        sizes = SIZES[config.size].encoder
        self.encoder = conformer.Conformer(
            dim=sizes.dim,
            layers=sizes.layers,
            heads=sizes.heads,
            ff_dim=sizes.ff_dim,
            kernel=sizes.kernel,
            dropout=config.dropout,
            subsampling=SUBSAMPLING,
            channels=sizes.channels,
            chunk=config.chunk_ms // FRAME_MS if streams else 0,
            left=config.left_ms // FRAME_MS if streams else 0,
            causal_subsampling=True,  # choice: frames
        )
        transducer = SIZES[config.size].transducer
        self.predictor = rnnt.Predictor(
            vocabulary, embedding_dim=transducer.embedding_dim, dim=transducer.predictor_dim
        )
        self.joint = rnnt.Joint(
            encoder_dim=sizes.dim,
            predictor_dim=transducer.predictor_dim,
            dim=transducer.joint_dim,
            vocabulary=vocabulary,
        )

    def normalised_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised features (B, F, 80), augmented in training, and frames (B,)."""
        mel, frames = self.frontend(batch.waves, batch.samples)
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
        return mel, frames

    # For evaluate.py and transcribe.py: greedy only, as in a stream.
    decodes = decoding.Decoding()

    def transcribe(self, batch: Batch, place: Place) -> list[decoding.Transcript]:
        """The batch's transcripts with word times."""
        with place.autocast():
            mel, frames = self.normalised_features(batch)
            encoded = self.encoder(mel, frames)
        h = self.joint.encode(encoded.output.float())  # (B, T, J)
        paths = rnnt.greedy(self.predictor, self.joint, h, encoded.lengths)
        transcripts = []
        for path in paths:
            transcripts.append(decoding.transcript_of(path, self.tokenizer, FRAME_MS / 1000))
        return transcripts


class FullContextLayer(nn.Module):
    """The auxiliary layer: self-attention over the whole utterance, then a feed-forward
    part, each with its norm first [choice]."""

    def __init__(self, dim: int, heads: int, ff_dim: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention = conformer.SelfAttention(dim, heads)
        self.feed_forward = conformer.FeedForward(dim, ff_dim, dropout)

    def forward(self, s: Tensor, lengths: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """s (B, T, D), lengths (B,), visible (T, T) -> z (B, T, D) and the layer's own
        queries, keys and values (B, T, 3, H, D/H), before rotation."""
        T = s.shape[1]
        D = s.shape[2]
        real = conformer.length_mask(lengths, T)  # (B, T)
        mask = visible & real[:, None]  # (B, T, T); every frame sees the first one
        table = conformer.rotary_table(T, D // self.heads, s.device)
        y, qkv = self.attention(s, mask[:, None], table)  # the same mask for all heads
        x = s + y
        return x + self.feed_forward(x), qkv


class Branch(nn.Module):
    """aux_kd: a full-context layer on a streaming layer, and an LSTM on it. Only
    training needs it."""

    def __init__(self, config: Config):
        super().__init__()
        sizes = SIZES[config.size].encoder
        self.kind = config.aux_mask
        self.steps = config.apc_steps
        self.layer = FullContextLayer(sizes.dim, sizes.heads, sizes.ff_dim, config.dropout)
        self.lstm = nn.LSTM(sizes.dim, sizes.dim, batch_first=True)

    def forward(self, s: Tensor, qkv: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """s (B, T, D), lengths (B,) -> z (B, T, D) and the branch's own queries, keys
        and values."""
        visible = branch_mask(s.shape[1], self.kind, self.steps, s.device)
        return self.layer(s, lengths, visible)


class NoBranch(nn.Module):
    """layer_kd: the streaming layer itself is compared with the teacher's; only the
    LSTM is new."""

    def __init__(self, config: Config):
        super().__init__()
        dim = SIZES[config.size].encoder.dim
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, s: Tensor, qkv: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """s (B, T, D) and the block's queries, keys and values, as they are."""
        return s, qkv


def branch_mask(T: int, kind: str, steps: int, device: torch.device | None = None) -> Tensor:
    """(T, T), True where frame t may attend frame k (choice: hole).

    none: everything; causal: the past; hole: all but the next `steps` frames.
    """
    t = torch.arange(T, device=device)[:, None]
    k = torch.arange(T, device=device)
    if kind == "none":
        return torch.ones(T, T, dtype=torch.bool, device=device)
    if kind == "causal":
        return k <= t
    return (k <= t) | (k > t + steps)


def build_models(
    config: Config, vocabulary: int, tokenizer: text.SentencePiece | None = None
) -> nn.ModuleDict:
    """What is trained: `recogniser`, and `branches` for every layer that is taught.

    The branches are made last: all students of a seed begin with the same weights.
    """
    models = nn.ModuleDict({"recogniser": Recogniser(config, vocabulary, tokenizer)})
    layers = taught_layers(config)
    if layers:
        kind = Branch if METHODS[config.method].lesson == "branches" else NoBranch
        models["branches"] = nn.ModuleDict({str(layer): kind(config) for layer in layers})
    return models


def fits(samples: int, labels: list[int], transcript: str) -> bool:
    """Whether there is an encoder frame: a transducer can emit any number of labels at
    one."""
    return conformer.subsampled(features.num_frames(samples), SUBSAMPLING, causal=True) >= 1


# ======================================================================================= losses


def feature_distance(h: Tensor, z: Tensor) -> Tensor:
    """d(h, z) = |h - z|_1 / D - log sigmoid(cos(h, z)), after a LayerNorm (choice:
    norm).

    (B, T, D), (B, T, D) -> (B, T).
    """
    h = F.layer_norm(h.float(), h.shape[-1:])
    z = F.layer_norm(z.float(), z.shape[-1:])
    return (h - z).abs().mean(-1) - F.logsigmoid(F.cosine_similarity(h, z, dim=-1))


def distance_loss(h: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """L_dis = sum_t d(h_t, z_t): h, z (B, T, D), mask (B, T), True for real frames."""
    return (feature_distance(h, z) * mask).sum()


def relations(qkv: Tensor, mask: Tensor) -> Tensor:
    """log P_X = log softmax_k(x_t . x_k / sqrt(D/H)) for x = queries, keys, values of
    each head (choice: relations).

    qkv (B, T, 3, H, D/H), mask (B, T) -> (3, B, H, T, T): to which frames frame t is
    similar.
    """
    x = qkv.float().permute(2, 0, 3, 1, 4)  # (3, B, H, T, D/H)
    with torch.autocast(x.device.type, enabled=False):  # autocast would multiply in bf16
        scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5  # (3, B, H, T, T)
    padding = ~mask[:, None, None]  # (B, 1, 1, T), of keys
    # Not -inf: 0 * (-inf + inf) would be NaN in the divergence.
    return scores.masked_fill(padding, -1e9).log_softmax(-1)


def relation_loss(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """L_kld = sum_X 1/H sum_{heads, t} KL(P_X of the teacher || P_X of the student).

    teacher, student (B, T, 3, H, D/H), mask (B, T).
    """
    heads = teacher.shape[3]
    log_p = relations(teacher, mask)
    log_q = relations(student, mask)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # (3, B, H, T)
    return (divergence * mask[:, None]).sum() / heads


def future_loss(h: Tensor, r: Tensor, mask: Tensor, steps: int) -> Tensor:
    """L_apc = sum_{t < T-n} d(h_{t+n}, r_t): the LSTM predicts the teacher n frames
    later.

    h, r (B, T, D); mask (B, T) is True for the real frames of an utterance; steps: n.
    Without a target the loss is 0. With chunks of four frames, 3/4 of the targets (n =
    1) or 1/2 (n = 2) lie inside the chunk that the student has read.
    """
    T = h.shape[1]
    if steps >= T:
        return h.new_zeros(())
    future = h[:, steps:]  # (B, T-n, D): h_n ... h_{T-1}
    prediction = r[:, : T - steps]  # (B, T-n, D): r_0 ... r_{T-1-n}
    return (feature_distance(future, prediction) * mask[:, steps:]).sum()


def predict_ahead(lstm: nn.LSTM, z: Tensor) -> Tensor:
    """r (B, T, D) from z (B, T, D), in fp32: under bf16 autocast cuDNN's LSTM would run
    in fp16."""
    with torch.autocast(z.device.type, enabled=False):
        return lstm(z.float())[0]


def layer_losses(
    branches: nn.ModuleDict,
    student_out: conformer.Encoded,
    teacher_out: conformer.Encoded,
    config: Config,
) -> dict[str, Tensor]:
    """L_dis, L_kld and L_apc as "dis", "kld", "apc", those of --losses, summed over the
    taught layers and the utterances.

    Of a tap, raw (B, T, D) is what leaves layer l, and qkv (B, T, 3, H, D/H) that with
    which block l attends.
    """
    lengths = teacher_out.lengths  # a variant's teacher may have read a shorter utterance
    mask = conformer.length_mask(lengths, student_out.output.shape[1])  # (B, T)
    losses = {name: torch.zeros((), device=mask.device) for name in config.losses}
    layers = zip(taught_layers(config), student_out.taps, teacher_out.taps, strict=True)
    for layer, s_tap, h_tap in layers:
        branch = branches[str(layer)]
        # s_tap.raw is not detached: here the gradient enters the student. The teacher has none.
        z, qkv = branch(s_tap.raw, s_tap.qkv, lengths)
        if "dis" in losses:
            losses["dis"] += distance_loss(h_tap.raw, z, mask)
        if "kld" in losses:
            losses["kld"] += relation_loss(h_tap.qkv, qkv, mask)
        if "apc" in losses:
            r = predict_ahead(branch.lstm, z)
            losses["apc"] += future_loss(h_tap.raw, r, mask, config.apc_steps)
    return losses


def collapse(joint: rnnt.Joint, encoded: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
    """log q(t, u), the logs of (p(y_{u+1}), p(blank), p(the rest)), at all nodes of the
    lattice (B, T, U+1, 3) (choice: token).

    encoded (B, T, J), predicted (B, U+1, J), targets (B, U). 16 frames at a time, and
    computed again for the gradient: the logits of all nodes would need too much memory.
    """
    tiles = []
    for tile in encoded.split(16, 1):  # [choice]
        found = checkpoint(collapse_tile, joint, tile, predicted, targets, use_reentrant=False)
        tiles.append(found)
    return torch.cat(tiles, 1)


def collapse_tile(joint: rnnt.Joint, encoded: Tensor, predicted: Tensor, targets: Tensor) -> Tensor:
    """As `collapse`, for a few frames."""
    logits = joint(encoded[:, :, None], predicted[:, None])  # (B, t, U+1, V)
    log_probs = logits.float().log_softmax(-1)
    blank, label = rnnt.pick(log_probs, targets)  # (B, t, U+1)
    index = rnnt.next_labels(targets, log_probs.shape[1])  # (B, t, U+1, 1), the blank at u = U
    # There is no next label at u = U: probability 0, but not -inf, see `relations`.
    label = label.masked_fill(index[..., 0] == BLANK, -1e4)
    others = log_probs.scatter(-1, index, -torch.inf)[..., BLANK + 1 :]  # the blank is the first
    return torch.stack([label, blank, others.logsumexp(-1)], -1)


def token_loss(teacher: Tensor, student: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """L_token = sum_{t, u} KL(q_teacher(t, u) || q(t, u)) of each utterance (B,).

    teacher, student: log q (B, T, U+1, 3).
    """
    real_t = conformer.length_mask(lengths, teacher.shape[1])  # (B, T)
    real_u = conformer.length_mask(target_lengths + 1, teacher.shape[2])  # (B, U+1)
    real = real_t[..., None] & real_u[:, None]  # (B, T, U+1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)  # (B, T, U+1)
    return (divergence * real).sum((1, 2))


def token_losses(
    student: Recogniser,
    teacher: Recogniser,
    student_out: conformer.Encoded,
    teacher_out: conformer.Encoded,
    predicted: Tensor,
    batch: Batch,
) -> dict[str, Tensor]:
    """L_token as "token", summed over utterances.

    student_out, teacher_out: of their encoders; predicted (B, U+1, J): the student's
    joint.predict.
    """
    with torch.no_grad():
        teacher_predicted = teacher.joint.predict(teacher.predictor.all_states(batch.targets))
        teacher_encoded = teacher.joint.encode(teacher_out.output)  # (B, T, J)
        log_p = collapse(teacher.joint, teacher_encoded, teacher_predicted, batch.targets)
    encoded = student.joint.encode(student_out.output)  # (B, T, J)
    log_q = collapse(student.joint, encoded, predicted, batch.targets)
    per_utterance = token_loss(log_p, log_q, teacher_out.lengths, batch.target_lengths)  # (B,)
    return {"token": per_utterance.sum()}


def compute_losses(
    models: nn.ModuleDict, batch: Batch, teacher: Recogniser | None, config: Config, place: Place
) -> tuple[Tensor, dict]:
    """loss = L_rnnt + lam times the losses from the teacher, summed over the utterances
    of the batch.

    Returns the loss and its parts for the log: "rnnt", and "kd" with "dis", "kld",
    "apc" or "token", not weighted. Networks may run in bf16; the losses are fp32.
    """
    student = models["recogniser"]
    joint = student.joint
    layers = taught_layers(config)
    with place.autocast():
        mel, frames = student.normalised_features(batch)  # (B, F, 80), (B,)
        student_out = student.encoder(mel, frames, layers)
        g = student.predictor.all_states(batch.targets)  # (B, U+1, P)
        predicted = joint.predict(g)  # (B, U+1, J)
        per_utterance, _ = rnnt.transducer_loss(
            joint,
            joint.encode(student_out.output),
            predicted,
            batch.targets,
            student_out.lengths,
            batch.target_lengths,
        )  # (B,)
        rnnt_loss = per_utterance.sum()
        if teacher is None:
            return rnnt_loss, {"rnnt": rnnt_loss}
        teacher_out = ask_teacher(teacher, mel, frames, layers)
        if METHODS[config.method].lesson == "tokens":
            outs = (student_out, teacher_out)
            kd_losses = token_losses(student, teacher, *outs, predicted, batch)
        else:
            kd_losses = layer_losses(models["branches"], student_out, teacher_out, config)
    factors = {
        "dis": config.dis_weight,
        "kld": config.kld_weight,
        "apc": config.apc_weight,
        "token": config.token_weight,
    }
    kd_loss = sum(factors[name] * loss for name, loss in kd_losses.items())
    return rnnt_loss + config.kd_weight * kd_loss, {"rnnt": rnnt_loss, "kd": kd_losses}


# ===================================================================================== training


def prepare(
    config: Config,
    utterances: list[corpora.Utterance],
    tokenizer: text.SentencePiece,
    teacher: Recogniser | None,
    place: Place,
) -> tuple[nn.ModuleDict, torch.optim.Optimizer, training.Run]:
    """The models on their device, the optimiser, and the run: new, or as a checkpoint
    left it."""
    # Another seed for students, so that they do not start with their teacher's weights.
    stage = 1 if METHODS[config.method].streams else 0
    reseed(config.seed, stage)
    models = build_models(config, tokenizer.size, tokenizer).to(place.device)
    frontend = models["recogniser"].frontend
    if teacher is not None:  # both normalise features alike
        frontend.load_state_dict(teacher.frontend.state_dict())
    else:
        # Mean and variance of the features, from 500 utterances; they are stored with the model.
        frontend.fit(batches.sample_waves(utterances, config))
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
        fits=fits,
    )
    return models, optimizer, run


def train(
    config: Config, corpus: corpora.Corpus, place: Place
) -> tuple[Recogniser, dict[str, float], figures.Drawings]:
    """Returns the recogniser with the mean weights of the best epochs, numbers for
    RESULT, and the figures to be drawn.
    """
    utterances = corpora.trainable(corpus.train, config.training.max_seconds)
    if has_teacher(config):
        teacher = find_teacher(config, utterances, place)
        tokenizer = teacher.tokenizer
    else:
        teacher = None
        transcripts = (utterance.text for utterance in utterances)
        tokenizer = text.SentencePiece.build(transcripts, config.units)
    models, optimizer, run = prepare(config, utterances, tokenizer, teacher, place)
    recogniser = models["recogniser"]
    for _ in run.epochs():
        for update in run.updates():  # a step of the optimiser; --resume skips what is done
            for batch in update:  # this GPU's micro-batches, none of them empty
                loss, parts = compute_losses(models, batch, teacher, config, place)
                loss.backward()
                update.add(loss, parts)
            # The gradient of the mean loss per utterance: over all micro-batches and all GPUs.
            update.average_gradients()

            # A large gradient of the branches must not shrink the recogniser's [peer].
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
    if place.first and METHODS[config.method].lesson == "branches":
        # A copy, since finish() puts averaged weights into the recogniser; branches have none.
        last = copy.deepcopy(models)
        drawings["features.png"] = partial(draw_features, config, last, teacher, utterances)
    report = run.finish(recogniser)
    if teacher is not None:
        report["emission_delay"] = delays.emission_delay(recogniser, teacher, corpus, config, place)
    path = Path(config.out) / "dependencies.png"
    drawings["dependencies.png"] = partial(dependencies.draw, path, recogniser.encoder)
    return recogniser, report, drawings


@torch.inference_mode()
def draw_features(
    config: Config,
    models: nn.ModuleDict,
    teacher: Recogniser,
    utterances: list[corpora.Utterance],
) -> None:
    """features.png: the last taught layer of teacher, branch and student, in the first
    utterance that can be read."""
    models.cpu().eval()
    teacher.cpu()
    batch = batches.first_readable(utterances, config)
    layer = taught_layers(config)[-1]
    student = models["recogniser"]
    mel, frames = student.normalised_features(batch)
    student_out = student.encoder(mel, frames, [layer])
    teacher_out = teacher.encoder(mel, frames, [layer])
    s_tap = student_out.taps[0]
    h_tap = teacher_out.taps[0]
    z, _ = models["branches"][str(layer)](s_tap.raw, s_tap.qkv, student_out.lengths)
    panels = {}
    for name, x in (("teacher", h_tap.raw), ("branch", z), ("student", s_tap.raw)):
        panels[name] = F.layer_norm(x[0], x.shape[-1:]).T.numpy()  # (D, T)
    path = Path(config.out) / "features.png"
    figures.matrices(path, panels, "frame", f"layer {layer}, dimension")


# ====================================================================================== presets

DEMO_TRAINING = options.Training(
    epochs=4,
    update_seconds=32.0,
    max_seconds=8.0,
    schedule="one-cycle",
    warmup=0.3,
    clip=5.0,
    average=1,
    weight_decay=1e-2,
)
DEMO = Config(  # [choice] sizes and schedule: 4 to 8 minutes of training a method on one core
    methods=("teacher", "scratch", "aux_kd"),
    kd_every=2,  # of four layers
    size="demo",
    dropout=0.0,
    units=100,
    lr=4.5e-3,
    training=DEMO_TRAINING,
    augmentation=Augmentation(speeds=(1.0,), frequency_masks=0, time_masks=0),
    workers=0,
    batch_seconds=60.0,
)
SMOKE = options.with_values(  # what a transducer needs to write its first words: few and long
    DEMO,  # pieces, small updates, and a choice among many epochs
    data="demo-smoke",
    hours=0.05,
    size="smoke",
    units=400,
    update_seconds=4.0,
    epochs=6,
    lr=6e-3,
    warmup=0.2,
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
