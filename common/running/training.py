"""What surrounds a training loop: ranks, seeds, updates, resuming, log, checkpoints,
averages.

The loop itself, with the forward pass, backward, clipping and the optimiser's step,
stands in each script:

    run = Run(config, place, models, optimizer, utterances, tokenizer.encode, fits)
    for _ in run.epochs():                              # those that are left, after --resume
        for update in run.updates():                    # skips what is done; ends at --max-steps or when asked to stop
            for batch in update:                        # this rank's micro-batches, on the device
                loss = ...                              # summed over utterances
                loss.backward()
                update.add(loss)
            update.average_gradients()                  # over ranks, per utterance
            ...                                         # clip, learning rates, optimizer.step()
        run.end_epoch(recogniser, dev_scores(...))
    report = run.finish(recogniser)                     # the average of the best epochs, exported

Several ranks (torchrun): each backpropagates the sum of its own losses,
`average_gradients` adds the gradients of all ranks and divides by the number of
utterances of the whole update. That is done by hand rather than by
DistributedDataParallel, because the divisor is known only after every rank has read its
audio, and because a rank whose batch came out empty has no forward pass to synchronise.

Randomness is not a state here but a function of (seed, epoch, update, part, rank), see
`reseed`: a resumed run needs no generator states, and reading ahead in worker processes
changes nothing.

Files of a run: config.json, log.jsonl (one line per update and per epoch), last.pt
(everything needed to go on), epochs/ (weights of the best epochs), model.safetensors
and the tokenizer (the product), hyp_<split>.txt, result.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from common.features import SAMPLE_RATE
from common.running.batches import Batch, Encode, Fits, MicroBatch, loader, plan_epoch, say_once
from common.running.corpora import Utterance, too_many_bad
from common.running.files import atomic_file, write_atomically
from common.running.flags import RunConfig, UserError
from common.running.process import Place, barrier, gather, note, reseed, stop_on_signals
from common.running.schedules import learning_rate
from common.running.weights import (
    average_of,
    load_own_state,
    load_recogniser,
    load_weights,
    own_state,
    save_weights,
)

# -------------------------------------------------------------------------------------------------------- gradients


def average_gradients(parameters: list[nn.Parameter], utterances: int, place: Place) -> None:
    """Gradients of summed losses, added over all ranks and divided by the number of
    utterances of the whole update.

    A parameter that no rank used keeps no gradient, so that the optimiser's momentum
    and decay leave it alone.
    """
    used = [parameter.grad is not None for parameter in parameters]
    if place.ranks > 1:
        zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat(
            [
                *(g.flatten() for g in zeros),
                torch.tensor(used, device=place.device).to(zeros[0].dtype),
            ]
        )
        dist.all_reduce(flat)
        *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        used = counts.bool().tolist()
        for parameter, total, any_rank in zip(parameters, sums, used, strict=True):
            parameter.grad = total.view_as(parameter) if any_rank else None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, max(utterances, 1))


# ---------------------------------------------------------------------------------------------------------- progress

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
    bad: dict[str, str] = field(
        default_factory=dict
    )  # utterance -> why its audio could not be read
    best: list[list[float]] = field(
        default_factory=list
    )  # [dev error, epoch] of the epochs to be averaged
    log_lines: int = 0


def digest_of(utterances: list[Utterance]) -> str:
    """Changes with what is learnt from, not with the folder that it lies in."""
    state = hashlib.blake2b(digest_size=16)
    for u in utterances:
        state.update(repr((u.id, u.text, u.duration, u.offset, u.channel, u.language)).encode())
    return state.hexdigest()


def add_up(total: dict, more: dict) -> dict:
    """Adds numbers by name, inside dictionaries too: {"kd": {"layer 4": 2.0}}."""
    for name, value in more.items():
        total[name] = (
            add_up(total.get(name, {}), value)
            if isinstance(value, dict)
            else total.get(name, 0.0) + value
        )
    return total


def map_numbers(numbers: dict, function) -> dict:
    return {
        k: map_numbers(v, function) if isinstance(v, dict) else function(v)
        for k, v in numbers.items()
    }


class Update:
    """One update in the making: iterate over its micro-batches, `add` their losses,
    then `average_gradients`.

    Only batches that hold utterances are yielded. A rank that has none still takes part
    in what follows.
    """

    def __init__(self, run: Run, batches: Iterator[Batch]):
        self.run, self.batches, self.started = run, batches, time.perf_counter()
        self.step = run.progress.step + 1  # of run.steps
        self.sums: dict = {"loss": 0.0}  # the loss and its parts: of this rank, then of all
        self.counts = {"utterances": 0, "seconds": 0.0, "infeasible": 0, "cancelling": 0, "stop": 0}
        self.bad: dict[str, str] = {}
        self.remarks: set[str] = set()  # about files that are read all the same
        self.log: dict = {}  # what log.jsonl says beside the losses
        self.complete = self.averaged = self.applied = False

    def __iter__(self) -> Iterator[Batch]:
        place = self.run.place
        for batch in self.batches:
            self.counts["utterances"] += len(batch.utterances)
            self.counts["seconds"] += batch.samples.sum().item() / SAMPLE_RATE
            self.counts["infeasible"] += batch.infeasible
            self.counts["cancelling"] += len(batch.cancelling)
            self.bad |= batch.bad
            self.remarks |= {*batch.cancelling.values()}
            if batch.utterances:
                # Dropout and SpecAugment draw from here: it matters where in the run we are, not how we got here.
                reseed(
                    self.run.config.seed,
                    batch.plan.epoch,
                    batch.plan.update,
                    batch.plan.part,
                    place.rank,
                )
                yield batch.to(place.device)
            if batch.plan.ends_update:
                self.complete = True
                return

    def add(self, loss: Tensor, parts: dict | None = None) -> None:
        """loss: summed over the micro-batch's utterances; parts: numbers of the log,
        summed likewise, by name."""
        add_up(
            self.sums, map_numbers({"loss": loss} | (parts or {}), lambda x: x.detach().double())
        )

    def average_gradients(self) -> None:
        """Sums what all ranks have added, and turns gradients of sums into gradients of
        the mean over utterances."""
        if not self.complete:
            raise RuntimeError("iterate over every update to its end")
        numbers = self.counts | {"stop": int(self.run.stop.is_set())}
        mine = map_numbers(self.sums, float), numbers, self.bad, self.remarks
        self.sums, self.counts = {}, {}
        for sums, counts, bad, remarks in gather(mine, self.run.place):
            add_up(self.sums, sums)
            add_up(self.counts, counts)
            self.bad |= bad
            self.remarks |= remarks
        average_gradients(self.run.trainable, int(self.counts["utterances"]), self.run.place)
        self.averaged = True

    def is_usable(self, norms: Iterable[float]) -> bool:
        """Whether there were utterances, and every norm is finite. Otherwise the update
        is skipped and counted."""
        self.applied = self.counts["utterances"] > 0 and all(math.isfinite(norm) for norm in norms)
        return self.applied


class Run:
    """Progress and files of a training run: what is done, what is left, and everything
    that is written down.

    models: the parts that are trained, each clipped by itself; a part without trainable
    parameters is frozen and stays in evaluation mode. The optimiser's learning rates
    are the peaks of the schedule.
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
    ):
        self.config, self.place, self.models, self.optimizer = config, place, models, optimizer
        self.utterances, self.encode, self.fits = utterances, encode, fits
        self.folder = Path(config.out)
        self.trainable = [p for p in models.parameters() if p.requires_grad]
        self.peaks = [
            group["lr"] for group in optimizer.param_groups
        ]  # read before a checkpoint brings decayed ones
        self.progress = Progress(utterances=len(utterances), corpus=digest_of(utterances))
        if config.resume:
            self._resume()
        updates = self._plan(1)[-1].update + 1  # epochs differ by an update or so
        self.steps = config.max_steps or config.training.epochs * updates  # of the whole run
        if (
            place.first
            and config.training.schedule == "inverse-sqrt"
            and config.training.warmup > self.steps
        ):
            reached = f"{100 * self.steps / config.training.warmup:.0f} % of its peak"
            note(
                f"{self.steps} updates, --warmup {config.training.warmup:g}: the learning rate rises to {reached} only"
            )

    def epochs(self) -> Iterator[int]:
        """Those that are left, counted from 0. One that was interrupted before
        `end_epoch` is yielded again."""
        quiet = None if self.place.first else True  # None: where stderr is no terminal
        bar = tqdm(total=self.steps, initial=self.progress.step, unit="update", disable=quiet)
        with (
            stop_on_signals() as self.stop,
            bar as self.bar,
        ):  # all ranks learn of it at the end of an update
            while not self.progress.done:
                epoch = self.progress.epoch
                yield epoch
                if self.progress.epoch == epoch:
                    raise RuntimeError("call run.end_epoch(...) at the end of every epoch")

    def updates(self) -> Iterator[Update]:
        """The updates of this epoch that are left. Raises UserError, on all ranks, when
        the run was asked to stop."""
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
        """scores: of the dev set; "dev", the lower the better, decides which epochs are
        averaged."""
        progress, config = self.progress, self.config
        progress.epoch, progress.update = progress.epoch + 1, 0
        progress.done = (
            progress.step >= config.max_steps
            if config.max_steps
            else progress.epoch >= config.training.epochs
        )
        if self.place.first:
            self._keep_epoch(recogniser, scores["dev"])
            self._write_log(step=progress.step, epoch=progress.epoch, **scores)
            self._save()
            self._drop_epochs()
            note(
                f"epoch {progress.epoch}: dev {scores['dev']:.1f} %, {progress.train_seconds:.0f} s of training"
            )
        if any(gather(self.stop.is_set(), self.place)):  # while the dev set was scored
            raise UserError(f"stopped after epoch {progress.epoch}: {self._go_on()}")

    def finish(self, recogniser: nn.Module) -> dict:
        """Exports the average of the best epochs, leaves it in `recogniser`, and
        returns what RESULT says of the run.

        Raises UserError where no update could be applied.
        """
        progress = self.progress
        if progress.skipped == progress.step:
            raise UserError(
                f"nothing was learnt: no update had a finite gradient and an utterance long enough for its "
                f"text ({progress.infeasible} were not). Look at the data, or lower --lr."
            )
        if self.place.first:
            recogniser.tokenizer.save(self.folder)
            states = [load_weights(self._epoch_file(epoch)) for _, epoch in progress.best]
            save_weights(self.folder / "model.safetensors", average_of(states))
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
        root = (
            f" --root {shlex.quote(self.config.root)}" if self.config.root != RunConfig.root else ""
        )
        return f"go on with --resume --out {shlex.quote(self.config.out)}{root}"

    def _plan(self, epoch: int) -> list[MicroBatch]:
        config, place = self.config, self.place
        return plan_epoch(
            self.utterances,
            epoch,
            config.seed,
            config.training.update_seconds,
            config.batch_seconds,
            place.rank,
            place.ranks,
            config.language_power,
            by_length=not config.init,
        )

    def _book(self, update: Update) -> None:
        """Counts a finished update, writes it down, saves where it is time, and stops
        where the run was asked to."""
        if not update.averaged:
            raise RuntimeError("call average_gradients() of every update")
        progress, counts = self.progress, update.counts
        progress.step, progress.update = progress.step + 1, progress.update + 1
        progress.audio_seconds += counts["seconds"]
        progress.train_seconds += time.perf_counter() - update.started
        progress.infeasible += int(counts["infeasible"])
        progress.cancelling += int(counts["cancelling"])
        progress.skipped += not update.applied
        progress.skipped_in_a_row = 0 if update.applied else progress.skipped_in_a_row + 1
        progress.bad |= update.bad
        means = map_numbers(update.sums, lambda x: x / max(counts["utterances"], 1))
        self.bar.update()
        self.bar.set_postfix(loss=f"{means['loss']:.1f}", refresh=False)
        if self.place.first:
            entry = (
                {"step": progress.step, "utterances": int(counts["utterances"])}
                | means
                | update.log
            )
            self._write_log(**entry, clock={"seconds": progress.train_seconds})
            for name, reason in update.bad.items():
                note(f"left out {name}: {reason}")
            say_once(sorted(update.remarks))
        too_many_bad(progress.bad, progress.utterances)
        if progress.skipped_in_a_row >= SKIPPED_IN_A_ROW or (
            progress.step <= 100 and progress.skipped >= 50
        ):
            raise UserError(
                f"{progress.skipped} of {progress.step} updates had no finite gradient: nothing is learnt. "
                "Look at the audio, or lower --lr."
            )
        if self.place.first and (counts["stop"] or progress.step % self.config.save_steps == 0):
            self._save()
        if counts["stop"]:
            barrier(self.place)
            raise UserError(f"stopped after update {progress.step}: {self._go_on()}")

    def _write_log(self, **entry) -> None:
        """One line in log.jsonl. All that depends on the clock stands under `clock`;
        the rest repeats with the seed."""
        try:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.folder}/log.jsonl cannot be written ({error.strerror}): free some space, then "
                "go on with --resume."
            ) from None
        self.progress.log_lines += 1

    def _save(self) -> None:
        state = {"model": own_state(self.models), "optimizer": self.optimizer.state_dict()}
        with atomic_file(self.folder / "last.pt") as file:
            torch.save(state | {"progress": asdict(self.progress)}, file)

    def _resume(self) -> None:
        """Puts everything back where the last checkpoint left it, and cuts log.jsonl
        back to it. Raises UserError.

        A run stopped before its first checkpoint begins anew.
        """
        path, now = self.folder / "last.pt", self.progress
        if path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                self.progress = Progress(**state["progress"])
                changed = (self.progress.utterances, self.progress.corpus) != (
                    now.utterances,
                    now.corpus,
                )
                if not changed:
                    load_own_state(self.models, state["model"])
                    self.optimizer.load_state_dict(state["optimizer"])
            except (torch.OutOfMemoryError, UserError):
                raise
            except Exception as error:  # what torch.load raises depends on where a file is damaged
                raise UserError(
                    f"{path} cannot be resumed (damaged, or of another version: {type(error).__name__}): "
                    "start anew with another --out."
                ) from None
            if changed:
                what = (
                    f"{now.utterances}"
                    if now.utterances != self.progress.utterances
                    else "as many, but others"
                )
                raise UserError(
                    f"{self.folder} was trained on {self.progress.utterances} utterances, and --data now has {what}: "
                    "bring the data back as they were, or start anew with another --out."
                )
        barrier(self.place)
        log = self.folder / "log.jsonl"
        if self.place.first and log.exists():
            lines = log.read_bytes().splitlines(keepends=True)[: self.progress.log_lines]
            write_atomically(log, b"".join(lines))

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / "epochs" / f"{epoch:04d}.safetensors"

    def _keep_epoch(self, recogniser: nn.Module, error: float) -> None:
        """Writes this epoch's weights if it is among the best --average; of equals the
        later."""
        best = sorted(
            [*self.progress.best, [error, self.progress.epoch]], key=lambda x: (x[0], -x[1])
        )
        self.progress.best = best[: self.config.training.average]
        if self.progress.epoch in [epoch for _, epoch in self.progress.best]:
            (self.folder / "epochs").mkdir(exist_ok=True)
            save_weights(self._epoch_file(self.progress.epoch), own_state(recogniser))

    def _drop_epochs(self) -> None:
        """Deletes the weights of epochs no longer among the best, once the checkpoint
        knows about it."""
        kept = {self._epoch_file(epoch) for _, epoch in self.progress.best}
        for path in (self.folder / "epochs").glob("*.safetensors"):
            if path not in kept:
                path.unlink()
