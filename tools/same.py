"""Does the new code compute the same numbers as the old? Compares smoke runs of two
commits.

    python -m tools.same OLD --scripts interaed_kd             OLD against the working tree
    python -m tools.same OLD --new NEW --rows interaed_kd aed  two commits, some rows
    python -m tools.same OLD --record                          runs of OLD only, to compare with later

Every row is trained for a few updates on the smoke world with one thread, and its run
then decodes by beam search, transcribes a file with word times, and streams, where its
model can. Compared are

    log.jsonl          every entry and key of the old one, without clocks; LOG_KEYS renames keys
    last.pt            all weights, tensor by tensor in their order; WEIGHTS renames them
    model.safetensors  the exported weights
    hyp_*.tsv          the hypotheses, greedy and by beam search
    words              what was printed for a transcribed and for a streamed file

bit for bit. Runs of a commit are kept in runs/same/COMMIT and not repeated; the working
tree's are made anew. BERT's kept answers are not shared: each side asks its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parents[1]
KEPT = HERE / "runs" / "same"


class Row(NamedTuple):
    """A row of a script: its options before and after, and the variant that it
    became."""

    old: str
    new: str | None = None  # None: the same
    variant: str | None = None  # started as python -m variants.SCRIPT.VARIANT
    beam: bool = False  # it can decode by beam search
    stream: bool = False
    needs: str = ""  # an option that names an earlier stage, and after a space the row that is it


def variant(name: str, old: str, new: str = "--method interaed_kd", needs: str = "") -> Row:
    return Row(old, new, variant=name, needs=needs)


MULTIREP = "--method multirep_kd"
ROWS = {
    "interaed_kd": {
        "ctc": Row("--method ctc", beam=True),
        "interctc": Row("--method interctc"),
        "aed": Row("--method aed"),
        "aed_kd": Row("--method aed_kd"),
        "interaed": Row("--method interaed"),
        "interaed_kd": Row("--method interaed_kd", beam=True),
        "uniform": variant("uniform_teacher", "--method interaed_kd --soft-labels uniform"),
        "a 1": variant("teacher_alone", "--method interaed_kd --teacher-share 1"),
        "a .1": variant("little_teacher", "--method interaed_kd --teacher-share 0.1"),
        "w .66": variant(
            "aed_kd_with_taps", "--method aed_kd --tap-ctc-share 0.66", "--method aed_kd"
        ),
        "last": variant("kd_at_the_last_layer", "--method interaed_kd --kd-where final"),
        "taps": variant("kd_at_the_taps", "--method interaed_kd --kd-where inter"),
        "separate": variant("separate_decoders", "--method interaed_kd --decoder-sharing separate"),
        "session": variant("session_context", "--method interaed_kd --teacher-context full"),
    },
    "multirep_kd": {
        "rnnt": Row("--method rnnt", beam=True),
        "multirep_kd": Row("--method multirep_kd --context 20"),
        "last": Row("--method multirep_kd --teacher-layers last --n-layers 1 --noise 0.5"),
        "random": Row("--method multirep_kd --teacher-layers random --n-layers 1"),
        "two": Row("--method multirep_kd --teachers demo-smoke demo-smoke/bert-b"),
        "soft": variant("soft_labels", "--method soft_labels", f"{MULTIREP} --kd-weight 0.3"),
        "shuffle": variant("shuffled_teacher", f"{MULTIREP} --control shuffle", MULTIREP),
        "untrained": variant("untrained_teacher", f"{MULTIREP} --control random", MULTIREP),
        "l2": variant("l2_distance", f"{MULTIREP} --distance l2", MULTIREP),
        "cosine": variant("cosine_distance", f"{MULTIREP} --distance cosine", MULTIREP),
        "norm": variant("normed_states", f"{MULTIREP} --target-norm", MULTIREP),
        "past": variant(
            "past_context",
            f"{MULTIREP} --context 20 --context-sides past",
            f"{MULTIREP} --context 20",
        ),
        "future": variant(
            "future_context",
            f"{MULTIREP} --context 20 --context-sides future",
            f"{MULTIREP} --context 20",
        ),
        "soft, context": variant(
            "soft_labels",
            "--method soft_labels --context 20",
            f"{MULTIREP} --kd-weight 0.3 --context 20",
        ),
    },
    "streaming_aux_kd": {
        "teacher": Row("--method teacher"),
        "scratch": Row("--method scratch", stream=True),
        "aux_kd": Row("--method aux_kd", stream=True, needs="--teacher teacher"),
        "aux dis kld": Row("--method aux_kd --losses dis kld", needs="--teacher teacher"),
        "aux causal": Row(
            "--method aux_kd --losses dis --aux-mask causal --kd-weight 3",
            needs="--teacher teacher",
        ),
        "token_kd": Row("--method token_kd", needs="--teacher teacher"),
        "layer_kd": Row("--method layer_kd", needs="--teacher teacher"),
        "layer kld": Row("--method layer_kd --losses kld", needs="--teacher teacher"),
        "delay 2": variant(
            "token_kd_delay_2",
            "--method token_kd --token-kd-delay 2",
            "--method token_kd",
            needs="--teacher teacher",
        ),
        "shuffle": variant(
            "shuffled_teacher",
            "--method aux_kd --losses dis kld --control shuffle",
            "--method aux_kd --losses dis kld",
            needs="--teacher teacher",
        ),
        "untrained": variant(
            "untrained_teacher",
            "--method aux_kd --losses dis kld --control random",
            "--method aux_kd --losses dis kld",
            needs="--teacher teacher",
        ),
    },
    "llm_prompt_asr": {
        "ctc": Row("--method ctc", beam=True),
        "ctc transcripts": Row("--method ctc --units-of transcripts --units 60"),
        "llm": Row("--method llm --lora-rank 0", needs="--encoder ctc"),
        "lora": Row("--method llm --lora-rank 4", needs="--encoder ctc"),
        "masked": Row(
            "--method llm --lora-rank 0 --lr-lm 0 --mask-fraction 0.3 "
            "--freeze-encoder-steps 2 --stride-ms 320",
            needs="--encoder ctc",
        ),
    },
    "hubert_gpt_bridge": {
        "ctc": Row("--method ctc", beam=True),
        "gpt": Row("--method gpt", needs="--ctc-run ctc"),
        "gpt by ctc": Row("--method gpt --bridge ctc", needs="--ctc-run ctc"),
        "average": Row(
            "--method gpt --bridge ctc --compression average_remove_blank --mask-time 0.1",
            needs="--ctc-run ctc masked",
        ),
        "ctc masked": Row("--method ctc --mask-time 0.1"),
        "lora": Row("--method gpt --lora-rank 4 --ctc-run none"),
        "untrained gpt": variant(
            "untrained_gpt",
            "--method gpt --untrained-gpt",
            "--method gpt",
            needs="--ctc-run ctc",
        ),
        "untrained hubert": variant(
            "untrained_hubert", "--method ctc --untrained-hubert", "--method ctc"
        ),
        "adapted": Row(
            "--method gpt --lora-rank 4 --lr-hubert 0 --lr-bridge 0", needs="--init gpt"
        ),
    },
}
# script, or script and row -> [(pattern, replacement)]: from the old names to the new ones
WEIGHTS = {
    "streaming_aux_kd": [
        (r"^branches\.(\d+)\.(attention|feed_forward)\.", r"branches.\1.layer.\2.")
    ],
    "streaming_aux_kd layer_kd": [],
    "streaming_aux_kd layer kld": [],
    "interaed_kd": [(r"^decoders\.0\.", "decoder.")],
    "interaed_kd separate": [(r"^decoders\.", "decoder.decoders.")],
}
LOG_KEYS: dict[str, dict[str, str]] = {}


class Side(NamedTuple):
    """A commit's files, and the folder of its runs and corpora."""

    tree: Path
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def run(self, *words: str) -> str:
        """Starts `python WORDS` in the tree; returns what it printed. Ends the program
        if it fails."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.tree)}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.tree, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{self.tree}: python {' '.join(words)}\n{done.stderr[-3000:]}")
        return done.stdout

    def has_programs(self) -> bool:
        """Whether finished runs have programs of their own."""
        return (self.tree / "evaluate.py").exists()


def record(side: Side, script: str, name: str, steps: int) -> Path:
    """The folder of the row's run on this side, trained and asked if it is not
    there."""
    out = side.folder / script / re.sub(r"\W+", "-", name)
    if (out / "complete").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    row = ROWS[script][name]
    program = [f"{script}.py"]
    options = row.old.split()
    if row.variant and (side.tree / "variants" / script / f"{row.variant}.py").exists():
        program = ["-m", f"variants.{script}.{row.variant}"]
        options = (row.new or row.old).split()
    if row.needs:
        flag, earlier = row.needs.split(maxsplit=1)
        options += [flag, str(record(side, script, earlier, steps) / "run")]
    fixed = f"--preset smoke --max-steps {steps} --workers 0 --root {side.root} --out {out / 'run'}"
    side.run(*program, *options, *fixed.split())
    ask(side, script, row, out)
    (out / "complete").touch()
    return out


def ask(side: Side, script: str, row: Row, out: Path) -> None:
    """Lets the finished run decode, transcribe and stream; words.txt keeps what it
    printed."""
    run = str(out / "run")
    wave = str(min(side.root.rglob("*.flac")))
    root = ["--root", str(side.root)]
    plain = script in ("llm_prompt_asr", "hubert_gpt_bridge")  # their models give no word times
    times = [] if plain else ["--times"]
    if side.has_programs():
        words = side.run("transcribe.py", run, wave, *times, *root)
        if row.stream:
            words += side.run("transcribe.py", run, "--stream", wave, *root)
        if row.beam:
            side.run("evaluate.py", run, "--decode", "beam", "--out", str(out / "beam"), *root)
    else:
        old = [f"{script}.py", "--checkpoint", run, *root]
        words = side.run(*old, *times, "--transcribe", wave)
        if row.stream:
            words += side.run(*old, "--stream", wave)
        if row.beam:
            side.run(*old, "--decode", "beam", "--out", str(out / "beam"))
    (out / "words.txt").write_text(words.replace(str(side.root), "ROOT"))


# ---------------------------------------------------------------------------- comparison


def differences(script: str, row: str, old: Path, new: Path) -> list[str]:
    """What differs between two runs of a row, a sentence each."""
    found = compare_logs(script, old / "run", new / "run")
    for name in ("last.pt", "model.safetensors"):
        renamed = WEIGHTS.get(f"{script} {row}", WEIGHTS.get(script, []))
        found += compare_weights(renamed, old / "run" / name, new / "run" / name)
    names = [path.relative_to(old) for path in sorted(old.rglob("hyp_*.tsv"))]
    for name in [*names, Path("words.txt")]:
        if not (new / name).exists():
            found.append(f"{name} is missing")
        elif texts_of(old / name) != texts_of(new / name):
            found.append(f"{name} differs")
    return found


def texts_of(path: Path) -> list[str]:
    """The lines of a file; of hypotheses id, reference and hypothesis, whatever stands
    behind."""
    lines = path.read_text().splitlines()
    if path.suffix == ".tsv":
        return ["\t".join(line.split("\t")[:3]) for line in lines]
    return lines


def compare_logs(script: str, old: Path, new: Path) -> list[str]:
    before, after = read_log(old), read_log(new)
    if len(before) != len(after):
        return [f"log.jsonl has {len(after)} lines instead of {len(before)}"]
    for line, (entry, other) in enumerate(zip(before, after, strict=True), 1):
        for key, value in entry.items():
            key = LOG_KEYS.get(script, {}).get(key, key)
            if other.get(key) != value:
                return [f"log.jsonl, line {line}: {key} is {other.get(key)} instead of {value}"]
    return []


def read_log(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "clock"} for entry in entries]


def compare_weights(renames: list[tuple[str, str]], old: Path, new: Path) -> list[str]:
    before, after = read_weights(old), read_weights(new)
    renamed = {}
    for name, tensor in before.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    if list(renamed) != list(after):
        strange = sorted(set(renamed) ^ set(after))[:4]
        return [f"{old.name} has other names, or another order: {strange}"]
    for name, tensor in renamed.items():
        if tensor.shape != after[name].shape:
            shapes = f"{list(after[name].shape)} instead of {list(tensor.shape)}"
            return [f"{old.name}: {name} has the shape {shapes}"]
        if not torch.equal(tensor, after[name]):
            most = (tensor.double() - after[name].double()).abs().max().item()
            return [f"{old.name}: {name} differs by up to {most:.2g}"]
    return []


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)["model"]
    return load_file(path)


# -------------------------------------------------------------------------------- main


def side_of(commit: str | None) -> Side:
    """A commit in a worktree of its own; None: the files as they are, with nothing
    kept."""
    if commit is None:
        folder = KEPT / "working-tree"
        shutil.rmtree(folder, ignore_errors=True)
        return Side(HERE, folder)
    command = ["git", "rev-parse", "--short", f"{commit}^{{commit}}"]
    name = subprocess.check_output(command, cwd=HERE, text=True).strip()
    tree = KEPT / name / "tree"
    if not tree.exists():
        subprocess.check_call(["git", "worktree", "add", "-q", "--detach", tree, name], cwd=HERE)
    return Side(tree, KEPT / name)


def share_worlds(old: Side, new: Side) -> None:
    """Gives the new side the old one's corpora and pretrained models, but not BERT's
    answers."""
    for world in old.root.iterdir():
        target = new.root / world.name
        if world.name != "soft-labels" and not target.exists():
            shutil.copytree(world, target, copy_function=os.link)


def read_command_line(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; None: the program's own. Exits with code 2 for a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="a commit")
    parser.add_argument("--new", help="another commit; without it the working tree")
    parser.add_argument("--scripts", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rows", nargs="+", help="of every script; without it all")
    parser.add_argument("--steps", type=int, default=6, help="updates of every run")
    parser.add_argument("--record", action="store_true", help="only the runs of OLD")
    return parser.parse_args(arguments)


def main() -> None:
    given = read_command_line()
    old, new = side_of(given.old), None
    if not given.record:
        new = side_of(given.new)
    failed = 0
    for script in given.scripts:
        for row in ROWS[script]:
            if given.rows and row not in given.rows:
                continue
            before = record(old, script, row, given.steps)
            if new is None:
                print(f"{script:20}{row:14}recorded", flush=True)
                continue
            share_worlds(old, new)
            found = differences(script, row, before, record(new, script, row, given.steps))
            failed += bool(found)
            print(f"{script:20}{row:14}{'; '.join(found) or 'the same'}", flush=True)
    sys.exit(f"{failed} rows differ" if failed else 0)


if __name__ == "__main__":
    main()
