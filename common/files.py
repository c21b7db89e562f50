"""Atomic writing: whenever the machine stops, a file is as before or complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends.

    If the block fails, nothing has changed. Several processes may write the same path
    at once: each has a draft of its own. Raises UserError if the disk is full or the
    folder cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        reason = (
            error if isinstance(error, OSError) else error.__context__
        )  # torch.save hides it in a RuntimeError
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"{path} cannot be written ({reason.strerror or reason}): free some space there."
        ) from None
    finally:
        with suppress(OSError):
            draft.unlink()


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a whole file in one move, see `atomic_file`. Raises UserError."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
