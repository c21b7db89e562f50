"""Earlier runs that a run builds on: a teacher, or the CTC model behind a language
model. They are ordinary runs of the same script, each in a folder of its own.

    stage = Stage("teacher", "--teacher", may_differ=("kd_weight", ...))
    earlier = stages.find_run(config, stage, PRESETS, place)
    if stages.is_finished(earlier):
        stages.check_corpus(earlier, stage, utterances, place)
    else:
        with variants.plain(__name__):
            run_method(earlier)  # trains it, or goes on with it
    teacher = load(earlier, place)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from common.errors import UserError, note
from common.running import options
from common.running.command_line import is_run, load_config
from common.running.corpora import Utterance
from common.running.options import RunConfig
from common.running.process import Place, gather
from common.running.training import digest_of


class Stage(NamedTuple):
    """What an earlier run has to be."""

    method: str  # its row of the script
    flag: str  # the option that names its folder; auto: the run beside this one
    may_differ: Sequence[str]  # options on which the two runs need not agree


def find_run(
    config: RunConfig, stage: Stage, presets: dict[str, RunConfig], place: Place
) -> RunConfig:
    """The configuration of the earlier run; `out` is its folder. It need not be
    finished, or begun.

    With auto it is the run beside this one, or the one in the script's default folder,
    and no variant; a variant's run may be named. Raises UserError if a folder was named
    that holds no run, where the run differs in an option, and where --max-steps cut it
    short and this run goes on longer.
    """
    option = stage.flag.removeprefix("--").replace("-", "_")
    named = getattr(config, option)
    folder = Path(named)
    if named == "auto":
        folder = _default_folder(config, stage.method)
    begun = gather(is_run(folder), place)[0]  # asked before the first rank makes one
    if named != "auto" and not begun:
        what = f"give the folder of a run of {stage.method}, or auto, which trains one"
        raise UserError(f"{stage.flag} {named} holds no run: {what} where there is none.")
    changes = {"methods": (stage.method,), "out": str(folder), "resume": begun, "variant": None}
    earlier = options.with_values(config, **changes)
    if not begun:
        return options.with_values(earlier, **{option: "auto"})
    stored = load_config(folder, presets)
    kept = options.flat(stored)
    may_differ = [*stage.may_differ]
    if named != "auto":  # a variant's run may be named
        may_differ.append("variant")
    earlier = options.with_values(earlier, **{name: kept[name] for name in may_differ})
    cut_short = config.max_steps or not stored.max_steps
    earlier = options.with_values(earlier, max_steps=stored.max_steps if cut_short else None)
    changed = options.differences(stored, earlier)
    if changed:
        what = f"the {stage.method} in {folder} was trained otherwise ({'; '.join(changed)})"
        raise UserError(f"{what}: give another {stage.flag}.")
    return earlier


def check_same(stored: RunConfig, config: RunConfig, flag: str, names: Sequence[str]) -> None:
    """Raises UserError where the run that `flag` names has other values of these
    options, and says which."""
    theirs = options.flat(stored)
    ours = options.flat(config)
    wanted = [f"{options.flag_of(n)} {theirs[n]}" for n in names if theirs[n] != ours[n]]
    if wanted:
        raise UserError(f"{flag} {stored.out} is another model: give {' '.join(wanted)}.")


def is_finished(earlier: RunConfig) -> bool:
    """Whether the run has exported its weights."""
    return (Path(earlier.out) / "model.safetensors").exists()


def check_corpus(
    earlier: RunConfig, stage: Stage, utterances: list[Utterance], place: Place
) -> None:
    """Raises UserError if the finished run was trained on other utterances.

    If its last.pt is gone, this cannot be known; a note says so.
    """
    folder = Path(earlier.out)
    path = folder / "last.pt"
    if not path.exists():
        if place.first:
            note(f"{folder} has no last.pt: whether its data were the same cannot be told")
        return
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        corpus = state["progress"]["corpus"]
    except Exception as error:  # what torch.load raises depends on where a file is damaged
        what = f"cannot be read (damaged, or of another version: {type(error).__name__})"
        raise UserError(f"{path} {what}: give another {stage.flag}.") from None
    if corpus != digest_of(utterances):
        what = f"the {stage.method} in {folder} was trained on other utterances than --data now has"
        advice = f"bring the data back as they were, or give another {stage.flag}."
        raise UserError(f"{what}: {advice}")


def _default_folder(config: RunConfig, method: str) -> Path:
    """The folder beside this run, or else the script's default one."""
    beside = Path(config.out).with_name(method)
    if is_run(beside):
        return beside
    name = f"{options.script_of(config)}-{Path(config.data).name}-{method}-s{config.seed}"
    return Path("runs") / name
