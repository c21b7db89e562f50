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
from pathlib import Path
from statistics import median

import torch
import torchaudio

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import rnnt


def make(B: int, T: int, U: int, V: int, device: str, dtype: torch.dtype):
    """Networks and inputs of the sizes asked, all utterances equally long. J is 256."""
    torch.manual_seed(0)
    joint = rnnt.Joint(256, 256, 256, V).to(device)
    h = torch.randn(B, T, 256, device=device, requires_grad=True)
    g = torch.randn(B, U + 1, 256, device=device, requires_grad=True)
    targets = torch.randint(1, V, (B, U), device=device)
    lengths, target_lengths = torch.full((B,), T, device=device), torch.full((B,), U, device=device)
    return joint, h, g, targets, lengths, target_lengths, dtype


def ours(joint, h, g, targets, lengths, target_lengths, dtype):
    with torch.autocast(h.device.type, dtype, enabled=dtype != torch.float32):
        encoded, predicted = joint.encode(h), joint.predict(g)
        losses, _ = rnnt.transducer_loss(joint, encoded, predicted, targets, lengths, target_lengths)
    losses.sum().backward()


def torchaudios(joint, h, g, targets, lengths, target_lengths, dtype):
    with torch.autocast(h.device.type, dtype, enabled=dtype != torch.float32):
        logits = joint(joint.encode(h)[:, :, None], joint.predict(g)[:, None]).float()
    short = targets.int(), lengths.int(), target_lengths.int()
    torchaudio.functional.rnnt_loss(logits, *short, blank=0, reduction="sum").backward()


def alone(loss):
    def step(logits, targets, lengths, target_lengths):
        short = targets.int(), lengths.int(), target_lengths.int()
        loss(logits, *short, blank=0, reduction="sum").backward()

    return step


WHOLE = {"ours": ours, "torchaudio": torchaudios}
ALONE = {"ours": alone(rnnt.rnnt_loss), "torchaudio": alone(torchaudio.functional.rnnt_loss)}


def logits_of(joint, h, g, *rest):
    with torch.no_grad():
        return joint(h[:, :, None], g[:, None]).requires_grad_(), *rest[:-1]


def seconds(functions: dict, inputs: tuple, repeats: int = 7) -> dict[str, float]:
    spent = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function(*inputs)
            if inputs[0].is_cuda if isinstance(inputs[0], torch.Tensor) else inputs[1].is_cuda:
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in spent.items()}


def peak(name: str, sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool) -> int:
    """Bytes needed beyond what stood there before; called in a fresh process."""
    inputs = make(*sizes, device, dtype)
    small = make(1, 8, 4, sizes[3], device, dtype)  # libraries load themselves at the first call
    (WHOLE if whole else ALONE)[name](*(small if whole else logits_of(*small)))
    inputs = inputs if whole else logits_of(*inputs)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        (WHOLE if whole else ALONE)[name](*inputs)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the largest VmRSS, begins anew
    before = resident("VmRSS")
    (WHOLE if whole else ALONE)[name](*inputs)
    return resident("VmHWM") - before


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind + ":"))


def measure(title: str, sizes: tuple[int, ...], device: str, dtype: torch.dtype, whole: bool = True) -> None:
    inputs = make(*sizes, device, dtype)
    functions = WHOLE if whole else ALONE
    spent = seconds(functions, inputs if whole else logits_of(*inputs))
    del inputs
    memory = {}
    for name in functions:
        asked = json.dumps([name, sizes, device, str(dtype).removeprefix("torch."), whole])
        done = subprocess.run([sys.executable, __file__, "--peak", asked], capture_output=True, text=True, check=True)
        memory[name] = int(done.stdout)
    row = [f"{spent[name]:.3f} s, {memory[name] / 2**20:.0f} MB" for name in functions]
    ratios = f"{spent['torchaudio'] / spent['ours']:.2f} x, {memory['torchaudio'] / max(1, memory['ours']):.1f} x"
    print("| " + " | ".join([title, "B{} T{} U{} V{}".format(*sizes), *row, ratios]) + " |", flush=True)


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
                measure(f"joint + loss, {dtype}".replace("torch.", ""), (32, 318, 68, V), arguments.device, dtype)
