"""Prompting Large Language Models with Speech Recognition Abilities.

Yassir Fathullah, Chunyang Wu, Egor Lakomkin, Junteng Jia, Yuan Shangguan, Ke Li, Jinxi Guo, Wenhan Xiong, Jay
Mahadeokar, Ozlem Kalinli, Christian Fuegen, Mike Seltzer. ICASSP 2024. arXiv 2307.11795.

Idea
----
A large language model continues texts. If what comes first is speech, in vectors as wide as its embeddings, it can be
taught to continue with the words that were said: it becomes a recogniser, in all languages it has seen. A Conformer
that CTC has taught to recognise eight languages turns audio into a vector per 80 ms; n neighbours are stacked, so that
the prompt stays short, and one linear map makes them as wide as the model's embeddings. The model itself stays frozen,
or adapts a little by low-rank matrices on its self-attention. The paper reports that this is better than recognisers of
one language, works with a frozen model, and with almost one second between the vectors.

Diagram
-------
    wave (B, N) --LogMel--> (B, F, 80) --Subsampling x8--> block 1 … L (no macaron) --> h (B, T, D)    a frame per 80 ms
                                                                                        |      |
              Linear(D, V) -> ctc, in the first stage only (thrown away) <--------------+      |
                                                                                               v
                                                        padding to zero, n frames side by side: (B, T', n D)
                                                                                               |
                                                                              Linear(n D, E): a (B, T', E)
                                                                                               |
              <s> y_1 … y_U --embedding--> (B, 1+U, E) ----------------------------------------+
                                                                                               v
                                      a_1 … a_T' <s> y_1 … y_U --> causal language model, q k v o with adapters
                                                  |   |     |
                                                 y_1 y_2 … </s>

Equations (the names are this file's own; each with its function, and its test in tests/test_llm_prompt_asr.py)
---------
    ctc  = -log sum over paths that collapse to y of prod_t p(path_t | x)             ctc.ctc_loss         test_ctc
    s_i  = [h_{n i} … h_{n i + n-1}], T' = ceil(T / n), h_t = 0 for t >= T            stack                test_stack
    a_i  = W s_i + b                                                                  Recogniser.prompt    test_prompt
    loss = - sum_{u=1}^{U+1} log p(y_u | a, <s>, y'_1 … y'_{u-1}), y_{U+1} = </s>     answer_losses        test_loss
    y'_u = y_u, or with probability F, in training only, a symbol that says nothing   hide                 test_hide
    LoRA   W x + 2 B A x on q, k, v and o                                             lora.LoRA            test_lora.py
    S_ij = cos(a_i - mean a, e_j - mean e), e_j of y_j as the table has it            alignment            test_s
    gap  = (loss with the audio of another session - loss) / pieces          prompting.measure_listening   test_gap

    n = --stride-ms / 80;  F --mask-fraction;  A (r, inputs), B (outputs, r), r = --lora-rank, alpha = 2 r

Sources
-------
Written from the abstract, a summary by others and what we remember of recipes; we have not seen the paper's body.
Options say where their value comes from: [paper] the abstract, [digest] a summary by others, [recall] remembered and
unverified, [peer] a toolkit's recipe, [choice] ours, as are all sizes of the demo. Symbols and metrics that all scripts
share: README.md.

Choices (ours, marked again where they stand)
-------
    C1 prompt     no instruction and no language tag; the tail of an utterance is padded with zeros
    C2 masking    by the model's <unk>; where it has none, or its <unk> begins or ends, by the mean of all embeddings;
                  the demo's models have met <unk> before, as a blank in what they read again
    C3 languages  are drawn in proportion to hours ^ --language-power, in both stages
    C4 pieces     CTC learns SentencePiece units of the transcripts, monolingual CTC of its own; in the demo both learn
                  those of the language model
    C5 rereading  most of what the demo's language models learn from are texts written twice, so that a small frozen one
                  may say again what it reads, as large ones can
    C6 rank       --lora-rank 0 has no adapters: then --lr-lm trains all of the language model, as the demo does, whose
                  models are tiny, and --lr-lm 0 freezes it
    C7 training   AdamW; each part with a rate of its own, 0: frozen; in each stage the first epoch goes from short to
                  long utterances; checkpoints are chosen by dev WER, the mean over languages

Metrics (beside those of all scripts)
-------
    listening_gap   nats per piece, on 64 dev utterances; near 0 the model writes what is likely and does not listen
    alignment       of S: rho, Spearman's correlation of j and the i with the largest S_ij; non_decreasing, the share of
                    steps from j to j+1 at which that i does not fall, and its chance; swapped: beside another's audio
    text_perplexity of 50 to 100 dev transcripts per piece without audio: before training, and after
    unstopped, repetitions    answers that the limit ended; those among them whose repetitions were cut

Run
---
    python llm_prompt_asr.py                          demo world of eight languages: ctc and llm side by side, about 12
                                                      and 18 % WER, 16 minutes on two cores
    python llm_prompt_asr.py --method llm --lora-rank 8 --lr-lm 5e-3       adapters take ten times the demo's rate
    python llm_prompt_asr.py --method llm --stride-ms 960 --lora-rank 0 --lr-lm 0      a frozen model, almost a second
    python llm_prompt_asr.py --data mls --root ~/corpora --languages german polish --lm huggyllama/llama-7b
    python transcribe.py runs/x a.wav
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
    Seconds,
    Share,
    Speed,
    UserError,
    check_command_line,
    parse,
)

# ================================================================================================== configuration

FRAME_MS = 80  # of encoder frames
# LLaMA-7B, for --summary [paper: named there; Touvron et al. 2023]
LLAMA_7B = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)


@dataclass(frozen=True)
class Config(RunConfig):
    # -- corpus --
    data: str = "demo-mls"  # demo-mls | demo-mls-smoke | mls | a folder with train.jsonl, dev.jsonl and test*.jsonl
    languages: tuple[str, ...] = ()  # of MLS and the demo, as german; absent: all there are
    # -- data --
    max_seconds: Positive = 20.0  # longer training utterances are left out [peer]
    update_seconds: Positive = 1600.0  # audio per update, over all ranks and micro-batches [choice]
    language_power: Share = (
        0.5  # languages are drawn by hours ^ this; 1: as they are (C3 languages)
    )
    speeds: tuple[Speed, ...] = (
        0.9,
        1.0,
        1.1,
    )  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 10  # SpecAugment, each over 0 to 5 % of the utterance [peer]
    units: Count = 1547  # SentencePiece pieces of CTC [recall]; characters without room come on top
    units_of: Literal["transcripts", "lm"] = (
        "transcripts"  # what CTC learns to write: these, or --lm's (C4 pieces)
    )
    # -- method --
    method: Literal["monolingual_ctc", "ctc", "llm"] = "llm"  # row of the table
    encoder: str = "auto"  # finished run of ctc, or scratch; auto: the one beside this run, trained there if absent
    lm: str = (
        "huggyllama/llama-7b"  # causal language model [paper]: hub name, folder, demo-mls/lm-m
    )
    lora_rank: int = 8  # r of the adapters on q, k, v, o [digest]; 0: none (C6 rank)
    stride_ms: Count = 240  # audio per vector of the prompt, a multiple of 80 [choice]; "almost 1 second" works [paper]
    mask_fraction: Share = (
        0.25  # F, of the text that the model reads in training [recall] (C2 masking)
    )
    # -- model --
    layers: Extent = 18  # Conformer blocks [digest]
    dim: Extent = 512  # width [digest]
    heads: Extent = 8  # of self-attention [recall]
    ff_dim: Extent = 2048  # width inside the feed-forward part [recall]
    kernel: Extent = 11  # frames seen by the depthwise convolution, odd [recall]
    channels: Extent = 128  # of the subsampling convolutions [choice]
    dropout: Share = 0.1  # of the encoder, but not on its attention weights [peer]
    # -- optimisation --
    ctc_epochs: Count = 30  # passes over the training data by CTC [choice]
    ctc_lr: Positive = 1e-3  # peak learning rate of CTC [recall], of AdamW (C7 training)
    ctc_warmup: Positive = 20000.0  # as --warmup, of CTC [recall]
    epochs: Count = 10  # passes with the language model [choice]
    lr_encoder: float = (
        5e-4  # peak learning rate of the encoder with the language model [recall]; 0: frozen
    )
    lr_projection: float = 5e-4  # of the linear map [recall]; 0: frozen
    lr_lm: float = 5e-4  # of the adapters [recall], or with --lora-rank 0 of the whole language model; 0: frozen
    freeze_encoder_steps: int = (
        0  # updates before the encoder learns with the language model [recall]
    )
    weight_decay: float = 1e-3  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = (
        "inverse-sqrt"  # of the learning rates [choice]
    )
    warmup: Positive = (
        5000.0  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [recall]
    )
    clip: Positive = 5.0  # largest norm of the gradient of each part, by itself [peer]
    average: Count = 5  # epochs with the lowest dev error whose weights are averaged [choice]
    # -- how to compute --
    cut_seconds: Seconds = (
        20.0  # longer recordings are cut at pauses: an answer has at most 200 pieces
    )
    # -- decoding --
    decode: Literal["greedy", "beam"] = (
        "greedy"  # beam: of llm, or of ctc with --lm by shallow fusion, the comparator
    )
    beam: Extent = 4  # hypotheses kept [choice]
    lm_weight: tuple[float, ...] = (
        0.2,
        0.4,
        0.6,
    )  # for ctc, each is tried on 100 dev utterances [choice]
    bonus: tuple[Real, ...] = (
        0.0,
        0.5,
        1.0,
    )  # per piece, for ctc, each is tried with each --lm-weight [choice]

    def check(self) -> None:
        super().check()
        if self.stride_ms % FRAME_MS:
            raise UserError(f"--stride-ms is a multiple of {FRAME_MS}.")
        if self.lora_rank and not self.lr_lm:
            raise UserError(
                "--lora-rank adapts the language model by --lr-lm, which is 0: give one of them a value."
            )
        if self.method == "llm" and not (self.lr_encoder or self.lr_projection or self.lr_lm):
            raise UserError(
                "--lr-encoder, --lr-projection and --lr-lm are all 0: nothing would learn."
            )
        if self.freeze_encoder_steps and not (self.lr_projection or self.lr_lm):
            raise UserError(
                "--freeze-encoder-steps: nothing but the encoder learns, so nothing would."
            )
        if self.decode == "beam" and self.method != "llm" and self.units_of != "lm":
            raise UserError(
                "--decode beam fuses --lm with a CTC that writes its pieces: train it with --units-of lm."
            )
        if (self.schedule == "one-cycle") != (self.ctc_warmup < 1):
            raise UserError(
                "--ctc-warmup is a share below 1 for --schedule one-cycle, else a number of updates."
            )


DEMO = dict(  # [choice]
    workers=0, max_seconds=10.0, batch_seconds=60.0, update_seconds=48.0, speeds=(1.0,), frequency_masks=0,
    time_masks=0, methods=("ctc", "llm"), units_of="lm", lm="demo-mls/lm-m", stride_ms=160, layers=4, dim=128, heads=4,
    ff_dim=512, channels=16, dropout=0.0, ctc_epochs=6, ctc_lr=4e-3, ctc_warmup=0.3, epochs=6, lr_encoder=1e-3,
    lr_projection=4e-3, lr_lm=5e-4, lora_rank=0, schedule="one-cycle", warmup=0.1, average=1, mask_fraction=0.0,
)  # fmt: skip
SMOKE = DEMO | dict(
    data="demo-mls-smoke", lm="demo-mls-smoke/lm-s", layers=2, dim=64, ff_dim=128, update_seconds=8.0, ctc_epochs=2,
    epochs=2,
)  # fmt: skip
PRESETS = {"smoke": SMOKE, "demo": DEMO}

if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import random
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import ctc, figures, lora, metrics, prompting
from common.conformer import Conformer, length_mask, subsampled
from common.features import SAMPLE_RATE, LogMel, num_frames, spec_augment
from common.running import decoding, evaluation, transcription
from common.running.batches import Batch, Fits, read_corpus, sample_waves
from common.running.corpora import Corpus, Utterance, languages_of, trainable
from common.running.decoding import Decoding, Transcript
from common.running.options import Search
from common.running.pretrained import LanguageModel, begin_and_end, load_causal, load_pieces
from common.running.process import (
    Place,
    Stage,
    earlier_stage,
    first_rank_first,
    gather,
    reseed,
    start,
)
from common.running.training import Run, digest_of
from common.running.weights import load_recogniser
from common.text import Pieces, SentencePiece, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end and Conformer; a CTC head in the first stage, projection and language model in the second."""

    def __init__(
        self,
        config: Config,
        tokenizer: Pieces | SentencePiece | None,
        lm: nn.Module | None,
        vocabulary: int,
    ):
        super().__init__()
        self.tokenizer, self.n = tokenizer, config.stride_ms // FRAME_MS
        own = Search(beam=4, lm_weight=(0.2, 0.4, 0.6), bonus=(0.0, 0.5, 1.0))
        # for evaluate.py and transcribe.py
        self.decodes = Decoding(
            ("greedy", "beam"), lm=LanguageModel if lm is None else None, own=own
        )
        self.frontend = LogMel()
        self.encoder = Conformer(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            ff_dim=config.ff_dim,
            kernel=config.kernel,
            dropout=config.dropout,
            subsampling=8,
            channels=config.channels,
            macaron=False,
        )
        if lm is None:
            self.ctc_head = nn.Linear(config.dim, vocabulary)
        else:
            self.projection = nn.Linear(
                self.n * config.dim, lm.get_input_embeddings().embedding_dim
            )
            self.lm = lm

    def encode(self, batch: Batch, masks: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """h (B, T, D) and its lengths (B,). masks: of SpecAugment, in training."""
        features, frames = self.frontend(batch.waves, batch.samples)
        if any(masks):
            features = spec_augment(features, frames, masks[0], 27, masks[1], 0.05)
        encoded = self.encoder(features, frames)
        return encoded.output, encoded.lengths

    def prompt(self, h: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """h (B, T, D) -> a (B, T', E) and its lengths."""
        stacked, lengths = stack(h, lengths, self.n)
        return self.projection(stacked), lengths.tolist()

    def log_probs(self, h: Tensor) -> Tensor:
        """h (B, T, D) -> log p(piece or blank | frame) (B, T, V)."""
        return self.ctc_head(h).float().log_softmax(-1)

    def transcribe(self, batch: Batch, place: Place, **search) -> list[Transcript]:
        """search: see ctc.search; of it, a language model takes the beam."""
        with place.autocast():
            h, lengths = self.encode(batch)
            if not hasattr(self, "lm"):
                paths = ctc.search(self.log_probs(h), lengths, **search)
                return [
                    decoding.transcript_of(path, self.tokenizer, FRAME_MS / 1000) for path in paths
                ]
            beam, (_, end) = search.get("beam", 1), symbols(self.lm)
            seconds = batch.samples / SAMPLE_RATE
            limits = [
                min(prompting.LONGEST, int(12 * s) + 20) for s in seconds.tolist()
            ]  # pieces [choice]
            answers, counts = prompting.write(
                self.lm, self.sequences(h, lengths, None), limits, end, num_beams=beam
            )
            answers = [
                ids if n else [] for ids, n in zip(answers, lengths.tolist(), strict=True)
            ]  # too short to hear
        texts = [self.tokenizer.decode([i + 1 for i in ids]) for ids in answers]
        return [Transcript(text, None, count) for text, count in zip(texts, counts, strict=True)]

    def sequences(
        self,
        h: Tensor,
        lengths: Tensor,
        texts: list[list[int]] | None,
        shown: list[list[int]] | None = None,
    ) -> prompting.Sequences:
        """[a_1 … a_T' <s> y_1 … y_U]; texts: ids of the language model; absent: to be written (C1 prompt)."""
        beginning, end = symbols(self.lm)
        a, sizes = self.prompt(h, lengths)
        return prompting.build_sequences(
            self.lm.get_input_embeddings(),
            a,
            sizes,
            texts,
            before=[],
            after=[beginning],
            end=end,
            shown=shown,
        )


def stack(h: Tensor, lengths: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """h (B, T, D) -> n frames side by side (B, ceil(T / n), n D) and their lengths.

    Behind an utterance's end are zeros: the encoder leaves something there that differs with the batch.
    """
    h = h * length_mask(lengths, h.shape[1])[..., None]
    h = F.pad(h, (0, 0, 0, -h.shape[1] % n))
    return h.unflatten(1, (-1, n)).flatten(2), (lengths + n - 1) // n


def symbols(lm: nn.Module) -> tuple[int, int]:
    """The ids that begin and end a text; a model that knows no beginning begins with its end."""
    beginning, end = begin_and_end(lm, "the language model")
    return end if beginning is None else beginning, end


def load_lm(config: Config, place: Place) -> nn.Module:
    """--lm, frozen or to be trained whole."""
    frozen = config.lora_rank > 0 or config.lr_lm == 0
    with first_rank_first(place):
        lm = load_causal(config.lm, "--lm", config.root, frozen, place.dtype)
    _, end = begin_and_end(lm, f"--lm {config.lm}")
    if end is None:
        raise UserError(
            f"--lm {config.lm} names no eos_token_id in its config.json: give another one."
        )
    most = prompting.positions_of(lm)
    seconds = max(config.max_seconds / min(config.speeds), config.cut_seconds)
    if (
        most
        and (needed := math.ceil(1000 * seconds / config.stride_ms) + 1 + prompting.LONGEST) > most
    ):
        raise UserError(f"--lm {config.lm} has {most} positions, {seconds:.1f} s of audio and an answer take {needed}: "
                        "give a longer --stride-ms, or less --max-seconds and --cut-seconds.")  # fmt: skip
    return lm


def load_tokenizer_of_lm(config: Config, place: Place) -> Pieces:
    with first_rank_first(place):
        return Pieces(load_pieces(config.lm, "--lm", config.root))


def fits(samples: int, labels: list[int], text: str) -> bool:
    """Of CTC, which needs a frame for every label, and one more between equal ones."""
    needed = ctc.required_frames(
        torch.tensor([labels], dtype=torch.long), torch.tensor([len(labels)])
    )
    return bool(subsampled(num_frames(samples), 8) >= max(needed, 1))


def prompt_fits(n: int, positions: int | None, samples: int, labels: list[int], text: str) -> bool:
    """Of a language model with so many positions, which reads n frames in a vector: see `prompting.answer_fits`."""
    vectors = math.ceil(subsampled(num_frames(samples), 8) / n)
    return prompting.answer_fits(vectors, len(labels), positions)


def fits_of(recogniser: Recogniser) -> Fits:
    """Whether labels fit so many samples; it holds numbers and no model, for it goes to the processes that read."""
    if not hasattr(recogniser, "lm"):
        return fits
    return partial(prompt_fits, recogniser.n, prompting.positions_of(recogniser.lm))


# =========================================================================================================== loss


def hide(ids: list[int], share: float, draw: random.Random, symbol: int) -> list[int]:
    """y': each piece is replaced by the symbol with this probability (C2 masking)."""
    return [symbol if draw.random() < share else piece for piece in ids]


def hidden_symbol(recogniser: Recogniser) -> int:
    """<unk>, unless the language model has none or ends with it: then what says nothing (C2 masking)."""
    unknown = recogniser.tokenizer.tokenizer.unk_token_id
    return prompting.MASKED if unknown is None or unknown in symbols(recogniser.lm) else unknown


def answer_losses(
    recogniser: Recogniser, batch: Batch, place: Place, config: Config | None = None
) -> Tensor:
    """-log p(y </s> | a) of each utterance (B,), in fp32; config: in training, with SpecAugment and pieces hidden.

    Which are hidden is drawn from the utterance, its epoch and its update, for a language may come around again.
    """
    texts, shown = prompting.texts_of(batch), None
    if config and config.mask_fraction:
        when = f"{config.seed}-{batch.plan.epoch}-{batch.plan.update}"
        names = (f"{when}-{u.id}-hidden" for u in batch.utterances)
        rows, symbol = zip(texts, names, strict=True), hidden_symbol(recogniser)
        shown = [hide(ids, config.mask_fraction, random.Random(name), symbol) for ids, name in rows]
    with place.autocast():
        h, lengths = recogniser.encode(
            batch, (config.frequency_masks, config.time_masks) if config else (0, 0)
        )
        return prompting.answer_loss(recogniser.lm, recogniser.sequences(h, lengths, texts, shown))


def compute_losses(recogniser: Recogniser, batch: Batch, config: Config, place: Place) -> Tensor:
    """The training loss of each utterance (B,), of CTC or of the language model. Networks may run in bf16."""
    if config.method == "llm":
        return answer_losses(recogniser, batch, place, config)
    with place.autocast():
        h, lengths = recogniser.encode(batch, (config.frequency_masks, config.time_masks))
        log_probs = recogniser.log_probs(h)
    return ctc.ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths)


# ======================================================================================================== teacher


# Options of the second stage, about which the first need not agree.
SECOND_STAGE = (
    "encoder", "lora_rank", "stride_ms", "mask_fraction", "epochs", "lr_encoder", "lr_projection", "lr_lm",
    "freeze_encoder_steps", "warmup", "lm",
)  # fmt: skip


def find_encoder(config: Config, utterances: list[Utterance], place: Place) -> Recogniser | None:
    """The first stage: an ordinary run of `ctc`, which is trained first, or gone on with, if it is not finished.

    Raises UserError where it was trained on other data, or is another model than this run's.
    """
    if config.encoder == "scratch":
        return None
    stage = Stage("ctc", "--encoder", PRESETS, SECOND_STAGE, digest_of(utterances))
    return load(earlier_stage(config, place, stage, run_method), place)


# ========================================================================================================== train


def build(config: Config, utterances: list[Utterance], place: Place) -> Recogniser:
    """What is trained: with a new encoder and a CTC head, or with that encoder, a projection and a language model."""
    if config.method != "llm":
        if config.units_of == "lm":
            tokenizer = load_tokenizer_of_lm(config, place)
        else:
            tokenizer = SentencePiece.build((u.text for u in utterances), config.units)
        reseed(config.seed)
        recogniser = Recogniser(config, tokenizer, None, tokenizer.size)
    else:
        first_stage = find_encoder(config, utterances, place)
        reseed(config.seed, 1)
        recogniser = Recogniser(
            config, load_tokenizer_of_lm(config, place), load_lm(config, place), 0
        )
        if config.lora_rank:  # drawn behind the projection, which is the same at every rank
            reseed(config.seed, 2)
            lora.adapt(recogniser.lm, config.lora_rank)
    recogniser.to(place.device)
    if config.method == "llm" and first_stage:
        recogniser.frontend.load_state_dict(first_stage.frontend.state_dict())
        recogniser.encoder.load_state_dict(first_stage.encoder.state_dict())
    else:
        recogniser.frontend.fit(sample_waves(utterances, config))
    return recogniser


def train(config: Config, corpus: Corpus, place: Place) -> tuple[Recogniser, dict, dict]:
    """Returns the recogniser with the average of the best epochs' weights, what RESULT says of the training, and
    the figures of it, see figures.draw.

    Each part learns by its own rate; one whose rate is 0 is frozen, and stays in evaluation mode.
    """
    utterances = trainable(corpus.train, config.max_seconds)
    recogniser, is_llm = build(config, utterances, place), config.method == "llm"
    rates = {"encoder": config.lr_encoder, "projection": config.lr_projection, "lm": config.lr_lm}
    if not is_llm:
        rates = {"encoder": config.ctc_lr, "ctc_head": config.ctc_lr}
        config = replace(config, epochs=config.ctc_epochs, warmup=config.ctc_warmup)
    models, groups = nn.ModuleDict(dict(recogniser.named_children())), []
    for name, rate in rates.items():
        if rate:
            groups.append(
                {"params": [p for p in models[name].parameters() if p.requires_grad], "lr": rate}
            )
        else:
            models[name].requires_grad_(False)
    report = {"trained_params": sum(p.numel() for group in groups for p in group["params"])}
    if is_llm:
        perplexity = partial(
            prompting.text_perplexity, recogniser, corpus.dev, symbols(recogniser.lm), place
        )
        report["text_perplexity"] = [perplexity()]
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
        fits=fits_of(recogniser),
        language_power=config.language_power,
    )
    listening = partial(
        prompting.measure_listening,
        recogniser,
        answer_losses,
        corpus.dev,
        config,
        place,
        fits_of(recogniser),
    )
    for _ in run.epochs():
        for update in run.updates():
            if is_llm:
                learns = config.lr_encoder > 0 and update.step > config.freeze_encoder_steps
                models["encoder"].requires_grad_(learns).train(learns)
            for batch in update:
                loss = compute_losses(recogniser, batch, config, place).sum()
                loss.backward()
                update.add(loss)
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
        run.end_epoch(recogniser, scores | (listening() if is_llm else {}))
    report |= run.finish(recogniser)
    drawings = {}
    if is_llm:
        report["text_perplexity"].append(perplexity())
        report |= listening()
        report["alignment"], drawings = measure_alignment(recogniser, corpus, config, place)
    return recogniser, report, drawings


# ======================================================================================================= figures


def alignment(a: Tensor, e: Tensor) -> Tensor:
    """S (T', U): cosines of a (T', E) and e (U, E), each without its mean."""
    a, e = (F.normalize(x.float() - x.float().mean(0), dim=-1) for x in (a, e))
    return a @ e.T


def alignment_scores(S: Tensor) -> dict[str, float]:
    """Of S (T', U), U > 1: does the vector most like a piece come later for later pieces? And how often by chance?"""
    best, n = S.argmax(0), len(S)
    rising = (best.diff() >= 0).double().mean().item()
    rho = metrics.spearman(torch.arange(len(best)), best)
    return {"rho": rho, "non_decreasing": rising, "chance": (n + 1) / (2 * n)}


@torch.inference_mode()
def measure_alignment(
    recogniser: Recogniser, corpus: Corpus, config: Config, place: Place
) -> tuple[dict[str, float], dict[str, partial]]:
    """Over 64 dev utterances, and for the same texts beside another utterance's audio; and the figures, of one.

    A text of one piece says nothing.
    """
    maps, encode, table = (
        ({}, {}),
        recogniser.tokenizer.encode,
        recogniser.lm.get_input_embeddings(),
    )
    for swapped, batch in prompting.listening_batches(
        corpus.dev, config, encode, fits_of(recogniser)
    ):
        with place.autocast():
            a, sizes = recogniser.prompt(*recogniser.encode(batch.to(place.device)))
        for vectors, n, ids, u in zip(
            a, sizes, prompting.texts_of(batch), batch.utterances, strict=True
        ):
            if len(ids) > 1:
                maps[swapped][u.id] = alignment(
                    vectors[:n], table(torch.tensor(ids, device=place.device))
                ).cpu()
    shared = [name for name in maps[0] if name in maps[1]]
    if not shared:
        return {}, {}
    drawings, folder = {}, Path(config.out)
    if place.first:
        panels = {
            "its own audio": maps[0][shared[-1]].numpy(),
            "audio of another session": maps[1][shared[-1]].numpy(),
        }
        axes = "piece of the transcript", "vector of the prompt"
        drawings["alignment.png"] = partial(
            figures.matrices, folder / "alignment.png", panels, *axes
        )
        curve = folder / "listening.png", "listening_gap", "nats per piece"
        drawings["listening.png"] = partial(figures.log_curves, *curve)
    found = {}
    for suffix, some in zip(("", "_swapped"), maps, strict=True):
        scores = [alignment_scores(S) for S in some.values()]
        found |= {
            name + suffix: round(fmean(score[name] for score in scores), 3) for name in scores[0]
        }
    return {name: score for name, score in found.items() if name != "chance_swapped"}, drawings


# ============================================================================================================ main


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    tokenizer = load_tokenizer(config.checkpoint)
    lm = load_lm(config, place) if config.method == "llm" else None
    if config.lora_rank and lm:
        lora.adapt(lm, config.lora_rank)
    return load_recogniser(
        Recogniser(config, tokenizer, lm, tokenizer.size), config.checkpoint, place
    )


def one_by_one(config: Config) -> dict:
    """monolingual_ctc: a recogniser for each language, in a folder of its own; and what they have together."""
    if config.transcribe:
        raise UserError(
            f"--transcribe takes one language: give --checkpoint {config.checkpoint}/LANGUAGE."
        )
    place, out = start(config), Path(config.out)
    corpus = read_corpus(config, place)
    heard = (
        sum(corpus.tests.values(), []) if config.checkpoint else corpus.dev
    )  # for scoring, there may be no dev
    languages = languages_of(heard)
    if mixed := [
        name for name, found in corpus.tests.items() if len({u.language for u in found}) > 1
    ]:
        raise UserError(
            f"{mixed[0]}.jsonl holds several languages: split it into {mixed[0]}-LANGUAGE.jsonl."
        )
    begun = gather([(out / language / "config.json").exists() for language in languages], place)[0]
    results = []
    for language, has_begun in zip(languages, begun, strict=True):
        finished = config.checkpoint and f"{config.checkpoint}/{language}"
        one = replace(config, languages=(language,), out=str(out / language), checkpoint=finished)
        results.append(run_method(replace(one, resume=config.resume and has_begun)))
    first, counts = (
        results[0],
        ("not_scored", "train_seconds", "skipped_updates", "infeasible", "bad_files"),
    )
    merged = {name: first[name] for name in ("script", "method", "seed", "decode", "normaliser")}
    for name, value in first.items():
        if isinstance(value, dict):
            merged[name] = {k: v for result in results for k, v in result[name].items()}
        elif name in counts:
            merged[name] = sum(result[name] for result in results)
    merged |= {f"{name}_mean": round(fmean(merged[name].values()), 2) for name in ("wer", "cer")}
    return evaluation.report(merged, config, place)


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint scores or transcribes. Returns what RESULT says."""
    if config.method == "monolingual_ctc" and len(config.languages) != 1:
        return one_by_one(config)
    place = start(config)
    if config.transcribe:
        transcription.transcribe_files(load(config, place), list(config.transcribe), config, place)
        return {}
    corpus = read_corpus(config, place)
    if config.checkpoint:
        recogniser, report, drawings = load(config, place), {}, {}
    else:
        recogniser, report, drawings = train(config, corpus, place)
    result = {"script": "llm_prompt_asr", "method": config.method, "seed": config.seed}
    result |= evaluation.evaluate(recogniser, corpus, config, place) | report
    result = evaluation.report(result, config, place)
    if place.first and not config.checkpoint:
        figures.draw(config.out, drawings)
    return result


def print_summary(config: Config) -> dict[str, int]:
    """Parameters by part beside LLaMA-7B, whose weights are not needed for it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        lm = LlamaForCausalLM(LlamaConfig(**LLAMA_7B))
        if config.lora_rank:
            lora.adapt(lm, config.lora_rank)
    recogniser = Recogniser(config, None, lm, 0)
    parts = evaluation.print_parameters(nn.ModuleDict({"recogniser": recogniser}))
    adapters = sum(
        p.numel() for part in lm.modules() if isinstance(part, lora.LoRA) for p in (part.A, part.B)
    )
    print(f"of the lm, {adapters:,} in adapters of rank {config.lora_rank}")
    return parts | {"adapters": adapters}


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    if configs[0].summary:
        return print_summary(configs[-1])
    return evaluation.compare_methods(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
