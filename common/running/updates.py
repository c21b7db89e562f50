"""One step of the optimiser: losses and counts over all micro-batches and ranks.

Several ranks (torchrun): each backpropagates the sum of its own losses. Then
`average_gradients` adds the gradients of all ranks and divides by the number of
utterances of the whole update. We do this by hand rather than by
DistributedDataParallel: the divisor is known only after every rank has read its audio,
and a rank whose batch came out empty has no forward pass to synchronise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.features import SAMPLE_RATE
from common.running.batches import Batch
from common.running.process import Place, gather, reseed


def average_gradients(parameters: list[nn.Parameter], utterances: int, place: Place) -> None:
    """Turns gradients of summed losses into gradients of the mean over all utterances.

    The gradients of all ranks are added and divided by `utterances`, those of the whole
    update. A parameter that no rank used keeps no gradient, so that the optimiser's
    momentum and decay leave it alone.
    """
    used = [parameter.grad is not None for parameter in parameters]
    if place.ranks > 1:
        zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flags = torch.tensor(used, device=place.device).to(zeros[0].dtype)
        flat = torch.cat([*(gradient.flatten() for gradient in zeros), flags])
        dist.all_reduce(flat)
        *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
        used = counts.bool().tolist()
        for parameter, total, any_rank in zip(parameters, sums, used, strict=True):
            parameter.grad = total.view_as(parameter) if any_rank else None
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, max(utterances, 1))


def add_up(total: dict, more: dict) -> dict:
    """Adds numbers by name, inside dictionaries too: {"kd": {"layer 4": 2.0}}."""
    for name, value in more.items():
        if isinstance(value, dict):
            total[name] = add_up(total.get(name, {}), value)
        else:
            total[name] = total.get(name, 0.0) + value
    return total


def map_numbers(numbers: dict, function: Callable) -> dict:
    """The function of every number, inside dictionaries too."""
    found = {}
    for name, value in numbers.items():
        found[name] = map_numbers(value, function) if isinstance(value, dict) else function(value)
    return found


class Update:
    """One update: iterate over its micro-batches, `add` losses, `average_gradients`.

    Only batches with utterances are yielded. A rank that has none still takes part in
    what follows. run: a `training.Run`.
    """

    def __init__(self, run: Any, batches: Iterator[Batch]):
        self.run = run
        self.batches = batches
        self.started = time.perf_counter()
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
                # Dropout and SpecAugment draw from here. The seed depends on the place in the run
                # alone, so that a resumed run draws the same.
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
        """Adds a loss, and the numbers for the log, both summed over utterances."""
        add_up(
            self.sums, map_numbers({"loss": loss} | (parts or {}), lambda x: x.detach().double())
        )

    def average_gradients(self) -> None:
        """Sums over ranks, and turns gradients of sums into those of the mean loss."""
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
        """Whether there were utterances, and every norm is finite.

        Otherwise the update is skipped and counted.
        """
        self.applied = self.counts["utterances"] > 0 and all(math.isfinite(norm) for norm in norms)
        return self.applied
