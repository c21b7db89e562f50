"""Integrating Pre-Trained Speech and Language Models for End-to-End Speech Recognition.

Yukiya Hono, Koh Mitsuda, Tianyu Zhao, Kentaro Mitsui, Toshiaki Wakatsuki, Kei Sawada. Findings of ACL 2024.
arXiv 2312.03668. The trained model was published as rinna/nue-asr, with code that runs it but none that trains it.

Idea
----
HuBERT has learnt from audio alone what speech is made of, GPT from text alone what people write. A small bridge joins
them: it makes HuBERT's 50 frames a second fewer, and as wide as GPT's embeddings. GPT then reads the speech as if it
were the beginning of a text, and writes the transcript. Everything is trained together by GPT's own loss. Two bridges:
convolutions of stride 2, or CTC, which keeps the frames at which something was said. A trained recogniser is adapted
to another domain cheaply, by low-rank matrices on GPT's self-attention.

Diagram
-------
    wave (B, N) --CNN--> (B, T, D) --Transformer--> h (B, T, D)                HuBERT, a frame per 20 ms
                                                     |
        conv:  Conv1d(4, stride 2), GELU, twice -----+----- Linear(D, V) -> ctc, compress :  ctc
                          |                                                       |
                          +----> (B, T', D) --Linear(D, E)--> a (B, T', E) <------+
                                                  |
                                   <s> a_1 … a_T' [SEP] y_1 … y_U  --> GPT --> y_1 … y_U </s>

Equations (the names are this file's own; each with its function, and its test in tests/test_hubert_gpt_bridge.py)
---------
    T' = floor((T - 4) / 2) + 1 for each convolution                        Recogniser.bridge            test_t
    ctc = -log sum over paths that collapse to c of prod_t p(path_t | h_t)  ctc.ctc_loss                 test_ctc
    runs: stretches of equal argmax p(. | h_t), blank or not                vectors_of, compress         test_runs
    lm = - sum_{u=1}^{U+1} log p(y_u | <s> a [SEP] y_1 … y_{u-1})           prompting.answer_loss        test_lm
    loss = lm + w ctc, w = 0 without CTC in the bridge                      total_loss                   test_loss
    W x + 2 B A x in place of W x, the matrix of q, k and v                 lora.LoRA                    test_lora
    gap = (lm with the audio of another session - lm) / pieces              listening.measure_gap  test_gap
    limit = floor(4 seconds + 20.5) pieces                                  Recogniser.limits            test_limits

    y_{U+1} = </s>;  c: the characters of the text;  w --ctc-weight;  A (r, inputs), B (outputs, r), r = --lora-rank

Sources
-------
Written from the abstract, a summary by others, and the published model's configuration and code; we have not seen the
paper's body. Options say where their value comes from: [paper] the abstract or the published model, [digest] a summary
by others, [choice] ours, as is most of training. Symbols and metrics that all scripts share: README.md.

Choices (ours, marked again where they stand)
-------
    C1 start      in the demo, and with the bridge of CTC, HuBERT is that of the CTC baseline; the paper starts from
                  HuBERT as it was pretrained (--ctc-run none), which listens later; no worse for the same updates
    C2 CNN        frozen, as the digest has it; in the demo trained: 1.8 hours give none that is worth freezing
    C3 CTC        learns characters; the path that compresses is the head's own arg-max, without a gradient, the same in
                  training and decoding; where all is blank, the least blank frame stays, of `average` all
    C4 padding    with group norm in its CNN, as the published one, HuBERT knows no mask: it is scored by equal length,
                  and trained on padding as it comes (common/hubert.py)
    C5 LoRA       on query_key_value only, alpha = 2 r; freezes GPT's own weights; HuBERT and bridge only by rates of 0
    C6 training   AdamW, a rate for each part, 0: frozen; without --init the first epoch goes from short to long
                  utterances; checkpoints are chosen by dev WER, or CER where there are no spaces

Metrics (beside those of all scripts)
-------
    lm, ctc         the parts of the loss, to be divided by pieces (of an utterance and its end) and by characters
    listening_gap   nats per piece, on 64 dev utterances; near 0 GPT writes what is likely and does not listen
    unstopped, repetitions    answers that the limit ended; those among them whose repetitions were cut
    embeddings      vectors GPT was given, over all test sets;  embeddings_per_second

Run
---
    python hubert_gpt_bridge.py                       demo world, 28 minutes on one core: ctc and gpt, 42 and 20 % WER
    python hubert_gpt_bridge.py --method gpt --bridge ctc --compression average_remove_blank
    python hubert_gpt_bridge.py --data DIR --init rinna/nue-asr --lora-rank 8 --lr-hubert 0 --lr-bridge 0 --lr-llm 1e-4
    python hubert_gpt_bridge.py --preset full --init rinna/nue-asr --transcribe a.wav
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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
    # -- what to do --
    score: bool = False  # score --init as it is
    export: str | None = (
        None  # folder: writes --init or --checkpoint there in the published model's layout
    )
    # -- data --
    max_seconds: Positive = 16.0  # longer training utterances are left out [paper]
    update_seconds: Positive = 1600.0  # audio per update, over all ranks and micro-batches [choice]
    speeds: tuple[Speed, ...] = (1.0,)  # of the audio, one drawn per utterance and epoch [choice]
    mask_time: Share = 0.0  # of HuBERT's frames masked in training [choice]
    layerdrop: Share = 0.0  # of HuBERT's layers left out in training [choice]
    # -- method --
    method: Literal["ctc", "gpt"] = (
        "gpt"  # row of the table; ctc: HuBERT with a CTC head, the baseline
    )
    bridge: Literal["conv", "ctc"] = "conv"  # what makes speech shorter
    bridge_layers: Count = 2  # convolutions, each of half the rate [paper]
    compression: Literal["remove_blank", "average", "average_remove_blank"] = (
        "remove_blank"  # [digest] (C3 CTC)
    )
    ctc_weight: float = 0.5  # w, of CTC beside GPT's loss, both summed over an utterance [choice]
    hubert: str = "rinna/japanese-hubert-base"  # [paper]: hub name, folder, demo/hubert
    gpt: str = "rinna/japanese-gpt-neox-3.6b"  # GPT-NeoX [paper]: hub name, folder, demo/gpt
    untrained_hubert: bool = False  # random weights in place of its own: a control
    untrained_gpt: bool = False  # the same
    ctc_run: str = (
        "none"  # finished run of ctc whose HuBERT it starts from; auto: the one beside (C1 start)
    )
    init: str | None = None  # published model (name or folder) or finished run to start from
    lora_rank: int = 0  # r of adapters on GPT's self-attention, 8 [choice]; 0: none (C5 LoRA)
    begin: str = "<s>"  # the piece before the speech [paper]
    separator: str = "[SEP]"  # the piece between speech and text [paper]
    end: str = "</s>"  # the piece behind the text [paper]
    # -- optimisation --
    ctc_epochs: Count = 20  # passes over the training data by ctc [choice]
    ctc_lr: Positive = 5e-5  # peak learning rate of ctc [choice], of AdamW (C6 training)
    epochs: Count = 5  # passes with GPT [choice]
    lr_hubert: float = (
        5e-5  # peak learning rate of HuBERT, and of a CTC head, with GPT [choice]; 0: frozen
    )
    lr_bridge: float = 1e-4  # of the bridge [choice]; 0: frozen
    lr_llm: float = 1e-5  # of GPT, or with --lora-rank of its adapters [choice]; 0: frozen
    train_cnn: Literal["no", "yes"] = (
        "no"  # whether HuBERT's waveform CNN learns too [digest] (C2 CNN)
    )
    weight_decay: float = 1e-2  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "one-cycle"  # of the learning rates [choice]
    warmup: Positive = (
        0.05  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [choice]
    )
    clip: Positive = 1.0  # largest norm of the gradient of each part, by itself [choice]
    average: Count = 1  # epochs with the lowest dev error whose weights are averaged [choice]
    # -- how to compute --
    cut_seconds: Positive = (
        16.0  # longer recordings are cut at pauses; it has learnt from none longer [paper]
    )
    gradient_checkpointing: bool = False  # of what learns: less memory, a third more time
    # -- decoding --
    decode: Literal["greedy", "beam", "top_k", "top_p"] = (
        "greedy"  # beam also of ctc, with --lm by shallow fusion
    )
    beam: Extent = 4  # hypotheses kept [choice]
    top_k: Count = 10  # pieces to draw from [choice]
    top_p: Share = 0.9  # probability of the pieces to draw from [choice]
    pieces_per_second: float = 4.0  # of audio, at most so many and --more-pieces [paper]
    more_pieces: int = 20  # [paper]
    least_pieces: int = 2  # before an answer may end [paper]
    lm: str | None = (
        None  # causal language model for the beam of ctc, of any pieces: hub name, folder, demo/gpt
    )
    lm_weight: tuple[float, ...] = (
        0.3,
        0.6,
        1.0,
    )  # for ctc, each is tried on 100 dev utterances [choice]
    bonus: tuple[Real, ...] = (
        0.0,
    )  # per character, for ctc, each is tried with each --lm-weight [choice]

    def check(self) -> None:
        super().check()
        if self.lora_rank and not self.lr_llm:
            raise UserError(
                "--lora-rank adapts GPT by --lr-llm, which is 0: give one of them a value."
            )
        if self.method == "gpt" and not (self.lr_hubert or self.lr_bridge or self.lr_llm):
            raise UserError("--lr-hubert, --lr-bridge and --lr-llm are all 0: nothing would learn.")
        if (
            self.method == "gpt"
            and self.bridge == "ctc"
            and self.ctc_run == "none"
            and not self.init
        ):
            raise UserError(
                "--bridge ctc starts from a CTC head: give --ctc-run auto, or a finished run of ctc."
            )
        if (self.score and not self.init) or (self.export and not (self.init or self.checkpoint)):
            raise UserError(
                "--score and --export need --init, a published model or a finished run."
            )
        if self.init and (self.method == "ctc" or self.untrained_hubert or self.untrained_gpt):
            raise UserError(
                "--init goes with --method gpt, and without --untrained-hubert and --untrained-gpt."
            )
        if self.method == "gpt" and self.lm:
            raise UserError("--lm goes with --method ctc.")
        if self.method == "ctc" and self.decode.startswith("top"):
            raise UserError("--decode top_k and --decode top_p go with --method gpt.")


DEMO = dict(  # [choice]
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, methods=("ctc", "gpt"), hubert="demo/hubert",
    gpt="demo/gpt", ctc_run="auto", ctc_epochs=4, ctc_lr=2e-3, epochs=3, lr_hubert=1e-3, lr_bridge=3e-3, lr_llm=1e-3,
    train_cnn="yes", warmup=0.2, clip=5.0, pieces_per_second=12.0, least_pieces=0,
)  # fmt: skip
SMOKE = DEMO | dict(
    data="demo-smoke", hours=0.1, hubert="demo-smoke/hubert", gpt="demo-smoke/gpt", update_seconds=8.0, ctc_epochs=2,
    epochs=2, pieces_per_second=6.0, more_pieces=5,
)  # fmt: skip
PRESETS = {"smoke": SMOKE, "demo": DEMO}

if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM, HubertConfig, HubertModel

from common import ctc, figures, hubert, lora, prompting
from common.features import SAMPLE_RATE
from common.running import decoding, evaluation, listening, published, transcription
from common.running.batches import Batch, Fits, first_readable, read_corpus
from common.running.corpora import Corpus, Utterance, load_corpus, trainable
from common.running.decoding import Decoding, Transcript
from common.running.flags import load_config
from common.running.options import Search
from common.running.pretrained import (
    CharacterModel,
    find,
    forget_supplied,
    load_causal,
    load_text,
    mark_supplied,
)
from common.running.process import (
    Place,
    Stage,
    earlier_stage,
    first_rank_first,
    note,
    reseed,
    start,
)
from common.running.training import Run, digest_of
from common.running.weights import digest_in_memory, load_recogniser
from common.text import Characters, Tokenizer, load_tokenizer

# ========================================================================================================== model

FRAME_SECONDS = 0.02  # of HuBERT
KERNEL, STRIDE = 4, 2  # of the bridge's convolutions [paper]
ADAPTED = ("query_key_value",)  # linear maps (C5 LoRA)


class Recogniser(nn.Module):
    """HuBERT; with a CTC head, or a bridge and GPT, or all of them. Parts are named as in the published model."""

    def __init__(
        self, config: Config, encoder: HubertModel, llm: nn.Module | None, tokenizer, characters
    ):
        """tokenizer: of the texts, `Pieces` beside GPT; characters: of the CTC head, where there is one."""
        super().__init__()
        self.config, self.tokenizer, self.characters = config, tokenizer, characters
        own = Search(beam=4, top_k=10, top_p=0.9, lm_weight=(0.3, 0.6, 1.0), bonus=(0.0,))
        kinds = ("greedy", "beam", "top_k", "top_p") if llm else ("greedy", "beam")
        # for evaluate.py and transcribe.py
        self.decodes = Decoding(kinds, lm=None if llm else CharacterModel, own=own)
        self.audio_encoder, width = encoder, encoder.config.hidden_size
        hubert.set_dropping(encoder.config, config.layerdrop, config.mask_time)
        if characters:
            self.ctc_head = nn.Linear(width, characters.size)
        if llm and config.bridge == "conv":
            sizes = [(width, width, KERNEL, STRIDE)] * config.bridge_layers
            self.bridge_convs = nn.ModuleList(nn.Conv1d(*size) for size in sizes)
        if llm:
            self.bridge_proj = nn.Linear(width, llm.config.hidden_size)
            self.llm = llm

    def shortest(self) -> int:
        """Samples that give one vector, to which shorter audio is padded: 3280 for the published model."""
        shapes, layers = (
            self.audio_encoder.config,
            [(KERNEL, STRIDE)] * len(getattr(self, "bridge_convs", ())),
        )
        masked = (
            10 if self.config.mask_time else 1
        )  # frames of HuBERT: so many are masked at a time
        return max(
            hubert.shortest_input(shapes, layers, 1), hubert.shortest_input(shapes, [], masked)
        )

    def bridge(
        self, h: Tensor, lengths: Tensor, log_probs: Tensor | None
    ) -> tuple[Tensor, list[int]]:
        """h (B, T, D) -> a (B, T', E) and its lengths."""
        if self.config.bridge == "ctc":
            h, sizes = compress(h, lengths, log_probs, self.config.compression)
            return self.bridge_proj(h), sizes
        h = h.transpose(1, 2)  # (B, D, T)
        for convolution in self.bridge_convs:
            h, lengths = F.gelu(convolution(h)), (lengths - KERNEL) // STRIDE + 1
        return self.bridge_proj(h.transpose(1, 2)), lengths.tolist()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """h (B, T, D), its lengths (B,), and with a CTC head log p(character or blank | frame) (B, T, V)."""
        h, lengths = hubert.encode(self.audio_encoder, batch.waves, batch.samples, self.shortest())
        return h, lengths, self.ctc_head(h).float().log_softmax(-1) if self.characters else None

    def symbols(self) -> list[int]:
        """The ids of the pieces before, between and behind. Raises UserError."""
        pieces = [self.config.begin, self.config.separator, self.config.end]
        if None in (ids := [self.tokenizer.id_of(piece) for piece in pieces]):
            raise UserError(
                f"{pieces[ids.index(None)]} is no piece of GPT's: give --begin, --separator and --end."
            )
        size = len(self.llm.get_input_embeddings().weight)
        if beyond := [piece for piece, i in zip(pieces, ids, strict=True) if i >= size]:
            raise UserError(
                f"{beyond[0]} is beyond GPT's vocabulary of {size} pieces: give --begin, --separator and --end."
            )
        return ids

    def sequences(
        self, a: Tensor, sizes: list[int], texts: list[list[int]] | None
    ) -> prompting.Sequences:
        """<s> a [SEP] y; texts: ids; absent: to be written."""
        begin, separator, end = self.symbols()
        embedding = self.llm.get_input_embeddings()
        frame = prompting.Frame(before=[begin], after=[separator], end=end)
        return prompting.build_sequences(embedding, a, sizes, texts, frame)

    def limits(self, samples: Tensor) -> list[int]:
        """Most pieces of an answer, by the seconds of audio."""
        rate, more = self.config.pieces_per_second, self.config.more_pieces
        return [int(rate * n / SAMPLE_RATE + more + 0.5) for n in samples.tolist()]

    def transcribe(self, batch: Batch, place: Place, **search) -> list[Transcript]:
        """search: see ctc.search; for GPT see prompting.search_options."""
        with place.autocast():
            h, lengths, log_probs = self(batch)
            if self.config.method == "ctc":
                paths = ctc.search(log_probs, lengths, **search)
                return [
                    decoding.transcript_of(path, self.tokenizer, FRAME_SECONDS) for path in paths
                ]
            a, sizes = self.bridge(h, lengths, log_probs)
            options = {"min_new_tokens": self.config.least_pieces}
            if search:
                seeds = [self.config.seed * 2**32 + n for n in batch.samples.tolist()]
                options |= prompting.search_options(search, seeds)
            sequences, end = self.sequences(a, sizes, None), self.symbols()[-1]
            answers, counts = prompting.write(
                self.llm, sequences, self.limits(batch.samples), end, **options
            )
        texts = [self.tokenizer.decode([i + 1 for i in ids]) for ids in answers]
        rows = zip(texts, counts, sizes, strict=True)
        return [Transcript(text, None, count | {"embeddings": float(n)}) for text, count, n in rows]

    def fits(self) -> Fits:
        """`fits` of this model: what reading processes are given holds none of it."""
        known = self.characters.characters if self.characters else None
        cnn = self.audio_encoder.config
        convolutions = tuple(zip(cnn.conv_kernel, cnn.conv_stride, strict=True))
        return partial(fits, known, convolutions, self.shortest())


def fits(
    known: str | None,
    convolutions: tuple[tuple[int, int], ...],
    shortest: int,
    samples: int,
    labels: list[int],
    text: str,
) -> bool:
    """Whether CTC, where there is one, can write the text of so many samples; GPT always can.

    CTC needs a frame for every character, and one more between equal ones. A text of
    another domain may have characters that the CTC head does not know.

    known: the characters of the CTC head; None: there is none. convolutions: (kernel,
    stride) of HuBERT's CNN. shortest: samples to which shorter audio is padded.
    """
    if known is None:
        return True
    frames = max(samples, shortest)
    for kernel, stride in convolutions:
        frames = (frames - kernel) // stride + 1
    repeats = sum(a == b for a, b in pairwise(text))
    return set(text) <= set(known) and len(text) + repeats <= frames


def vectors_of(log_probs: Tensor, mode: str) -> Tensor:
    """log_probs (T, V) -> (T,) the vector that each frame goes into, counted from 0; -1: into none (C3 CTC).

    remove_blank: every frame whose most probable label is not the blank is a vector; average: a run of frames with the
    same label is one; average_remove_blank: such a run that is not blank.
    """
    path = log_probs.argmax(-1)
    begins = path != torch.cat([path[:1] - 1, path[:-1]])  # a run
    kept = path != ctc.BLANK if mode != "average" else torch.ones_like(begins)
    if not kept.any():
        kept = torch.zeros_like(kept)
        kept[log_probs[:, ctc.BLANK].argmin()] = True
        mode = "remove_blank"
    counted = kept if mode == "remove_blank" else kept & begins
    return (counted.cumsum(0) - 1).masked_fill(~kept, -1)


def compress(h: Tensor, lengths: Tensor, log_probs: Tensor, mode: str) -> tuple[Tensor, list[int]]:
    """h (B, T, D) of `lengths`, log_probs (B, T, V) -> (B, T', D), the mean of each vector's frames; lengths."""
    rows = []
    for x, lp, n in zip(h, log_probs.detach(), lengths.tolist(), strict=True):
        into = vectors_of(lp[:n], mode)
        x, into = x[:n][into >= 0], into[into >= 0]
        sums = x.new_zeros(int(into[-1]) + 1, x.shape[1]).index_add(0, into, x)
        rows.append(sums / into.bincount()[:, None].to(x.dtype))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows]


# =========================================================================================================== loss


def ctc_losses(recogniser: Recogniser, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """-log p_ctc(characters | h) of each utterance (B,)."""
    labels = [torch.tensor(recogniser.characters.encode(u.text)) for u in batch.utterances]
    sizes = torch.tensor([len(x) for x in labels], device=lengths.device)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True).to(lengths.device)
    return ctc.ctc_loss(log_probs, lengths, targets, sizes)


def answer_losses(
    recogniser: Recogniser, batch: Batch, place: Place, encoded: tuple | None = None
) -> Tensor:
    """-log p(y </s> | a) of each utterance (B,), in fp32. encoded: what the recogniser's forward gave."""
    with place.autocast():
        a, sizes = recogniser.bridge(*(encoded or recogniser(batch)))
        return prompting.answer_loss(
            recogniser.llm,
            recogniser.sequences(a, sizes, prompting.ids_of(batch.targets, batch.target_lengths)),
        )


def compute_losses(recogniser: Recogniser, batch: Batch, place: Place) -> dict[str, Tensor]:
    """{"lm", "ctc"}, those that the method has, of each utterance (B,) in fp32. Networks may run in bf16."""
    with place.autocast():
        h, lengths, log_probs = encoded = recogniser(batch)
    losses = {}
    if recogniser.config.method == "gpt":
        losses["lm"] = answer_losses(recogniser, batch, place, encoded)
    if recogniser.characters:
        losses["ctc"] = ctc_losses(recogniser, log_probs, lengths, batch)
    return losses


def total_loss(losses: dict[str, Tensor], ctc_weight: float) -> Tensor:
    """lm + w ctc, or ctc alone; summed over utterances."""
    weights = {"lm": 1.0, "ctc": ctc_weight if "lm" in losses else 1.0}
    return sum(weights[name] * loss.sum() for name, loss in losses.items())


# ======================================================================================================== teacher


# Options of the second stage, about which the first need not agree.
SECOND_STAGE = (
    "bridge", "bridge_layers", "compression", "ctc_weight", "gpt", "untrained_gpt", "ctc_run", "lora_rank", "begin",
    "separator", "end", "epochs", "lr_hubert", "lr_bridge", "lr_llm", "train_cnn",
)  # fmt: skip


def find_ctc(config: Config, utterances: list[Utterance], place: Place) -> Recogniser | None:
    """The first stage: an ordinary run of `ctc`, which is trained first, or gone on with, if it is not finished.

    Raises UserError where it was trained on other data, or is another model than this run's.
    """
    if config.ctc_run == "none":
        return None
    stage = Stage("ctc", "--ctc-run", PRESETS, SECOND_STAGE, digest_of(utterances))
    return load(earlier_stage(config, place, stage, run_method), place)


# ========================================================================================================== train


def build(config: Config, corpus: Corpus, place: Place) -> Recogniser:
    """What is trained, with the weights that it starts from: what is pretrained, a CTC run, or all of --init."""
    if config.init:
        recogniser = load_init(config, place)
    else:
        encoder, llm, tokenizer = load_pretrained(
            config, place
        )  # first: what is missing shows before CTC has learnt
        first_stage = find_ctc(config, corpus.train, place) if config.method == "gpt" else None
        characters = first_stage.characters if first_stage and config.bridge == "ctc" else None
        if config.method == "ctc":
            tokenizer = characters = Characters.build(u.text for u in corpus.train)
        reseed(config.seed, int(config.method == "gpt"))
        recogniser = Recogniser(config, encoder, llm, tokenizer, characters)
        if first_stage:
            encoder.load_state_dict(first_stage.audio_encoder.state_dict())
            hubert.hear_as(encoder.config, first_stage.audio_encoder.config)
            if characters:
                recogniser.ctc_head.load_state_dict(first_stage.ctc_head.state_dict())
    if config.lora_rank:
        reseed(config.seed, 2)
        lora.adapt(recogniser.llm, config.lora_rank, ADAPTED)
    return recogniser.to(place.device)


def load_pretrained(
    config: Config, place: Place
) -> tuple[HubertModel, nn.Module | None, Tokenizer | None]:
    """HuBERT, and for the method gpt also GPT and its tokenizer. Raises UserError."""
    llm = tokenizer = None
    with first_rank_first(place):
        encoder = hubert.load(config.hubert, "--hubert", config.root, place)
        if config.method == "gpt":
            llm = load_causal(config.gpt, "--gpt", config.root, frozen_llm(config))
            tokenizer = load_text(config.gpt, "--gpt", config.root)
    reseed(config.seed, 3)
    encoder = HubertModel(encoder.config) if config.untrained_hubert else encoder
    if llm and config.untrained_gpt:
        llm = GPTNeoXForCausalLM(llm.config)
        llm = mark_supplied(llm, digest_in_memory(llm)) if frozen_llm(config) else llm
    return encoder, llm, tokenizer


def frozen_llm(config: Config) -> bool:
    """Whether GPT's own weights stay as they are: then a run does not keep them."""
    return config.lora_rank > 0 or config.lr_llm == 0


def rates_of(config: Config, recogniser: Recogniser) -> dict[str, float]:
    """{part: peak learning rate}; 0: frozen, in evaluation mode."""
    if config.method == "ctc":
        return {"audio_encoder": config.ctc_lr, "ctc_head": config.ctc_lr}
    rates = {"audio_encoder": config.lr_hubert, "ctc_head": config.lr_hubert, "llm": config.lr_llm}
    rates |= {"bridge_convs": config.lr_bridge, "bridge_proj": config.lr_bridge}
    return {name: rates[name] for name, _ in recogniser.named_children()}


def train(config: Config, corpus: Corpus, place: Place) -> tuple[Recogniser, dict]:
    """Returns the recogniser with the average of the best epochs' weights, and what RESULT says of the training."""
    utterances, is_gpt = trainable(corpus.train, config.max_seconds), config.method == "gpt"
    recogniser = build(config, replace(corpus, train=utterances), place)
    if not is_gpt:
        config = replace(config, epochs=config.ctc_epochs)
    rates, groups = rates_of(config, recogniser), []
    models = nn.ModuleDict(dict(recogniser.named_children()))
    if config.train_cnn == "no":
        recogniser.audio_encoder.feature_extractor._freeze_parameters()
    for name, rate in rates.items():
        if rate:
            groups.append(
                {"params": [p for p in models[name].parameters() if p.requires_grad], "lr": rate}
            )
        else:
            models[name].requires_grad_(False)
    for part in ("audio_encoder", "llm") if config.gradient_checkpointing else ():
        if part in models:
            models[part].gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    run = Run(
        config,
        place,
        models=models,
        optimizer=optimizer,
        utterances=utterances,
        encode=recogniser.tokenizer.encode,
        fits=recogniser.fits(),
        by_length=not config.init,
    )
    if config.resume and (Path(config.out) / published.SHAPES).exists():
        begun = published.read_json(Path(config.out) / published.SHAPES, "--resume")
        hubert.hear_as(
            recogniser.audio_encoder.config, HubertConfig(**begun["audio_encoder_config"])
        )
    if place.first:
        published.keep_shapes(recogniser, Path(config.out))
    losses_of_answers = partial(answer_losses, recogniser, place=place)
    gap = partial(listening.measure_gap, recogniser, losses_of_answers, corpus.dev, config, place)
    if config.init and not config.resume:
        before = evaluation.dev_scores(recogniser, corpus, config, place)["dev"]
        if place.first:
            note(f"before: dev {before:.1f} %")
    for _ in run.epochs():
        for update in run.updates():
            for batch in update:
                losses = compute_losses(recogniser, batch, place)
                loss = total_loss(losses, config.ctc_weight)
                loss.backward()
                parts = {name: part.sum() for name, part in losses.items()}
                parts["pieces"] = (batch.target_lengths + 1).sum()
                parts["characters"] = torch.tensor(sum(len(u.text) for u in batch.utterances))
                update.add(loss, parts)
            update.average_gradients()
            norms = {
                name: nn.utils.clip_grad_norm_(models[name].parameters(), config.clip).item()
                for name in rates
            }
            update.log |= {"norm": norms, "lr": run.set_learning_rates()}
            if update.is_usable(norms.values()):
                optimizer.step()
            optimizer.zero_grad()
        scores = evaluation.dev_scores(recogniser, corpus, config, place)
        run.end_epoch(recogniser, scores | (gap() if is_gpt else {}))
    report = {
        "trained_params": sum(p.numel() for group in groups for p in group["params"])
    } | run.finish(recogniser)
    return recogniser, report | (gap() if is_gpt else {})


# ======================================================================================================= figures


@torch.inference_mode()
def draw_compression(config: Config, recogniser: Recogniser, corpus: Corpus, place: Place) -> None:
    """compression.png: which frames of an utterance each mode keeps, vectors in alternating colours."""
    batch = first_readable(corpus.dev, config).to(place.device)
    _, _, log_probs = recogniser.eval()(batch)
    rows = {"1 - p(blank)": 1 - log_probs[0, :, ctc.BLANK].exp()}
    for mode in ("remove_blank", "average", "average_remove_blank"):
        into = vectors_of(log_probs[0], mode)
        rows[mode] = torch.where(into < 0, 0.0, 0.4 + 0.4 * (into % 2))
    values = torch.stack(list(rows.values()), 1).cpu().numpy()  # (T, rows)
    path = Path(config.out) / "compression.png"
    figures.posteriors(path, values, list(rows), FRAME_SECONDS, batch.utterances[0].text)


@torch.inference_mode()
def draw_attention(config: Config, recogniser: Recogniser, corpus: Corpus, place: Place) -> None:
    """attention.png: from the pieces of the text to the vectors of the speech, the mean over heads."""
    batch = first_readable(corpus.dev, config).to(place.device)
    a, (n,) = recogniser.bridge(*recogniser.eval()(batch))
    ids = [i - 1 for i in recogniser.tokenizer.encode(batch.utterances[0].text)]
    attentions = prompting.attentions(recogniser.llm, recogniser.sequences(a, [n], [ids]))
    some = sorted({round(i * (len(attentions) - 1) / 3) for i in range(4)})
    panels = {f"layer {i + 1}": attentions[i][n + 1 :, 1 : n + 1] for i in some}
    path = Path(config.out) / "attention.png"
    figures.matrices(path, panels, "vector of the speech", "piece of the text")


# ============================================================================================================ main


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    folder = Path(config.checkpoint)
    tokenizer = characters = load_tokenizer(folder)
    encoder, llm = published.networks(
        published.read_json(folder / published.SHAPES, "--checkpoint")
    )
    if config.method == "gpt":
        characters = load_tokenizer(folder / "characters") if config.bridge == "ctc" else None
        if frozen_llm(config):
            llm = load_init(config, place).llm if config.init else load_pretrained(config, place)[1]
    recogniser = Recogniser(config, encoder, llm, tokenizer, characters)
    if config.lora_rank:
        lora.adapt(llm, config.lora_rank, ADAPTED)
    return load_recogniser(recogniser, folder, place)


def load_init(config: Config, place: Place) -> Recogniser:
    """What --init names, whole: a finished run, or a folder in the published model's layout. Raises UserError."""
    with first_rank_first(place):
        folder = Path(find(config.init, "--init", config.root))
    shapes = published.read_json(folder / "config.json", "--init")
    if "config" in shapes:
        stored = load_config(Config, folder, PRESETS)
        if stored.method != "gpt":
            raise UserError(
                f"--init {config.init} is a run of {stored.method}: give it as --ctc-run."
            )
        shapes = published.read_json(folder / published.SHAPES, "--init")
        recogniser = load(replace(stored, checkpoint=str(folder), root=config.root), place)
        lora.merge(recogniser.llm)
    elif shapes.keys() >= {"audio_encoder_config", "llm_config"}:
        layers = published.bridge_of(shapes, KERNEL, STRIDE, f"--init {config.init}")
        published.complete_shapes(shapes, folder)
        stored, tokenizer = (
            replace(config, bridge="conv", bridge_layers=layers),
            load_text(str(folder), "--init", ""),
        )
        recogniser = Recogniser(stored, *published.networks(shapes), tokenizer, None)
        published.read_weights(recogniser, folder, "--init")
    else:
        raise UserError(
            f"--init {config.init} is neither a finished run nor laid out as rinna/nue-asr."
        )
    same = "bridge", "bridge_layers", "compression", "begin", "separator", "end"
    if wanted := [name for name in same if getattr(stored, name) != getattr(config, name)]:
        wanted = " ".join(f"--{name.replace('_', '-')} {getattr(stored, name)}" for name in wanted)
        raise UserError(f"--init {config.init} is another model: give {wanted}.")
    recogniser.requires_grad_(True).config = config
    hubert.set_dropping(recogniser.audio_encoder.config, config.layerdrop, config.mask_time)
    forget_supplied(recogniser.llm)
    if frozen_llm(config):
        mark_supplied(recogniser.llm, published.mark_of(folder, shapes, "--init", config.root))
    return recogniser


def both_domains(config: Config, corpus: Corpus) -> Corpus:
    """With the test sets of the run that was adapted: does it forget?"""
    is_run = config.init and (Path(config.init) / published.SHAPES).exists()
    data = load_config(Config, config.init, PRESETS).data if is_run else config.data
    if Path(data) == Path(config.data):
        return corpus
    first = load_corpus(data, config.root, scoring=True)
    tests = {
        f"{Path(data).name}-{name}" if name in corpus.tests else name: x
        for name, x in first.tests.items()
    }
    return replace(
        corpus, tests=tests | corpus.tests, homophones=first.homophones | corpus.homophones
    )


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint, or --init and what is to be done, only that. What RESULT says."""
    read = load
    if not config.checkpoint and (config.score or config.export or config.transcribe):
        config, read = replace(config, checkpoint=config.init), load_init
    place = start(config)
    if config.transcribe:
        recogniser = read(config, place).to(place.device)
        transcription.transcribe_files(recogniser, list(config.transcribe), config, place)
        return {}
    if config.export:
        published.write(read(config, place), Path(config.export))
        return {}
    corpus = both_domains(config, read_corpus(config, place))
    recogniser, report = (
        (read(config, place), {}) if config.checkpoint else train(config, corpus, place)
    )
    recogniser.to(place.device)
    result = {"script": "hubert_gpt_bridge", "method": config.method, "seed": config.seed}
    result |= evaluation.evaluate(recogniser, corpus, config, place) | report
    if "embeddings" in result:
        seconds = sum(u.duration for found in corpus.tests.values() for u in found)
        result["embeddings_per_second"] = round(result["embeddings"] / seconds, 2)
    result = evaluation.report(result, config, place)
    if place.first and not config.checkpoint:
        drawings = {}
        if recogniser.characters:
            drawings["compression.png"] = partial(
                draw_compression, config, recogniser, corpus, place
            )
        if config.method == "gpt":
            drawings["attention.png"] = partial(draw_attention, config, recogniser, corpus, place)
        figures.draw(config.out, drawings)
    return result


def print_summary(config: Config) -> dict[str, int]:
    """Parameters by part, without weights."""
    shapes = published.shapes_by_name({"--hubert": config.hubert, "--gpt": config.gpt}, config.root)
    with torch.device("meta"):
        encoder, llm = published.networks(shapes)
        recogniser = Recogniser(
            config, encoder, llm if config.method == "gpt" else None, None, None
        )
    return evaluation.print_parameters(nn.ModuleDict({"recogniser": recogniser}))


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    if configs[0].summary:
        return print_summary(configs[-1])
    return evaluation.compare_methods(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
