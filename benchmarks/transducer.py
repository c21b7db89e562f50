"""Joint network and transducer loss, forward and backward: ours against torchaudio's.

    python benchmarks/transducer.py [--device cuda]

Seconds are medians of 7 interleaved repeats; memory is what forward and backward need
beyond inputs and weights, each in a process of its own. First the whole: joint network
and loss; then the loss alone, from given logits; then, for the whole, one of T, U and V
smaller at a time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchaudio
from torch import Tensor
from torch.autograd.function import once_differentiable

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import rnnt
from common.conformer import length_mask


class LossOfLogits(torch.autograd.Function):
    """rnnt.lattice as the loss of logits that exist already, which no script has."""

    @staticmethod
    def forward(ctx, logits, targets, lengths, target_lengths, normalise):
        B, T, nodes, V = logits.shape
        limit = 2**21 if logits.device.type == "cpu" else 2**25
        tile = max(1, limit // (B * nodes * V))  # frames at once, as in rnnt.tile_size
        dtype = torch.promote_types(logits.dtype, torch.float32)
        picked = logits.new_empty(2, B, T, nodes, dtype=dtype)
        for t in range(0, T, tile):
            part = logits[:, t : t + tile]
            log_probs = part.log_softmax(-1, dtype) if normalise else part
            picked[:, :, t : t + tile] = rnnt.pick(log_probs, targets)
        loss, blanks, gamma = rnnt.lattice(*picked, lengths, target_lengths)
        ctx.save_for_backward(logits, targets, blanks, gamma)
        ctx.options = tile, dtype, normalise
        return loss.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        logits, targets, blanks, gamma = ctx.saved_tensors
        tile, dtype, normalise = ctx.options
        result = torch.empty_like(logits)
        for t in range(0, logits.shape[1], tile):
            frames = slice(t, t + tile)
            part = logits[:, frames]
            # Without log_softmax, its part of the derivative falls away.
            probs = part.softmax(-1, dtype) if normalise else torch.zeros_like(part, dtype=dtype)
            by_logits = rnnt.derivative(probs, targets, blanks[:, frames], gamma[:, frames])
            result[:, frames] = by_logits.mul_(scale[:, None, None, None])
        return result, None, None, None, None


def loss_of_logits(
    logits: Tensor,
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    normalise: bool = True,
) -> Tensor:
    """As torchaudio.functional.rnnt_loss with blank 0 and no reduction: (B,).

    logits (B, T, U+1, V); targets (B, U), with any padding; lengths, target_lengths (B,).
    normalise False: the logits are log-probabilities.
    """
    targets = targets.long() * length_mask(target_lengths, targets.shape[1])
    return LossOfLogits.apply(logits, targets, lengths, target_lengths, normalise)


def make_steps(
    sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool
) -> dict[str, Callable[[], None]]:
    """Forward and backward of ours and torchaudio's; whole: with the joint network.

    sizes: B, T, U, V; J is 256.
    """
    B, T, U, V = sizes
    torch.manual_seed(0)
    joint = rnnt.Joint(256, 256, 256, V).to(device)
    h, g = (torch.randn(B, n, 256, device=device, requires_grad=True) for n in (T, U + 1))
    integers = dict(dtype=torch.int32, device=device)
    targets = (
        torch.randint(1, V, (B, U), **integers),
        torch.full((B,), T, **integers),
        torch.full((B,), U, **integers),
    )

    def ours():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses, _ = rnnt.transducer_loss(
                joint, joint.encode(h), joint.predict(g), *(x.long() for x in targets)
            )
        losses.sum().backward()

    def with_torchaudio():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = joint(joint.encode(h)[:, :, None], joint.predict(g)[:, None]).float()
        torchaudio.functional.rnnt_loss(logits, *targets, blank=0, reduction="sum").backward()

    if whole:
        return {"ours": ours, "torchaudio": with_torchaudio}
    with torch.no_grad():
        logits = joint(h[:, :, None], g[:, None]).requires_grad_()
    theirs = torchaudio.functional.rnnt_loss
    return {
        "ours": lambda: loss_of_logits(logits, *targets).sum().backward(),
        "torchaudio": lambda: theirs(logits, *targets, blank=0, reduction="sum").backward(),
    }


def seconds(
    steps: dict[str, Callable[[], None]], device: str, repeats: int = 7
) -> dict[str, float]:
    """Medians; the steps take turns, so that a slow moment hits all of them."""
    spent = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in spent.items()}


def resident(kind: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind + ":"))


def peak(name: str, sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool) -> int:
    """Bytes needed beyond what stood there before; called in a fresh process."""
    make_steps((1, 8, 4, sizes[3]), device, dtype, whole)[
        name
    ]()  # libraries load themselves at the first call
    step = make_steps(sizes, device, dtype, whole)[name]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the largest VmRSS, begins anew
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def measure(
    title: str, sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool = True
) -> None:
    spent = seconds(make_steps(sizes, device, dtype, whole), device)
    memory = {}
    for name in spent:
        arguments = json.dumps([name, sizes, device, str(dtype).removeprefix("torch."), whole])
        command = [sys.executable, __file__, "--peak", arguments]
        memory[name] = int(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    row = [f"{spent[name]:.3f} s, {memory[name] / 2**20:.0f} MB" for name in spent]
    faster = spent["torchaudio"] / spent["ours"]
    leaner = memory["torchaudio"] / max(1, memory["ours"])
    ratios = f"{faster:.2f} x, {leaner:.1f} x"
    print(
        "| " + " | ".join([title, "B{} T{} U{} V{}".format(*sizes), *row, ratios]) + " |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        name, sizes, device, dtype, whole = json.loads(arguments.peak)
        print(peak(name, tuple(sizes), device, getattr(torch, dtype), whole))
        sys.exit()
    print("| what | sizes | ours | torchaudio | faster, leaner |\n|---|---|---|---|---|")
    if arguments.device == "cpu":
        measure("joint + loss", (8, 250, 60, 1000), "cpu", torch.float32)
        measure("loss alone", (8, 250, 60, 1000), "cpu", torch.float32, whole=False)
        for sizes in ((8, 125, 60, 1000), (8, 250, 30, 1000), (8, 250, 60, 500), (8, 250, 60, 50)):
            measure("joint + loss", sizes, "cpu", torch.float32)
    else:
        for V in (500, 1024, 5000):
            for dtype in (torch.float32, torch.bfloat16):
                measure(
                    f"joint + loss, {dtype}".replace("torch.", ""),
                    (32, 318, 68, V),
                    arguments.device,
                    dtype,
                )
