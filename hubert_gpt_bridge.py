"""Integrating Pre-Trained Speech and Language Models
for End-to-End Speech Recognition.

Y. Hono, K. Mitsuda, T. Zhao, K. Mitsui, T. Wakatsuki, K. Sawada. Findings of ACL 2024.
arXiv 2312.03668. The model was published as rinna/nue-asr, without code that trains it.
[paper] its abstract, or the published model; [digest] a summary by others; [choice]
ours, as is most of training. We have not read the body of the paper.

Idea
----
HuBERT has learned from audio alone what speech is made of, GPT from text alone what
people write. A small bridge joins them [paper]: it makes HuBERT's 50 frames a second
fewer, and gives them the size of GPT's embeddings. GPT reads the speech as if it were
the beginning of a text, and writes the transcript. All parts are trained together by
GPT's own loss. There are two bridges: convolutions of stride 2, or a CTC head, which
keeps the frames at which something is said [digest]. A trained recogniser is adapted to
another domain by low-rank matrices in GPT's self-attention [paper].

Diagram
-------
  wave (B, N) --CNN--> (B, T, D) --Transformer--> h (B, T, D)    HuBERT, 50 a second
                                                   |
      conv:  Conv1d(4, stride 2), GELU, twice <----+----> Linear(D, V), compress  :ctc
                       |                                        |
                       +--> (B, T', D) --Linear(D, E)--> a (B, T', E)
                                                |
             <s>  a_1 ... a_T'  [SEP]  y_1 ... y_U  --> GPT
                                  |     |        |
                                 y_1   y_2 ... </s>  --> lm; no loss before [SEP]

Equations (our names; right: the function; its test in tests/test_hubert_gpt_bridge.py)
---------
    T'    = floor((T - 4) / 2) + 1, for each convolution
                                               BridgedGPT.bridge       test_t
    ctc   = -log sum over paths to c of p      ctc_losses              test_ctc
    runs  = stretches of equal argmax p(. | h_t)
                                               vectors_of              test_runs
    lm    = - sum_(u=1)^(U+1) log p(y_u | <s> a [SEP] y_1 ... y_(u-1))
                                               answer_losses           test_lm
    loss  = lm + w ctc                         total_loss              test_loss
    LoRA  = W x + 2 B A x                      lora.LoRA               test_lora
    gap   = (lm with another session's audio - lm) / pieces
                                               listening.measure_gap   test_gap
    limit = floor(4 seconds + 20.5) pieces     BridgedGPT.limits       test_limits

    y_(U+1) is </s>;  c: the characters of the text;  w: --ctc-weight, with a CTC bridge
    W: GPT's matrix of queries, keys and values; --lora-maps all: every matrix of
       its layers; head: the output matrix too
    all losses sum over pieces; `train` divides by the number of utterances of an update

Our own choices (`choice: start` in the code points to the line `start`)
---------------
    start     in the demo, and for the CTC bridge, HuBERT comes from the CTC baseline;
              the paper starts from the pretrained HuBERT (--ctc-run none)
    cnn       frozen [digest]; trained in the demo, whose HuBERT has heard 1.8 hours
    path      the CTC bridge compresses by the head's own most probable labels, without
              a gradient; if all are blank, the least blank frame stays
    padding   HuBERT with group norm knows no mask: see common/hubert.py
    lora      on query_key_value only, or --lora-maps; it freezes GPT, not the rest
    adapting  a run with --init counts its start as an epoch: dev may choose it
    rates     every part has a learning rate of its own; 0 freezes the part

Run
---
    python hubert_gpt_bridge.py     demo, 28 minutes on one core: ctc 42 %, gpt 20 % WER
    python hubert_gpt_bridge.py --method gpt --bridge ctc --compression average
    python hubert_gpt_bridge.py --data DIR --init RUN --lora-rank 8 --lr-hubert 0
        --lr-bridge 0 --lr-llm 1e-4                adapts a finished run to other data
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM, HubertModel

from common import ctc, features, figures, hubert, lora, prompting, text
from common.errors import UserError, note
from common.running import (
    batches,
    beam_models,
    bridge_figures,
    command_line,
    corpora,
    decoding,
    evaluation,
    listening,
    options,
    pretrained,
    shapes,
    stages,
    training,
    variants,
    weights,
)
from common.running.batches import Batch
from common.running.options import Count, Positive, Seconds, Share, Speed
from common.running.process import Place, first_rank_first, reseed, start

# ================================================================================ configuration

Method = Literal["ctc", "gpt"]
METHODS: dict[Method, int] = {  # the stage
    "ctc": 1,  # the baseline: HuBERT with a CTC head on characters
    "gpt": 2,  # the paper's idea
}
FRAME_SECONDS = 0.02  # of HuBERT
KERNEL = 4  # of the bridge's convolutions [paper]
STRIDE = 2  # [paper]


@dataclass(frozen=True)
class Augmentation:
    """Speed perturbation, and what HuBERT drops in training."""

    speeds: tuple[Speed, ...]  # one is drawn per utterance and epoch; it changes the pitch too
    mask_time: Share  # share of HuBERT's frames that is masked
    layerdrop: Share  # share of HuBERT's layers that is left out


@dataclass(frozen=True)
class Symbols:
    """The pieces of GPT's vocabulary around speech and text."""

    begin: str  # before the speech
    separator: str  # between speech and text
    end: str  # behind the text


@dataclass(frozen=True)
class Answers:
    """How many pieces GPT writes."""

    pieces_per_second: float  # of audio: at most so many, and --more-pieces
    more_pieces: int  # beside those by the second
    least_pieces: int  # before an answer may end


@dataclass(frozen=True)
class Config(options.RunConfig):
    """The preset `full`; options.RunConfig adds --data, --seed, --out and the like.

    The comment behind an option is its help. `config.method` is the first of `methods`.
    """

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("gpt",)  # rows of METHODS
    cut_seconds: Seconds = options.local(16.0)  # it has learned from none longer
    bridge: Literal["conv", "ctc"] = "conv"  # what makes the speech shorter
    bridge_layers: Count = 2  # convolutions, each halves the rate [paper]
    compression: Literal["remove_blank", "average", "average_remove_blank"] = "remove_blank"
    ctc_weight: float = 0.5  # w, of CTC beside GPT's loss [choice]
    hubert: str = "rinna/japanese-hubert-base"  # [paper]: hub name or folder
    gpt: str = "rinna/japanese-gpt-neox-3.6b"  # GPT-NeoX [paper]: hub name or folder
    ctc_run: str = "none"  # finished run of ctc; auto: beside, or trained; choice: start
    init: str | None = None  # finished run to go on from
    lora_rank: int = 0  # of adapters in GPT, 8 [choice]; 0: none
    lora_maps: Literal["attention", "all", "head"] = "attention"  # [paper]; choice: lora
    symbols: Symbols = Symbols(begin="<s>", separator="[SEP]", end="</s>")  # [paper]
    answers: Answers = Answers(pieces_per_second=4.0, more_pieces=20, least_pieces=2)  # [paper]
    ctc_epochs: Count = 20  # passes of ctc [choice]
    ctc_lr: Positive = 5e-5  # peak learning rate of ctc [choice]
    lr_hubert: float = 5e-5  # of HuBERT and a CTC head beside GPT [choice]; 0: frozen
    lr_bridge: float = 1e-4  # of the bridge [choice]; 0: frozen
    lr_llm: float = 1e-5  # of GPT, or of its adapters [choice]; 0: frozen
    train_cnn: Annotated[bool, options.EITHER] = False  # HuBERT's waveform CNN; choice: cnn
    gradient_checkpointing: bool = options.local(False)  # less memory, a third more time
    training: options.Training = options.Training(  # [choice]; max_seconds [paper]
        epochs=5,
        update_seconds=1600.0,
        max_seconds=16.0,
        schedule="one-cycle",
        warmup=0.05,
        clip=1.0,
        average=1,
        weight_decay=1e-2,
    )
    augmentation: Augmentation = Augmentation(speeds=(1.0,), mask_time=0.0, layerdrop=0.0)

    def check(self) -> None:
        """Raises UserError for values that would fail late, or do nothing."""
        super().check()
        if self.lora_rank and not self.lr_llm:
            raise UserError("--lora-rank adapts GPT by --lr-llm, which is 0.")
        if has_gpt(self) and not (self.lr_hubert or self.lr_bridge or self.lr_llm):
            raise UserError("--lr-... are all 0: nothing would learn.")
        needs_head = has_gpt(self) and self.bridge == "ctc" and not self.init
        if needs_head and self.ctc_run == "none":
            raise UserError("--bridge ctc needs a CTC head: give --ctc-run RUN, or auto.")


def has_gpt(config: Config) -> bool:
    return METHODS[config.method] == 2


def is_gpt_frozen(config: Config) -> bool:
    """Whether GPT's own weights stay as they are: then a run does not keep them."""
    return config.lora_rank > 0 or config.lr_llm == 0


def rates_of(config: Config, recogniser: SpeechModel) -> dict[str, float]:
    """The peak learning rate of every part; 0: frozen (choice: rates)."""
    if not has_gpt(config):
        return {"audio_encoder": config.ctc_lr, "ctc_head": config.ctc_lr}
    rates = {
        "audio_encoder": config.lr_hubert,
        "ctc_head": config.lr_hubert,
        "bridge_convs": config.lr_bridge,
        "bridge_proj": config.lr_bridge,
        "llm": config.lr_llm,
    }
    return {name: rates[name] for name, _ in recogniser.named_children()}


# =================================================================================== pretrained


def load_hubert(config: Config, place: Place) -> HubertModel:
    """--hubert, in fp32, to be trained. A variant replaces this function."""
    with first_rank_first(place):
        return pretrained.load_hubert(config.hubert, "--hubert", config.root, place)


def load_gpt(config: Config, place: Place) -> GPTNeoXForCausalLM:
    """--gpt; a frozen one has the precision of the run. A variant replaces this
    function."""
    is_frozen = is_gpt_frozen(config)
    with first_rank_first(place):
        return pretrained.load_causal(config.gpt, "--gpt", config.root, is_frozen, place.dtype)


def load_pieces(config: Config, place: Place) -> text.Pieces | text.SentencePiece:
    """GPT's pieces. The label of the piece with id i is i + 1: label 0 is CTC's
    blank."""
    with first_rank_first(place):
        return pretrained.load_text(config.gpt, "--gpt", config.root)


# Options that the second stage alone uses: the run of the first need not agree on them.
FIRST_STAGE = stages.Stage(
    method="ctc",
    flag="--ctc-run",
    may_differ=(
        "ctc_run",
        "bridge",
        "bridge_layers",
        "compression",
        "ctc_weight",
        "gpt",
        "lora_rank",
        "lora_maps",
        "begin",
        "separator",
        "end",
        "pieces_per_second",
        "more_pieces",
        "least_pieces",
        "epochs",
        "lr_hubert",
        "lr_bridge",
        "lr_llm",
        "train_cnn",
    ),
)


def find_first_stage(
    config: Config, utterances: list[corpora.Utterance], place: Place
) -> HubertCTC | None:
    """The run of `ctc` whose HuBERT this one begins with; it is trained first if there
    is none. None for --ctc-run none.

    Raises UserError where it was trained with other options or on other data.
    """
    if config.ctc_run == "none":
        return None
    earlier = stages.find_run(config, FIRST_STAGE, PRESETS, place)
    if stages.is_finished(earlier):
        stages.check_corpus(earlier, FIRST_STAGE, utterances, place)
    else:
        if place.first:
            note(f"ctc first, in {earlier.out}")
        with variants.plain(__name__):
            run_method(earlier)
    return load(earlier, place)


# ======================================================================================== model


class SpeechModel(nn.Module):
    """What both stages share: HuBERT, and perhaps a CTC head on characters.

    Parts have the names of the published model. `tokenizer` writes the transcript.
    """

    def __init__(self, config: Config, encoder: HubertModel, characters: text.Characters | None):
        super().__init__()
        self.config = config
        self.characters = characters
        self.audio_encoder = encoder
        hubert.set_dropping(
            encoder.config, config.augmentation.layerdrop, config.augmentation.mask_time
        )
        if characters is not None:
            self.ctc_head = nn.Linear(encoder.config.hidden_size, characters.size)

    def shortest(self) -> int:
        """The samples of the shortest audio that makes a vector, 3280 for the published
        model; shorter audio is padded."""
        sizes = self.audio_encoder.config
        layers = [(KERNEL, STRIDE)] * len(getattr(self, "bridge_convs", ()))
        masked = 10 if self.config.augmentation.mask_time else 1  # so many frames at once
        return max(hubert.shortest_input(sizes, layers), hubert.shortest_input(sizes, [], masked))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """h (B, T, D) and its lengths (B,)."""
        return hubert.encode(self.audio_encoder, batch.waves, batch.samples, self.shortest())

    def log_probs(self, h: Tensor) -> Tensor:
        """h (B, T, D) -> log p(character or blank | frame) (B, T, V), in fp32."""
        return self.ctc_head(h).float().log_softmax(-1)


class HubertCTC(SpeechModel):
    """The first stage, and the baseline."""

    def __init__(self, config: Config, encoder: HubertModel, characters: text.Characters):
        super().__init__(config, encoder, characters)
        self.tokenizer = characters

    decodes = decoding.Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        lm=beam_models.CharacterModel,
        own=options.Search(beam=4, lm_weight=(0.3, 0.6, 1.0), bonus=(0.0,)),  # [choice]
    )

    def transcribe(self, batch: Batch, place: Place, **search) -> list[decoding.Transcript]:
        """The batch's transcripts with word times. search: none for greedy, or see
        `ctc.search`."""
        with place.autocast():
            h, lengths = self.encode(batch)
            log_probs = self.log_probs(h)  # (B, T, V)
        transcripts = []
        for path in ctc.search(log_probs, lengths, **search):
            transcripts.append(decoding.transcript_of(path, self.tokenizer, FRAME_SECONDS))
        return transcripts


class BridgedGPT(SpeechModel):
    """The second stage: HuBERT, a bridge and GPT. characters: of the CTC bridge."""

    def __init__(
        self,
        config: Config,
        encoder: HubertModel,
        llm: GPTNeoXForCausalLM,
        tokenizer: text.Pieces | text.SentencePiece | None,
        characters: text.Characters | None = None,
    ):
        super().__init__(config, encoder, characters)
        self.tokenizer = tokenizer
        width = encoder.config.hidden_size  # D
        if config.bridge == "conv":
            layers = range(config.bridge_layers)
            self.bridge_convs = nn.ModuleList(
                nn.Conv1d(width, width, KERNEL, STRIDE) for _ in layers
            )
        self.bridge_proj = nn.Linear(width, llm.config.hidden_size)
        self.llm = llm

    def bridge(self, h: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        """h (B, T, D) and its lengths (B,) -> a (B, T', E) and its lengths."""
        if self.config.bridge == "ctc":
            h, sizes = compress(h, lengths, self.log_probs(h), self.config.compression)
            return self.bridge_proj(h), sizes
        h = h.transpose(1, 2)  # (B, D, T)
        for convolution in self.bridge_convs:
            h = F.gelu(convolution(h))
            lengths = (lengths - KERNEL) // STRIDE + 1
        return self.bridge_proj(h.transpose(1, 2)), lengths.tolist()

    def frame(self) -> prompting.Frame:
        """The ids around speech and text. Raises UserError for what is no piece."""
        names = self.config.symbols
        size = len(self.llm.get_input_embeddings().weight)
        pieces = [names.begin, names.separator, names.end]
        begin, separator, end = prompting.ids_of_symbols(self.tokenizer, pieces, size)
        return prompting.Frame(before=[begin], after=[separator], end=end)

    def sequences(
        self, a: Tensor, sizes: list[int], texts: list[list[int]] | None
    ) -> prompting.Sequences:
        """<s> a_1 ... a_T' [SEP] y_1 ... y_U. texts: ids; None: to be written."""
        embedding = self.llm.get_input_embeddings()
        return prompting.build_sequences(embedding, a, sizes, texts, self.frame())

    def limits(self, samples: Tensor) -> list[int]:
        """The most pieces of each answer, by the seconds of audio."""
        rate = self.config.answers.pieces_per_second
        more = self.config.answers.more_pieces
        return [int(rate * n / features.SAMPLE_RATE + more + 0.5) for n in samples.tolist()]

    decodes = decoding.Decoding(
        kinds=("greedy", "beam", "top_k", "top_p"),
        own=options.Search(beam=4, top_k=10, top_p=0.9),  # [choice]
    )

    def transcribe(self, batch: Batch, place: Place, **search) -> list[decoding.Transcript]:
        """The batch's transcripts. search: none for greedy, or see
        `prompting.search_options`."""
        how = {"min_new_tokens": self.config.answers.least_pieces}
        if search:
            how |= prompting.search_options(search, self.config.seed, batch.samples)
        limits = self.limits(batch.samples)
        with place.autocast():
            h, lengths = self.encode(batch)
            a, sizes = self.bridge(h, lengths)
            sequences = self.sequences(a, sizes, texts=None)
            end = self.frame().end
            answers, counts = prompting.write(self.llm, sequences, limits, end, **how)
        transcripts = []
        for ids, count, size in zip(answers, counts, sizes, strict=True):
            labels = [i + 1 for i in ids]  # see `load_pieces`
            counted = count | {"embeddings": float(size)}
            transcripts.append(decoding.Transcript(self.tokenizer.decode(labels), None, counted))
        return transcripts


def vectors_of(log_probs: Tensor, mode: str) -> Tensor:
    """log_probs (T, V) -> (T,), the number of the vector that each frame goes into;
    -1: into none (choice: path).

    With a most probable path  a a - a b b - -  (-: blank):

        remove_blank           0 1 -1 2 3 4 -1 -1    a vector per frame but blanks
        average                0 0  1 2 3 3  4  4    a vector per run of equal labels
        average_remove_blank   0 0 -1 1 2 2 -1 -1    a vector per such run but blanks
    """
    path = log_probs.argmax(-1)  # (T,)
    begins = path != torch.cat([path[:1] - 1, path[:-1]])  # True at the first frame of a run
    kept = torch.ones_like(begins) if mode == "average" else path != ctc.BLANK
    if not kept.any():
        kept = torch.zeros_like(kept)
        kept[log_probs[:, ctc.BLANK].argmin()] = True
        return torch.where(kept, 0, -1)
    counted = kept if mode == "remove_blank" else kept & begins
    return (counted.cumsum(0) - 1).masked_fill(~kept, -1)


def compress(h: Tensor, lengths: Tensor, log_probs: Tensor, mode: str) -> tuple[Tensor, list[int]]:
    """The mean of the frames of each vector: h (B, T, D) of `lengths`, log_probs
    (B, T, V) -> (B, T', D), lengths."""
    rows = []
    for x, lp, n in zip(h, log_probs.detach(), lengths.tolist(), strict=True):
        into = vectors_of(lp[:n], mode)  # (n,)
        is_kept = into >= 0
        x = x[:n][is_kept]
        into = into[is_kept]
        sums = x.new_zeros(int(into[-1]) + 1, x.shape[1]).index_add(0, into, x)  # (T', D)
        rows.append(sums / into.bincount()[:, None].to(x.dtype))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows]


# ======================================================================================= losses


def ctc_losses(
    characters: text.Characters, log_probs: Tensor, lengths: Tensor, batch: Batch
) -> Tensor:
    """-log p(characters | h) of each utterance (B,); log_probs (B, T, V)."""
    rows = [torch.tensor(characters.encode(u.text)) for u in batch.utterances]
    sizes = torch.tensor([len(row) for row in rows], device=lengths.device)
    targets = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(lengths.device)  # (B, C)
    return ctc.ctc_loss(log_probs, lengths, targets, sizes)


def answer_losses(recogniser: BridgedGPT, h: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """lm = -log p(y_1 ... y_U </s> | a) of each utterance (B,), in fp32."""
    a, sizes = recogniser.bridge(h, lengths)  # (B, T', E)
    texts = prompting.ids_of(batch.targets, batch.target_lengths)
    sequences = recogniser.sequences(a, sizes, texts)
    return prompting.answer_loss(recogniser.llm, sequences)


def total_loss(losses: dict[str, Tensor], ctc_weight: float) -> Tensor:
    """lm + w ctc, or ctc alone."""
    if "lm" not in losses:
        return losses["ctc"]
    return losses["lm"] + ctc_weight * losses.get("ctc", 0.0)


def compute_losses(
    recogniser: SpeechModel, batch: Batch, config: Config, place: Place
) -> tuple[Tensor, dict[str, Tensor]]:
    """loss = lm + w ctc, summed over the utterances of the batch.

    Returns the loss and its parts for the log: "lm" and "ctc", those that the method
    has, and the "pieces" and "characters" by which they can be divided. Networks may
    run in bf16; the losses are fp32.
    """
    known = recogniser.characters
    losses = {}
    with place.autocast():
        h, lengths = recogniser.encode(batch)  # (B, T, D)
        if has_gpt(config):
            losses["lm"] = answer_losses(recogniser, h, lengths, batch).sum()
        log_probs = None if known is None else recogniser.log_probs(h)  # (B, T, V)
    if known is not None:
        losses["ctc"] = ctc_losses(known, log_probs, lengths, batch).sum()
    characters = sum(len(utterance.text) for utterance in batch.utterances)
    counts = {
        "pieces": (batch.target_lengths + 1).sum(),
        "characters": torch.tensor(characters),
    }
    return total_loss(losses, config.ctc_weight), losses | counts


# ===================================================================================== training


def build_ctc(config: Config, utterances: list[corpora.Utterance], place: Place) -> HubertCTC:
    """The first stage, with the pretrained HuBERT."""
    encoder = load_hubert(config, place)
    characters = text.Characters.build(utterance.text for utterance in utterances)
    reseed(config.seed, 0)
    return HubertCTC(config, encoder, characters)


def build_bridged(config: Config, utterances: list[corpora.Utterance], place: Place) -> BridgedGPT:
    """The second stage: with the pretrained HuBERT, or that of the first stage."""
    encoder = load_hubert(config, place)
    llm = load_gpt(config, place)
    tokenizer = load_pieces(config, place)
    first_stage = find_first_stage(config, utterances, place)
    characters = None
    if config.bridge == "ctc":
        characters = first_stage.characters
    reseed(config.seed, 1)
    recogniser = BridgedGPT(config, encoder, llm, tokenizer, characters)
    if first_stage is not None:
        encoder.load_state_dict(first_stage.audio_encoder.state_dict())
        hubert.hear_as(encoder.config, first_stage.audio_encoder.config)
    if characters is not None:
        recogniser.ctc_head.load_state_dict(first_stage.ctc_head.state_dict())
    return recogniser


def load_init(config: Config, place: Place) -> SpeechModel:
    """The finished run of --init, to go on from; adapters that it has are merged.

    Raises UserError where it is a run of another method, or another model.
    """
    stored = command_line.load_config(config.init, PRESETS)
    if stored.method != config.method:
        raise UserError(f"--init {config.init} is a run of {stored.method}, not {config.method}.")
    same = ("bridge", "bridge_layers", "compression", "begin", "separator", "end")
    stages.check_same(stored, config, "--init", same)
    earlier = load(replace(stored, root=config.root), place)
    if not has_gpt(config):
        recogniser = HubertCTC(config, earlier.audio_encoder, earlier.characters)
    else:
        lora.merge(earlier.llm)
        weights.forget_supplied(earlier.llm)
        recogniser = BridgedGPT(
            config, earlier.audio_encoder, earlier.llm, earlier.tokenizer, earlier.characters
        )
    recogniser.load_state_dict(earlier.state_dict())
    recogniser.requires_grad_(True)
    if has_gpt(config) and is_gpt_frozen(config):
        digest = shapes.digest_of_gpt(Path(config.init), "--init", config.root)
        weights.mark_supplied(recogniser.llm, digest)
    return recogniser


def build(config: Config, utterances: list[corpora.Utterance], place: Place) -> SpeechModel:
    """What is trained, with the weights that it starts from."""
    if config.init:
        recogniser = load_init(config, place)
    elif has_gpt(config):
        recogniser = build_bridged(config, utterances, place)
    else:
        recogniser = build_ctc(config, utterances, place)
    if config.lora_rank and has_gpt(config):
        reseed(config.seed, 2)
        lora.adapt(recogniser.llm, config.lora_rank, lora.NEOX[config.lora_maps])
    if config.resume:
        shapes.hear_as_kept(recogniser, Path(config.out))
    return recogniser.to(place.device)


def prepare(
    config: Config,
    utterances: list[corpora.Utterance],
    recogniser: SpeechModel,
    place: Place,
) -> tuple[nn.ModuleDict, torch.optim.Optimizer, training.Run]:
    """The parts of the recogniser, the optimiser, and the run: new, or as a checkpoint
    left it."""
    models = nn.ModuleDict(dict(recogniser.named_children()))
    if not config.train_cnn:
        recogniser.audio_encoder.feature_extractor.requires_grad_(False)
    groups = []
    for name, rate in rates_of(config, recogniser).items():
        if rate == 0:
            models[name].requires_grad_(False)
        else:
            learning = [p for p in models[name].parameters() if p.requires_grad]
            groups.append({"params": learning, "lr": rate})
    if config.gradient_checkpointing:
        pretrained.checkpoint_gradients(models)
    optimizer = torch.optim.AdamW(
        groups,
        betas=(0.9, 0.98),  # [choice]
        weight_decay=config.training.weight_decay,
        fused=True,
    )
    run = training.Run(
        config,
        place,
        models=models,
        optimizer=optimizer,
        utterances=utterances,
        encode=recogniser.tokenizer.encode,
        fits=hubert.fits_of(
            recogniser.audio_encoder.config, recogniser.characters, recogniser.shortest()
        ),
        by_length=not config.init,
    )
    if place.first:
        shapes.keep(recogniser, Path(config.out))
    return models, optimizer, run


def train(
    config: Config, corpus: corpora.Corpus, place: Place
) -> tuple[SpeechModel, dict[str, float], figures.Drawings]:
    """Returns the recogniser with the mean weights of the best epochs, numbers for
    RESULT, and the figures to be drawn.
    """
    utterances = corpora.trainable(corpus.train, config.training.max_seconds)
    recogniser = build(config, utterances, place)
    if not has_gpt(config):
        config = options.with_values(config, epochs=config.ctc_epochs)
    models, optimizer, run = prepare(config, utterances, recogniser, place)
    if config.init and run.is_new():  # dev may choose the run as it was (choice: adapting)
        run.keep_start(recogniser, evaluation.dev_scores(recogniser, corpus, config, place))
    for _ in run.epochs():
        for update in run.updates():  # a step of the optimiser; --resume skips what is done
            for batch in update:  # this GPU's micro-batches, none of them empty
                loss, parts = compute_losses(recogniser, batch, config, place)
                loss.backward()
                update.add(loss, parts)
            # The gradient of the mean loss per utterance: over all micro-batches and all GPUs.
            update.average_gradients()

            # Every part is clipped by itself: their gradients differ in size (choice: rates).
            norms = {}
            for name in rates_of(config, recogniser):
                norm = nn.utils.clip_grad_norm_(models[name].parameters(), config.training.clip)
                norms[name] = norm.item()
            learning_rate = run.set_learning_rates()  # of the first part that learns
            # The log also has the loss and its parts, from update.add.
            update.log.update(norm=norms, lr=learning_rate)
            if update.is_usable(norms.values()):  # all are finite, and there was an utterance
                optimizer.step()
            optimizer.zero_grad()
        scores = evaluation.dev_scores(recogniser, corpus, config, place)
        scores |= listening_gap(recogniser, corpus, config, place)
        run.end_epoch(recogniser, scores)
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    report = {"trained_params": trained} | run.finish(recogniser)
    report |= listening_gap(recogniser, corpus, config, place)
    drawings = bridge_figures.drawings(config, recogniser, corpus, place, vectors_of)
    return recogniser, report, drawings


def listening_gap(
    recogniser: SpeechModel, corpus: corpora.Corpus, config: Config, place: Place
) -> dict[str, float]:
    """{"listening_gap": nats per piece}, see `listening.py`; {} without GPT."""
    if not has_gpt(config):
        return {}

    def losses(batch: Batch) -> Tensor:
        with place.autocast():
            h, lengths = recogniser.encode(batch)
            return answer_losses(recogniser, h, lengths, batch)

    return listening.measure_gap(recogniser, losses, corpus.dev, config, place)


# ====================================================================================== presets

DEMO_TRAINING = options.Training(
    epochs=3,
    update_seconds=32.0,
    max_seconds=8.0,
    schedule="one-cycle",
    warmup=0.2,
    clip=5.0,
    average=1,
    weight_decay=1e-2,
)
DEMO = Config(  # [choice]
    methods=("ctc", "gpt"),
    hubert="demo/hubert",
    gpt="demo/gpt",
    # What differs in the method: HuBERT comes from the CTC run (choice: start), and all of it
    # learns (choice: cnn); this world's speech has more pieces per second.
    ctc_run="auto",
    train_cnn=True,
    answers=Answers(pieces_per_second=12.0, more_pieces=20, least_pieces=0),
    ctc_epochs=4,
    ctc_lr=2e-3,
    lr_hubert=1e-3,
    lr_bridge=3e-3,
    lr_llm=1e-3,
    training=DEMO_TRAINING,
    workers=0,
    batch_seconds=60.0,
)
SMOKE = options.with_values(
    DEMO,
    data="demo-smoke",
    hours=0.1,
    hubert="demo-smoke/hubert",
    gpt="demo-smoke/gpt",
    update_seconds=8.0,
    ctc_epochs=2,
    epochs=2,
    pieces_per_second=6.0,
    more_pieces=5,
)
PRESETS = {"full": Config(), "demo": DEMO, "smoke": SMOKE}


# ========================================================================================= main


def load(config: Config, place: Place) -> HubertCTC | BridgedGPT:
    """The recogniser of a finished run; `config.out` is its folder. Raises
    UserError."""
    folder = Path(config.out)
    tokenizer = text.load_tokenizer(folder)
    encoder, llm = shapes.networks(shapes.read(folder, "the run"))
    if not has_gpt(config):
        recogniser = HubertCTC(config, encoder, tokenizer)
        return weights.load_recogniser(recogniser, folder, place)
    if is_gpt_frozen(config):  # its weights are not in the run
        llm = load_init(config, place).llm if config.init else load_gpt(config, place)
    characters = None
    if config.bridge == "ctc":
        characters = text.load_tokenizer(folder / "characters")
    recogniser = BridgedGPT(config, encoder, llm, tokenizer, characters)
    if config.lora_rank:
        lora.adapt(llm, config.lora_rank, lora.NEOX[config.lora_maps])
    return weights.load_recogniser(recogniser, folder, place)


def run_method(config: Config) -> dict:
    """Trains one method and scores it on the test sets; returns what RESULT says."""
    place = start(config)
    corpus = batches.read_corpus(config, place)
    if config.init:  # with the test sets of the first domain: does it forget?
        first = command_line.load_config(config.init, PRESETS).data
        corpus = corpora.with_tests_of(corpus, config.data, first, config.root)
    recogniser, report, drawings = train(config, corpus, place)
    result = evaluation.head_of_result(config)
    result |= evaluation.evaluate(recogniser, corpus, config, place)
    result |= report
    evaluation.report(result, config, place)
    if place.first:
        figures.draw(config.out, drawings)
    return result


def print_summary(config: Config) -> dict[str, int]:
    """Parameters by part of the row `gpt`, without any weights."""
    with torch.device("meta"):
        encoder, llm = shapes.networks(shapes.by_name(config.hubert, config.gpt, config.root))
        recogniser = BridgedGPT(config, encoder, llm, tokenizer=None)
    return evaluation.print_parameters({"recogniser": recogniser})


def main(argv: list[str] | None = None, replace: variants.Replacements | None = None) -> dict:
    """Trains the methods on the command line, one after another, and compares them.

    replace: {function of this script: another}, see `variants/`. Returns what RESULT
    says, by method if there are several.
    """
    with variants.replaced(__name__, replace) as variant:
        configs = command_line.parse(PRESETS, __doc__, argv, variant.name)
        if configs[0].summary:
            return print_summary(configs[-1])
        results = [run_method(config) for config in configs]
        variant.check_called()
    return evaluation.compare_methods(configs, results)


if __name__ == "__main__":
    main()
