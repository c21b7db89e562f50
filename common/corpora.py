"""Corpora as lists of utterances, and lists of utterances as batches.

    load_corpus("librispeech", root, hours=100) -> Corpus(train, dev, tests, homophones)
    plan_epoch(corpus.train, ...)               -> the micro-batches of one epoch for one rank

Three layouts are read: LibriSpeech's (the demo world is written in it), and JSONL manifests in NeMo's convention: one
JSON object per line with `audio_filepath` (relative to the manifest), `duration`, `text` and, if wanted, `offset`,
`channel`, `speaker`, `session`, `lang`. A file `homophones.txt` beside a corpus (one pair per line) makes the score
report homophone errors.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import soundfile
from tqdm import tqdm

from common.flags import UserError
from common.text import normalise

# hours -> subsets of LibriSpeech (Panayotov et al., ICASSP 2015; openslr.org/12)
LIBRISPEECH_TRAIN = {
    100: ["train-clean-100"],
    360: ["train-clean-360"],
    460: ["train-clean-100", "train-clean-360"],
    960: ["train-clean-100", "train-clean-360", "train-other-500"],
}
LIBRISPEECH_SCORED = ["dev-clean", "dev-other", "test-clean", "test-other"]
LIBRISPEECH_URL = "https://www.openslr.org/resources/12/"


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and its words (normalised)."""

    id: str
    audio: str  # path of the file
    text: str
    duration: float  # seconds
    offset: float = 0.0  # seconds from the start of the file
    channel: int | None = None  # None: the mean of all channels
    speaker: str = ""
    session: str = ""  # chapter or conversation; utterances of a session are listed in the order they were spoken
    language: str = ""


@dataclass(frozen=True)
class Corpus:
    train: list[Utterance]
    dev: list[Utterance]
    tests: dict[str, list[Utterance]]
    homophones: dict[str, str]  # word -> twin, both ways; empty where the corpus has no list


def load_corpus(
    data: str,
    root: str,
    hours: float | None = None,
    download: bool = False,
    seed: int = 0,
    small: bool = False,
    scoring: bool = False,
) -> Corpus:
    """data: demo | librispeech | a folder with train.jsonl, dev.jsonl and test*.jsonl. small: the demo's smoke world.

    hours: LibriSpeech's 100, 360, 460, 960 pick its subsets, in the demo world so much is spoken; anywhere else the
    first `hours` after a shuffle of whole sessions that depends on `seed` alone. scoring: train stays empty, and
    neither it nor dev need exist. Raises UserError.
    """
    if data == "demo":
        from common import demo

        folder = Path(root).expanduser() / ("demo-smoke" if small else "demo")
        subsets = demo.build(folder, **({} if hours is None else {"hours": hours}), small=small)
        return _librispeech_corpus(folder / "LibriSpeech", subsets, scoring)
    if data == "librispeech":
        folder = Path(root).expanduser()
        folder = folder if folder.name == "LibriSpeech" else folder / "LibriSpeech"
        subsets = LIBRISPEECH_TRAIN.get(hours)
        if download:
            smallest = next((size for size in (100, 460) if hours and hours <= size), 960)
            training = [] if scoring else subsets or LIBRISPEECH_TRAIN[smallest]
            download_librispeech(folder.parent, [*training, *LIBRISPEECH_SCORED])
        if not folder.is_dir():
            raise UserError(
                f"there is no {folder}: --root names the folder that holds LibriSpeech/; or add --download."
            )
        corpus = _librispeech_corpus(folder, subsets or _found(folder, "train-*"), scoring)
        return corpus if subsets else replace(corpus, train=first_hours(corpus.train, hours, seed))
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--data {data}: no such folder, and not demo or librispeech: give a folder with train.jsonl, dev.jsonl "
            "and test*.jsonl."
        )
    tests = {path.stem: load_manifest(path) for path in sorted(folder.glob("test*.jsonl"))}
    train = [] if scoring else first_hours(load_manifest(folder / "train.jsonl"), hours, seed)
    dev = [] if scoring and not (folder / "dev.jsonl").exists() else load_manifest(folder / "dev.jsonl")
    return Corpus(train, dev, tests, load_homophones(folder))


def first_hours(utterances: list[Utterance], hours: float | None, seed: int) -> list[Utterance]:
    """Whole sessions in an order drawn from `seed`, until they hold `hours` hours. Sessions are never cut."""
    if hours is None:
        return utterances
    sessions: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        sessions.setdefault(utterance.session, []).append(utterance)
    order = list(sessions)
    random.Random(seed).shuffle(order)
    chosen, seconds = [], 0.0
    for session in order:
        if seconds >= 3600 * hours:
            break
        chosen += sessions[session]
        seconds += sum(u.duration for u in sessions[session])
    return chosen


def load_homophones(folder: str | Path) -> dict[str, str]:
    """{word: twin}, both ways, from the pairs in homophones.txt. Raises UserError where a line is no pair."""
    path = Path(folder) / "homophones.txt"
    pairs = [line.split() for line in path.read_text().splitlines() if line.strip()] if path.exists() else []
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path}: each line holds two words that sound alike.")
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


# ---------------------------------------------------------------------------------------------------- LibriSpeech


def _found(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.is_dir())


def _librispeech_corpus(folder: Path, train: list[str], scoring: bool) -> Corpus:
    dev, tests = _found(folder, "dev-*"), _found(folder, "test-*")
    train = [] if scoring else train
    for wanted, names in (("a train-* subset", train), ("a dev-* subset", dev)):
        if not names and not scoring:
            raise UserError(f"{folder} lacks {wanted}: add --download, or unpack it there.")
    return Corpus(
        train=[u for name in train for u in load_librispeech(folder, name)],
        dev=[u for name in dev for u in load_librispeech(folder, name)],
        tests={name: load_librispeech(folder, name) for name in tests},
        homophones=load_homophones(folder),
    )


def load_librispeech(folder: Path, subset: str) -> list[Utterance]:
    """The utterances of one subset: <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt beside the FLAC files.

    What has no audio file, or one with an unreadable header, is left out, counted and named on stderr.
    Raises UserError where the subset or all its transcripts are missing.
    """
    if not (folder / subset).is_dir():
        raise UserError(f"there is no {folder / subset}: add --download, or unpack LibriSpeech's {subset} there.")
    found = []
    for transcript in sorted((folder / subset).glob("*/*/*.trans.txt")):
        speaker, chapter = transcript.parts[-3:-1]
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            path = str(transcript.parent / f"{name}.flac")
            found.append(Utterance(name, path, normalise(text), -1.0, speaker=speaker, session=f"{speaker}-{chapter}"))
    if not found:
        raise UserError(f"{folder / subset} holds no */*/*.trans.txt: unpack LibriSpeech's {subset} there.")
    return _measured(found, f"reading {subset}")


def _measured(utterances: list[Utterance], title: str) -> list[Utterance]:
    """Fills in missing durations from the files' headers; drops, counts and names what has no audio."""

    def measure(utterance: Utterance) -> Utterance | str:
        if utterance.duration >= 0:
            return utterance
        try:
            return replace(utterance, duration=soundfile.info(utterance.audio).duration - utterance.offset)
        except (OSError, RuntimeError):
            return f"{utterance.id}: {utterance.audio} " + (
                "is no readable audio file" if Path(utterance.audio).exists() else "is missing"
            )

    with ThreadPoolExecutor(4) as pool:
        results = list(tqdm(pool.map(measure, utterances), title, len(utterances), leave=False, disable=None, delay=2))
    dropped = [r for r in results if isinstance(r, str)]
    if dropped:
        print(f"{title}: left out {len(dropped)} of {len(utterances)}: {_some(dropped)}", file=sys.stderr)
    return [r for r in results if isinstance(r, Utterance)]


def _some(names: list[str], n: int = 5) -> str:
    return "; ".join(names[:n]) + (f"; and {len(names) - n} more" if len(names) > n else "")


def download_librispeech(root: Path, subsets: Iterable[str]) -> None:
    """Fetches the subsets that ROOT/LibriSpeech lacks, with the SHA-256 sums that torchaudio ships."""
    from torchaudio.datasets.librispeech import _CHECKSUMS

    sums = {url.rsplit("/", 1)[1]: checksum for url, checksum in _CHECKSUMS.items()}
    for subset in subsets:
        if not (root / "LibriSpeech" / subset).is_dir():
            fetch_archive(f"{LIBRISPEECH_URL}{subset}.tar.gz", sums[f"{subset}.tar.gz"], root, f"LibriSpeech/{subset}")


def fetch_archive(url: str, sha256: str, root: Path, member: str) -> None:
    """Downloads a .tar.gz, verifies it before unpacking, and moves its folder `member` to ROOT/member in one rename.

    An interrupted call leaves nothing behind that a later one would take for a corpus. Raises UserError.
    """
    from torch.hub import download_url_to_file

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        archive = Path(temporary) / "archive.tar.gz"
        try:
            download_url_to_file(url, str(archive), hash_prefix=sha256, progress=sys.stderr.isatty())
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise UserError(f"{url} could not be fetched ({error}): try again, or unpack it in {root}.") from None
        (root / member).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(temporary) / member, root / member)


# ------------------------------------------------------------------------------------------------ JSONL manifests


def load_manifest(path: str | Path) -> list[Utterance]:
    """One JSON object per line, see the module's docstring. Raises UserError with the line's number."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}: a data folder needs train.jsonl, dev.jsonl and test*.jsonl.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            audio = path.parent / Path(entry["audio_filepath"]).expanduser()
            utterance = Utterance(
                id=str(entry.get("id", f"{path.stem}-{number:06d}")),
                audio=str(audio),
                text=normalise(entry["text"]),
                duration=float(entry.get("duration", -1.0)),
                offset=float(entry.get("offset", 0.0)),
                channel=None if entry.get("channel") is None else int(entry["channel"]),
                speaker=str(entry.get("speaker", "")),
                session=str(entry.get("session", audio)),
                language=str(entry.get("lang", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: {error!r}: each line is a JSON object with audio_filepath, "
                            "duration and text.") from None  # fmt: skip
        found.append(utterance)
    if len({u.id for u in found}) < len(found):
        raise UserError(f"{path} gives the same id to several lines: leave `id` out, or make it unique.")
    return _measured(found, f"reading {path.name}")


# --------------------------------------------------------------------------------------------------------- batches


class MicroBatch(NamedTuple):
    """What one forward and backward pass reads. An update consists of one or more, the same number on every rank."""

    utterances: list[Utterance]  # may be empty on a rank
    epoch: int = 0
    update: int = 0  # index within the epoch
    part: int = 0  # index within the update, among this rank's
    ends_update: bool = True


def plan_epoch(
    utterances: list[Utterance],
    epoch: int,
    seed: int,
    update_seconds: float,
    batch_seconds: float,
    rank: int = 0,
    ranks: int = 1,
) -> list[MicroBatch]:
    """The micro-batches of this rank for one epoch, a function of the arguments alone.

    The corpus is shuffled, sorted by length inside pools of 50 updates or a quarter of the corpus (so that batches
    hold little padding but never repeat), cut into updates of about `update_seconds`, and the updates are shuffled.
    What an update holds does not depend on `batch_seconds` or `ranks`: those only split it into micro-batches of at
    most `batch_seconds`, padding included. Epoch 0 goes from short to long, from which CTC finds its alignments
    sooner (SortaGrad, Amodei et al. 2016).
    """
    rng = random.Random(f"{seed}-{epoch}")
    order = list(utterances)
    rng.shuffle(order)
    if epoch == 0:
        order.sort(key=lambda u: u.duration)
        updates = _cut(order, update_seconds)
    else:
        pools = _cut(order, min(50 * update_seconds, sum(u.duration for u in order) / 4))
        updates = [update for pool in pools for update in _cut(sorted(pool, key=lambda u: u.duration), update_seconds)]
        rng.shuffle(updates)
    plan = []
    for index, update in enumerate(updates):
        parts = _split(update, batch_seconds, ranks)
        mine = parts[rank::ranks]
        plan += [MicroBatch(group, epoch, index, part, part == len(mine) - 1) for part, group in enumerate(mine)]
    return plan


def _cut(utterances: list[Utterance], seconds: float) -> list[list[Utterance]]:
    """Consecutive groups of about equal duration, near `seconds` each."""
    total = sum(u.duration for u in utterances)
    share = total / max(1, round(total / seconds))
    groups: list[list[Utterance]] = [[]]
    done = 0.0
    for utterance in utterances:
        if groups[-1] and done + utterance.duration / 2 > share * len(groups):
            groups.append([])
        groups[-1].append(utterance)
        done += utterance.duration
    return groups


def _split(update: list[Utterance], batch_seconds: float, ranks: int) -> list[list[Utterance]]:
    """A multiple of `ranks` groups of at most `batch_seconds` each, padding included; an utterance is never cut."""
    update = sorted(update, key=lambda u: u.duration)
    n = len(update)
    for parts in range(ranks, max(n, 1) + ranks, ranks):
        groups = [update[i * n // parts : (i + 1) * n // parts] for i in range(parts)]
        if all(len(g) * g[-1].duration <= batch_seconds for g in groups if g):
            break
    return groups


def evaluation_batches(
    utterances: list[Utterance], batch_seconds: float, rank: int = 0, ranks: int = 1
) -> list[MicroBatch]:
    """Every utterance exactly once over all ranks, in batches of similar length."""
    groups: list[list[Utterance]] = [[]]
    for utterance in sorted(utterances, key=lambda u: u.duration)[rank::ranks]:
        if groups[-1] and (len(groups[-1]) + 1) * utterance.duration > batch_seconds:
            groups.append([])
        groups[-1].append(utterance)
    return [MicroBatch(group) for group in groups if group]
