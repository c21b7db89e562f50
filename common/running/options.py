"""The options of a program are the fields of a frozen dataclass; several scripts share
the groups below.

    @dataclass(frozen=True)
    class Config(options.RunConfig):
        taps: tuple[Count, ...] = (6, 12)  # the comment is the help of --taps
        encoder: ConformerSizes = ConformerSizes(dim=256, ...)  # a group: --dim ...

    flat(config)                  {"taps": (6, 12), "dim": 256, ...}, whatever the group
    with_values(config, dim=112)  the same configuration with another value
    config.check()                raises UserError for a value that makes no sense

`common/running/command_line.py` reads the command line into such a dataclass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import reprlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from common.errors import UserError

# ============================================================================= types of values


class Range(NamedTuple):
    """The numbers that an option takes: in words, and as a test."""

    words: str
    holds: Callable[[float], bool]


LARGEST = 10**9  # no option of any script means anything beyond
NOT_NEGATIVE = Range("at least 0", lambda x: x >= 0)  # plain int and float
Count = Annotated[int, Range("at least 1", lambda x: x >= 1)]
Extent = Annotated[int, Range("at least 1 and at most 100000", lambda x: 1 <= x <= 100_000)]
Odd = Annotated[int, Range("odd", lambda x: x % 2 == 1 and 1 <= x <= 100_000)]
Speed = Annotated[float, Range("from 0.5 to 2", lambda x: 0.5 <= x <= 2)]
Positive = Annotated[float, Range("more than 0", lambda x: x > 0)]
Rate = Annotated[int, Range("from 1000 to 768000", lambda x: 1000 <= x <= 768_000)]
Seconds = Annotated[float, Range("at least 1", lambda x: x >= 1)]
Share = Annotated[float, Range("a share, from 0 to 1", lambda x: 0 <= x <= 1)]
Real = Annotated[float, Range(f"between -{LARGEST} and {LARGEST}", lambda x: abs(x) <= LARGEST)]


METHOD = tyro.conf.arg(name="method")  # several rows of a script are given as --method a b
EITHER = tyro.conf.FlagConversionOff  # of a bool that presets switch on: --name True, --name False


def local(default: Any) -> Any:
    """The default of an option that may change when a run is resumed."""
    return field(default=default, metadata={"local": True})


# ============================================================================ groups of options


@dataclass(frozen=True)
class RunConfig:
    """The options of all training scripts. A script adds its own, and its `methods`."""

    methods: Annotated[tuple[str, ...], METHOD] = ()  # rows, one after another
    data: str = "demo"  # demo, librispeech, mls, ... (a wrong name lists all) or a data folder
    hours: Positive | None = None  # training audio; LibriSpeech's 100, 360, 460, 960 pick subsets
    languages: tuple[str, ...] = ()  # of MLS and its demo, as german; none: all there are
    preset: Literal["auto", "smoke", "demo", "full"] = "auto"  # auto: what fits --data
    seed: int = 1  # of weights, order, augmentation and dropout
    max_steps: Count | None = None  # stop after so many updates
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of networks; auto: bf16 on a GPU
    root: str = local("data")  # where corpora are, and where demo worlds are built
    download: bool = local(False)  # fetch missing LibriSpeech subsets (checksums are verified)
    out: str = local("auto")  # auto: runs/<script>-<data>-<method>-s<seed>
    resume: bool = local(False)  # go on with the unfinished run in --out
    summary: bool = local(False)  # print the number of parameters by part, and stop
    device: str = local("auto")  # cpu, cuda or cuda:N; auto: cuda if there is one
    workers: int = local(4)  # processes that read audio; 0: the training process reads
    batch_seconds: Positive = local(400.0)  # padded audio per forward pass and GPU: memory decides
    cut_seconds: Seconds = local(40.0)  # longer recordings are cut at pauses before scoring
    save_steps: Count = local(1000)  # updates between checkpoints; one more after each epoch
    variant: tyro.conf.Suppress[str | None] = None  # the file of variants/ that started the run

    init = None  # a script may make it an option: a finished run that it goes on from

    @property
    def method(self) -> str:
        """The row that this configuration trains: the first of `methods`."""
        return self.methods[0]

    def stored(self) -> dict[str, Any]:
        """What the run's config.json holds."""
        return {"script": script_of(self), "config": stored_values(self)}

    @property
    def search(self) -> Search:
        """How the test sets are decoded at the end of training."""
        return Search()

    def check(self) -> None:
        """Raises UserError for values that would fail late, or do nothing."""
        check_values(self)
        check_device(self.device)


@dataclass(frozen=True)
class ConformerSizes:
    """Sizes of a Conformer encoder."""

    subsampling: Literal[4, 8]  # feature frames (10 ms) per encoder frame
    channels: Extent  # of the subsampling convolutions
    layers: Extent  # blocks
    dim: Extent  # width
    heads: Extent  # of self-attention
    ff_dim: Extent  # width inside the feed-forward modules
    kernel: Odd  # frames seen by the depthwise convolution
    dropout: Share  # not on attention weights

    def check(self) -> None:
        if self.dim % self.heads:
            raise UserError("--heads must divide --dim.")


@dataclass(frozen=True)
class TransducerSizes:
    """Sizes of a transducer's prediction and joint networks."""

    embedding_dim: Extent  # of the labels that the prediction network reads
    predictor_dim: Extent  # of its LSTM
    joint_dim: Extent  # of the joint network


@dataclass(frozen=True)
class Training:
    """The optimiser, its schedule, and which weights are kept.

    Peak learning rates are options of the scripts: some have one, some one per part.
    """

    epochs: Count  # passes over the data
    update_seconds: Positive  # audio per update, over all GPUs and micro-batches
    max_seconds: Positive  # longer training utterances are left out
    schedule: Literal["inverse-sqrt", "one-cycle"]  # of the learning rates
    warmup: Positive  # updates (inverse-sqrt) or share of the run (one-cycle) until the peak
    clip: Positive  # largest norm of a part's gradient
    average: Count  # the weights of so many epochs, the best on dev, are averaged
    weight_decay: float = 1e-6  # [choice]

    def check(self) -> None:
        if self.schedule == "one-cycle" and self.warmup >= 1:
            raise UserError("--warmup is a share of the run, below 1, for --schedule one-cycle.")
        if self.schedule == "inverse-sqrt" and self.warmup < 1:
            raise UserError("--warmup is a number of updates for --schedule inverse-sqrt.")


@dataclass(frozen=True)
class Augmentation:
    """Speed perturbation and SpecAugment."""

    speeds: tuple[Speed, ...]  # one is drawn per utterance and epoch; it changes the pitch too
    frequency_masks: int  # SpecAugment, each over 0 to 27 of 80 channels
    time_masks: int  # SpecAugment, each over 0 to 5 % of the utterance


@dataclass(frozen=True)
class Search:
    """Decoding of a finished run. Several values are tried on 100 dev utterances.

    None stands for the script's own value, see `decoding.Decoding`.
    """

    decode: Literal["greedy", "beam", "top_k", "top_p"] = "greedy"  # top_k, top_p: by sampling
    lm: str | None = None  # language model of a beam: hub name, folder, demo/lm
    beam: Extent | None = None  # prefixes or answers kept
    lm_weight: tuple[float, ...] | None = None  # of the language model
    bonus: tuple[Real, ...] | None = None  # per label
    top_k: Extent | None = None  # pieces to draw from
    top_p: Share | None = None  # probability to draw from

    def check(self) -> None:
        if self.lm and self.decode != "beam":
            raise UserError("--lm goes with --decode beam.")

    def filled(self, own: Search) -> Search:
        """A copy with the values of `own` in place of None."""
        absent = [o.name for o in dataclasses.fields(self) if getattr(self, o.name) is None]
        return replace(self, **{name: getattr(own, name) for name in absent})


# =================================================================== a configuration, flat again


def flat(config: Any) -> dict[str, Any]:
    """{option: value}, with the options of all groups; no name is in two of them."""
    values = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value)
        else:
            values[option.name] = value
    return values


def with_values(config: Any, **values: Any) -> Any:
    """A copy of the configuration with other values of these options, in any group."""
    changes = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if dataclasses.is_dataclass(value):
            inside = flat(value)
            changes[option.name] = with_values(
                value, **{name: x for name, x in values.items() if name in inside}
            )
        elif option.name in values:
            changes[option.name] = values[option.name]
    return replace(config, **changes)


def stored_values(config: RunConfig) -> dict[str, Any]:
    """The options that belong to a run, flat: all but the local ones."""
    is_local = {o.name for o in dataclasses.fields(config) if o.metadata.get("local")}
    return {name: value for name, value in flat(config).items() if name not in is_local}


def script_of(config: RunConfig) -> str:
    """The name of the script that defines this configuration."""
    return Path(inspect.getfile(type(config))).stem


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """['--seed 1 -> 2', ...] for every option that belongs to a run and differs."""
    before = stored_values(old)
    after = stored_values(new)
    return [
        f"{flag_of(name)} {show(before[name])} -> {show(after[name])}"
        for name in before
        if before[name] != after[name]
    ]


def show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def flag_of(name: str) -> str:
    return "--method" if name == "methods" else "--" + name.replace("_", "-")


# ================================================================================ range checks


class _Kind(NamedTuple):
    """The type of a field: `tuple[Count, ...] | None` is several, optional, of int."""

    base: type  # bool, int, float or str
    limits: Range = NOT_NEGATIVE  # of a number
    choices: tuple = ()  # of a Literal
    several: bool = False
    optional: bool = False


def _read_type(hint: Any) -> _Kind:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None
        inner = next(t for t in arguments if t is not types.NoneType)
        return _read_type(inner)._replace(optional=True)
    if origin is tuple:
        return _read_type(arguments[0])._replace(several=True)
    if origin is Literal:
        return _Kind(type(arguments[0]), choices=arguments)
    if origin is Annotated:
        limits = [x for x in arguments[1:] if isinstance(x, Range)]
        inner = _read_type(arguments[0])
        return inner._replace(limits=limits[0]) if limits else inner
    return _Kind(hint)


@functools.cache
def _kinds(config_class: type) -> dict[str, _Kind]:
    """{option: its type} of the class's own options, without those of its groups."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    names = [option.name for option in dataclasses.fields(config_class)]
    return {n: _read_type(hints[n]) for n in names if not dataclasses.is_dataclass(hints[n])}


NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def check_values(config: Any) -> None:
    """Raises UserError for a value of a wrong type or out of range; it names the flag.

    A list may be empty if it is so by default.
    """
    defaults = {option.name: option.default for option in dataclasses.fields(config)}
    for name, kind in _kinds(type(config)).items():
        value = getattr(config, name)
        if value == () and defaults[name] == ():
            continue
        _check_value(name, kind, value)
    for option in dataclasses.fields(config):
        group = getattr(config, option.name)
        if dataclasses.is_dataclass(group):
            check_values(group)
            if hasattr(group, "check"):
                group.check()


def check_device(device: str) -> None:
    """Raises UserError for what is no value of --device."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise UserError("--device must be auto, cpu, cuda or cuda:N.")


def _check_value(name: str, kind: _Kind, value: Any) -> None:
    if value is None and kind.optional:
        return
    if kind.several:
        if not isinstance(value, tuple):
            raise UserError(f"{flag_of(name)} must be a list, not {reprlib.repr(value)}.")
        if not value:
            raise UserError(f"{flag_of(name)} needs at least one value.")
        for x in value:
            _check_value(name, kind._replace(several=False, optional=False), x)
        return
    wanted = _what_is_wanted(kind, value)
    if wanted:
        raise UserError(f"{flag_of(name)} must be {wanted}, not {reprlib.repr(value)}.")


def _what_is_wanted(kind: _Kind, value: Any) -> str:
    """What the value should be, in words; "" if it is."""
    whole_for_float = kind.base is float and type(value) is int
    if type(value) is not kind.base and not whole_for_float:
        return NOUNS[kind.base]
    if kind.choices:
        return "" if value in kind.choices else "one of " + ", ".join(map(str, kind.choices))
    if kind.base is str:
        return "" if value.strip() else NOUNS[str]
    if kind.base in (int, float):
        if not kind.limits.holds(value):  # NaN holds nowhere
            return kind.limits.words
        if not abs(value) <= LARGEST:
            return f"at most {LARGEST}"
    return ""
