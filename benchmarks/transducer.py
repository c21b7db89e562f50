"""Joint network and transducer loss, forward and backward: ours, tile by tile, against torchaudio's.

    python benchmarks/transducer.py [--device cuda]

Seconds are medians of 7 interleaved repeats; memory is what forward and backward need beyond inputs and weights, each
in a process of its own. First the whole: joint network and loss; then the loss alone, from given logits; then, for the
whole, one of T, U and V smaller at a time.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import rnnt


def make_steps(
    sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool
) -> dict[str, Callable[[], None]]:
    """Forward and backward of ours and torchaudio's, with or without the joint network. sizes: B, T, U, V; J is 256."""
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
    losses = {"ours": rnnt.rnnt_loss, "torchaudio": torchaudio.functional.rnnt_loss}
    return {
        name: lambda loss=loss: loss(logits, *targets, blank=0, reduction="sum").backward()
        for name, loss in losses.items()
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
    ratios = f"{spent['torchaudio'] / spent['ours']:.2f} x, {memory['torchaudio'] / max(1, memory['ours']):.1f} x"
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
