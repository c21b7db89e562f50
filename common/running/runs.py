"""Finished runs of all scripts: which script wrote a folder, and its recogniser.

    run = load_run("runs/x", place, root="data")
    run.recogniser.transcribe(batch, place)

Programs know runs by the closed table SCRIPTS: nothing that a config.json names is
imported unless it stands there.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from common.errors import UserError
from common.running import command_line
from common.running.process import Place

SCRIPTS = (
    "interaed_kd",
    "multirep_kd",
    "streaming_aux_kd",
    "llm_prompt_asr",
    "hubert_gpt_bridge",
)
# The option that names the pretrained model whose frozen weights a run does not keep.
BASES = {"llm_prompt_asr": "lm", "hubert_gpt_bridge": "gpt"}


class FinishedRun(NamedTuple):
    folder: Path
    script: str
    config: Any  # the script's Config, as it was trained
    recogniser: nn.Module


def load_run(
    folder: str | Path, place: Place, root: str = "data", base: str | None = None
) -> FinishedRun:
    """A finished run with its recogniser on the place's device, in evaluation mode.

    root: where demo worlds and their models are. base: where the pretrained model is
    now, if the run does not keep its weights; a digest decides whether it is the same.
    Raises UserError.
    """
    script = script_of_run(folder)
    module = importlib.import_module(script)
    config = command_line.load_config(folder, module.PRESETS)
    changes = {"root": root}
    if base is not None:
        changes[base_option(script, config)] = base
    config = replace(config, **changes)
    recogniser = module.load(config, place)
    return FinishedRun(Path(folder), script, config, recogniser.to(place.device).eval())


def script_of_run(folder: str | Path) -> str:
    """The name of the script that wrote the run. Raises UserError if it is unknown."""
    script = command_line.read_stored(folder)["script"]
    if script not in SCRIPTS:
        known = ", ".join(SCRIPTS)
        raise UserError(f"{folder} is a run of {script!r}, which is none of {known}.")
    return script


def base_option(script: str, config: Any) -> str:
    """The option of the run that --base replaces. Raises UserError if it has none."""
    if script not in BASES:
        raise UserError(
            f"--base is for {' and '.join(BASES)}: a run of {script} keeps all weights."
        )
    if config.init:  # it was adapted from another run
        return "init"
    return BASES[script]
