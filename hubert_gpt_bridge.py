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
    T'    = floor((T - 4) / 2) + 1 for each convolution                              Recogniser.bridge         test_t
    ctc   = -log sum over paths that collapse to c of prod_t p(path_t | h_t)         ctc.ctc_loss              test_ctc
    runs  : stretches of equal q_t = argmax p(. | h_t)                               compress                  test_runs
    lm    = -sum_{u=1}^{U+1} log p(y_u | <s> a [SEP] y_1 … y_{u-1}), y_{U+1} = </s>  prompting.answer_loss     test_lm
    loss  = lm + w ctc, w = 0 without CTC in the bridge                              compute_losses            test_loss
    LoRA    W x + 2 B A x on the matrix of q, k and v                                lora.LoRA                 test_lora
    gap   = (lm with the audio of another session - lm) / pieces                     measure_listening         test_gap
    limit = floor(4 seconds + 20.5) pieces                                           Recogniser.limits         test_limits

    c: the characters of the text;  w --ctc-weight;  A (r, inputs), B (outputs, r), r = --lora-rank

Sources
-------
Written from the abstract, a summary by others, and the published model's configuration and inference code; we have not
seen the paper's body. Options say where their value comes from: [paper] the abstract or the published model, [digest] a
summary by others, [choice] ours, as is all of training but the loss. Symbols and metrics that all scripts share:
README.md.

Choices (ours, marked again where they stand)
-------
    C1 start      in the demo HuBERT comes from the CTC baseline: GPT does not learn to listen to one that has learnt
                  little from so little audio; the paper starts from HuBERT as it was pretrained (--ctc-run none)
    C2 CNN        frozen, as in the paper; in the demo trained: 1.8 hours give none that is worth freezing
    C3 CTC        learns characters; the path that compresses is the head's own arg-max, without a gradient, the same in
                  training and decoding; of an utterance that is all blank, the least blank frame stays
    C4 padding    a HuBERT with layer norm in its CNN reads masked padding; one with group norm, such as the published
                  one, knows no mask: scored by equal length, alone or not the same; trained on padding as it comes
    C5 LoRA       on query_key_value only, alpha = 2 r; everything else is frozen unless its rate says otherwise
    C6 training   AdamW, a rate for each part, 0: frozen; the first epoch goes from short to long utterances;
                  checkpoints are chosen by dev WER

Metrics (beside those of all scripts)
-------
    lm, ctc         the parts of the loss, nats per piece and per character
    listening_gap   nats per piece, on 64 dev utterances; near 0 GPT writes what is likely and does not listen
    unstopped, repetitions    answers that the limit ended; those among them whose repetitions were cut
    embeddings      vectors GPT was given, over all test sets;  embeddings_per_second

Run
---
    python hubert_gpt_bridge.py                       demo world: ctc and gpt side by side, with what is pretrained
    python hubert_gpt_bridge.py --method gpt --bridge ctc --compression average_remove_blank
    python hubert_gpt_bridge.py --data DIR --init rinna/nue-asr --lora-rank 8 --lr-hubert 0 --lr-bridge 0
    python hubert_gpt_bridge.py --init rinna/nue-asr --transcribe a.wav
    python hubert_gpt_bridge.py --checkpoint runs/x --transcribe a.wav
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from common.flags import Count, Extent, Positive, Real, RunConfig, Share, Speed, UserError, check_command_line, parse

# ================================================================================================== configuration


@dataclass(frozen=True)
class Config(RunConfig):
    # -- what to do --
    score: bool = False  # score --init as it is
    export: str | None = None  # folder: writes --init or --checkpoint there in the published model's layout
    # -- data --
    max_seconds: Positive = 16.0  # longer training utterances are left out [paper]
    update_seconds: Positive = 1600.0  # audio per update, over all ranks and micro-batches [choice]
    speeds: tuple[Speed, ...] = (1.0,)  # of the audio, one drawn per utterance and epoch [choice]
    mask_time: Share = 0.0  # of HuBERT's frames masked in training [choice]
    layerdrop: Share = 0.0  # of HuBERT's layers left out in training [choice]
    # -- method --
    method: Literal["ctc", "gpt"] = "gpt"  # row of the table; ctc: HuBERT with a CTC head, the baseline
    bridge: Literal["conv", "ctc"] = "conv"  # what makes speech shorter
    bridge_layers: Count = 2  # convolutions, each of half the rate [paper]
    compression: Literal["remove_blank", "average", "average_remove_blank"] = "remove_blank"  # [digest] (C3 CTC)
    ctc_weight: float = 0.5  # w, of CTC beside GPT's loss, both summed over an utterance [choice]
    hubert: str = "rinna/japanese-hubert-base"  # [paper]: hub name, folder, demo/hubert
    gpt: str = "rinna/japanese-gpt-neox-3.6b"  # GPT-NeoX [paper]: hub name, folder, demo/gpt
    untrained_hubert: bool = False  # random weights in place of its own: a control
    untrained_gpt: bool = False  # the same
    ctc_run: str = "none"  # finished run of ctc whose HuBERT it starts from; auto: the one beside (C1 start)
    init: str | None = None  # published model (name or folder) or finished run to start from
    lora_rank: int = 0  # r of adapters on GPT's self-attention, 8 [choice]; 0: none (C5 LoRA)
    begin: str = "<s>"  # the piece before the speech [paper]
    separator: str = "[SEP]"  # the piece between speech and text [paper]
    end: str = "</s>"  # the piece behind the text [paper]
    # -- optimisation --
    ctc_epochs: Count = 20  # passes over the training data by ctc [choice]
    ctc_lr: Positive = 5e-5  # peak learning rate of ctc [choice], of AdamW (C6 training)
    epochs: Count = 5  # passes with GPT [choice]
    lr_hubert: float = 5e-5  # peak learning rate of HuBERT, and of a CTC head, with GPT [choice]; 0: frozen
    lr_bridge: float = 1e-4  # of the bridge [choice]; 0: frozen
    lr_llm: float = 1e-5  # of GPT, or with --lora-rank of its adapters [choice]; 0: frozen
    train_cnn: Literal["no", "yes"] = "no"  # whether HuBERT's waveform CNN learns too [paper] (C2 CNN)
    weight_decay: float = 1e-2  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "one-cycle"  # of the learning rates [choice]
    warmup: Positive = 0.05  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [choice]
    clip: Positive = 1.0  # largest norm of the gradient of each part, by itself [choice]
    average: Count = 1  # epochs with the lowest dev error whose weights are averaged [choice]
    # -- how to compute --
    gradient_checkpointing: bool = False  # less memory, a third more time
    # -- decoding --
    decode: Literal["greedy", "beam", "top_k", "top_p"] = "greedy"  # beam also of ctc, with --lm by shallow fusion
    beam: Extent = 4  # hypotheses kept [choice]
    top_k: Count = 10  # pieces to draw from [choice]
    top_p: Share = 0.9  # probability of the pieces to draw from [choice]
    pieces_per_second: float = 4.0  # of audio, at most so many and --more-pieces [paper]
    more_pieces: int = 20  # [paper]
    lm: str | None = None  # causal language model for the beam of ctc, of any pieces: hub name, folder, demo/gpt
    lm_weight: tuple[float, ...] = (0.3, 0.6, 1.0)  # for ctc, each is tried on 100 dev utterances [choice]
    bonus: tuple[Real, ...] = (0.0,)  # per character, for ctc, each is tried with each --lm-weight [choice]

    def check(self) -> None:
        init, read_only = self.init, self.transcribe or self.score or self.export
        super().check()
        if self.lora_rank and not self.lr_llm:
            raise UserError("--lora-rank adapts GPT by --lr-llm, which is 0: give one of them a value.")
        if self.method == "gpt" and not (self.lr_hubert or self.lr_bridge or self.lr_llm):
            raise UserError("--lr-hubert, --lr-bridge and --lr-llm are all 0: nothing would learn.")
        if self.method == "gpt" and self.bridge == "ctc" and self.ctc_run == "none" and not init:
            raise UserError("--bridge ctc starts from a CTC head: give --ctc-run auto, or a finished run of ctc.")
        if (self.score or self.export) and not (init or self.checkpoint):
            raise UserError("--score and --export need --init, a published model or a finished run.")
        if self.method == "ctc" and init:
            raise UserError("--init goes with --method gpt.")
        if self.checkpoint and self.score or read_only and init and self.resume:
            raise UserError("--score goes with --init alone: --checkpoint scores by itself.")


DEMO = dict(  # [choice]
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, methods=("ctc", "gpt"), hubert="demo/hubert",
    gpt="demo/gpt", ctc_run="auto", ctc_epochs=4, ctc_lr=2e-3, epochs=3, lr_hubert=1e-3, lr_bridge=3e-3, lr_llm=1e-3,
    train_cnn="yes", warmup=0.2, clip=5.0, pieces_per_second=12.0,
)  # fmt: skip
SMOKE = DEMO | dict(
    data="demo-smoke", hours=0.1, hubert="demo-smoke/hubert", gpt="demo-smoke/gpt", update_seconds=8.0, ctc_epochs=2,
    epochs=2,
)  # fmt: skip
PRESETS = {"smoke": SMOKE, "demo": DEMO}

if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel

from common import ctc, lora, prompting, scoring
from common.conformer import length_mask
from common.corpora import Corpus, trainable
from common.data import Batch, read_corpus
from common.features import SAMPLE_RATE
from common.files import write_atomically
from common.flags import load_config
from common.place import Place, earlier_run, earlier_stage, first_rank_first, note, reseed, start
from common.pretrained import find, load_causal, load_model, load_pieces, mark_supplied, published_weights, read_json
from common.scoring import Transcript
from common.text import Characters, Pieces, load_tokenizer
from common.training import Run
from common.weights import load_recogniser

# ========================================================================================================== model

FRAME_SECONDS = 0.02  # of HuBERT
KERNEL, STRIDE = 4, 2  # of the bridge's convolutions [paper]
SHAPES = {  # of the published models [paper], for --summary without their weights
    "audio_encoder_config": {},  # HuBERT base: the library's own defaults
    "llm_config": dict(
        vocab_size=32000, hidden_size=2816, num_hidden_layers=36, num_attention_heads=22, intermediate_size=11264,
        rotary_pct=1.0, use_parallel_residual=False,
    ),
}  # fmt: skip


class Recogniser(nn.Module):
    """HuBERT; with a CTC head, or a bridge and GPT, or all of them. Parts are named as in the published model."""

    def __init__(self, config: Config, hubert: HubertModel, llm: nn.Module | None, tokenizer, characters):
        """tokenizer: of the texts, `Pieces` beside GPT; characters: of the CTC head, where there is one."""
        super().__init__()
        self.config, self.tokenizer, self.characters = config, tokenizer, characters
        self.audio_encoder, width = hubert, hubert.config.hidden_size
        hubert.config.layerdrop, hubert.config.apply_spec_augment = config.layerdrop, config.mask_time > 0
        hubert.config.mask_time_prob = config.mask_time or hubert.config.mask_time_prob
        if characters:
            self.ctc_head = nn.Linear(width, characters.size)
        if llm and config.bridge == "conv":
            convolutions = (nn.Conv1d(width, width, KERNEL, STRIDE) for _ in range(config.bridge_layers))
            self.bridge_convs = nn.ModuleList(convolutions)
        if llm:
            self.bridge_proj = nn.Linear(width, llm.config.hidden_size)
            self.llm = llm

    def frames(self, samples: Tensor) -> Tensor:
        """HuBERT's for so many samples, (B,)."""
        return self.audio_encoder._get_feat_extract_output_lengths(samples)

    def shortest(self) -> int:
        """Samples that give one vector: anything shorter is padded. 3280 for the published model."""
        sizes = self.audio_encoder.config
        layers = list(zip(sizes.conv_kernel, sizes.conv_stride, strict=True))
        layers += [(KERNEL, STRIDE)] * len(getattr(self, "bridge_convs", ()))
        needed = 10 if self.config.mask_time else 1  # frames: HuBERT masks so many at a time
        for kernel, stride in reversed(layers):
            needed = (needed - 1) * stride + kernel
        return needed

    def encode(self, waves: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """waves (B, N) -> h (B, T, D) and its lengths (B,) (C4 padding)."""
        waves = F.pad(waves, (0, max(0, self.shortest() - waves.shape[1])))
        samples = samples.clamp(min=self.shortest())
        if self.audio_encoder.config.feat_extract_norm == "layer":
            mask = length_mask(samples, waves.shape[1]).long()
            return self.audio_encoder(waves, mask).last_hidden_state, self.frames(samples)
        if self.training:
            return self.audio_encoder(waves).last_hidden_state, self.frames(samples)
        rows: list[Tensor] = [waves[0]] * len(waves)
        for n in samples.unique().tolist():
            same = (samples == n).nonzero()[:, 0].tolist()
            for i, row in zip(same, self.audio_encoder(waves[same, :n]).last_hidden_state, strict=True):
                rows[i] = row
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), self.frames(samples)

    def log_probs(self, h: Tensor) -> Tensor:
        """h (B, T, D) -> log p(character or blank | frame) (B, T, V)."""
        return self.ctc_head(h).float().log_softmax(-1)

    def bridge(self, h: Tensor, lengths: Tensor, log_probs: Tensor | None) -> tuple[Tensor, list[int]]:
        """h (B, T, D) -> a (B, T', E) and its lengths."""
        if self.config.bridge == "ctc":
            h, sizes = compress(h, lengths, log_probs, self.config.compression)
            return self.bridge_proj(h), sizes
        h = h.transpose(1, 2)  # (B, D, T)
        for convolution in self.bridge_convs:
            h, lengths = F.gelu(convolution(h)), (lengths - KERNEL) // STRIDE + 1
        return self.bridge_proj(h.transpose(1, 2)), lengths.tolist()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """h (B, T, D), its lengths (B,), and log-probabilities of characters where there is a CTC head."""
        h, lengths = self.encode(batch.waves, batch.samples)
        return h, lengths, self.log_probs(h) if self.characters else None

    def symbols(self) -> list[int]:
        """The ids of the pieces before, between and behind. Raises UserError."""
        tokenizer, names = self.tokenizer.tokenizer, ("begin", "separator", "end")
        for name in names:
            if (piece := getattr(self.config, name)) not in tokenizer.get_vocab():
                raise UserError(f"--{name} {piece} is no piece of this GPT's tokenizer: name one of its own.")
        return [tokenizer.convert_tokens_to_ids(getattr(self.config, name)) for name in names]

    def sequences(self, a: Tensor, sizes: list[int], texts: list[list[int]] | None) -> prompting.Sequences:
        """<s> a [SEP] y; texts: ids; absent: to be written."""
        begin, separator, end = self.symbols()
        embedding = self.llm.get_input_embeddings()
        return prompting.build_sequences(embedding, a, sizes, texts, [begin], [separator], end)

    def limits(self, samples: Tensor) -> list[int]:
        """Most pieces of an answer, by the seconds of audio."""
        rate, more = self.config.pieces_per_second, self.config.more_pieces
        return [int(rate * n / SAMPLE_RATE + more + 0.5) for n in samples.tolist()]

    def transcribe(self, batch: Batch, place: Place, **search) -> list[Transcript]:
        """search: of ctc.prefix_beam_search; for GPT that it is not to decode greedily but by --decode."""
        with place.autocast():
            h, lengths, log_probs = self(batch)
            if self.config.method == "ctc":
                return self.transcribe_by_ctc(log_probs, lengths, **search)
            a, sizes = self.bridge(h, lengths, log_probs)
            c, options = self.config, {"min_new_tokens": 2}  # [paper]
            if search:
                reseed(c.seed, int(batch.samples.sum()))
                draw = dict(do_sample=True, top_k=0, top_p=1.0)
                options |= {"beam": dict(num_beams=c.beam), "top_k": draw | {"top_k": c.top_k}}.get(
                    c.decode, draw | {"top_p": c.top_p}
                )
            sequences, end = self.sequences(a, sizes, None), self.symbols()[-1]
            answers, counts = prompting.write(self.llm, sequences, self.limits(batch.samples), end, **options)
        texts = [self.tokenizer.decode([i + 1 for i in ids]) for ids in answers]
        rows = zip(texts, counts, sizes, strict=True)
        return [Transcript(text, None, count | {"embeddings": float(n)}) for text, count, n in rows]

    def transcribe_by_ctc(self, log_probs: Tensor, lengths: Tensor, beam: int = 1, **search) -> list[Transcript]:
        paths = ctc.greedy(log_probs, lengths)
        if search:
            utterances = [row[:n] for row, n in zip(log_probs, lengths.tolist(), strict=True)]
            best = [ctc.prefix_beam_search(row, beam, **search)[0].labels for row in utterances]
            paths = [ctc.align(row, labels) for row, labels in zip(utterances, best, strict=True)]
        return [scoring.transcript_of(path, self.tokenizer, FRAME_SECONDS) for path in paths]

    def fits(self, samples: int, labels: list[int]) -> bool:
        """Whether CTC can write the text of these labels in so many samples; GPT always can."""
        if not self.characters:
            return True
        text = self.tokenizer.decode(labels)
        characters = torch.tensor([self.characters.encode(text)], dtype=torch.long)
        needed = ctc.required_frames(characters, torch.tensor([characters.shape[1]]))
        return bool(self.frames(torch.tensor(max(samples, self.shortest()))) >= needed)


def compress(h: Tensor, lengths: Tensor, log_probs: Tensor, mode: str) -> tuple[Tensor, list[int]]:
    """h (B, T, D) of `lengths`, log_probs (B, T, V) -> (B, T', D) and its lengths; not differentiated (C3 CTC).

    remove_blank: the frames whose most probable label is not the blank; average: the mean of each run of frames with
    the same one; average_remove_blank: of the runs that are not blank.
    """
    rows = []
    for x, lp, n in zip(h, log_probs.detach(), lengths.tolist(), strict=True):
        x, path = x[:n], lp[:n].argmax(-1)  # (T, D), (T,)
        spoken = path != ctc.BLANK
        if not spoken.any() and mode != "average":
            rows.append(x[lp[:n, ctc.BLANK].argmin()][None])
            continue
        if mode == "remove_blank":
            rows.append(x[spoken])
            continue
        labels, run, sizes = path.unique_consecutive(return_inverse=True, return_counts=True)
        means = x.new_zeros(len(labels), x.shape[1]).index_add(0, run, x) / sizes[:, None]
        rows.append(means if mode == "average" else means[labels != ctc.BLANK])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows]


# =========================================================================================================== loss


def texts_of(batch: Batch) -> list[list[int]]:
    """The transcripts in GPT's ids."""
    return [(row[:n] - 1).tolist() for row, n in zip(batch.targets, batch.target_lengths.tolist(), strict=True)]


def ctc_losses(recogniser: Recogniser, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """-log p_ctc(characters | h) of each utterance (B,)."""
    labels = [torch.tensor(recogniser.characters.encode(u.text)) for u in batch.utterances]
    sizes = torch.tensor([len(x) for x in labels], device=lengths.device)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True).to(lengths.device)
    return ctc.ctc_loss(log_probs, lengths, targets, sizes)


def compute_losses(recogniser: Recogniser, batch: Batch, place: Place) -> dict[str, Tensor]:
    """{"lm", "ctc"}, those that the method has, of each utterance (B,) in fp32. Networks may run in bf16."""
    losses = {}
    with place.autocast():
        h, lengths, log_probs = recogniser(batch)
        if recogniser.config.method == "gpt":
            sequences = recogniser.sequences(*recogniser.bridge(h, lengths, log_probs), texts_of(batch))
            losses["lm"] = prompting.answer_loss(recogniser.llm, sequences)
    if log_probs is not None:
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
    "separator", "end", "epochs", "lr_hubert", "lr_bridge", "lr_llm", "max_steps",
)  # fmt: skip


def find_ctc(config: Config, place: Place) -> Recogniser | None:
    """The first stage: an ordinary run of `ctc`, which is trained first, or gone on with, if it is not finished.

    Raises UserError where it was trained on other data, or is another model than this run's.
    """
    if config.ctc_run == "none":
        return None
    folder = earlier_run(config, "ctc", config.ctc_run)
    asked = earlier_stage(config, PRESETS, place, folder, "--ctc-run", SECOND_STAGE, method="ctc")
    if not (folder / "model.safetensors").exists():
        if place.first:
            note(f"CTC first, in {folder}")
        run_method(asked)
    return load(replace(asked, checkpoint=str(folder)), place)


# ========================================================================================================== train


def build(config: Config, corpus: Corpus, place: Place) -> Recogniser:
    """What is trained, with the weights that it starts from: what is pretrained, a CTC run, or all of --init."""
    if config.init:
        recogniser = load_init(config, place)
        recogniser.config = config
    else:
        first_stage = find_ctc(config, place) if config.method == "gpt" else None
        with first_rank_first(place):
            hubert, llm, tokenizer = load_pretrained(config)
        characters = first_stage.characters if first_stage and config.bridge == "ctc" else None
        if config.method == "ctc":
            tokenizer = characters = Characters.build(u.text for u in corpus.train)
        reseed(config.seed, int(config.method == "gpt"))
        recogniser = Recogniser(config, hubert, llm, tokenizer, characters)
        if first_stage:
            hubert.load_state_dict(first_stage.audio_encoder.state_dict())
            if characters:
                recogniser.ctc_head.load_state_dict(first_stage.ctc_head.state_dict())
    if config.lora_rank:
        reseed(config.seed, 2)
        lora.adapt(recogniser.llm, config.lora_rank, 2 * config.lora_rank, ("query_key_value",))
    return recogniser.to(place.device)


def load_pretrained(config: Config) -> tuple[HubertModel, nn.Module | None, Pieces | None]:
    """HuBERT, and beside it, for the method gpt, GPT and its tokenizer. Raises UserError."""
    hubert = load_model(HubertModel, config.hubert, "--hubert", config.root).requires_grad_(True)
    reseed(config.seed, 3)
    if config.untrained_hubert:
        hubert = HubertModel(hubert.config)
    if config.method == "ctc":
        return hubert, None, None
    tokenizer = Pieces(load_pieces(config.gpt, "--gpt", config.root))
    llm = load_causal(config.gpt, "--gpt", config.root, frozen_llm(config))
    if config.untrained_gpt:
        llm = GPTNeoXForCausalLM(llm.config)
        llm = mark_supplied(llm) if frozen_llm(config) else llm
    return hubert, llm, tokenizer


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
            groups.append({"params": [p for p in models[name].parameters() if p.requires_grad], "lr": rate})
        else:
            models[name].requires_grad_(False)
    if config.gradient_checkpointing:
        for part in (recogniser.audio_encoder, getattr(recogniser, "llm", None)):
            if part is not None:
                part.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
    run = Run(config, place, models, optimizer, utterances, recogniser.tokenizer.encode, recogniser.fits)
    if place.first:
        keep_shapes(recogniser, Path(config.out))
    for _ in run.epochs():
        for update in run.updates():
            for batch in update:
                losses = compute_losses(recogniser, batch, place)
                loss = total_loss(losses, config.ctc_weight)
                loss.backward()
                update.add(loss, {name: part.sum() for name, part in losses.items()})
            update.average_gradients()
            norms = {name: nn.utils.clip_grad_norm_(models[name].parameters(), config.clip).item() for name in rates}
            update.log |= {"norm": norms, "lr": run.set_learning_rates()}
            if update.usable(*norms.values()):
                optimizer.step()
            optimizer.zero_grad()
        scores = scoring.dev_scores(recogniser, corpus, config, place)
        run.end_epoch(recogniser, scores | (measure_listening(recogniser, corpus, config, place) if is_gpt else {}))
    report = {"trained_params": sum(p.numel() for group in groups for p in group["params"])} | run.finish(recogniser)
    return recogniser, report | (measure_listening(recogniser, corpus, config, place) if is_gpt else {})


@torch.inference_mode()
def measure_listening(recogniser: Recogniser, corpus: Corpus, config: Config, place: Place) -> dict[str, float]:
    """{"listening_gap"}: by how many nats per piece a transcript is less likely after the audio of another session."""
    recogniser.eval()
    sums, pieces = [0.0, 0.0], [0, 0]
    for swapped, batch in prompting.listening_batches(corpus.dev, config, recogniser.tokenizer.encode, lambda *_: True):
        sums[swapped] += compute_losses(recogniser, batch.to(place.device), place)["lm"].sum().item()
        pieces[swapped] += int(batch.target_lengths.sum()) + len(batch.utterances)
    own, other = (total / max(count, 1) for total, count in zip(sums, pieces, strict=True))
    if place.first:
        note(f"listening gap {other - own:.2f}" + (": GPT does not listen yet" if other - own < 0.1 else ""))
    return {"listening_gap": round(other - own, 3)}


# ============================================================================================================ main

SHAPE_FILE = "shapes.json"  # of a run: the configurations of HuBERT and GPT, so that it needs neither to be scored


def shapes_of(recogniser: Recogniser) -> dict:
    """As the published model's config.json."""
    shapes = {"audio_encoder_config": recogniser.audio_encoder.config.to_dict()}
    if hasattr(recogniser, "llm"):
        shapes["llm_config"] = recogniser.llm.config.to_dict()
    layers = len(getattr(recogniser, "bridge_convs", ()))
    return shapes | {"bridge_conv_kernel_size": [KERNEL] * layers, "bridge_conv_stride": [STRIDE] * layers}


def keep_shapes(recogniser: Recogniser, folder: Path) -> None:
    write_atomically(folder / SHAPE_FILE, json.dumps(shapes_of(recogniser), indent=1) + "\n")
    if recogniser.characters and recogniser.characters is not recogniser.tokenizer:
        (folder / "characters").mkdir(exist_ok=True)
        recogniser.characters.save(folder / "characters")


def load(config: Config, place: Place) -> Recogniser:
    """The finished model in --checkpoint. Raises UserError."""
    folder = Path(config.checkpoint)
    shapes, tokenizer = read_json(folder / SHAPE_FILE, "--checkpoint"), load_tokenizer(folder)
    characters = tokenizer if config.method == "ctc" else None
    if config.method == "gpt" and config.bridge == "ctc":
        characters = load_tokenizer(folder / "characters")
    hubert, llm = HubertModel(HubertConfig(**shapes["audio_encoder_config"])), None
    if config.method == "gpt" and frozen_llm(config):
        llm = load_init(config, place).llm if config.init else load_pretrained(config)[1]
    elif config.method == "gpt":
        llm = GPTNeoXForCausalLM(GPTNeoXConfig(**shapes["llm_config"]))
    recogniser = Recogniser(config, hubert, llm, tokenizer, characters)
    if config.lora_rank:
        lora.adapt(llm, config.lora_rank, 2 * config.lora_rank, ("query_key_value",))
    return load_recogniser(recogniser, folder, place)


def load_init(config: Config, place: Place) -> Recogniser:
    """What --init names, whole: a finished run, or a folder in the published model's layout. Raises UserError."""
    with first_rank_first(place):
        folder = Path(find(config.init, "--init", config.root))
    found = read_json(folder / "config.json", "--init")
    if "config" in found:
        stored = load_config(Config, folder, PRESETS)
        recogniser = load(replace(stored, checkpoint=str(folder), root=config.root), place)
        lora.merge(recogniser.llm)
    else:
        if "llm_config" not in found or "audio_encoder_config" not in found:
            raise UserError(f"--init {config.init} is neither a finished run nor laid out as rinna/nue-asr is.")
        layers = found.get("bridge_conv_kernel_size", [KERNEL] * 2)
        stored = replace(config, bridge_layers=max(1, len(layers)), bridge="conv")
        hubert = HubertModel(HubertConfig(**found["audio_encoder_config"]))
        llm = GPTNeoXForCausalLM(GPTNeoXConfig(**found["llm_config"]))
        recogniser = Recogniser(stored, hubert, llm, Pieces(load_pieces(str(folder), "--init", config.root)), None)
        published_weights(recogniser, folder, "--init")
    differ = [n for n in ("bridge", "bridge_layers") if getattr(stored, n) != getattr(config, n)]
    if differ:
        wanted = " ".join(f"--{n.replace('_', '-')} {getattr(stored, n)}" for n in differ)
        raise UserError(f"--init {config.init} has another bridge: give {wanted}.")
    recogniser.llm.requires_grad_(True)
    if frozen_llm(config):
        mark_supplied(recogniser.llm)
    elif hasattr(recogniser.llm, "supplied"):
        del recogniser.llm.supplied
    return recogniser


def run_method(config: Config) -> dict:
    """Trains and scores, or with --checkpoint scores or transcribes. Returns what RESULT says."""
    place = start(config)
    if config.transcribe:
        return scoring.transcribe_files(load(config, place), config, place)
    corpus = read_corpus(config, place)
    recogniser, report = (load(config, place), {}) if config.checkpoint else train(config, corpus, place)
    result = {"script": "hubert_gpt_bridge", "method": config.method, "seed": config.seed}
    result |= scoring.evaluate(recogniser, corpus, config, place) | report
    return scoring.report(result, config, place)


def main(argv: list[str] | None = None) -> dict:
    """One method: what RESULT says; several, one after the other: {method: what RESULT says}, shown side by side."""
    configs = parse(Config, PRESETS, __doc__, argv)
    return scoring.compare(configs, [run_method(config) for config in configs])


if __name__ == "__main__":
    main()
