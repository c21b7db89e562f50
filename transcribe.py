"""Transcribes audio files with a finished run of any script.

Run
---
    python transcribe.py RUN a.wav b.flac folder/     file<TAB>text
    python transcribe.py RUN --times a.wav            file<TAB>start<TAB>end<TAB>word
    python transcribe.py RUN --srt a.wav              subtitles, in a.srt
    python transcribe.py RUN --stream a.wav           words while the audio comes in
    arecord -q -t raw -f S16_LE -r 16000 | python transcribe.py RUN --stream -

RUN is the folder of a finished run. WAV, FLAC, OGG and MP3 files of any rate, channels
and length are read; a folder stands for the audio files in it. Longer recordings than
--cut-seconds are cut at pauses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from common.errors import UserError
from common.running import command_line, decoding, live, options, runs, transcription
from common.running.options import Search, Seconds
from common.running.process import join

ENDINGS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}  # of the files of a folder


@dataclass(frozen=True)
class Transcription:
    """What is transcribed, and how."""

    run: tyro.conf.Positional[str]  # folder of a finished run
    files: tyro.conf.Positional[tuple[str, ...]] = ()  # audio files, or folders of them
    times: bool = False  # a line per word, with its start and end in seconds
    srt: bool = False  # write subtitles beside each file
    stream: str | None = None  # a file, or - for standard input: words while the audio comes in
    rate: options.Rate = 16000  # Hz of standard input, 16 bits, one channel
    root: str = "data"  # where demo worlds and their models are
    base: str | None = None  # where the pretrained model is now, if it has moved
    device: str = "auto"  # cpu, cuda or cuda:N; auto: cuda if there is one
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of networks; auto: bf16 on a GPU
    cut_seconds: Seconds | None = None  # longer recordings are cut at pauses; None: as in the run
    search: Search = Search()

    def check(self) -> None:
        """Raises UserError for options that do not go together."""
        options.check_values(self)
        options.check_device(self.device)
        if bool(self.files) == bool(self.stream):
            raise UserError("give audio files, or --stream FILE, or --stream - for standard input.")
        if self.times and self.srt:
            raise UserError("--times prints words, --srt writes subtitles: give one of the two.")
        if self.stream and (self.times or self.srt):
            raise UserError("--times and --srt need whole files: leave --stream out.")
        if self.stream and self.search.decode != "greedy":
            raise UserError("--stream decodes greedily: leave --decode out.")


def files_of(paths: tuple[str, ...]) -> list[str]:
    """The files that are named, and the audio files inside of folders. Raises
    UserError."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(str(path))
            continue
        inside = [str(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in ENDINGS]
        if not inside:
            raise UserError(f"{path} holds no audio files ({', '.join(sorted(ENDINGS))}).")
        found += inside
    return found


def read_command_line(argv: list[str] | None) -> Transcription:
    """The checked options. argv: None for the program's own."""
    return command_line.read_checked("python transcribe.py", __doc__, Transcription(run=""), argv)


def main(argv: list[str] | None = None) -> None:
    """Transcribes what the command line names."""
    given = read_command_line(argv)
    place = join(given.device, given.precision)
    run = runs.load_run(given.run, place, given.root, given.base)
    recogniser = run.recogniser
    given = replace(given, cut_seconds=given.cut_seconds or run.config.cut_seconds)
    if given.stream:
        live.stream_words(recogniser, given, place)
    else:
        decoding.check_search(recogniser, given.search)
        transcription.transcribe_files(recogniser, files_of(given.files), given, place)


if __name__ == "__main__":
    main()
