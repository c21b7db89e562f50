"""The command line of a training script as configurations, one per method; by tyro.

    configs = parse(PRESETS, __doc__, argv)    PRESETS: {"full": Config(), "demo": ...}

A preset gives the options that the command line leaves open; with --resume the stored
run gives them. So: command line > stored run > preset. `options.py` tells what a
configuration is. A run keeps its own in config.json, flat:

    {"script": "interaed_kd", "config": {"methods": ["ctc"], "seed": 1, ...}}
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from common.errors import UserError, explain_errors, keep_docstrings
from common.running import options
from common.running.options import RunConfig

DEMOS = ("demo", "demo-mls", "demo-talk", "demo-jargon", "demo-jargon-30", "demo-jargon-10")
PRESET_OF = dict.fromkeys(DEMOS, "demo") | {f"{name}-smoke": "smoke" for name in DEMOS}


class Program(NamedTuple):
    """How a program is started, what its help says, and its command line."""

    name: str  # python interaed_kd.py
    doc: str  # its docstring
    arguments: list[str]
    variant: str | None = None  # the file of variants/ that it is

    def read(self, default: Any) -> Any:
        """The options given on the command line, the others as in `default`.

        Prints the help, or what is wrong, and exits with code 0 or 2.
        """
        return tyro.cli(
            type(default),
            prog=self.name,
            description=description_of(self.doc),
            args=self.arguments,
            default=default,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )

    def read_run(self, default: RunConfig) -> RunConfig:
        """As `read`, for training: each method once, data/ as data, the variant."""
        config = self.read(default)
        data = config.data.rstrip("/") or config.data
        methods = tuple(dict.fromkeys(config.methods))
        return replace(config, methods=methods, data=data, variant=self.variant)

    def refuse(self, error: UserError) -> None:
        """Ends the program: the command line is wrong."""
        print(f"{self.name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def read_checked(name: str, doc: str | None, default: Any, argv: list[str] | None) -> Any:
    """The options of a program for finished runs, checked.

    argv: None for the program's own arguments. A wrong command line exits with code 2.
    """
    if argv is None:
        explain_errors()
        keep_docstrings()
    program = Program(name, doc or "", list(sys.argv[1:] if argv is None else argv))
    given = program.read(default)
    try:
        given.check()
    except UserError as error:
        program.refuse(error)
    return given


def description_of(doc: str | None) -> str:
    """The help's text: the first line of a docstring and its section "Run"."""
    if not doc:  # python -OO
        return ""
    section = re.search(r"^Run\n-+\n(.*?)(?=^\S.*\n-+$|\Z)", doc, re.M | re.S)
    return doc.strip().splitlines()[0] + ("\n\n" + section[1].rstrip() if section else "")


def parse(
    presets: dict[str, RunConfig],
    doc: str | None,
    argv: list[str] | None,
    variant: str | None = None,
) -> list[RunConfig]:
    """The checked configurations of a command line, one per method, in their order.

    argv: None for the program's own arguments. variant: the file of variants/ that
    started the script. A wrong command line exits with code 2. Raises UserError if
    --resume finds no run, or a run with other options.
    """
    if argv is None:
        explain_errors()
        keep_docstrings()
    script = options.script_of(presets["full"])
    name = f"python -m variants.{script}.{variant}" if variant else f"python {script}.py"
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = Program(name, doc or "", arguments, variant)
    default = _preset_of(program, presets)
    config = replace(program.read_run(default), preset=default.preset)
    try:
        options.check_values(config)
    except UserError as error:
        program.refuse(error)
    out = Path(config.out if config.out != "auto" else _default_out(script, config))
    configs = [replace(config, methods=(m,), out=str(path)) for m, path in _folders(config, out)]
    if config.resume:
        configs = _resumed(program, presets, out, configs)
    try:
        for each in configs:
            each.check()
    except UserError as error:
        program.refuse(error)
    return configs


def _preset_of(program: Program, presets: dict[str, RunConfig]) -> RunConfig:
    """The preset that --preset names, or that fits --data."""
    words = [word for word in program.arguments if word not in ("-h", "--help")]
    early = program._replace(arguments=words).read_run(presets["full"])
    name = early.preset
    if name == "auto":
        name = PRESET_OF.get(early.data, "full")
    return replace(presets[name], preset=name)


def _default_out(script: str, config: RunConfig) -> str:
    data = Path(config.data).name or "data"
    parts = [script, data, "+".join(config.methods), config.variant, f"s{config.seed}"]
    return "runs/" + "-".join(part for part in parts if part)


def _folders(config: RunConfig, out: Path) -> list[tuple[str, Path]]:
    """[(method, folder)]: --out for one method, a folder inside for each of several."""
    if len(config.methods) == 1:
        return [(config.methods[0], out)]
    return [(method, out / method) for method in config.methods]


# ---------------------------------------------------------------------------- stored configurations


def _resumed(
    program: Program, presets: dict[str, RunConfig], out: Path, configs: list[RunConfig]
) -> list[RunConfig]:
    """The configurations of the runs in these folders. Raises UserError without any."""
    begun = [config for config in configs if is_run(config.out)]
    if is_run(out) or not begun:  # a single run, or none
        stored = load_config(out, presets)
        return [_unchanged(stored, replace(program.read_run(stored), out=str(out), resume=True))]
    first = load_config(begun[0].out, presets)
    found = []
    for config in configs:
        mine = {"methods": config.methods, "out": config.out}
        if is_run(config.out):
            stored = load_config(config.out, presets)
            found.append(_unchanged(stored, replace(program.read_run(stored), resume=True, **mine)))
        else:  # a method that has not begun has the options of the one that has
            found.append(replace(program.read_run(first), resume=False, **mine))
    return found


def _unchanged(stored: RunConfig, config: RunConfig) -> RunConfig:
    changed = options.differences(stored, config)
    if changed:
        what = f"{config.out} holds a run with other options ({', '.join(changed)})"
        raise UserError(what + ": leave these as they were to --resume it, or give another --out.")
    return config


def is_run(folder: str | Path) -> bool:
    return os.path.isfile(Path(folder) / "config.json")


def read_stored(folder: str | Path) -> dict[str, Any]:
    """What the config.json of a run holds. Raises UserError if there is no run."""
    path = Path(folder) / "config.json"
    if not is_run(folder):
        found = sorted(glob("*/config.json", root_dir=folder))
        inside = [str(Path(folder, name).parent) for name in found]
        which = f"one of {', '.join(inside)}" if inside else "the folder that a run wrote"
        raise UserError(f"{folder} holds no run (no config.json in it): give {which}.")
    try:
        stored = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): start a new run.") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise UserError(f"{path} is no configuration of a run: start a new run.")
    if not isinstance(stored.get("script"), str):
        raise UserError(f"{path} does not name its script: an older version wrote it; train anew.")
    return stored


def load_config(folder: str | Path, presets: dict[str, RunConfig]) -> RunConfig:
    """The configuration of the run in `folder`; its `out` is the folder.

    Local options, and options that are newer than the run, have the values of its
    preset. Raises UserError if there is no run, or one of another script or version.
    """
    stored = read_stored(folder)
    script = options.script_of(presets["full"])
    path = Path(folder) / "config.json"
    if stored["script"] != script:
        raise UserError(f"{folder} is a run of {stored['script']}.py, not of {script}.py.")
    values = {name: _from_json(value) for name, value in stored["config"].items()}
    known = options.stored_values(presets["full"])
    unknown = [name for name in values if name not in known]
    preset = values.get("preset")
    if unknown or preset not in presets:
        what = f"it has no option {unknown[0]!r}" if unknown else f"there is no preset {preset!r}"
        raise UserError(f"{path} is of another version ({what}): use the version that wrote it.")
    config = options.with_values(presets[preset], **values, out=str(folder))
    try:
        config.check()
    except (UserError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} is of another version ({reason}): use that version.") from None
    return config


def _from_json(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
