"""What a run needs around its training loop: ranks, seeds, learning rates, gradients, checkpoints, logs.

Functions that the loop calls, and that call nothing back: the model, the loss and the order of things stay in the
script.

Several ranks (torchrun): each backpropagates the sum of its own losses, `sum_gradients` adds the gradients of all
ranks and divides by the number of utterances of the whole update. That is done by hand rather than by
DistributedDataParallel, because the divisor is known only after every rank has read its audio, and because a rank
whose batch came out empty has no forward pass to synchronise; one all-reduce per update serves both, however many
micro-batches the update has.

Randomness is not a state here but a function of (seed, epoch, update, part, rank), see `reseed`: a resumed run needs no
generator states, and reading ahead in worker processes changes nothing.

Files of a run: config.json, log.jsonl (one line per update and per epoch), last.pt (everything needed to go on),
epochs/ (weights of the best epochs), model.safetensors and tokenizer.json (the product), hyp_<split>.txt, result.json.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from common import metrics
from common.flags import RunConfig, UserError, config_as_dict

# ----------------------------------------------------------------------------------------------- where a run runs


class Place(NamedTuple):
    """This process among `ranks`, its device, and the type of the forward pass (None: fp32)."""

    rank: int
    ranks: int
    device: torch.device
    autocast: torch.dtype | None

    @property
    def first(self) -> bool:
        return self.rank == 0


def start(config: RunConfig) -> Place:
    """Joins the other ranks if torchrun started this process, and picks the device. Raises UserError."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine (or this build of torch) has no CUDA: use --device cpu.")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use cuda, cuda:1 or cpu.") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1 and not dist.is_initialized():
        # The others wait while the first rank downloads a corpus.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return Place(rank, ranks, device, torch.bfloat16 if bf16 else None)


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def first_rank_first(place: Place):
    """The first rank goes through the block alone (it may download or build something), then all the others."""
    if not place.first:
        barrier(place)
    yield
    if place.first:
        barrier(place)


def barrier(place: Place) -> None:
    """Waits for all ranks."""
    if place.ranks > 1:
        dist.barrier()


def reseed(*parts: int) -> None:
    """Seeds every generator of torch from whole numbers, the same on every machine."""
    torch.manual_seed(random.Random(repr(parts)).getrandbits(60))


def gather(item, place: Place) -> list:
    """Any picklable object of every rank, in the order of ranks."""
    if place.ranks == 1:
        return [item]
    items = [None] * place.ranks
    dist.all_gather_object(items, item)
    return items


def sum_gradients(parameters: list[nn.Parameter], utterances: float, place: Place) -> None:
    """Gradients of summed losses, added over all ranks and divided by the number of utterances of the whole update."""
    for parameter in parameters:
        if parameter.grad is None:  # an empty batch, or a part that the update did not use
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    if place.ranks > 1:
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        sizes = [g.numel() for g in gradients]
        torch._foreach_copy_(gradients, [f.view_as(g) for f, g in zip(flat.split(sizes), gradients, strict=True)])
    torch._foreach_div_(gradients, max(utterances, 1.0))


# -------------------------------------------------------------------------------------------------- learning rates


def one_cycle(share: float, warmup: float) -> float:
    """Linear from 0 to 1 over the first `warmup` of the run, then half a cosine to 0. share: how much is done."""
    if share < warmup:
        return share / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup)))


def learning_rate(schedule: str, warmup: float, step: int, steps: int) -> float:
    """Share of the peak rate at update `step` (counted from 0) of `steps`; schedule: one-cycle | inverse-sqrt."""
    return one_cycle((step + 1) / steps, warmup) if schedule == "one-cycle" else inverse_sqrt(step, warmup)


def inverse_sqrt(step: int, warmup: float) -> float:
    """Linear to 1 over `warmup` steps, then falling with 1 / sqrt(step). Vaswani et al. 2017. step counts from 0."""
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))


# ----------------------------------------------------------------------------------------------------- being stopped

_stop = False


@contextmanager
def stop_on_signals():
    """Inside, SIGTERM and the first Ctrl-C only ask the run to stop, which `sum_over_ranks` then tells all ranks."""
    global _stop
    _stop = False

    def request(signum, frame):
        global _stop
        _stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For worker processes: whoever stops a whole process group means the training process, which then ends them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def stop_requested() -> bool:
    return _stop


# ---------------------------------------------------------------------------------------------------- the run's folder


@dataclass
class Progress:
    """How far a run is: all that a continuation needs beside weights and optimiser."""

    utterances: int = 0  # in the training set
    step: int = 0  # updates done
    epoch: int = 0
    update: int = 0  # updates done in this epoch
    done: bool = False
    skipped: int = 0  # updates not applied because their gradient was not finite
    infeasible: int = 0  # utterances left out because too short for their transcript, counted at every pass
    audio_seconds: float = 0.0  # audio learnt from
    train_seconds: float = 0.0  # clock time of the training loop, scoring excluded
    bad: dict[str, str] = field(default_factory=dict)  # utterance -> why its audio could not be read
    best: list[list[float]] = field(default_factory=list)  # [dev error, epoch] of the epochs to be averaged
    log_lines: int = 0


def open_folder(config: RunConfig, place: Place) -> Path:
    """Creates --out with its config.json. Raises UserError where it holds a run already and --resume was not given."""
    folder = Path(config.out)
    if place.first and not config.resume:
        if (folder / "last.pt").exists() or (folder / "model.safetensors").exists():
            raise UserError(f"{folder} already holds a run: add --resume to go on with it, or choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").unlink(missing_ok=True)  # of a run that never reached its first checkpoint
        write_atomically(folder / "config.json", json.dumps({"config": config_as_dict(config)}, indent=1) + "\n")
    barrier(place)
    return folder


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file is either as before or complete, whenever the machine stops."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    temporary = folder / ".last.pt.partial"
    with open(temporary, "wb") as file:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "last.pt")


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, place: Place
) -> Progress:
    """Puts model and optimiser back where the last checkpoint left them, and cuts log.jsonl back to it.

    progress: of a run that begins, returned where the run was stopped before its first checkpoint. Raises UserError.
    """
    if (folder / "last.pt").exists():
        try:
            state = torch.load(folder / "last.pt", map_location=place.device, weights_only=True)
            before, now = Progress(**state["progress"]), progress.utterances
            if before.utterances != now:
                raise UserError(
                    f"{folder} was trained on {before.utterances} utterances, and --data now has {now}: "
                    "bring the data back as they were, or start anew with another --out."
                )
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            progress = before
        except UserError:
            raise
        except Exception as error:  # what torch.load raises depends on where a file is damaged
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{folder}/last.pt cannot be resumed ({reason}): start anew with another --out.") from None
    barrier(place)
    log = folder / "log.jsonl"
    if place.first and log.exists():
        lines = log.read_text().splitlines(keepends=True)[: progress.log_lines]
        write_atomically(log, "".join(lines))
    return progress


@dataclass
class Sums:
    """What the micro-batches of one update add up to. Create it when the update begins: it also holds the time."""

    loss: float = 0.0
    parts: list[float] = field(default_factory=list)  # of the loss, equally many on every rank
    utterances: int = 0
    seconds: float = 0.0  # of audio
    infeasible: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    stop: bool = False
    started: float = field(default_factory=time.perf_counter)


def sum_over_ranks(sums: Sums, place: Place) -> Sums:
    """Adds up all ranks; `stop` becomes whether any of them was asked to stop."""
    sums.stop = stop_requested()
    if place.ranks > 1:
        counts = [sums.loss, sums.utterances, sums.seconds, sums.infeasible, sums.stop, len(sums.bad), *sums.parts]
        total = torch.tensor(counts, dtype=torch.float64, device=place.device)
        dist.all_reduce(total)
        sums.loss, sums.utterances, sums.seconds, sums.infeasible, sums.stop, bad, *sums.parts = total.tolist()
        if bad:
            sums.bad = {name: reason for found in gather(sums.bad, place) for name, reason in found.items()}
    return sums


def count_update(
    folder: Path, progress: Progress, sums: Sums, place: Place, bar, norm: float, lr: float, usable: bool, **entry
) -> None:
    """Books a finished update: progress, log.jsonl, progress bar, and the utterances whose audio could not be read.

    entry: what the log shall say besides. Such utterances are named once and never tried again. Raises UserError once
    they are more than max(10, 1 %) of the corpus.
    """
    progress.step, progress.update = progress.step + 1, progress.update + 1
    progress.audio_seconds += sums.seconds
    progress.train_seconds += time.perf_counter() - sums.started
    progress.infeasible += int(sums.infeasible)
    progress.skipped += not usable
    progress.bad |= sums.bad
    mean = sums.loss / max(sums.utterances, 1)
    bar.update()
    bar.set_postfix(loss=f"{mean:.1f}", refresh=False)
    if place.first:
        entry = dict(step=progress.step, loss=mean, norm=norm, lr=lr, utterances=int(sums.utterances)) | entry
        write_log(folder, progress, **entry, clock={"seconds": progress.train_seconds})
        for name, reason in sums.bad.items():
            note(f"left out {name}: {reason}")
    if len(progress.bad) > max(10, progress.utterances // 100):
        listed = "".join(f"\n  {reason}" for reason in progress.bad.values())
        raise UserError(
            f"{len(progress.bad)} of {progress.utterances} utterances cannot be read, mend or remove them:{listed}"
        )


def write_log(folder: Path, progress: Progress, **entry) -> None:
    """One line in log.jsonl. All that depends on the clock stands under `clock`; the rest repeats with the seed."""
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")
    progress.log_lines += 1


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def keep_epoch(folder: Path, model: nn.Module, error: float, keep: int, progress: Progress) -> None:
    """Writes this epoch's weights if it is among the `keep` with the lowest dev error; of equals the later."""
    progress.best = sorted([*progress.best, [error, progress.epoch]], key=lambda x: (x[0], -x[1]))[:keep]
    if progress.epoch in [epoch for _, epoch in progress.best]:
        (folder / "epochs").mkdir(exist_ok=True)
        save_weights(folder / "epochs" / f"{progress.epoch:04d}.safetensors", model.state_dict())


def drop_epochs(folder: Path, progress: Progress) -> None:
    """Deletes the weights of epochs no longer among the best. Call it after the checkpoint that knows about it."""
    kept = {f"{epoch:04d}.safetensors" for _, epoch in progress.best}
    for path in (folder / "epochs").glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()


def average_best_epochs(folder: Path, progress: Progress) -> dict[str, Tensor]:
    """The mean of the kept epochs' weights."""
    states = [load_weights(folder / "epochs" / f"{epoch:04d}.safetensors") for _, epoch in progress.best]
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Raises UserError where the file is missing, cut off or not safetensors."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: that run is not finished, go on with it by --resume.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): the run has to be repeated or resumed.") from None


# ------------------------------------------------------------------------------------------------------------ reports


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """{part: parameters} for the model's direct children, then `total`."""
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return parts | {"total": sum(p.numel() for p in model.parameters())}


def training_report(progress: Progress) -> dict:
    """What RESULT says about a training run; empty where this process did not train."""
    if not progress.train_seconds:
        return {}
    left_out = {"skipped_updates": progress.skipped, "infeasible": progress.infeasible, "bad_files": len(progress.bad)}
    rate = progress.audio_seconds / progress.train_seconds
    return {"train_seconds": round(progress.train_seconds, 1), "audio_seconds_per_second": round(rate, 1)} | left_out


def synchronise(place: Place) -> float:
    """The clock in seconds, once the device has done all it was asked."""
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    return time.perf_counter()


def progress_bar(progress: Progress, steps: int, place: Place):
    """A bar over the whole run on stderr, only where that is a terminal, and only on the first rank."""
    return tqdm(total=steps, initial=progress.step, unit="update", disable=None if place.first else True)


def note(message: str) -> None:
    """One line on stderr, above any progress bar."""
    tqdm.write(message, file=sys.stderr)


def score_split(
    folder: Path, split: str, references: dict[str, str], found: dict[str, str], twins: dict[str, str], place: Place
) -> tuple[metrics.ErrorRate, metrics.HomophoneErrors]:
    """As `metrics.score`; also writes hyp_<split>.txt, and prints a line and some errors of the test set."""
    errors, homophones = metrics.score(references, found, twins)
    if place.first:
        line = f"{split:12} WER {errors.rate:5.2f} % of {errors.words} words"
        line += f" ({errors.substitutions} wrong, {errors.deletions} missing, {errors.insertions} too many)"
        if twins:
            line += (
                f"; homophones {homophones.rate:.1f} % of {homophones.count} wrong (chance {homophones.chance:.0f} %)"
            )
        pairs = {name: metrics.side_by_side(text, found[name]) for name, text in references.items() if name in found}
        aligned = [f"{name}\n{pair}\n" for name, pair in pairs.items()]
        write_atomically(folder / f"hyp_{split}.txt", "\n".join(aligned))
        wrong = [pair for name, pair in pairs.items() if references[name] != found[name]]
        print(line, *wrong[:3], sep="\n", flush=True)
    return errors, homophones


def one_by_one(config: RunConfig, argv: list[str] | None) -> Iterator[tuple[str, list[str]]]:
    """(method, the command line that runs it alone, in a folder of its own inside --out) for each of --method."""
    argv = sys.argv[1:] if argv is None else argv
    for method in config.method:
        out = Path(config.out) / method
        begun = (out / "config.json").exists()  # what never began has nothing to resume
        command = [option for option in argv if begun or option != "--resume"]
        yield method, [*command, "--method", method, "--out", str(out)]


def compare(folder: Path, results: dict[str, dict]) -> None:
    """Prints the results of several methods below each other, and three sentences of which they made different things.

    folder: holds a folder per method with hyp_<split>.txt; results: {method: what RESULT says}.
    """
    if dist.is_initialized() and dist.get_rank():
        return
    splits = list(next(iter(results.values()))["wer"])
    print("\n" + " " * 14 + "".join(f"{split + ' WER':>18}{'homophone error':>18}" for split in splits))
    for method, result in results.items():
        shown = [result[score].get(split) for split in splits for score in ("wer", "homophone_error")]
        print(f"{method:14}" + "".join(f"{'' if x is None else format(x, '.1f'):>18}" for x in shown))
    for split in splits[:1]:
        texts = {method: (folder / method / f"hyp_{split}.txt").read_text() for method in results}
        blocks = [text.split("\n\n") for text in texts.values()]
        differing = [versions for versions in zip(*blocks, strict=True) if len(set(versions)) > 1]
        for versions in differing[:3]:
            print()
            for method, version in zip(results, versions, strict=True):
                name, reference, hypothesis = version.strip().splitlines()
                print(f"{'':14}{reference}\n{method:14}{hypothesis}")
    print(flush=True)


def report(folder: Path, result: dict) -> dict:
    """Writes result.json and prints the RESULT line, the last of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "result.json", json.dumps(result, indent=1) + "\n")
    print("RESULT " + json.dumps(result), flush=True)
    return result
