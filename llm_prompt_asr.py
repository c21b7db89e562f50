"""Prompting Large Language Models with Speech Recognition Abilities.

Y. Fathullah, C. Wu, E. Lakomkin, J. Jia, Y. Shangguan, K. Li, J. Guo, W. Xiong,
J. Mahadeokar, O. Kalinli, C. Fuegen, M. Seltzer. ICASSP 2024. arXiv 2307.11795.
[paper] its abstract; [digest] a summary by others; [recall] remembered, unverified;
[peer] recipes of toolkits; [choice] ours. We have not read the body of the paper.

Idea
----
A language model continues whatever it is given. Given speech as a prompt, as vectors of
its embedding size, it can learn to continue with the transcript, in many languages
[paper]. A Conformer, first trained with CTC on all languages, turns audio into one
vector per 80 ms. n neighbouring vectors are stacked, so that the prompt stays short,
and a linear map gives them the size of the model's embeddings [digest]. Then the CTC
head is gone. Conformer and linear map go on learning, together with low-rank matrices
(LoRA) in the model's self-attention, or alone: then the model is frozen. The paper says
that this is 18 % better than recognisers of one language, works with a frozen model
that has read mostly English, and with almost a second of audio per vector [paper].

Diagram
-------
  wave (B, N) --LogMel--> (B, F, 80) --Subsampling x8--> blocks --> h (B, T, D)
                                                                        |
  stage 1, `ctc`:   Linear(D, V) --> log p(piece | frame) --> ctc  <----+
  stage 2, `llm`:   n frames side by side (B, T', n D)  <---------------+
                               |
                     Linear(n D, E): a (B, T', E)
                               |
        a_1 ... a_T'  <s>  y_1 ... y_U  --> causal language model (LoRA on q, k, v, o)
                       |    |        |
                      y_1  y_2 ... </s>  --> loss; there is none at a_1 ... a_T'

Equations (our names; right: the function, and its test in tests/test_llm_prompt_asr.py)
---------
    ctc  = -log sum over paths to y of p(path)      ctc.ctc_loss           test_ctc
    s_i  = [h_(n(i-1)+1) ... h_(n i)], T' = ceil(T / n)
                                                    stack                  test_stack
    a_i  = W s_i + b                                PromptedLM.prompt      test_prompt
    y'_u = y_u, or now and then a symbol without meaning
                                                    hide                   test_hide
    loss = - sum_(u=1)^(U+1) log p(y_u | a, <s>, y'_1 ... y'_(u-1))
                                                    answer_losses          test_loss
    LoRA = W x + 2 B A x                            lora.LoRA              test_adapters
    gap  = (loss with another recording's audio - loss) / pieces
                                                    listening.measure_gap  test_gap
    S_ij = cos(a_i - mean a, e_j - mean e)          alignment.cosines      test_s

    y_(U+1) is </s>;  h is 0 after the end of an utterance;  n = --stride-ms / 80
    now and then: --mask-fraction, in training only;  e_j: the model's embedding of y_j
    all losses sum over pieces; `train` divides by the number of utterances of an update

Our own choices (`choice: prompt` in the code points to the line `prompt`)
---------------
    prompt     no instruction and no language tag; <s> stands after the audio; zeros
               after the end of an utterance
    masking    by the model's <unk>; by the mean of all embeddings if it has none, or
               uses it to begin or end a text
    languages  drawn in proportion to hours ^ --language-power, in both stages
    pieces     CTC learns pieces of the transcripts; in the demo those of the model
    rank       --lora-rank 0 trains the whole model at --lr-lm, as in the demo, whose
               models are tiny; --lora-rank 0 --lr-lm 0 freezes it
    rates      every part has a learning rate of its own, and is clipped by itself; 0
               freezes the part

Run
---
    python llm_prompt_asr.py    demo, about 30 minutes, ten to pretrain its model: ctc
        15 %, llm (all of it trained) 7 % WER, mean of eight languages; 43 and 5 % of
        the homophones wrong; CTC with a beam and this model: 5 and 14 % (one seed)
    python llm_prompt_asr.py --method llm --stride-ms 960 --lora-rank 8 --lr-lm 5e-3
    python llm_prompt_asr.py --data mls --root ~/corpora --languages german polish
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import alignment, conformer, ctc, features, figures, lora, prompting, text
from common.errors import UserError, note
from common.running import (
    batches,
    beam_models,
    command_line,
    corpora,
    decoding,
    evaluation,
    listening,
    monolingual,
    options,
    pretrained,
    stages,
    training,
    variants,
    weights,
)
from common.running.batches import Batch
from common.running.options import Augmentation, ConformerSizes, Count, Positive, Seconds, Share
from common.running.process import Place, first_rank_first, reseed, start

# ================================================================================ configuration

Method = Literal["monolingual_ctc", "ctc", "llm"]
METHODS: dict[Method, int] = {  # the stage
    "monolingual_ctc": 1,  # a baseline of each language [paper]; that it is CTC is ours
    "ctc": 1,  # one for all languages; its encoder is where `llm` begins
    "llm": 2,  # the paper's idea
}
FRAME_MS = 80  # of encoder frames
SUBSAMPLING = 8  # feature frames (10 ms) per encoder frame [recall]


@dataclass(frozen=True)
class Config(options.RunConfig):
    """The preset `full`; options.RunConfig adds --data, --seed, --out and the like.

    The comment behind an option is its help. `config.method` is the first of `methods`.
    """

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("llm",)  # rows of METHODS
    data: str = "demo-mls"  # demo-mls | mls | a folder with train.jsonl, dev.jsonl and test*.jsonl
    cut_seconds: Seconds = options.local(20.0)  # longer is cut: an answer has at most 200 pieces
    language_power: Share = 0.5  # languages are drawn by hours ^ this; choice: languages
    units: Count = 1547  # pieces of CTC [recall]; more where the characters alone are more
    units_of: Literal["transcripts", "lm"] = "transcripts"  # whose pieces; choice: pieces
    encoder: str = "auto"  # finished run of ctc, or scratch; auto: beside this run, or trained anew
    lm: str = "huggyllama/llama-7b"  # language model [paper]: hub name, folder, demo-mls/lm-m
    lora_rank: int = 8  # [recall], of adapters on q, k, v, o [digest]; 0: none; choice: rank
    stride_ms: Count = 240  # audio per vector of the prompt [choice]; up to almost 1 s [paper]
    mask_fraction: Share = 0.25  # of the text that the model reads in training [recall]
    ctc_epochs: Count = 30  # passes of the first stage [choice]
    ctc_lr: Positive = 1e-3  # peak learning rate of CTC [recall]
    ctc_warmup: Positive = 20000.0  # as --warmup, of the first stage [recall]
    lr_encoder: float = 5e-4  # peak learning rate of the second stage [recall]; 0: frozen
    lr_projection: float = 5e-4  # of the linear map [recall]; 0: frozen
    lr_lm: float = 5e-4  # of the adapters, or of the whole language model [recall]; 0: frozen
    freeze_encoder_steps: int = 0  # updates before the encoder learns in the second stage [recall]
    conformer: ConformerSizes = ConformerSizes(  # 18 layers [recall], width [digest], rest [recall]
        subsampling=SUBSAMPLING,
        channels=128,
        layers=18,
        dim=512,
        heads=8,
        ff_dim=2048,
        kernel=11,
        dropout=0.1,
    )
    training: options.Training = options.Training(  # [choice]; warm-up [recall], clip [peer]
        epochs=10,
        update_seconds=1600.0,
        max_seconds=20.0,
        schedule="inverse-sqrt",
        warmup=5000.0,
        clip=5.0,
        average=5,
        weight_decay=1e-3,
    )
    augmentation: Augmentation = Augmentation(  # [peer]
        speeds=(0.9, 1.0, 1.1), frequency_masks=2, time_masks=10
    )

    def check(self) -> None:
        """Raises UserError for values that would fail late."""
        super().check()
        if self.stride_ms % FRAME_MS:
            raise UserError(f"--stride-ms is a multiple of {FRAME_MS}.")
        if self.conformer.subsampling != SUBSAMPLING:
            raise UserError(f"--subsampling is {SUBSAMPLING}.")
        if self.lora_rank and not self.lr_lm:
            raise UserError("--lora-rank adapts the language model by --lr-lm, which is 0.")
        rates = (self.lr_encoder, self.lr_projection, self.lr_lm)
        if has_lm(self) and not any(rates):
            raise UserError("all rates --lr-... of the parts are 0: nothing would learn.")
        if self.freeze_encoder_steps and not (self.lr_encoder and any(rates[1:])):
            raise UserError("--freeze-encoder-steps: the encoder and another part have to learn.")
        if (self.training.schedule == "one-cycle") != (self.ctc_warmup < 1):
            what = "--ctc-warmup is a share below 1 for --schedule one-cycle"
            raise UserError(f"{what}, else a number of updates.")


def has_lm(config: Config) -> bool:
    return METHODS[config.method] == 2


def rates_of(config: Config) -> dict[str, float]:
    """The peak learning rate of every part that can be trained; 0: frozen (choice:
    rates)."""
    if has_lm(config):
        return {
            "encoder": config.lr_encoder,
            "projection": config.lr_projection,
            "lm": config.lr_lm,
        }
    return {"encoder": config.ctc_lr, "ctc_head": config.ctc_lr}


# =================================================================================== pretrained


def load_lm(config: Config, place: Place) -> nn.Module:
    """--lm, frozen or to be trained whole. Raises UserError where it cannot end a text,
    or has too few positions for the longest audio and answer."""
    is_frozen = config.lora_rank > 0 or config.lr_lm == 0
    with first_rank_first(place):
        lm = pretrained.load_causal(config.lm, "--lm", config.root, is_frozen, place.dtype)
    _, end = pretrained.begin_and_end(lm, f"--lm {config.lm}")
    if end is None:
        raise UserError(f"--lm {config.lm} names no eos_token_id: give another one.")
    positions = prompting.positions_of(lm)
    longest = config.training.max_seconds / min(config.augmentation.speeds)
    seconds = max(longest, config.cut_seconds)
    needed = math.ceil(1000 * seconds / config.stride_ms) + 1 + prompting.LONGEST
    if positions is not None and needed > positions:
        what = f"--lm {config.lm} has {positions} positions"
        why = f"{seconds:.1f} s of audio and an answer take {needed}"
        advice = "give a longer --stride-ms, or less --max-seconds and --cut-seconds."
        raise UserError(f"{what}, {why}: {advice}")
    return lm


def load_pieces(config: Config, place: Place) -> text.Pieces:
    """The pieces of --lm, whose id i is the label i + 1: label 0 is CTC's blank."""
    with first_rank_first(place):
        return text.Pieces(pretrained.load_pieces(config.lm, "--lm", config.root))


def symbols(lm: nn.Module) -> tuple[int, int]:
    """The ids that begin and end a text. A model without a beginning begins with its
    end."""
    begin, end = pretrained.begin_and_end(lm, "the language model")
    return end if begin is None else begin, end


# Options on which the two stages may differ. --lm is among them: the head is thrown away.
FIRST_STAGE = stages.Stage(
    method="ctc",
    flag="--encoder",
    may_differ=(
        "encoder",
        "lora_rank",
        "stride_ms",
        "mask_fraction",
        "epochs",
        "lr_encoder",
        "lr_projection",
        "lr_lm",
        "freeze_encoder_steps",
        "warmup",
        "lm",
    ),
)


def find_first_stage(
    config: Config, utterances: list[corpora.Utterance], place: Place
) -> CTCRecogniser | None:
    """The run of `ctc` where this one begins; it is trained first if there is none.
    None for --encoder scratch.

    Raises UserError where it was trained with other options or on other data.
    """
    if config.encoder == "scratch":
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


class SpeechEncoder(nn.Module):
    """What both stages share: log-mel features and a Conformer, a frame per 80 ms."""

    def __init__(self, config: Config):
        super().__init__()
        self.augmentation = config.augmentation
        self.frontend = features.LogMel()
        sizes = config.conformer
        self.encoder = conformer.Conformer(
            dim=sizes.dim,
            layers=sizes.layers,
            heads=sizes.heads,
            ff_dim=sizes.ff_dim,
            kernel=sizes.kernel,
            dropout=sizes.dropout,
            subsampling=sizes.subsampling,
            channels=sizes.channels,
            macaron=False,  # one feed-forward module per block [recall]
        )

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """h (B, T, D) and its lengths (B,); with SpecAugment in training."""
        mel, frames = self.frontend(batch.waves, batch.samples)  # (B, F, 80), (B,)
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
        encoded = self.encoder(mel, frames)
        return encoded.output, encoded.lengths


class CTCRecogniser(SpeechEncoder):
    """The first stage: a CTC head on the encoder."""

    def __init__(self, config: Config, tokenizer: text.Tokenizer | None, vocabulary: int):
        super().__init__(config)
        self.tokenizer = tokenizer
        self.ctc_head = nn.Linear(config.conformer.dim, vocabulary)

    def log_probs(self, h: Tensor) -> Tensor:
        """h (B, T, D) -> log p(piece or blank | frame) (B, T, V), in fp32."""
        return self.ctc_head(h).float().log_softmax(-1)

    decodes = decoding.Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        lm=beam_models.LanguageModel,
        own=options.Search(beam=4, lm_weight=(0.2, 0.4, 0.6), bonus=(0.0, 0.5, 1.0)),  # [choice]
    )

    def transcribe(self, batch: Batch, place: Place, **search) -> list[decoding.Transcript]:
        """The batch's transcripts with word times. search: none for greedy, or see
        `ctc.search`."""
        with place.autocast():
            h, lengths = self.encode(batch)
            log_probs = self.log_probs(h)  # (B, T, V)
        transcripts = []
        for path in ctc.search(log_probs, lengths, **search):
            transcripts.append(decoding.transcript_of(path, self.tokenizer, FRAME_MS / 1000))
        return transcripts


class PromptedLM(SpeechEncoder):
    """The second stage: speech is the prompt of a language model."""

    def __init__(self, config: Config, tokenizer: text.Pieces | None, lm: nn.Module):
        super().__init__(config)
        self.tokenizer = tokenizer
        self.stride = config.stride_ms // FRAME_MS  # n
        width = lm.get_input_embeddings().embedding_dim  # E
        self.projection = nn.Linear(self.stride * config.conformer.dim, width)
        self.lm = lm

    def prompt(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """a_i = W s_i + b (B, T', E), and the lengths (B,)."""
        h, lengths = self.encode(batch)  # (B, T, D)
        s, lengths = stack(h, lengths, self.stride)  # (B, T', n D)
        return self.projection(s), lengths

    def sequences(
        self,
        a: Tensor,
        lengths: Tensor,
        texts: list[list[int]] | None,
        shown: list[list[int]] | None = None,
    ) -> prompting.Sequences:
        """[a_1 ... a_T' <s> y_1 ... y_U] (choice: prompt). texts: ids of the language
        model; None: to be written. shown: y', what it reads in their place."""
        begin, end = symbols(self.lm)
        frame = prompting.Frame(before=[], after=[begin], end=end)
        embedding = self.lm.get_input_embeddings()
        return prompting.build_sequences(embedding, a, lengths.tolist(), texts, frame, shown)

    decodes = decoding.Decoding(  # for evaluate.py and transcribe.py
        kinds=("greedy", "beam"),
        own=options.Search(beam=4),  # [choice]
    )

    def transcribe(self, batch: Batch, place: Place, beam: int = 1) -> list[decoding.Transcript]:
        """The batch's transcripts; beam 1: greedy."""
        seconds = (batch.samples / features.SAMPLE_RATE).tolist()
        limits = [min(prompting.LONGEST, int(12 * s) + 20) for s in seconds]  # pieces [choice]
        _, end = symbols(self.lm)
        with place.autocast():
            a, lengths = self.prompt(batch)
            sequences = self.sequences(a, lengths, texts=None)
            answers, counts = prompting.write(self.lm, sequences, limits, end, num_beams=beam)
        transcripts = []
        for ids, count, length in zip(answers, counts, lengths.tolist(), strict=True):
            if length == 0:  # shorter than one frame
                ids = []
            labels = [i + 1 for i in ids]  # see `load_pieces`
            transcripts.append(decoding.Transcript(self.tokenizer.decode(labels), None, count))
        return transcripts


def stack(h: Tensor, lengths: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """s_i: h (B, T, D) -> n frames side by side (B, ceil(T / n), n D), lengths (B,).

    After an utterance's end stand zeros (choice: prompt): what the encoder leaves there
    depends on the batch.
    """
    h = h * conformer.length_mask(lengths, h.shape[1])[..., None]
    h = F.pad(h, (0, 0, 0, -h.shape[1] % n))
    return h.unflatten(1, (-1, n)).flatten(2), (lengths + n - 1) // n


def ctc_fits(samples: int, labels: list[int], transcript: str) -> bool:
    """Whether CTC has a frame for every label, and one for the blank between two equal
    labels."""
    frames = conformer.subsampled(features.num_frames(samples), SUBSAMPLING)
    targets = torch.tensor([labels], dtype=torch.long)
    needed = ctc.required_frames(targets, torch.tensor([len(labels)]))
    return bool(frames >= max(needed, 1))


def prompt_fits(
    stride: int, positions: int | None, samples: int, labels: list[int], transcript: str
) -> bool:
    """Whether a language model with so many positions can learn the text, see
    `prompting.answer_fits`."""
    frames = conformer.subsampled(features.num_frames(samples), SUBSAMPLING)
    return prompting.answer_fits(math.ceil(frames / stride), len(labels), positions)


def fits_of(recogniser: CTCRecogniser | PromptedLM) -> batches.Fits:
    """Whether labels fit so many samples. It is sent to the processes that read, so it
    holds numbers and no model."""
    if isinstance(recogniser, CTCRecogniser):
        return ctc_fits
    positions = prompting.positions_of(recogniser.lm)
    return partial(prompt_fits, recogniser.stride, positions)


# ======================================================================================= losses


def hide(ids: list[int], share: float, draw: random.Random, symbol: int) -> list[int]:
    """y': every piece is replaced by the symbol with this probability (choice:
    masking)."""
    return [symbol if draw.random() < share else i for i in ids]


def hidden_symbol(recogniser: PromptedLM) -> int:
    """The symbol that hides a piece (choice: masking)."""
    unknown = recogniser.tokenizer.tokenizer.unk_token_id
    is_taken = unknown in symbols(recogniser.lm)
    return prompting.MASKED if unknown is None or is_taken else unknown


def hidden_texts(
    recogniser: PromptedLM, batch: Batch, texts: list[list[int]], config: Config
) -> list[list[int]] | None:
    """y' of each utterance in training; None: the model reads the texts as they are.

    Which pieces are hidden is drawn from the utterance, its epoch and its update, since
    an utterance of a small language comes several times an epoch.
    """
    if not recogniser.training or config.mask_fraction == 0:
        return None
    symbol = hidden_symbol(recogniser)
    shown = []
    for utterance, ids in zip(batch.utterances, texts, strict=True):
        when = f"{batch.plan.epoch}-{batch.plan.update}"
        draw = random.Random(f"{config.seed}-{when}-{utterance.id}-hidden")
        shown.append(hide(ids, config.mask_fraction, draw, symbol))
    return shown


def answer_losses(recogniser: PromptedLM, batch: Batch, config: Config, place: Place) -> Tensor:
    """-sum_u log p(y_u | a, <s>, y'_1 ... y'_(u-1)) of each utterance (B,), in fp32.

    recogniser.training decides on SpecAugment, dropout and hidden pieces.
    """
    texts = prompting.ids_of(batch.targets, batch.target_lengths)
    shown = hidden_texts(recogniser, batch, texts, config)
    with place.autocast():
        a, lengths = recogniser.prompt(batch)  # (B, T', E)
        sequences = recogniser.sequences(a, lengths, texts, shown)
        return prompting.answer_loss(recogniser.lm, sequences)


def ctc_losses(recogniser: CTCRecogniser, batch: Batch, place: Place) -> Tensor:
    """-log p(y) of each utterance (B,), in fp32."""
    with place.autocast():
        h, lengths = recogniser.encode(batch)  # (B, T, D)
        log_probs = recogniser.log_probs(h)  # (B, T, V)
    return ctc.ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths)


def compute_losses(
    recogniser: CTCRecogniser | PromptedLM, batch: Batch, config: Config, place: Place
) -> Tensor:
    """The loss, summed over the utterances of the batch. Networks may run in bf16; the
    losses are fp32."""
    if has_lm(config):
        return answer_losses(recogniser, batch, config, place).sum()
    return ctc_losses(recogniser, batch, place).sum()


# ===================================================================================== training


def build_ctc(config: Config, utterances: list[corpora.Utterance], place: Place) -> CTCRecogniser:
    """The first stage, new."""
    if config.units_of == "lm":
        tokenizer = load_pieces(config, place)
    else:
        transcripts = (utterance.text for utterance in utterances)
        tokenizer = text.SentencePiece.build(transcripts, config.units)
    reseed(config.seed)
    recogniser = CTCRecogniser(config, tokenizer, tokenizer.size).to(place.device)
    # Mean and variance of the features, from 500 utterances; they are stored with the model.
    recogniser.frontend.fit(batches.sample_waves(utterances, config))
    return recogniser


def build_prompted(config: Config, utterances: list[corpora.Utterance], place: Place) -> PromptedLM:
    """The second stage, with the encoder of the first."""
    first_stage = find_first_stage(config, utterances, place)
    reseed(config.seed, 1)
    tokenizer = load_pieces(config, place)
    recogniser = PromptedLM(config, tokenizer, load_lm(config, place))
    if config.lora_rank:
        reseed(config.seed, 2)  # the projection begins alike at every rank
        lora.adapt(recogniser.lm, config.lora_rank)
    recogniser.to(place.device)
    if first_stage is None:
        recogniser.frontend.fit(batches.sample_waves(utterances, config))
    else:
        recogniser.frontend.load_state_dict(first_stage.frontend.state_dict())
        recogniser.encoder.load_state_dict(first_stage.encoder.state_dict())
    return recogniser


def prepare(
    config: Config,
    utterances: list[corpora.Utterance],
    recogniser: CTCRecogniser | PromptedLM,
    place: Place,
) -> tuple[nn.ModuleDict, torch.optim.Optimizer, training.Run]:
    """The parts of the recogniser, the optimiser, and the run: new, or as a checkpoint
    left it."""
    models = nn.ModuleDict(dict(recogniser.named_children()))
    groups = []
    for name, rate in rates_of(config).items():
        if rate == 0:
            models[name].requires_grad_(False)
        else:
            learning = [p for p in models[name].parameters() if p.requires_grad]
            groups.append({"params": learning, "lr": rate})
    optimizer = torch.optim.AdamW(
        groups,
        betas=(0.9, 0.98),  # [recall]
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
        fits=fits_of(recogniser),
        language_power=config.language_power,
    )
    return models, optimizer, run


def set_training(recogniser: SpeechEncoder, config: Config, step: int) -> None:
    """Training mode, but for frozen parts. The encoder of the second stage is frozen in
    its first --freeze-encoder-steps."""
    if has_lm(config):
        learns = config.lr_encoder > 0 and step > config.freeze_encoder_steps
        recogniser.encoder.requires_grad_(learns)
    recogniser.train()
    for part in recogniser.children():
        part.train(any(p.requires_grad for p in part.parameters()))


def train(
    config: Config, corpus: corpora.Corpus, place: Place
) -> tuple[CTCRecogniser | PromptedLM, dict[str, Any], figures.Drawings]:
    """Returns the recogniser with the mean weights of the best epochs, numbers for
    RESULT, and the figures to be drawn.
    """
    utterances = corpora.trainable(corpus.train, config.training.max_seconds)
    perplexities = []
    if has_lm(config):
        recogniser = build_prompted(config, utterances, place)
        perplexities.append(text_perplexity(recogniser, corpus, place))
    else:
        recogniser = build_ctc(config, utterances, place)
        config = options.with_values(config, epochs=config.ctc_epochs, warmup=config.ctc_warmup)
    models, optimizer, run = prepare(config, utterances, recogniser, place)
    for _ in run.epochs():
        for update in run.updates():  # a step of the optimiser; --resume skips what is done
            set_training(recogniser, config, update.step)
            for batch in update:  # this GPU's micro-batches, none of them empty
                loss = compute_losses(recogniser, batch, config, place)
                loss.backward()
                update.add(loss)
            # The gradient of the mean loss per utterance: over all micro-batches and all GPUs.
            update.average_gradients()

            # Every part is clipped by itself: their gradients differ in size (choice: rates).
            norms = {}
            for name in rates_of(config):
                norm = nn.utils.clip_grad_norm_(models[name].parameters(), config.training.clip)
                norms[name] = norm.item()
            learning_rate = run.set_learning_rates()  # of the first part that learns
            update.log.update(norm=norms, lr=learning_rate)
            if update.is_usable(norms.values()):  # all are finite, and there was an utterance
                optimizer.step()
            optimizer.zero_grad()
        scores = evaluation.dev_scores(recogniser, corpus, config, place)
        if has_lm(config):
            scores |= listening_gap(recogniser, corpus, config, place)
        run.end_epoch(recogniser, scores)
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    report = {"trained_params": trained} | run.finish(recogniser)
    drawings = {}
    if has_lm(config):
        perplexities.append(text_perplexity(recogniser, corpus, place))
        report["text_perplexity"] = perplexities  # before and after training
        report |= listening_gap(recogniser, corpus, config, place)
        report["alignment"], drawings = measure_alignment(recogniser, corpus, config, place)
    return recogniser, report, drawings


def listening_gap(
    recogniser: PromptedLM, corpus: corpora.Corpus, config: Config, place: Place
) -> dict[str, float]:
    """{"listening_gap": nats per piece}, see `listening.py`."""

    def losses(batch: Batch) -> Tensor:
        return answer_losses(recogniser, batch, config, place)

    fits = fits_of(recogniser)
    return listening.measure_gap(recogniser, losses, corpus.dev, config, place, fits)


def text_perplexity(recogniser: PromptedLM, corpus: corpora.Corpus, place: Place) -> float:
    """Of dev transcripts without audio."""
    begin, end = symbols(recogniser.lm)
    return listening.text_perplexity(recogniser, corpus.dev, begin, end, place)


def measure_alignment(
    recogniser: PromptedLM, corpus: corpora.Corpus, config: Config, place: Place
) -> tuple[dict[str, float], figures.Drawings]:
    """Whether prompt and transcript run in step, for RESULT; and the figures.

    listening.png: the gap over epochs; alignment.png: S of one utterance.
    """
    fits = fits_of(recogniser)
    own, swapped = listening.alignments(recogniser, corpus.dev, config, place, fits)
    shared = [name for name in own if name in swapped]
    if not shared:
        return {}, {}
    panels = {
        "its own audio": own[shared[-1]].numpy(),
        "audio of another session": swapped[shared[-1]].numpy(),
    }
    axes = ("piece of the transcript", "vector of the prompt")
    path = Path(config.out) / "alignment.png"
    curve = Path(config.out) / "listening.png"
    drawings = {
        "alignment.png": partial(figures.matrices, path, panels, *axes),
        "listening.png": partial(figures.log_curves, curve, "listening_gap", "nats per piece"),
    }
    return alignment.report(own, swapped), drawings


# ====================================================================================== presets

DEMO_SIZES = ConformerSizes(
    subsampling=8, channels=16, layers=4, dim=128, heads=4, ff_dim=512, kernel=11, dropout=0.0
)
DEMO_TRAINING = options.Training(
    epochs=4,
    update_seconds=48.0,
    max_seconds=10.0,
    schedule="one-cycle",
    warmup=0.1,
    clip=5.0,
    average=1,
    weight_decay=1e-3,
)
DEMO = Config(  # [choice] sizes and schedule: six minutes of training a stage on one core
    methods=("ctc", "llm"),
    # What differs in the method: CTC writes the model's pieces, so that a beam can use it (choice:
    # pieces); the whole model learns (choice: rank); nothing is hidden; two frames per vector.
    units_of="lm",
    lora_rank=0,
    mask_fraction=0.0,
    stride_ms=160,
    lm="demo-mls/lm-m",
    ctc_epochs=4,
    ctc_lr=4e-3,
    ctc_warmup=0.3,
    lr_encoder=1e-3,
    lr_projection=4e-3,
    lr_lm=5e-4,
    conformer=DEMO_SIZES,
    training=DEMO_TRAINING,
    augmentation=Augmentation(speeds=(1.0,), frequency_masks=0, time_masks=0),
    workers=0,
    batch_seconds=60.0,
)
SMOKE = options.with_values(
    DEMO,
    data="demo-mls-smoke",
    lm="demo-mls-smoke/lm-s",
    layers=2,
    dim=64,
    ff_dim=128,
    update_seconds=8.0,
    ctc_epochs=2,
    epochs=2,
)
PRESETS = {"full": Config(), "demo": DEMO, "smoke": SMOKE}


# ========================================================================================= main


def load(config: Config, place: Place) -> CTCRecogniser | PromptedLM:
    """The recogniser of a finished run; `config.out` is its folder. Raises
    UserError."""
    tokenizer = text.load_tokenizer(config.out)
    if has_lm(config):
        lm = load_lm(config, place)
        if config.lora_rank:
            lora.adapt(lm, config.lora_rank)
        recogniser = PromptedLM(config, tokenizer, lm)
    else:
        recogniser = CTCRecogniser(config, tokenizer, tokenizer.size)
    return weights.load_recogniser(recogniser, config.out, place)


def run_method(config: Config) -> dict:
    """Trains one method and scores it on the test sets; returns what RESULT says."""
    if config.method == "monolingual_ctc" and len(config.languages) != 1:
        results = [run_method(one) for one in monolingual.one_per_language(config)]
        return monolingual.report(config, results)
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


def print_summary(config: Config) -> dict[str, int]:
    """Parameters by part beside LLaMA-7B, whose weights are not needed for that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        lm = LlamaForCausalLM(LlamaConfig(**LLAMA_7B))
        if config.lora_rank:
            lora.adapt(lm, config.lora_rank)
    parts = evaluation.print_parameters({"recogniser": PromptedLM(config, None, lm)})
    pairs = [p for name, p in lm.named_parameters() if name.endswith((".A", ".B"))]
    adapters = sum(p.numel() for p in pairs)
    print(f"of the lm, {adapters:,} are in adapters")
    return parts | {"adapters": adapters}


LLAMA_7B = {  # [peer] its sizes
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


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
