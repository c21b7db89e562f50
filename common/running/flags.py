"""Command line of the scripts: a frozen dataclass is the configuration, and the comment
behind a field is its help.

    @dataclass(frozen=True)
    class Config(RunConfig):
        # -- method --
        method: Literal["ctc", "interctc"] = "interctc"  # row of the table
        # -- model --
        layers: Count = 18  # encoder blocks [peer]

    PRESETS = {"demo": dict(layers=4, methods=("ctc", "interctc"))}
    configs = parse(Config, PRESETS, doc=__doc__)  # a finished configuration per --method

The dataclass defaults are the preset `full`; PRESETS holds what `smoke` and `demo`
change, and under `methods` the rows that they run. Who wins: flag > configuration of
the checkpoint (or of the run to resume) > preset > default.

This module imports no torch, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import json
import os
import re
import reprlib
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from common.errors import UserError, explain_errors, keep_docstrings
from common.running.options import Search

# ========================================================================================================== types


class Range(NamedTuple):
    """The numbers that a field takes, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


LARGEST = 10**9  # in size: no option of any script means anything beyond
NOT_NEGATIVE = Range("at least 0", lambda x: x >= 0)  # plain int and float
Count = Annotated[int, Range("at least 1", lambda x: x >= 1)]
Extent = Annotated[
    int, Range("at least 1 and at most 100000", lambda x: 1 <= x <= 100_000)
]  # of a model or a search
Speed = Annotated[float, Range("from 0.5 to 2", lambda x: 0.5 <= x <= 2)]
Positive = Annotated[float, Range("more than 0", lambda x: x > 0)]
Seconds = Annotated[float, Range("at least 1", lambda x: x >= 1)]
Share = Annotated[float, Range("a share, from 0 to 1", lambda x: 0 <= x <= 1)]
Real = Annotated[float, Range(f"between -{LARGEST} and {LARGEST}", lambda x: abs(x) <= LARGEST)]


class _Kind(NamedTuple):
    """What the type of a field says: `tuple[Count, ...] | None` is _Kind(int, "at least
    1", several, optional)."""

    base: type  # bool, int, float or str
    limits: Range = NOT_NEGATIVE  # of a number
    choices: tuple = ()  # of a Literal
    several: bool = False
    optional: bool = False


def _read_type(hint) -> _Kind:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None
        return _read_type(next(t for t in arguments if t is not types.NoneType))._replace(
            optional=True
        )
    if origin is tuple:
        return _read_type(arguments[0])._replace(several=True)
    if origin is Literal:
        return _Kind(type(arguments[0]), choices=arguments)
    return _Kind(*arguments) if origin is Annotated else _Kind(hint)


@functools.cache
def _kinds(config_class: type) -> dict[str, _Kind]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    return {field.name: _read_type(hints[field.name]) for field in dataclasses.fields(config_class)}


_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def _checked(name: str, kind: _Kind, value):
    """The value as the field's type wants it (a tuple for a list). Raises UserError,
    one sentence with its flag."""
    if value is None and kind.optional:
        return None
    if kind.several and isinstance(value, list | tuple):
        return tuple(_checked(name, kind._replace(several=False, optional=False), x) for x in value)
    is_number = kind.base in (int, float) and not kind.choices
    if kind.several:
        wanted = "a list"
    elif type(value) is not kind.base and (kind.base, type(value)) != (float, int):
        wanted = _NOUNS[kind.base]
    elif kind.choices and value not in kind.choices:
        wanted = "one of " + ", ".join(map(str, kind.choices))
    elif is_number and not kind.limits.holds(value):
        wanted = kind.limits.words
    elif is_number and not abs(value) <= LARGEST:
        wanted = f"at most {LARGEST}"
    elif kind.base is str and not value.strip():
        wanted = _NOUNS[str]
    else:
        return kind.base(value)
    raise UserError(f"{_flag(name)} must be {wanted}, not {reprlib.repr(value)}.")


# ================================================================================================== configuration

NOT_PART_OF_A_RUN = ("what to do", "how to compute", "decoding")  # bands
SCORING_MAY_CHANGE = ("data", "max_seconds", "precision")  # of the options that belong to a run
DEMOS = ("demo", "demo-mls", "demo-spontaneous")
PRESET_OF = dict.fromkeys(DEMOS, "demo") | {
    f"{name}-smoke": "smoke" for name in DEMOS
}  # --preset auto; others: full


@dataclass(frozen=True)
class RunConfig:
    """Options that every script shares. Subclasses add `method`, limits on the data,
    model and optimisation.

    Each field stands in a band, a comment `# -- band --`. The band decides what belongs
    to a run: the fields of "what to do", "how to compute" and "decoding" may differ
    between a run and its continuation or its scoring, and are not stored in
    config.json. All others are stored; --resume and --checkpoint refuse to change them.
    """

    # No options here; a script for several languages makes them options of its own.
    languages = ()  # of the corpus; none: all
    language_power = 1.0  # see `batches.plan_epoch`
    init = None  # a model to go on from

    # -- corpus --
    data: str = "demo"  # demo | demo-spontaneous | demo-mls | librispeech | mls | a folder of train, dev, test*.jsonl
    hours: Positive | None = (
        None  # training audio; LibriSpeech's 100, 360, 460, 960 and MLS's 1, 9, 10 pick subsets
    )
    # -- run --
    preset: Literal["auto", "smoke", "demo", "full"] = (
        "auto"  # sizes; auto: demo and smoke for theirs, else full
    )
    seed: int = 1  # of weights, order, augmentation and dropout
    max_steps: Count | None = (
        None  # stop after so many updates; a one-cycle schedule is then so long
    )
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # of the forward pass (losses: fp32); auto: bf16 on cuda
    )
    # -- what to do --
    root: str = "data"  # where corpora live: LibriSpeech (or ROOT itself), mls_english, …; demo worlds are built there
    download: bool = False  # fetch the LibriSpeech subsets that are missing (checksummed)
    out: str = "auto"  # folder; auto: runs/<script>-<data>-<method>-s<seed>; several methods: each in a folder inside
    resume: bool = False  # go on with the unfinished run in --out
    checkpoint: str | None = (
        None  # folder of a finished run: score it (or --transcribe with it) instead of training
    )
    transcribe: tuple[
        str, ...
    ] = ()  # audio files to transcribe with --checkpoint: prints file<TAB>text
    times: bool = (
        False  # with --transcribe: one line per word, file<TAB>start<TAB>end<TAB>word, in seconds
    )
    srt: bool = False  # with --transcribe: subtitles in a.srt beside a.wav, cut at pauses; prints file<TAB>a.srt
    summary: bool = False  # print the number of parameters by part and stop
    # -- how to compute --
    device: str = "auto"  # cpu, cuda or cuda:N; auto: cuda where there is one, else cpu
    workers: int = 4  # processes that read audio (0: read in the training process)
    batch_seconds: Positive = (
        400.0  # audio per forward pass and rank, padding included: what memory allows
    )
    cut_seconds: Seconds = (
        40.0  # longer recordings are cut at pauses, in scoring as in --transcribe
    )
    save_steps: Count = 1000  # updates between checkpoints; also one after every epoch

    # The scripts that tyro reads have groups of options; here all are in one.
    training = augmentation = property(lambda self: self)
    variant = None

    @property
    def search(self) -> Search:
        """How finished runs are decoded, of the options that the script has."""
        names = [field.name for field in dataclasses.fields(Search) if hasattr(self, field.name)]
        return Search(**{name: getattr(self, name) for name in names})

    def stored(self) -> dict:
        """What config.json holds."""
        return {"script": Path(inspect.getfile(type(self))).stem, "config": config_as_dict(self)}

    def check(self) -> None:
        """Refuses values that would fail late, or silently do nothing. Raises
        UserError. Scripts add theirs."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _checked(field.name, _kinds(type(self))[field.name], value)
            if value == () and field.default != ():
                raise UserError(f"{_flag(field.name)} needs at least one value.")
        get = vars(self).get  # not every script has every field
        beam, schedule = get("decode") == "beam", get("schedule")
        wrong = {
            "--device must be auto, cpu, cuda or cuda:N": not re.fullmatch(
                r"auto|cpu|cuda(:[0-9]+)?", self.device
            ),
            "--transcribe needs --checkpoint, the folder of a finished run": self.transcribe
            and not (self.checkpoint or get("init")),
            "--times goes with --transcribe": self.times and not self.transcribe,
            "--srt goes with --transcribe, and without --times": self.srt
            and (self.times or not self.transcribe),
            "--lm goes with --decode beam": getattr(type(self), "lm", "") is None
            and get("lm")
            and not beam,
            "--kernel must be odd": get("kernel", 1) % 2 == 0,
            "--heads must divide --dim": get("dim", 0) % get("heads", 1) != 0,
            "--warmup is a share of the run, below 1, for --schedule one-cycle": schedule
            == "one-cycle"
            and get("warmup", 0) >= 1,
            "--warmup is a number of updates, at least 1, for --schedule inverse-sqrt": schedule
            == "inverse-sqrt"
            and get("warmup", 1) < 1,
        }
        for sentence, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"{sentence}.")


def parse(
    config_class: type, presets: dict[str, dict], doc: str | None, argv: list[str] | None = None
) -> list:
    """The command line as a list of checked configurations, one per method, in the
    order given.

    presets: {"smoke": {field: value}, "demo": {...}}; "full" is the defaults. doc: the
    script's docstring (its first line and its section "Run" become the help); None, as
    under python -OO: it is taken from the script's source. Exits with code 2 and one
    sentence on a wrong command line; raises UserError where the folder of --checkpoint
    or --resume holds no readable run, or one that --resume would change.
    """
    path = Path(inspect.getfile(config_class))
    script, doc = path.stem, doc or ast.get_docstring(ast.parse(path.read_text("utf-8")))
    parser = _build_parser(config_class, presets, doc, script)
    given = _read(parser, config_class, sys.argv[1:] if argv is None else list(argv))
    if "checkpoint" not in given:
        configs = _to_train(script, config_class, presets, given)
    elif "resume" in given:
        parser.error(
            "--resume goes on with a run and --checkpoint scores one: give one of the two."
        )
    else:
        configs = [_to_score(parser, config_class, presets, given)]
    try:
        for config in configs:
            config.check()
    except UserError as error:
        parser.error(str(error))
    return configs


def check_command_line(config_class: type, presets: dict[str, dict], doc: str | None) -> None:
    """Answers --help and whatever is wrong with the command line before a script
    imports anything heavy.

    From here on, errors that a user can mend end the script in one sentence instead of
    a traceback.
    """
    explain_errors()
    keep_docstrings()
    parse(config_class, presets, doc)


def _to_score(parser, config_class: type, presets: dict, given: dict):
    """The configuration of the finished run in --checkpoint, with the flags that
    scoring may change."""
    methods = given.pop("method", ())
    if len(methods) > 1:
        parser.error(
            f"--checkpoint scores one run, not --method {' '.join(methods)}: leave --method away."
        )
    stored = load_config(config_class, given["checkpoint"], presets)
    trained = {name: value for name, value in given.items() if name not in SCORING_MAY_CHANGE}
    if changed := differences(
        stored, replace(stored, **trained, method=" ".join(methods) or stored.method)
    ):
        parser.error(
            f"{', '.join(changed)}: a finished run is scored as it was trained; leave these away or train anew."
        )
    scored = _label(given.get("data", stored.data))
    decode = given.get("decode", "greedy")
    scored += "" if decode == "greedy" else f"-{decode}"
    return replace(stored, **{"out": str(Path(given["checkpoint"]) / f"score-{scored}")} | given)


def _to_train(script: str, config_class: type, presets: dict, given: dict) -> list:
    """A configuration per method, each with a folder of its own; with --resume that of
    the run in this folder."""
    requested = given.pop("method", ())
    preset = given.get("preset", PRESET_OF.get(given.get("data", config_class.data), "full"))
    config = config_class(**{"preset": preset} | _preset(presets, preset) | given)
    several = (
        () if given.get("init") else presets.get(preset, {}).get("methods", ())
    )  # what --init names is one
    methods = requested or several or (config_class.method,)
    score = "-score" if given.get("score") else ""  # of what --init names: no run
    default_out = f"runs/{script}-{_label(config.data)}-{'+'.join(methods)}-s{config.seed}{score}"
    out = Path(given.get("out", default_out))
    if out.name in (
        "",
        "..",
    ):  # such as `.`: runs that this one builds on are looked for by its folder's name
        out = Path(os.path.abspath(out))
    folders = {method: out / method if len(methods) > 1 else out for method in methods}
    if not config.resume:
        return [
            replace(config, method=method, out=str(folder)) for method, folder in folders.items()
        ]
    begun = [method for method, folder in folders.items() if os.path.isfile(folder / "config.json")]
    if os.path.isfile(out / "config.json") or not begun:  # a single run, or none
        stored = load_config(config_class, out, presets)
        return [
            _to_resume(
                stored, given | {"out": str(out), "method": " ".join(requested) or stored.method}
            )
        ]
    stored = {method: load_config(config_class, folders[method], presets) for method in begun}
    fresh = replace(
        stored[begun[0]], **given | {"resume": False}
    )  # methods that have not begun follow one that has
    return [
        _to_resume(stored[method], given | {"out": str(folder), "method": method})
        if method in stored
        else replace(fresh, method=method, out=str(folder))
        for method, folder in folders.items()
    ]


def _to_resume(stored, given: dict):
    config = replace(stored, **given)
    if changed := differences(stored, config):
        raise UserError(
            f"{config.out} holds a run with another configuration ({', '.join(changed)}): leave these flags as they "
            "were to --resume it, or start anew with another --out."
        )
    return config


def load_config(config_class: type, folder: str | Path, presets: dict[str, dict]):
    """The configuration a run was started with. Raises UserError where there is none,
    or one of another script.

    What it lacks, because an option is newer than the run or does not belong to one,
    comes from its preset.
    """
    path, known = Path(folder) / "config.json", _fields_of_a_run(config_class)
    if not os.path.isfile(path):
        inside = [
            str(Path(folder, found).parent)
            for found in sorted(glob("*/config.json", root_dir=folder))
        ]
        which = f"one of {', '.join(inside)}" if inside else "the folder that a run wrote"
        raise UserError(f"{folder} holds no run (no config.json in it): give {which}.")
    try:
        stored = json.loads(path.read_text("utf-8"))["config"]
        if unknown := [name for name in stored if name not in known]:
            raise UserError(f"it has no option {reprlib.repr(unknown[0])}")
        values = {
            name: _checked(name, _kinds(config_class)[name], value)
            for name, value in stored.items()
        }
        config = config_class(**_preset(presets, values["preset"]) | values)
        config.check()
        return config
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable.") from None
    except (UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"{path} is not a configuration of this script ({reason}): use the script and version that wrote it."
        ) from None


def config_as_dict(config) -> dict:
    """The part of the configuration that belongs to a run, as plain JSON values."""
    return {name: getattr(config, name) for name in _fields_of_a_run(type(config))}


def differences(old, new) -> list[str]:
    """['--seed 1 -> 2', ...] for every field that belongs to a run and differs."""
    old, new = config_as_dict(old), config_as_dict(new)
    changed = [name for name in old if old[name] != new[name]]
    if Path(old["data"]) == Path(new["data"]):  # a/b, a/b/ and ./a/b are one folder
        changed = [name for name in changed if name != "data"]
    return [f"{_flag(name)} {_show(old[name])} -> {_show(new[name])}" for name in changed]


def _preset(presets: dict[str, dict], name: str) -> dict:
    return {field: value for field, value in presets.get(name, {}).items() if field != "methods"}


def _label(data: str) -> str:
    return Path(data).name or "data"


# ========================================================================================================= parser


@functools.cache
def _comments(config_class: type) -> tuple[dict[str, str], dict[str, str]]:
    """({field: comment behind it}, {field: band it stands in}), read from the source of
    the class and its parents."""
    helps, bands = {}, {}
    for cls in reversed([c for c in config_class.__mro__ if dataclasses.is_dataclass(c)]):
        band = name = "options"
        for line in inspect.getsource(cls).splitlines():
            if heading := re.match(r"    # -- (.*) --", line):
                band = heading[1]
            elif field := re.match(r"    (\w+): ", line):
                name = field[1]
                bands[name] = band
            if name not in helps and (
                comment := re.search(r"  # (?!--)(.*)", line)
            ):  # in this line or, wrapped, below
                helps[name] = comment[1]
    return helps, bands


def _fields_of_a_run(config_class: type) -> list[str]:
    _, bands = _comments(config_class)
    return [name for name in _kinds(config_class) if bands[name] not in NOT_PART_OF_A_RUN]


def _build_parser(config_class, presets, doc, script) -> argparse.ArgumentParser:
    run_section = re.search(r"^Run\n-+\n(.*?)(?=^\S.*\n-+$|\Z)", doc, re.M | re.S)
    parser = argparse.ArgumentParser(
        prog=f"python {script}.py",
        usage=f"python {script}.py [options]",
        description=doc.strip().splitlines()[0],
        epilog=run_section[1] if run_section else None,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=30, width=116
        ),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    (helps, bands), groups = _comments(config_class), {}
    for name, kind in _kinds(config_class).items():
        band, default = bands[name], getattr(config_class, name)
        groups[band] = group = groups.get(band) or parser.add_argument_group(band)
        key = "methods" if name == "method" else name
        in_presets = [
            f"{preset} {_show(values[key])}" for preset, values in presets.items() if key in values
        ]
        text = helps[name].replace("%", "%%")
        if in_presets or not (default is None or default is False or default == ()):
            text += f" [{'; '.join([_show(default), *in_presets])}]"
        word = "NAME" if kind.base is str else kind.base.__name__.upper()
        first = "{" + ",".join(map(str, kind.choices)) + "}" if kind.choices else word
        if kind.base is bool:
            group.add_argument(_flag(name), help=text, action="store_true")
        elif kind.several or name == "method":
            group.add_argument(_flag(name), help=text, nargs="+", metavar=(first, word))
        else:
            group.add_argument(_flag(name), help=text, metavar=first)
    return parser


def _read(parser: argparse.ArgumentParser, config_class: type, argv: list[str]) -> dict:
    """{field: value} of the flags that were given; `method`: a tuple. Exits with one
    sentence on what is wrong."""
    texts, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_suggest(unknown[0], [o for a in parser._actions for o in a.option_strings]))
    given = {}
    try:
        for name, text in vars(texts).items():
            kind = _kinds(config_class)[name]._replace(several=isinstance(text, list))
            given[name] = _checked(name, kind, _convert(name, kind, text))
    except UserError as error:
        parser.error(str(error))
    if "method" in given:
        given["method"] = tuple(dict.fromkeys(given["method"]))  # each once
    return {
        name: x for name, x in given.items() if name not in ("preset", "out") or x != "auto"
    }  # as if not given


def _convert(name: str, kind: _Kind, text: str | list[str] | bool):
    """What argparse has read -> bool, int, float, str or a list of them, not yet
    checked. Raises UserError."""
    if isinstance(text, list):
        words = " ".join(text).replace(",", " ").split()
        if (
            words and "," in "".join(text) and (kind.base is not str or kind.choices)
        ):  # names of files may hold commas
            raise UserError(f"give several values with spaces: {_flag(name)} {' '.join(words)}")
        return [_convert(name, kind, word) for word in text]
    try:
        return kind.base(text)
    except ValueError:  # no number: `_checked` says so
        return text


def _suggest(flag: str, known: list[str]) -> str:
    if not flag.startswith("-"):
        return f"unexpected argument {flag!r}: options start with --, see --help."
    flag = flag.split("=")[0]
    close = difflib.get_close_matches(flag, known, n=1)
    return f"unknown option {flag}" + (f": did you mean {close[0]}?" if close else ": see --help.")


def _show(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
