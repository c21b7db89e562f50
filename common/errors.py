"""What a user is told: errors that they can fix end a program with one sentence.

raise UserError("--root names the folder that holds LibriSpeech/.")
explain_errors()       at the start of a program: sentences instead of tracebacks
note("epoch 1: ...")   a line on stderr
"""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import sys

from tqdm import tqdm


class UserError(Exception):
    """An error that the user can fix: in the data, a model or a folder. Its text says
    how. Exit code 1."""


def note(message: str) -> None:
    """One line on stderr, above any progress bar."""
    tqdm.write(message, file=sys.stderr)


@functools.cache  # which writes it once
def note_once(message: str) -> None:
    """As `note`, for a message that this process has not written before."""
    note(message)


def explain_errors() -> None:
    """Lets Python print one sentence, and no traceback, for errors a user can fix."""
    sys.excepthook = _explain
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            errors="backslashreplace"
        )  # the terminal may lack a transcript's letters


def _explain(kind: type, error: BaseException, trace) -> None:
    for process in multiprocessing.active_children():  # Python would wait for the reading processes
        process.kill()
    sentence = _sentence_of(kind, error)
    if isinstance(error, BrokenPipeError):  # nobody reads our output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif sentence:
        print(sentence, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _sentence_of(kind: type, error: BaseException) -> str:
    """The sentence in place of a traceback; "" for errors that the user cannot fix."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "stopped."
    out_of_memory = isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError"
    if out_of_memory or "allocate memory" in str(error):
        return (
            "error: out of memory: lower --batch-seconds (also when resuming), or the model's size."
        )
    if "DataLoader" in str(error):
        return (
            "error: the reading processes were killed or hang (is memory or /dev/shm full?): "
            "lower --workers, and go on with --resume."
        )
    disk = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    if isinstance(error, OSError) and error.errno in disk:
        return f"error: a file could not be written ({error.strerror}): look at the disk."
    return ""


def keep_docstrings() -> None:
    """Starts the script again under python -O where it was started under -OO.

    -OO takes docstrings away, and transformers cannot be imported without those of its
    own. Raises UserError if that does not help.
    """
    if sys.flags.optimize < 2:
        return
    if os.environ.get("PYTHONOPTIMIZE") == "1":  # started again already
        raise UserError(
            "transformers needs the docstrings that python -OO takes away: use python -O."
        )
    os.environ["PYTHONOPTIMIZE"] = "1"
    words = ["-O" if word == "-OO" else word for word in sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, *words])
