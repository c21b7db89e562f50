"""Keep Decoding Parallel with Effective Knowledge Distillation from Language Models to End-to-end Speech Recognisers.

Michael Hentschel, Yuta Nishikawa, Tatsuya Komatsu, Yusuke Fujita. ICASSP 2024. arXiv 2401.11700.

Idea
----
CTC writes all words of an utterance at once: fast, but no word can look at the others, so CTC knows little about
language. The paper lets a language model teach it. During training, an attention decoder reads the encoder at
intermediate layers and at the last one and learns the probabilities that BERT gives every token; the gradient carries
this knowledge into the encoder, down to its lower layers. At test time the decoder is thrown away, and CTC decodes in
parallel as before. This file so far holds the two rows without a decoder, ctc and interctc, and everything around them.

Diagram
-------
    wave (B, N) --LogMel--> (B, F, 80) --Subsampling--> (B, T, D) --block 1 … l … L--> (B, T, D)
                                                                       |               |
                                                                   LayerNorm       LayerNorm      one LayerNorm, one
                                                                       |               |          Linear(D, V), shared
                                                                   CTC, ctc_l      CTC, ctc_last

Equations (names are this file's own)
---------
    ctc_l = -log sum over paths that collapse to y of prod_t p_l(path_t | x)      common.ctc.ctc_loss   test_ctc.py
    loss  = lam [ (1-w) ctc_last + w mean over taps of ctc_l ]                   total_loss          test_interaed_kd.py

Sources
-------
Written from the abstract, the digest of a second reader, and the recipes of toolkits that train the same kind of model;
we have not seen the paper's body. Options say where their value comes from: [paper] the abstract, [digest] a summary by
others, [peer] a toolkit's published recipe, [choice] ours. The sizes of the demo preset are all ours.

Symbols
-------
    B batch, N samples, F feature frames, T encoder frames, U labels, V outputs (blank + pieces), D width
    taps: encoder layers whose output is also trained, counted from 1;  lam, w: weights of the loss

Choices (ours, marked again where they stand)
-------
    C1  the units are the teacher's own word pieces, pruned to those the training transcripts use
    C2  taps at one third and two thirds of the full preset's depth
    C3  the weights of the rows; the paper's are not known to us
    C4  rotary positions, LayerNorm in the convolution module, no dropout on attention weights (common/conformer.py)
    C5  AdamW; the first epoch goes from short to long utterances; checkpoints are chosen by dev WER

Metrics
-------
    loss    as above: summed over the utterances of an update, divided by their number (nats per utterance)
    norm    of the gradient before clipping          lr    learning rate
    dev     word error rate of greedy CTC on the dev set, %, after every epoch
    wer     the same on the test sets, with the average of the best epochs' weights
    homophone_error   of the reference's homophones that came out as themselves or their twin, the share of twins, %
    rtf     seconds to transcribe a second of audio: features + encoder + decoding, one utterance at a time

Run
---
    python interaed_kd.py --preset smoke                      does all work? under a minute on two cores
    python interaed_kd.py --method ctc                        demo world: 4 minutes on two cores, WER 19.3 %
    python interaed_kd.py --data librispeech --root ~/corpora --hours 100 --method ctc
    python interaed_kd.py --data DIR                          DIR/train.jsonl, dev.jsonl, test*.jsonl
    torchrun --nproc-per-node 8 interaed_kd.py --data librispeech --root ~/corpora
    python interaed_kd.py --checkpoint runs/interaed_kd-demo-ctc-s1
    python interaed_kd.py --checkpoint runs/interaed_kd-demo-ctc-s1 --transcribe a.wav b.flac
"""

# ruff: noqa: E402  (the command line is read before the heavy imports, so that --help answers at once)
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.flags import RunConfig, UserError, check_command_line, parse

# ================================================================================================== configuration


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: float = 30.0  # longer training utterances are left out, longer recordings cut at pauses [peer]
    batch_seconds: float = 400.0  # audio per forward pass and rank, padding included: what memory allows [choice]
    update_seconds: float = 1600.0  # audio per update, over all ranks and micro-batches [peer]
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # of the audio, one drawn per utterance and epoch [peer]
    frequency_masks: int = 2  # SpecAugment, each over 0 to 27 of 80 channels [peer]
    time_masks: int = 5  # SpecAugment, each over 0 to 5 % of the utterance; 10 for 960 h [peer]
    teacher: str = "bert-base-uncased"  # its word pieces are the units (C1): a hub name, a folder, or demo
    units: int = 5000  # word pieces kept, the most frequent in the transcripts; characters come on top [choice]
    # -- method --
    method: Literal["ctc", "interctc"] = "ctc"  # the row of the table
    taps: tuple[int, ...] = (6, 12)  # encoder layers with a loss of their own (C2)
    # -- model --
    subsampling: Literal[4, 8] = 4  # feature frames per encoder frame: 4 is 40 ms [peer], 8 is 80 ms [choice]
    channels: int = 256  # of the subsampling convolutions [peer]
    layers: int = 18  # Conformer blocks [peer] (C4)
    dim: int = 256  # width [peer]
    heads: int = 4  # of self-attention [peer]
    ff_dim: int = 1024  # width inside the feed-forward parts [peer]
    kernel: int = 31  # frames seen by the depthwise convolution, odd [peer]
    dropout: float = 0.1  # everywhere but on attention weights [peer]
    # -- optimisation --
    epochs: int = 180  # passes over the training data; the peers' 60 passes over three copies of other speed [peer]
    lr: float = 2e-3  # peak learning rate [peer], of AdamW (C5)
    weight_decay: float = 1e-6  # [choice]
    schedule: Literal["inverse-sqrt", "one-cycle"] = "inverse-sqrt"  # of the learning rate [peer]
    warmup: float = 15000.0  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak [peer]
    clip: float = 5.0  # largest norm of the gradient [peer]
    average: int = 10  # epochs with the lowest dev error whose weights are averaged [peer]
    save_steps: int = 1000  # updates between checkpoints; also one after every epoch [choice]


DEMO = dict(  # [choice] sizes that learn to recognise the demo world in under three minutes on two cores
    workers=0, max_seconds=8.0, batch_seconds=60.0, update_seconds=32.0, speeds=(1.0,), frequency_masks=0, time_masks=0,
    teacher="demo", taps=(2,), subsampling=8, channels=16, layers=4, dim=112, ff_dim=448, kernel=15,
    dropout=0.0, epochs=5, lr=4.5e-3, schedule="one-cycle", warmup=0.3, average=1,
)  # fmt: skip
SMOKE = DEMO | dict(teacher="demo-smoke", hours=0.1, layers=2, taps=(1,), update_seconds=8.0, epochs=8)
PRESETS = {"smoke": SMOKE, "demo": DEMO}


class Weights(NamedTuple):
    """A row of the table: what the total loss is made of. The values are ours (C3)."""

    lam: float  # share of CTC in the loss
    w: float  # share of the taps in CTC


METHODS = {
    "ctc": Weights(lam=1.0, w=0.0),
    "interctc": Weights(lam=1.0, w=0.66),
}

if __name__ == "__main__":
    check_command_line(Config, PRESETS, __doc__)

import math
import os
import random
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common import ctc, metrics, run
from common.conformer import Conformer, subsampled
from common.corpora import Corpus, MicroBatch, Utterance, evaluation_batches, load_corpus, plan_epoch
from common.features import (
    FRAME_SECONDS,
    SAMPLE_RATE,
    AudioError,
    LogMel,
    change_speed,
    num_frames,
    read_audio,
    spec_augment,
    split_at_pauses,
)
from common.pretrained import load_vocabulary
from common.text import WordPiece, load_tokenizer

# ========================================================================================================== model


class Recogniser(nn.Module):
    """Log-mel front end, Conformer, and one CTC head for the last layer and all taps."""

    def __init__(self, config: Config, vocabulary: int):
        super().__init__()
        self.frontend = LogMel()
        self.encoder = Conformer(
            config.dim, config.layers, config.heads, config.ff_dim, config.kernel, config.dropout,
            config.subsampling, config.channels,
        )  # fmt: skip
        self.ctc_head = nn.Linear(config.dim, vocabulary)
        self.taps = config.taps if METHODS[config.method].w else ()
        self.masks = config.frequency_masks, config.time_masks

    def forward(self, waves: Tensor, samples: Tensor) -> tuple[list[Tensor], Tensor]:
        """waves (B, N) zero-padded, samples (B,) -> log-probs (B, T, V) of taps and last layer; lengths (B,)."""
        features, frames = self.frontend(waves, samples)  # (B, F, 80)
        if self.training:
            features = spec_augment(features, frames, self.masks[0], 27, self.masks[1], 0.05)
        last, lengths, tapped = self.encoder(features, frames, self.taps)  # (B, T, D)
        return [self.ctc_head(x).float().log_softmax(-1) for x in [*tapped, last]], lengths


# =========================================================================================================== loss


def total_loss(ctc_losses: list[Tensor], weights: Weights) -> Tensor:
    """loss = lam [ (1-w) ctc_last + w mean over taps of ctc_l ]; ctc_losses: one per tap, then the last layer's."""
    *taps, last = ctc_losses
    inter = torch.stack(taps).mean() if taps else last
    return weights.lam * ((1 - weights.w) * last + weights.w * inter)


def compute_losses(model: Recogniser, batch: Batch, weights: Weights, autocast: torch.dtype | None) -> Tensor:
    """The batch's loss, summed over its utterances. The forward pass may be bf16; the losses are fp32."""
    with torch.autocast(batch.waves.device.type, autocast, enabled=autocast is not None):
        log_probs, lengths = model(batch.waves, batch.samples)
    ctc_losses = [ctc.ctc_loss(lp, lengths, batch.targets, batch.target_lengths).sum() for lp in log_probs]
    return total_loss(ctc_losses, weights)


# =========================================================================================================== data


class Batch(NamedTuple):
    """What one forward pass reads. An utterance that cannot be read or aligned has left; all may have left."""

    waves: Tensor  # (B, N) zero-padded
    samples: Tensor  # (B,)
    targets: Tensor  # (B, U) zero-padded
    target_lengths: Tensor  # (B,)
    utterances: list[Utterance]
    bad: dict[str, str]  # utterance -> why its audio could not be read
    infeasible: int  # utterances with fewer frames than CTC needs
    plan: MicroBatch

    def to(self, device: torch.device) -> Batch:
        return self._replace(**{f: getattr(self, f).to(device, non_blocking=True) for f in self._fields[:4]})


class Batches(Dataset):
    """Reads the micro-batches of a plan: audio, speed perturbation, labels, padding. Runs in the worker processes."""

    def __init__(self, plan: list[MicroBatch], config: Config, tokenizer: WordPiece | None = None, known_bad=()):
        """Without a tokenizer there are no labels, and no speed perturbation: for scoring."""
        self.plan, self.config, self.tokenizer, self.known_bad = plan, config, tokenizer, set(known_bad)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        plan, bad, infeasible = self.plan[index], {}, 0
        waves, targets, kept = [], [], []
        for utterance in plan.utterances:
            if utterance.id in self.known_bad:
                continue
            try:
                wave = read_audio(utterance.audio, utterance.offset, utterance.duration, utterance.channel)
            except AudioError as error:
                bad[utterance.id] = str(error)
                continue
            target = torch.zeros(0, dtype=torch.long)
            if self.tokenizer:
                draw = random.Random(f"{self.config.seed}-{plan.epoch}-{utterance.id}")
                wave = change_speed(wave, draw.choice(self.config.speeds))
                target = torch.tensor(self.tokenizer.encode(utterance.text))
                T = subsampled(num_frames(len(wave)), self.config.subsampling)
                if ctc.required_frames(target[None], torch.tensor([len(target)])) > T:
                    infeasible += 1
                    continue
            waves.append(wave)
            targets.append(target)
            kept.append(utterance)
        pad, none = nn.utils.rnn.pad_sequence, torch.zeros(0, 0)
        return Batch(
            pad(waves, batch_first=True) if waves else none, torch.tensor([len(w) for w in waves]),
            pad(targets, batch_first=True) if waves else none.long(), torch.tensor([len(t) for t in targets]),
            kept, bad, infeasible, plan,
        )  # fmt: skip


def batches(plan: list[MicroBatch], config: Config, *labels) -> DataLoader:
    workers = min(config.workers, len(plan), os.cpu_count() or 1)
    return DataLoader(
        Batches(plan, config, *labels), batch_size=None, num_workers=workers, worker_init_fn=run.ignore_signals
    )


# ========================================================================================================== train


def train(config: Config, corpus: Corpus, place: run.Place) -> tuple[Recogniser, WordPiece, run.Progress]:
    """Trains until the last epoch (or --max-steps) and writes the average of the best epochs to --out."""
    utterances = [u for u in corpus.train if u.text and u.duration <= config.max_seconds]
    if not utterances or not corpus.dev:
        raise UserError(
            f"there is nothing to learn from or to check it on: {len(corpus.train)} training utterances, "
            f"{len(utterances)} of them no longer than --max-seconds {config.max_seconds:g}, {len(corpus.dev)} for dev."
        )
    with run.first_rank_first(place):
        vocabulary = load_vocabulary(config.teacher, "--teacher", config.root)
    tokenizer = WordPiece.prune(vocabulary, (u.text for u in utterances), config.units)
    folder = run.open_folder(config, place)
    run.reseed(config.seed)
    model = Recogniser(config, tokenizer.size).to(place.device)
    sample = random.Random(config.seed).sample(utterances, min(500, len(utterances)))
    singly = batches([MicroBatch([utterance]) for utterance in sample], config)
    model.frontend.fit(wave for batch in singly for wave in batch.waves)
    rates = dict(lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), **rates, fused=True)
    progress = run.Progress(utterances=len(utterances))
    if config.resume:
        progress = run.load_checkpoint(folder, model, optimizer, progress, place)

    def plan(epoch: int) -> list[MicroBatch]:
        seconds = config.update_seconds, config.batch_seconds
        return plan_epoch(utterances, epoch, config.seed, *seconds, place.rank, place.ranks)

    steps = config.max_steps or config.epochs * (plan(1)[-1].update + 1)  # epochs differ by an update or so
    with run.stop_on_signals(), run.progress_bar(progress, steps, place) as bar:
        while not progress.done:
            train_epoch(config, model, tokenizer, optimizer, plan(progress.epoch), steps, progress, place, bar)
            found = decode(config, model, tokenizer, corpus.dev, place)
            dev = score(corpus.dev, found)[0].rate
            progress.epoch, progress.update = progress.epoch + 1, 0
            progress.done = progress.step >= config.max_steps if config.max_steps else progress.epoch >= config.epochs
            if place.first:
                run.keep_epoch(folder, model, dev, config.average, progress)
                run.write_log(folder, progress, step=progress.step, epoch=progress.epoch, dev=dev)
                run.save_checkpoint(folder, model, optimizer, progress)
                run.drop_epochs(folder, progress)
                run.note(f"epoch {progress.epoch}: dev WER {dev:.1f} %, {progress.train_seconds:.0f} s of training")
    if place.first:
        tokenizer.save(folder)
        run.save_weights(folder / "model.safetensors", run.average_best_epochs(folder, progress))
    run.barrier(place)
    model.load_state_dict(run.load_weights(folder / "model.safetensors"))
    return model, tokenizer, progress


def train_epoch(
    config: Config, model: Recogniser, tokenizer: WordPiece, optimizer: torch.optim.Optimizer, plan: list[MicroBatch],
    steps: int, progress: run.Progress, place: run.Place, bar: tqdm,
) -> None:  # fmt: skip
    """The rest of an epoch, from update progress.update on. Raises UserError when the run is asked to stop.

    plan: of the whole epoch; steps: updates of the whole run.
    """
    folder, parameters = Path(config.out), list(model.parameters())
    rest = [part for part in plan if part.update >= progress.update and progress.step != config.max_steps]
    sums = run.Sums()
    model.train()
    for batch in batches(rest, config, tokenizer, progress.bad):
        # Dropout and SpecAugment draw from here: they depend on where in the run we are, not on how we got here.
        run.reseed(config.seed, batch.plan.epoch, batch.plan.update, batch.plan.part, place.rank)
        if batch.utterances:
            loss = compute_losses(model, batch.to(place.device), METHODS[config.method], place.autocast)
            loss.backward()
            sums.loss += loss.item()
        sums.utterances += len(batch.utterances)
        sums.seconds += batch.samples.sum().item() / SAMPLE_RATE
        sums.infeasible += batch.infeasible
        sums.bad |= batch.bad
        if not batch.plan.ends_update:
            continue

        sums = run.sum_over_ranks(sums, place)
        run.sum_gradients(parameters, sums.utterances, place)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip).item()
        lr = config.lr * run.learning_rate(config.schedule, config.warmup, progress.step, steps)
        optimizer.param_groups[0]["lr"] = lr
        usable = sums.utterances > 0 and math.isfinite(norm)
        if usable:
            optimizer.step()
        optimizer.zero_grad()
        run.count_update(folder, progress, sums, place, bar, norm=norm, lr=lr, usable=usable)
        if place.first and (sums.stop or progress.step % config.save_steps == 0):
            run.save_checkpoint(folder, model, optimizer, progress)
        if sums.stop:
            raise UserError(f"stopped after update {progress.step}: go on with --resume --out {folder}")
        if progress.step == config.max_steps:
            return
        sums = run.Sums()


# ======================================================================================================== evaluate


@torch.inference_mode()
def recognise(
    model: Recogniser, waves: Tensor, samples: Tensor, place: run.Place
) -> tuple[list[list[ctc.Token]], Tensor]:
    """waves (B, N), samples (B,) -> the greedy path's tokens per utterance, and log-probabilities (B, T, V)."""
    model.eval()
    with torch.autocast(place.device.type, place.autocast, enabled=place.autocast is not None):
        log_probs, lengths = model(waves.to(place.device), samples.to(place.device))
    return ctc.greedy(log_probs[-1], lengths), log_probs[-1]


def decode(
    config: Config, model: Recogniser, tokenizer: WordPiece, utterances: list[Utterance], place: run.Place
) -> dict[str, str]:
    """{utterance: what was recognised}, shared out over the ranks. What cannot be read is named, and not in it."""
    plan, found = evaluation_batches(utterances, config.batch_seconds, place.rank, place.ranks), {}
    quiet = None if place.first else True
    for batch in tqdm(batches(plan, config), "decoding", unit="batch", leave=False, delay=2, disable=quiet):
        for reason in batch.bad.values():
            run.note(f"not scored: {reason}")
        if batch.utterances:
            paths, _ = recognise(model, batch.waves, batch.samples, place)
            for utterance, path in zip(batch.utterances, paths, strict=True):
                found[utterance.id] = tokenizer.decode([token.label for token in path])
    return {name: text for part in run.gather(found, place) for name, text in part.items()}


def score(
    utterances: list[Utterance], found: dict[str, str], twins: dict[str, str] | None = None
) -> tuple[metrics.ErrorRate, metrics.HomophoneErrors]:
    """Word and homophone errors over the utterances that could be read."""
    pairs = [(u.text, found[u.id]) for u in utterances if u.id in found]
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    errors = metrics.word_errors(references, hypotheses)
    return errors, metrics.homophone_errors(references, hypotheses, twins or {})


def evaluate(config: Config, corpus: Corpus, model: Recogniser, tokenizer: WordPiece, place: run.Place) -> dict:
    """Scores every test set, writes hyp_<split>.txt, prints a line and some errors of each. Returns RESULT's scores."""
    folder, scores = Path(config.out), {"wer": {}, "homophone_error": {}, "not_scored": 0}
    folder.mkdir(parents=True, exist_ok=True)
    for split, utterances in corpus.tests.items():
        found = decode(config, model, tokenizer, utterances, place)
        errors, twins = score(utterances, found, corpus.homophones)
        scores["wer"][split] = round(errors.rate, 2)
        scores["not_scored"] += len(utterances) - len(found)
        line = f"{split:12} WER {errors.rate:5.2f} % of {errors.words} words"
        line += f" ({errors.substitutions} wrong, {errors.deletions} missing, {errors.insertions} too many)"
        if corpus.homophones:
            scores["homophone_error"][split] = round(twins.rate, 2)
            line += f"; homophones {twins.rate:.1f} % of {twins.count} wrong (chance {twins.chance:.0f} %)"
        if place.first:
            scored = [u for u in utterances if u.id in found]
            pairs = [metrics.side_by_side(u.text, found[u.id]) for u in scored]
            aligned = [f"{u.id}\n{pair}\n" for u, pair in zip(scored, pairs, strict=True)]
            run.write_atomically(folder / f"hyp_{split}.txt", "\n".join(aligned))
            wrong = [pair for u, pair in zip(scored, pairs, strict=True) if u.text != found[u.id]]
            print(line, *wrong[:3], sep="\n", flush=True)
    return scores | {"rtf": real_time_factor(config, corpus, model, tokenizer, place)}


def real_time_factor(
    config: Config, corpus: Corpus, model: Recogniser, tokenizer: WordPiece, place: run.Place
) -> float | None:
    """Seconds per second of audio for features, encoder and decoding, one utterance at a time, reading excluded."""

    def once(wave: Tensor) -> None:  # (1, N)
        paths, _ = recognise(model, wave, torch.tensor([wave.shape[1]]), place)
        tokenizer.decode([token.label for token in paths[0]])

    some = [u for utterances in corpus.tests.values() for u in utterances][:50]
    audio = [batch.waves for batch in Batches([MicroBatch([u]) for u in some], config) if batch.utterances]
    for wave in audio[:3]:  # warms up
        once(wave)
    started = run.synchronise(place)
    for wave in audio:
        once(wave)
    seconds = sum(wave.shape[1] for wave in audio) / SAMPLE_RATE
    return round((run.synchronise(place) - started) / seconds, 5) if audio else None


def draw(config: Config, corpus: Corpus, model: Recogniser, tokenizer: WordPiece, place: run.Place) -> None:
    """loss.png, and posteriors.png: when the network believes in which piece, for the first test utterance."""
    from common import figures

    folder, log = Path(config.out), run.read_log(Path(config.out))
    steps = [entry for entry in log if "loss" in entry]
    dev = [(entry["step"], entry["dev"]) for entry in log if "dev" in entry]
    figures.loss_curve(folder / "loss.png", [e["step"] for e in steps], [e["loss"] for e in steps], dev, folder.name)
    utterance = [u for utterances in [*corpus.tests.values(), corpus.dev] for u in utterances][0]
    batch = Batches([MicroBatch([utterance])], config)[0]
    if batch.utterances:
        paths, log_probs = recognise(model, batch.waves, batch.samples, place)
        labels = list(dict.fromkeys([ctc.BLANK, *(token.label for token in paths[0])]))
        names = ["(blank)", *(tokenizer.pieces[label - 1] for label in labels[1:])]
        seconds = config.subsampling * FRAME_SECONDS
        probabilities = log_probs[0, :, labels].exp().cpu().numpy()
        figures.posteriors(folder / "posteriors.png", probabilities, names, seconds, utterance.text)


# ============================================================================================================ main


def load(config: Config, place: run.Place) -> tuple[Recogniser, WordPiece]:
    """The finished model in --checkpoint. Raises UserError."""
    weights = run.load_weights(Path(config.checkpoint) / "model.safetensors")
    tokenizer = load_tokenizer(config.checkpoint)
    model = Recogniser(config, tokenizer.size).to(place.device)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"the weights in {config.checkpoint} do not fit its config.json: was it edited?") from None
    return model, tokenizer


def transcribe(config: Config, place: run.Place) -> int:
    """Prints file<TAB>text, or with --times file<TAB>start<TAB>end<TAB>word. Returns how many files were unreadable."""
    model, tokenizer = load(config, place)
    frame, failed = config.subsampling * FRAME_SECONDS, 0  # seconds
    for path in config.transcribe:
        try:
            wave = read_audio(path)
        except AudioError as error:
            failed += 1
            run.note(f"error: {error}")
            continue
        words = []
        for start, end in split_at_pauses(wave, config.max_seconds):
            paths, _ = recognise(model, wave[None, start:end], torch.tensor([end - start]), place)
            for word, first, last in ctc.word_times(paths[0], tokenizer.decode):
                words.append((start / SAMPLE_RATE + first * frame, start / SAMPLE_RATE + last * frame, word))
        if config.times:
            for start, end, word in words:
                print(f"{path}\t{start:.2f}\t{end:.2f}\t{word}")
        else:
            print(f"{path}\t{' '.join(word for *_, word in words)}", flush=True)
    return failed


def summary(config: Config) -> dict[str, int]:
    """Prints the number of parameters by part, for V = --units + 1 outputs; transcripts may use fewer."""
    parts = run.parameters_by_part(Recogniser(config, config.units + 1))
    for name, count in parts.items():
        print(f"{name:12}{count:>12,}")
    return parts


def check(config: Config) -> None:
    """Refuses values that would fail late, or silently do nothing. Raises UserError."""
    one_cycle, inner = config.schedule == "one-cycle", range(1, config.layers)
    positive = ["epochs", "average", "save_steps", "lr", "warmup", "clip"]
    positive += ["max_seconds", "batch_seconds", "update_seconds"]
    wrong = {f"--{name.replace('_', '-')} must be more than 0": getattr(config, name) <= 0 for name in positive} | {
        "--max-steps must be at least 1": config.max_steps is not None and config.max_steps < 1,
        "--kernel must be odd": config.kernel % 2 == 0,
        "--heads must divide --dim": config.dim % config.heads != 0,
        f"--taps are layers from 1 to {config.layers - 1}, below the last": METHODS[config.method].w > 0
        and not (config.taps and set(config.taps) <= set(inner)),
        "--warmup is a share of the run, below 1, for --schedule one-cycle": one_cycle and config.warmup >= 1,
        "--times goes with --transcribe": config.times and not config.transcribe,
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{sentence}.")


def main(argv: list[str] | None = None) -> dict:
    """Trains and scores, or scores, transcribes, or counts parameters. Returns what RESULT says, on the first rank."""
    config = parse(Config, PRESETS, __doc__, argv)
    check(config)
    if config.summary:
        return summary(config)
    place = run.start(config)
    if config.transcribe:
        if failed := transcribe(config, place):
            raise UserError(f"{failed} of {len(config.transcribe)} files could not be read.")
        return {}
    with run.first_rank_first(place):
        corpus = load_corpus(
            config.data, config.root, config.hours, config.download, config.seed, small=config.preset == "smoke",
            tests_only=config.checkpoint is not None,
        )  # fmt: skip
    if config.checkpoint:
        model, tokenizer = load(config, place)
        progress = run.Progress()
    else:
        model, tokenizer, progress = train(config, corpus, place)
    result = {"script": "interaed_kd", "method": config.method, "seed": config.seed}
    result |= evaluate(config, corpus, model, tokenizer, place) | {"normaliser": metrics.NORMALISER}
    result |= {"params": run.parameters_by_part(model)["total"]} | run.training_report(progress)
    if place.first:
        if not config.checkpoint:
            draw(config, corpus, model, tokenizer, place)
        run.report(Path(config.out), result)
    run.finish()
    return result


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
