"""Command line of the scripts: a frozen dataclass is the configuration, and the comment behind a field is its help.

    @dataclass(frozen=True)
    class Config(RunConfig):
        # -- model --
        layers: int = 18  # encoder blocks [peer]

    config = parse(Config, PRESETS, doc=__doc__)

The dataclass defaults are the preset `full`; PRESETS holds what `smoke` and `demo` change. Who wins:
flag > configuration of the checkpoint (or of the run to resume) > preset > default.

This module imports no torch, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import json
import re
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """Something the user can mend (data, a model, a folder). One sentence that says what to do; exit code 1."""


@dataclass(frozen=True)
class RunConfig:
    """Options that every script shares. Subclasses add data limits, method, model and optimisation."""

    # -- what to run on --
    data: str = "demo"  # demo | librispeech | a folder with train.jsonl, dev.jsonl and test*.jsonl
    root: str = "data"  # where corpora live: ROOT/LibriSpeech (or ROOT itself); the demo world is built in ROOT/demo
    hours: float | None = None  # training audio; LibriSpeech: 100, 360, 460, 960 pick subsets; absent: all, demo: 1.8
    download: bool = False  # fetch the LibriSpeech subsets that are missing (checksummed)
    # -- what to do --
    preset: typing.Literal["auto", "smoke", "demo", "full"] = "auto"  # sizes; auto: demo for demo data, else full
    out: str = "auto"  # folder; auto: runs/<script>-<data>-<method>-s<seed>; several methods: each in a folder inside
    resume: bool = False  # go on with the unfinished run in --out
    checkpoint: str | None = None  # folder of a finished run: score it (or --transcribe with it) instead of training
    transcribe: tuple[Path, ...] = ()  # audio files to transcribe with --checkpoint: prints file<TAB>text
    times: bool = False  # with --transcribe: one line per word, file<TAB>start<TAB>end<TAB>word, in seconds
    summary: bool = False  # print the number of parameters by part and stop
    # -- how to run --
    seed: int = 1  # of weights, order, augmentation and dropout
    device: str = "auto"  # auto: cuda where there is one, else cpu
    precision: typing.Literal["auto", "fp32", "bf16"] = "auto"  # of the forward pass (losses: fp32); auto: bf16 on cuda
    workers: int = 4  # processes that read audio (0: read in the training process)
    max_steps: int | None = None  # stop after so many updates; a one-cycle schedule is then so long


# May differ between a run and its continuation: where things lie, what to do and how to compute, never what is learnt.
NOT_PART_OF_A_RUN = {"root", "download", "out", "resume", "checkpoint", "transcribe", "times", "summary"}
NOT_PART_OF_A_RUN |= {"device", "workers", "batch_seconds"}
NOT_PART_OF_A_RUN |= {"decode", "lm", "beam", "lm_weight", "bonus"}


def parse(config_class: type, presets: dict[str, dict], doc: str, argv: list[str] | None = None):
    """Reads the command line into a `config_class`.

    presets: {"smoke": {field: value}, "demo": {...}}; "full" is the defaults. doc: the script's docstring (its first
    line and its section "Run" become the help). Exits with code 2 and one sentence on a wrong command line; raises
    UserError where --checkpoint or --resume name a folder without a readable config.json.
    """
    script = Path(inspect.getfile(config_class)).stem
    parser = _build_parser(config_class, presets, doc, script)
    argv = sys.argv[1:] if argv is None else list(argv)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_suggest(unknown[0], [o for a in parser._actions for o in a.option_strings]))
    given = vars(given)

    preset = given.get("preset", "auto")
    if preset == "auto":
        preset = "demo" if given.get("data", config_class.data) == "demo" else "full"
    values = {"preset": preset} | presets.get(preset, {})
    config = dataclasses.replace(config_class(**(values | given)), preset=preset)
    config = dataclasses.replace(config, out=config.out if config.out != "auto" else default_out(script, config))
    if config.transcribe and not config.checkpoint:
        parser.error("--transcribe needs --checkpoint, the folder of a finished run.")
    if config.resume and config.checkpoint:
        parser.error("--resume goes on with a run and --checkpoint scores one: give one of the two.")
    if config.checkpoint:
        stored = load_config(config_class, config.checkpoint, presets)
        scored = _label(given.get("data", stored.data)) + ("-beam" if given.get("decode") == "beam" else "")
        out = given.get("out", str(Path(config.checkpoint) / f"score-{scored}"))
        config = dataclasses.replace(stored, **given | {"preset": given.get("preset", stored.preset), "out": out})
    elif config.resume and (len(config.method) == 1 or (Path(config.out) / "config.json").exists()):
        stored = load_config(config_class, config.out, presets)
        kept = {"preset": given.get("preset", stored.preset), "out": config.out}
        config = dataclasses.replace(stored, **given | kept)
        changed = differences(stored, config)
        if changed:
            raise UserError(f"{config.out} holds a run with another configuration ({'; '.join(changed)}): leave these "
                            "flags as they were to --resume it, or start anew with another --out.")  # fmt: skip
    return config


def check_command_line(config_class: type, presets: dict[str, dict], doc: str) -> None:
    """Answers --help and whatever is wrong with the command line before a script imports anything heavy."""
    try:
        parse(config_class, presets, doc)
    except UserError as error:
        sys.exit(f"error: {error}")


def default_out(script: str, config: RunConfig) -> str:
    data = _label(config.data) + ("-smoke" if config.preset == "smoke" else "")
    return f"runs/{script}-{data}-{'+'.join(config.method)}-s{config.seed}"


def _label(data: str) -> str:
    return Path(data).name or "data"


def load_config(config_class: type, folder: str | Path, presets: dict[str, dict]):
    """The configuration a run was started with. Raises UserError where there is none, or one of another script."""
    path = Path(folder) / "config.json"
    try:
        stored = json.loads(path.read_text())
        hints = typing.get_type_hints(config_class)
        values = {k: tuple(v) if _is_tuple(hints[k]) else v for k, v in stored["config"].items()}
        return config_class(**presets.get(values["preset"], {}) | values)
    except FileNotFoundError:
        inside = ", ".join(sorted(str(path.parent) for path in Path(folder).glob("*/config.json")))
        which = f"one of {inside}" if inside else "the folder that a run wrote"
        raise UserError(f"{folder} holds no run (no config.json in it): give {which}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a configuration of this script ({error}): use the script and version that "
                        "wrote it.") from None  # fmt: skip


def config_as_dict(config) -> dict:
    """The part of the configuration that belongs to a run, as plain JSON values."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_PART_OF_A_RUN}


def differences(old, new) -> list[str]:
    """['seed 1 -> 2', ...] for every field that belongs to a run and differs."""
    old, new = config_as_dict(old), config_as_dict(new)
    return [f"{key} {_show(old[key])} -> {_show(new[key])}" for key in old if old[key] != new[key]]


def _is_tuple(hint) -> bool:
    return typing.get_origin(hint) is tuple


def _comments(config_class: type) -> tuple[dict[str, str], dict[str, str]]:
    """({field: comment behind it}, {field: band it stands in}), read from the source of the class and its parents."""
    helps, bands = {}, {}
    for cls in reversed([c for c in config_class.__mro__ if dataclasses.is_dataclass(c)]):
        band = "options"
        for line in inspect.getsource(cls).splitlines():
            if heading := re.match(r"\s+# -- (.*) --", line):
                band = heading[1]
            elif field := re.match(r"\s+(\w+): .*?  # (.*)", line):
                helps[field[1]], bands[field[1]] = field[2], band
    return helps, bands


def _build_parser(config_class, presets, doc, script) -> argparse.ArgumentParser:
    run_section = re.search(r"^Run\n-+\n(.*?)(?=^\S.*\n-+$|\Z)", doc, re.M | re.S)
    parser = argparse.ArgumentParser(
        prog=f"python {script}.py",
        usage=f"python {script}.py [options]",
        description=doc.strip().splitlines()[0],
        epilog=run_section[1] if run_section else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=116),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    hints, (helps, bands), groups = typing.get_type_hints(config_class), _comments(config_class), {}
    for field in dataclasses.fields(config_class):
        band = bands[field.name]
        group = groups.setdefault(band, None) or parser.add_argument_group(band)
        groups[band] = group
        in_presets = [f"{p} {_show(v[field.name])}" for p, v in presets.items() if field.name in v]
        default = "; ".join([_show(field.default), *in_presets])
        text = helps[field.name] + (f" [{default}]" if in_presets or field.default not in (None, (), False) else "")
        flag = "--" + field.name.replace("_", "-")
        group.add_argument(flag, help=text.replace("%", "%%"), **_kind(hints[field.name]))
    return parser


def _show(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(hint) -> dict:
    """The argparse keywords for a field's type."""
    if isinstance(hint, types.UnionType):  # X | None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if hint is bool:
        return {"action": "store_true"}
    if typing.get_origin(hint) is typing.Literal:
        names = typing.get_args(hint)
        return {"choices": names, "type": type(names[0])}
    if _is_tuple(hint):
        item = typing.get_args(hint)[0]
        if typing.get_origin(item) is typing.Literal:
            names = typing.get_args(item)
            return {"type": functools.partial(_names, names), "metavar": "{" + ",".join(names) + "},…"}
        if item is Path:  # file names may hold commas
            return {"nargs": "+", "type": str, "action": _AsTuple, "metavar": "FILE"}
        return {"type": functools.partial(_comma_list, item), "metavar": f"{item.__name__.upper()},…"}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _comma_list(item: type, text: str) -> tuple:
    return tuple(item(part) for part in text.split(",") if part)


def _names(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    """A comma list of known names, each once."""
    names = tuple(dict.fromkeys(part for part in text.split(",") if part))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    if not names:
        raise argparse.ArgumentTypeError(f"give one or more of {', '.join(known)}")
    return names


class _AsTuple(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def _suggest(flag: str, known: list[str]) -> str:
    if not flag.startswith("-"):
        return f"unexpected argument {flag!r}: options start with --, see --help."
    flag = flag.split("=")[0]
    close = difflib.get_close_matches(flag, known, n=1)
    return f"unknown option {flag}" + (f": did you mean {close[0]}?" if close else ": see --help.")
