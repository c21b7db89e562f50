"""A cache on disk for what a pretrained model said: arrays by key, written in pieces, safe to be killed at any moment.

    FOLDER/<hash of its keys>.safetensors      some entries; complete or absent, never half
    entries, seconds = load(folder)            {key: {name: tensor}}, and the seconds spent on computing them

Any number of processes may add pieces at once. What the entries depend on belongs into the folder's name: `digest`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.run import write_atomically


def digest(*parts: bytes | str) -> str:
    """32 hexadecimal digits that change with any of the parts or their order."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def add(folder: Path, entries: dict[str, dict[str, Tensor]], seconds: float) -> None:
    """Writes entries whose tensors differ in their first dimension only. seconds: what they cost."""
    names = list(next(iter(entries.values())))
    content = {name: torch.cat([entry[name] for entry in entries.values()]) for name in names}
    lengths = ",".join(str(len(entry[names[0]])) for entry in entries.values())
    metadata = {"keys": ",".join(entries), "lengths": lengths, "seconds": str(seconds)}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{digest(*entries)}-{os.getpid()}"  # another process may be writing the same piece
    write_atomically(draft, save(content, metadata))
    draft.replace(folder / f"{digest(*entries)}.safetensors")


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], float]:
    """All entries, and the sum of their seconds. A damaged file counts as absent: its entries are computed again."""
    entries, seconds = {}, 0.0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                lengths = [int(n) for n in metadata["lengths"].split(",")]
                columns = {name: file.get_tensor(name).split(lengths) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, RuntimeError):
            continue
        seconds += float(metadata["seconds"])
        for i, key in enumerate(metadata["keys"].split(",")):
            entries[key] = {name: column[i] for name, column in columns.items()}
    return entries, seconds
