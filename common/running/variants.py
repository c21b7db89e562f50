"""Variants: a script with one function replaced by another, to answer one question.

    variants/interaed_kd/uniform_teacher.py     main(replace={"soften": uniform})

Started as `python -m variants.interaed_kd.uniform_teacher`, with the options of the
script. The name of the file is part of the run: it stands in config.json and in RESULT,
and a plain --resume refuses the run.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError

Replacements = dict[str, Callable]  # {name of a function of the script: what takes its place}


class Variant(NamedTuple):
    """The file that replaces functions of a script; None for the script as it is."""

    name: str | None
    replaced: set[str]  # functions of the script
    called: set[str]  # those whose replacement was called so far

    def check_called(self) -> None:
        """Raises UserError if a replacement was never called: the run is plain."""
        unused = sorted(self.replaced - self.called)
        if unused:
            what = f"{self.name} replaces {unused[0]}, which this method never calls"
            raise UserError(what + ": choose another --method.")


# script -> its own functions, while others stand in their place
_own: dict[str, Replacements] = {}


@contextmanager
def replaced(script: str, replacements: Replacements | None) -> Iterator[Variant]:
    """Inside the block, functions of the module named `script` are replaced.

    Raises TypeError if the script has no such function, or one with other parameters.
    """
    replacements = replacements or {}
    module = sys.modules[script]
    originals = {name: _original(module, name, new) for name, new in replacements.items()}
    variant = Variant(_file_of(replacements), set(replacements), set())
    for name, new in replacements.items():
        setattr(module, name, _recording(new, name, variant.called))
    _own[script] = originals
    try:
        yield variant
    finally:
        _own.pop(script)
        for name, original in originals.items():
            setattr(module, name, original)


@contextmanager
def plain(script: str) -> Iterator[None]:
    """Inside the block, the script has its own functions, whatever the variant.

    An earlier stage is no part of a variant.
    """
    module = sys.modules[script]
    originals = _own.get(script, {})
    replacements = {name: getattr(module, name) for name in originals}
    for name, original in originals.items():
        setattr(module, name, original)
    try:
        yield
    finally:
        for name, replacement in replacements.items():
            setattr(module, name, replacement)


def _original(module: object, name: str, new: Callable) -> Callable:
    original = getattr(module, name, None)
    if not callable(original):
        raise TypeError(f"{module.__name__} has no function {name}")
    before = list(inspect.signature(original).parameters)
    after = list(inspect.signature(new).parameters)
    if before != after:
        raise TypeError(f"{name} takes ({', '.join(before)}), its variant ({', '.join(after)})")
    return original


def _recording(function: Callable, name: str, called: set[str]) -> Callable:
    @functools.wraps(function)
    def recorded(*arguments, **options):
        called.add(name)
        return function(*arguments, **options)

    return recorded


def _file_of(replacements: Replacements) -> str | None:
    files = {
        Path(inspect.getfile(inspect.unwrap(function))).stem for function in replacements.values()
    }
    if len(files) > 1:
        raise TypeError(f"the replacements come from several files: {', '.join(sorted(files))}")
    return files.pop() if files else None
