"""A training run of five numbers, with what scripts have beside them: a rarely used part, a frozen one, other rates.

python tests/system/toy.py FOLDER     as one of several ranks: SIGTERM to the last of them after an update, then --resume
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import soundfile
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from common.errors import UserError
from common.figures import read_log
from common.running import options
from common.running.corpora import Utterance
from common.running.process import Place, start
from common.running.training import Run

CPU = Place(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Config(options.RunConfig):
    methods: tuple[str, ...] = ("toy",)
    training: options.Training = options.Training(
        epochs=3,
        update_seconds=0.4,
        max_seconds=9.0,
        schedule="one-cycle",
        warmup=0.5,
        clip=5.0,
        average=2,
    )
    augmentation: options.Augmentation = options.Augmentation((1.0,), 0, 0)


class Recogniser(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.rare = (
            nn.Parameter(torch.tensor([3.0, 2.0, 1.0])),
            nn.Parameter(torch.ones(2)),
        )
        self.register_buffer("mean", torch.tensor(0.5))
        self.tokenizer = SimpleNamespace(
            save=lambda folder: (Path(folder) / "tokenizer.json").write_text("{}")
        )


class Toy:
    """A corpus of 12 utterances of 0.1 to 0.21 s in `folder`, and the training loop of a script."""

    def __init__(self, folder: Path, place: Place = CPU, **changes):
        self.folder, self.out, self.place = folder, folder / "run", place
        plain = Config(device="cpu", out=str(self.out), workers=0)
        self.config = options.with_values(plain, **changes)
        self.utterances, self.each_update, self.scale = [], lambda update: None, 1.0
        self.out.mkdir(parents=True, exist_ok=True)
        for i in range(12):
            path, seconds = folder / f"{i}.wav", 0.1 + 0.01 * i
            if not path.exists():
                torch.manual_seed(i)
                soundfile.write(path, (torch.rand(round(16000 * seconds)) - 0.5).numpy(), 16000)
            self.utterances.append(Utterance(f"u{i}", str(path), "x" * (i + 1), seconds))

    def build(self, **changes) -> Run:
        """Models, optimiser and run, as every process makes them anew."""
        torch.manual_seed(0)
        recogniser, side, frozen = (
            Recogniser(),
            nn.Linear(1, 1),
            nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)),
        )
        self.models = nn.ModuleDict(
            {"recogniser": recogniser, "side": side, "frozen": frozen.requires_grad_(False)}
        )
        groups = [
            {"params": [*recogniser.parameters()], "lr": 0.1},
            {"params": [*side.parameters()], "lr": 0.01},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
        encode, fits = (
            (lambda text: [1] * len(text)),
            (lambda samples, labels, text: len(labels) < 12),
        )
        config = options.with_values(self.config, **changes)
        self.run = Run(
            config,
            self.place,
            models=self.models,
            optimizer=self.optimizer,
            utterances=self.utterances,
            encode=encode,
            fits=fits,
        )
        return self.run

    def loss(self, batch) -> torch.Tensor:
        """Summed over utterances. Only u5 uses `rare`: so do heads of layers not drawn, or the output of a language."""
        recogniser, x = (
            self.models["recogniser"],
            batch.waves.abs().sum(1, keepdim=True) / 1000,
        )  # (B, 1)
        loss = (recogniser.weight - x).square().sum() + self.models["side"](
            self.models["frozen"](x)
        ).square().sum()
        loss = (
            loss + 0.01 * torch.rand(()) * loss
        )  # as dropout: says whether the seed depends on the place in the run
        return self.scale * sum(
            (recogniser.rare.square().sum() for u in batch.utterances if u.id == "u5"), loss
        )

    def update(self, update) -> None:
        self.each_update(update)
        for batch in update:
            loss = self.loss(batch)
            loss.backward()
            update.add(
                loss, {"parts": {u.id: loss / len(batch.utterances) for u in batch.utterances}}
            )
        update.average_gradients()
        norms = [
            nn.utils.clip_grad_norm_(part.parameters(), 5.0).item() for part in self.models.values()
        ]
        update.log |= {"norm": norms[0], "lr": self.run.set_learning_rates()}
        if update.is_usable(norms):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, **changes) -> dict:
        run, recogniser = self.build(**changes), self.models["recogniser"]
        for epoch in run.epochs():
            for update in run.updates():
                self.update(update)
            run.end_epoch(recogniser, {"dev": [30.0, 50.0, 40.0][epoch % 3]})
        return run.finish(recogniser)

    def log(self) -> list[dict]:
        """Without what depends on the clock."""
        return [{k: v for k, v in entry.items() if k != "clock"} for entry in read_log(self.out)]

    def product(self) -> bytes:
        return (self.out / "model.safetensors").read_bytes()


def signal_at(step: int, number: int = signal.SIGTERM):
    """For Toy.each_update: this process gets the signal in its `step`-th update."""
    return lambda update: os.kill(os.getpid(), number) if update.step == step else None


if __name__ == "__main__":
    place = start(Config(device="cpu", out=sys.argv[1] + "/run"))
    toy = Toy(Path(sys.argv[1]), place)
    if place.rank == place.ranks - 1:
        toy.each_update = signal_at(4)
    try:
        toy.train()
    except UserError as error:
        print(place.rank, error, flush=True)
        toy.each_update = lambda update: None
        toy.train(resume=True)
