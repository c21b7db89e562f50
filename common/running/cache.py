"""A cache on disk for the answers of a pretrained model: arrays by key.

    known, seconds = remember(folder, items, compute, place, title)

    which is, a step at a time:

    for part in missing(folder, keys, place):     a share of the absent keys
        add(folder, {key: {name: tensor}}, seconds)
    entries, seconds = load(folder)               {key: {name: tensor}}, and their cost

    FOLDER/<hash of its keys>.safetensors         some entries, complete or absent

Any number of processes may add pieces at once, and may be killed at any moment.
Everything on which the entries depend must be part of the folder's name: `digest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from common.files import write_atomically
from common.running.process import Place, barrier, synchronise

Compute = Callable[[list], list[dict[str, Tensor]]]
ASKED_AT_ONCE = 500  # keys: how much a killed run has to ask again


def digest(*parts: bytes | str) -> str:
    """32 hexadecimal digits that change with any of the parts or their order."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def remember(
    folder: Path, items: list[Hashable], compute: Compute, place: Place, title: str
) -> tuple[dict[Hashable, dict[str, Tensor]], float]:
    """{item: the answer of `compute`}, computed once per item, and the seconds it took.

    compute: some items -> {name: tensor} for each of them. Items are told apart by
    their repr. They are computed in their order, and all ranks share the work.
    """
    by_key = {digest(repr(item)): item for item in items}
    for part in missing(folder, list(by_key), place, title):
        started = synchronise(place)
        answers = compute([by_key[key] for key in part])
        add(folder, dict(zip(part, answers, strict=True)), synchronise(place) - started)
    known, seconds = load(folder)
    return {item: known[key] for key, item in by_key.items()}, seconds


def missing(folder: Path, keys: list[str], place: Place, title: str) -> Iterator[list[str]]:
    """Yields the keys (digests) that FOLDER lacks and this rank has to add.

    They come in their order, ASKED_AT_ONCE at a time. It ends when all ranks are done.
    Raises UserError if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"answers of the teacher cannot be kept in {folder} ({error}): give another --root."
        ) from None
    known, _ = load(folder)
    mine = [
        key
        for key in dict.fromkeys(keys)
        if key not in known and int(key, 16) % place.ranks == place.rank
    ]
    with tqdm(
        desc=title, total=len(mine), unit="utt", disable=None if place.first else True
    ) as bar:
        for i in range(0, len(mine), ASKED_AT_ONCE):
            part = mine[i : i + ASKED_AT_ONCE]
            yield part
            bar.update(len(part))
    barrier(place)


def add(folder: Path, entries: dict[str, dict[str, Tensor]], seconds: float) -> None:
    """Writes entries, whose tensors of a name differ in their first dimension only.

    seconds: what they cost.
    """
    names = list(next(iter(entries.values())))
    content = {}
    for name in names:
        content[name] = torch.cat([entry[name] for entry in entries.values()])
    lengths = ",".join(str(len(entry[names[0]])) for entry in entries.values())
    metadata = {"keys": ",".join(entries), "lengths": lengths, "seconds": str(seconds)}
    write_atomically(folder / f"{digest(*entries)}.safetensors", save(content, metadata))


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], float]:
    """All entries, and the sum of their seconds.

    A damaged file counts as absent: its entries are computed again.
    """
    entries, seconds = {}, 0.0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                lengths = [int(n) for n in metadata["lengths"].split(",")]
                columns = {}
                for name in file.keys():  # noqa: SIM118
                    columns[name] = file.get_tensor(name).split(lengths)
        except (SafetensorError, OSError, RuntimeError):
            continue
        seconds += float(metadata["seconds"])
        for i, key in enumerate(metadata["keys"].split(",")):
            entries[key] = {name: column[i] for name, column in columns.items()}
    return entries, seconds
