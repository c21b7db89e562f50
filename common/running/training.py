"""What surrounds a training loop: ranks, seeds, resuming, log, checkpoints, averages.

The loop itself, with the forward pass, backward, clipping and the optimiser's step,
stands in each script:

    run = Run(config, place, models=..., optimizer=..., utterances=..., ...)
    for _ in run.epochs():            # those that are left, after --resume
        for update in run.updates():  # ends at --max-steps, or when asked to stop
            for batch in update:      # this rank's micro-batches, on the device
                loss = ...            # summed over utterances
                loss.backward()
                update.add(loss)
            update.average_gradients()  # over ranks, per utterance; see updates.py
            ...                         # clip, learning rates, optimizer.step()
        run.end_epoch(recogniser, dev_scores(...))
    report = run.finish(recogniser)     # the average of the best epochs, exported

Randomness is not a state here but a function of (seed, epoch, update, part, rank), see
`reseed`: a resumed run needs no generator states, and reading ahead in worker processes
changes nothing.

Files of a run: config.json, log.jsonl (one line per update and per epoch), last.pt
(everything needed to go on), epochs/ (weights of the best epochs), model.safetensors
and the tokenizer (the product), bad_files.json (what could not be read),
hyp_<split>.txt, result.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError, note_once
from common.files import atomic_file, write_atomically
from common.running.batches import Encode, Fits, MicroBatch, Order, loader, plan_epoch
from common.running.corpora import Utterance, too_many_bad
from common.running.options import RunConfig
from common.running.process import Place, barrier, gather, note, stop_on_signals
from common.running.schedules import learning_rate
from common.running.updates import Update, map_numbers
from common.running.weights import (
    average_of,
    load_own_state,
    load_recogniser,
    load_weights,
    own_state,
    save_weights,
)

SKIPPED_IN_A_ROW = 20  # updates whose gradient was not finite, after which a run gives up [choice]


@dataclass
class Progress:
    """How far a run is: all that a continuation needs beside weights and optimiser."""

    utterances: int = 0  # in the training set
    corpus: str = ""  # digest of what they are
    step: int = 0  # updates done
    epoch: int = 0
    update: int = 0  # updates done in this epoch
    done: bool = False
    skipped: int = 0  # updates not applied because their gradient was not finite
    skipped_in_a_row: int = 0
    infeasible: int = 0  # utterances too short for their transcript, counted at every pass
    cancelling: int = 0  # utterances of which one channel was read, as all cancel each other
    audio_seconds: float = 0.0  # audio learnt from
    train_seconds: float = 0.0  # clock time of the training loop, scoring excluded
    # utterance -> why its audio could not be read
    bad: dict[str, str] = field(default_factory=dict)
    # [dev error, epoch] of the epochs to be averaged
    best: list[list[float]] = field(default_factory=list)
    log_lines: int = 0


def digest_of(utterances: list[Utterance]) -> str:
    """Changes with what is learnt from, not with the folder that it lies in."""
    state = hashlib.blake2b(digest_size=16)
    for u in utterances:
        state.update(repr((u.id, u.text, u.duration, u.offset, u.channel, u.language)).encode())
    return state.hexdigest()


class Run:
    """Progress and files of a training run: what is done, left, and written down.

    models: the parts that are trained, each clipped by itself; a part without trainable
    parameters is frozen and stays in evaluation mode. The optimiser's learning rates
    are the peaks of the schedule. language_power and by_length: see `batches.Order`.
    """

    def __init__(
        self,
        config: RunConfig,
        place: Place,
        *,
        models: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        utterances: list[Utterance],
        encode: Encode,
        fits: Fits,
        language_power: float = 1.0,
        by_length: bool = True,
    ):
        self.config = config
        self.place = place
        self.models = models
        self.optimizer = optimizer
        self.utterances = utterances
        self.encode = encode
        self.fits = fits
        self.order = Order(
            config.training.update_seconds, config.batch_seconds, language_power, by_length
        )
        self.folder = Path(config.out)
        self.trainable = [p for p in models.parameters() if p.requires_grad]
        # Read before a checkpoint brings decayed rates.
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.progress = Progress(utterances=len(utterances), corpus=digest_of(utterances))
        if config.resume:
            self._resume()
        updates = self._plan(1)[-1].update + 1  # epochs differ by an update or so
        self.steps = config.max_steps or config.training.epochs * updates  # of the whole run
        if place.first:
            self._check_warmup()

    def _check_warmup(self) -> None:
        """Notes a warm-up that is longer than the run."""
        schedule = self.config.training.schedule
        warmup = self.config.training.warmup
        if schedule == "inverse-sqrt" and warmup > self.steps:
            reached = f"{100 * self.steps / warmup:.0f} % of its peak"
            what = f"the learning rate rises to {reached} only"
            note(f"{self.steps} updates, --warmup {warmup:g}: {what}")

    def is_new(self) -> bool:
        """Whether nothing was learnt yet."""
        return self.progress.step == 0

    def keep_start(self, recogniser: nn.Module, scores: dict[str, float]) -> None:
        """Counts the weights before the first update as an epoch, which dev may choose.

        For a run that goes on from another one, and may end worse than it began.
        scores: of dev, as for `end_epoch`.
        """
        if self.place.first:
            self._keep_epoch(recogniser, scores["dev"])
            self._write_log(step=0, epoch=0, **scores)
            note(f"before: dev {scores['dev']:.1f} %")

    def epochs(self) -> Iterator[int]:
        """Yields the epochs that are left, counted from 0.

        One that was interrupted before `end_epoch` comes again.
        """
        quiet = None if self.place.first else True  # None: where stderr is no terminal
        bar = tqdm(total=self.steps, initial=self.progress.step, unit="update", disable=quiet)
        # All ranks learn of a signal at the end of an update.
        with stop_on_signals() as self.stop, bar as self.bar:
            while not self.progress.done:
                epoch = self.progress.epoch
                yield epoch
                if self.progress.epoch == epoch:
                    raise RuntimeError("call run.end_epoch(...) at the end of every epoch")

    def updates(self) -> Iterator[Update]:
        """Yields the updates of this epoch that are left.

        Raises UserError, on all ranks, when the run was asked to stop.
        """
        progress, config = self.progress, self.config
        last = progress.update + (config.max_steps or math.inf) - progress.step
        rest = [
            part for part in self._plan(progress.epoch) if progress.update <= part.update < last
        ]
        batches = (batch for batch in loader(rest, config, self.encode, self.fits, progress.bad))
        for part in self.models.values():
            part.train(any(p.requires_grad for p in part.parameters()))
        with closing(batches):  # which ends the processes that read, whatever happens
            for _ in range(sum(part.ends_update for part in rest)):
                update = Update(self, batches)
                yield update
                self._book(update)

    def set_learning_rates(self) -> float:
        """Sets every group's rate for this update; returns that of the first."""
        share = learning_rate(
            self.config.training.schedule,
            self.config.training.warmup,
            self.progress.step,
            self.steps,
        )
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        return self.optimizer.param_groups[0]["lr"]

    def end_epoch(self, recogniser: nn.Module, scores: dict[str, float]) -> None:
        """Ends an epoch. scores: of dev; epochs with the lowest "dev" are averaged."""
        progress, config = self.progress, self.config
        progress.epoch += 1
        progress.update = 0
        if config.max_steps:
            progress.done = progress.step >= config.max_steps
        else:
            progress.done = progress.epoch >= config.training.epochs
        if self.place.first:
            self._keep_epoch(recogniser, scores["dev"])
            self._write_log(step=progress.step, epoch=progress.epoch, **scores)
            self._save()
            self._drop_epochs()
            took = f"{progress.train_seconds:.0f} s of training"
            note(f"epoch {progress.epoch}: dev {scores['dev']:.1f} %, {took}")
        if any(gather(self.stop.is_set(), self.place)):  # while the dev set was scored
            raise UserError(f"stopped after epoch {progress.epoch}: {self._go_on()}")

    def finish(self, recogniser: nn.Module) -> dict:
        """Exports the average of the best epochs, and leaves it in `recogniser`.

        Returns what RESULT says of the run. Raises UserError if no update was applied.
        """
        progress = self.progress
        if progress.skipped == progress.step:
            what = f"and an utterance that fits its text ({progress.infeasible} did not)"
            advice = "Look at the data, or lower --lr."
            raise UserError(f"nothing was learnt: no update had a finite gradient {what}. {advice}")
        if self.place.first:
            recogniser.tokenizer.save(self.folder)
            states = [load_weights(self._epoch_file(epoch)) for _, epoch in progress.best]
            save_weights(self.folder / "model.safetensors", average_of(states))
            write_atomically(self.folder / "bad_files.json", json.dumps(progress.bad, indent=1))
        barrier(self.place)
        load_recogniser(recogniser, self.folder, self.place)
        rate = progress.audio_seconds / max(progress.train_seconds, 1e-9)
        return {
            "train_seconds": round(progress.train_seconds, 1),
            "audio_seconds_per_second": round(rate, 1),
            "skipped_updates": progress.skipped,
            "infeasible": progress.infeasible,
            "bad_files": len(progress.bad),
            "cancelling_channels": progress.cancelling,
        }

    def _go_on(self) -> str:
        root = ""
        if self.config.root != RunConfig.root:
            root = f" --root {shlex.quote(self.config.root)}"
        return f"go on with --resume --out {shlex.quote(self.config.out)}{root}"

    def _plan(self, epoch: int) -> list[MicroBatch]:
        place = self.place
        seed = self.config.seed
        return plan_epoch(self.utterances, epoch, seed, self.order, place.rank, place.ranks)

    def _book(self, update: Update) -> None:
        """Counts a finished update, writes it down, and saves if it is time.

        Raises UserError if nothing is learnt, and if the run was asked to stop.
        """
        if not update.averaged:
            raise RuntimeError("call average_gradients() of every update")
        self._count(update)
        progress, counts = self.progress, update.counts
        means = map_numbers(update.sums, lambda x: x / max(counts["utterances"], 1))
        self.bar.update()
        self.bar.set_postfix(loss=f"{means['loss']:.1f}", refresh=False)
        if self.place.first:
            entry = {"step": progress.step, "utterances": int(counts["utterances"])}
            entry |= means | update.log
            self._write_log(**entry, clock={"seconds": progress.train_seconds})
            for name, reason in update.bad.items():
                note(f"left out {name}: {reason}")
            for remark in sorted(update.remarks):  # about a file, not each of its segments
                note_once(remark)
        too_many_bad(progress.bad, progress.utterances)
        many_at_first = progress.step <= 100 and progress.skipped >= 50
        if progress.skipped_in_a_row >= SKIPPED_IN_A_ROW or many_at_first:
            what = f"{progress.skipped} of {progress.step} updates had no finite gradient"
            advice = "Look at the audio, or lower --lr."
            raise UserError(f"{what}: nothing is learnt. {advice}")
        if self.place.first and (counts["stop"] or progress.step % self.config.save_steps == 0):
            self._save()
        if counts["stop"]:
            barrier(self.place)
            raise UserError(f"stopped after update {progress.step}: {self._go_on()}")

    def _count(self, update: Update) -> None:
        """Adds a finished update to the run's progress."""
        progress, counts = self.progress, update.counts
        progress.step += 1
        progress.update += 1
        progress.audio_seconds += counts["seconds"]
        progress.train_seconds += time.perf_counter() - update.started
        progress.infeasible += int(counts["infeasible"])
        progress.cancelling += int(counts["cancelling"])
        progress.skipped += not update.applied
        progress.skipped_in_a_row = 0 if update.applied else progress.skipped_in_a_row + 1
        progress.bad |= update.bad

    def _write_log(self, **entry) -> None:
        """Writes one line of log.jsonl. What depends on the clock is under `clock`."""
        try:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            what = f"{self.folder}/log.jsonl cannot be written ({error.strerror})"
            advice = "free some space, then go on with --resume."
            raise UserError(f"{what}: {advice}") from None
        self.progress.log_lines += 1

    def _save(self) -> None:
        state = {"model": own_state(self.models), "optimizer": self.optimizer.state_dict()}
        with atomic_file(self.folder / "last.pt") as file:
            torch.save(state | {"progress": asdict(self.progress)}, file)

    def _resume(self) -> None:
        """Puts everything back as the last checkpoint left it, log.jsonl included.

        A run stopped before its first checkpoint begins anew. Raises UserError.
        """
        if (self.folder / "last.pt").exists():
            self._load()
        barrier(self.place)
        log = self.folder / "log.jsonl"
        if self.place.first and log.exists():
            lines = log.read_bytes().splitlines(keepends=True)[: self.progress.log_lines]
            write_atomically(log, b"".join(lines))

    def _load(self) -> None:
        """Reads last.pt. Raises UserError if it is damaged or the data have changed."""
        path = self.folder / "last.pt"
        now = self.progress
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            begun = Progress(**state["progress"])
            changed = (begun.utterances, begun.corpus) != (now.utterances, now.corpus)
            if not changed:
                load_own_state(self.models, state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
        except (torch.OutOfMemoryError, UserError):
            raise
        except Exception as error:  # what torch.load raises depends on where a file is damaged
            what = f"cannot be resumed (damaged, or of another version: {type(error).__name__})"
            raise UserError(f"{path} {what}: start anew with another --out.") from None
        if changed:
            here = f"{now.utterances}"
            if now.utterances == begun.utterances:
                here = "as many, but others"
            what = f"was trained on {begun.utterances} utterances, and --data now has {here}"
            advice = "bring the data back as they were, or start anew with another --out."
            raise UserError(f"{self.folder} {what}: {advice}")
        self.progress = begun

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / "epochs" / f"{epoch:04d}.safetensors"

    def _keep_epoch(self, recogniser: nn.Module, error: float) -> None:
        """Writes this epoch's weights if it is among the best; later ones win a tie."""
        candidates = [*self.progress.best, [error, self.progress.epoch]]
        best = sorted(candidates, key=lambda x: (x[0], -x[1]))
        self.progress.best = best[: self.config.training.average]
        if self.progress.epoch in [epoch for _, epoch in self.progress.best]:
            (self.folder / "epochs").mkdir(exist_ok=True)
            save_weights(self._epoch_file(self.progress.epoch), own_state(recogniser))

    def _drop_epochs(self) -> None:
        """Deletes the weights of epochs that are no longer among the best."""
        kept = {self._epoch_file(epoch) for _, epoch in self.progress.best}
        for path in (self.folder / "epochs").glob("*.safetensors"):
            if path not in kept:
                path.unlink()
