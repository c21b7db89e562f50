"""Transcribing audio files with a trained recogniser: text, word times, subtitles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import UserError
from common.features import SAMPLE_RATE, split_at_pauses
from common.files import write_atomically
from common.running.audio import AudioError, read_audio
from common.running.decoding import batch_of, recognise, searches
from common.running.process import Place, note
from common.text import printable

SUBTITLE_SECONDS = 6.0  # of audio in a subtitle, at most [choice]


def transcribe_files(recogniser: nn.Module, files: list[str], config: Any, place: Place) -> None:
    """Prints file<TAB>text for every file; see `lines_of` for --times and --srt.

    Nothing else goes to stdout. Raises UserError, once all others are done, where a
    file could not be read. With several ranks the first one does all.
    """
    if not place.first:
        return
    search, *others = searches(config, recogniser, place)
    if others:
        raise UserError("transcribing needs one --lm-weight and one --bonus.")
    failed = 0
    targets = subtitle_files(files)
    for path in files:
        try:
            wave = read_audio(path)
            lines = lines_of(recogniser, wave, targets[path], config, place, search)
        except (AudioError, FileExistsError) as error:
            failed += 1
            note(f"error: {error}")
            continue
        for line in lines:
            print("\t".join([printable(path), *line]), flush=True)
    if failed:
        raise UserError(
            f"{failed} of {len(files)} files could not be read, or have subtitles already."
        )


def lines_of(
    recogniser: nn.Module,
    wave: Tensor,
    target: Path,
    config: Any,
    place: Place,
    search: dict[str, Any],
) -> list[list[str]]:
    """The columns that are printed behind the name of a file, a list per line.

    One line with its text; with --times a line per word: start, end (seconds), word;
    with --srt the name of the subtitles, which are written beside the file.

    wave: (samples,). Raises FileExistsError for subtitles that are there already.
    """
    if config.srt:
        if target.exists():  # perhaps somebody has corrected it
            raise FileExistsError(f"{printable(target)} is there already: move it away")
        write_atomically(target, subtitles(recogniser, wave, config, place, search))
        return [[printable(target)]]
    (transcript,) = recognise(recogniser, batch_of(wave), config, place, **search)
    if not config.times:
        return [[transcript.text]]
    if transcript.words is None:
        raise UserError("this model gives no word times: leave --times out.")
    return [[f"{word.start:.2f}", f"{word.end:.2f}", word.text] for word in transcript.words]


def subtitle_files(paths: list[str]) -> dict[str, Path]:
    """{audio file: its subtitles}: a.srt for a.wav.

    If there is a.flac, too: a.wav.srt and a.flac.srt.
    """
    different = {Path(name) for name in paths}
    shared = Counter(path.with_suffix(".srt") for path in different)
    found = {}
    for name in paths:
        path = Path(name)
        target = path.with_suffix(".srt")
        found[name] = target if shared[target] == 1 else path.with_name(f"{path.name}.srt")
    return found


def subtitles(
    recogniser: nn.Module, wave: Tensor, config: Any, place: Place, search: dict[str, Any]
) -> str:
    """SubRip for (samples,): a block per piece between pauses.

    A block lasts from its first word to its last, if the model gives times.
    """
    blocks: list[str] = []
    for first, last in split_at_pauses(wave, min(SUBTITLE_SECONDS, config.cut_seconds)):
        (transcript,) = recognise(recogniser, batch_of(wave[first:last]), config, place, **search)
        start = first / SAMPLE_RATE
        end = last / SAMPLE_RATE
        if transcript.words:
            end = min(end, start + transcript.words[-1].end)
            start += transcript.words[0].start
        if transcript.text:
            number = len(blocks) + 1
            blocks.append(f"{number}\n{clock(start)} --> {clock(end)}\n{transcript.text}\n")
    return "\n".join(blocks)


def clock(seconds: float) -> str:
    """3725.5 -> 01:02:05,500"""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{thousandths:03}"
