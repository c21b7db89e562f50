"""From raw samples, in portions of any size: what the encoder gives for the whole utterance."""

import io
import os
import re
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional as AF
from test_streaming_aux_kd import ENTRY

from common.conformer import Conformer
from common.conformer_stream import fresh_state
from common.errors import UserError
from common.features import SAMPLE_RATE, LogMel
from common.running.decoding import batch_of
from common.running.live import Screen, portions, stream_words
from common.running.process import Place
from common.streaming import Stream, StreamingEncoder, WordPart, greedy_words, settled_part
from common.text import SentencePiece
from streaming_aux_kd import Config, Recogniser
from transcribe import Transcription

CPU = Place(0, 1, torch.device("cpu"))


def parts(dtype=torch.float32, **changes) -> tuple[LogMel, Conformer]:
    torch.manual_seed(0)
    sizes = dict(
        dim=112, layers=4, heads=4, ff_dim=448, kernel=15, dropout=0.1, channels=8, chunk=4, left=16
    )
    features = LogMel()
    features.mean += -2.0
    features.std *= 3.0
    return features.to(dtype), Conformer(**(sizes | changes)).eval().to(dtype)


def audio(seconds: float, rate: int = SAMPLE_RATE, dtype=torch.float32) -> torch.Tensor:
    """Noise whose loudness and colour change, (samples,)."""
    torch.manual_seed(1)
    noise = torch.randn(round(seconds * rate), dtype=dtype)
    smooth = torch.nn.functional.avg_pool1d(noise[None], 5, 1, 2)[0]
    slowly = torch.linspace(0, 9, len(noise), dtype=dtype).sin()
    return 0.1 * torch.where(slowly > 0, noise, smooth) * (0.1 + slowly.abs())


@torch.inference_mode()
def at_once(
    features: LogMel, encoder: Conformer, samples: torch.Tensor, rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """The offline way: the file resampled whole, its features, one forward with the chunk mask. -> (T, D)"""
    wave = AF.resample(samples, rate, SAMPLE_RATE)
    output, lengths, *_ = encoder(*features(wave[None], torch.tensor([len(wave)])))
    return output[0, : lengths[0]]


def in_portions(streaming: StreamingEncoder, samples: torch.Tensor, portion: int) -> torch.Tensor:
    streams, found, portions = [streaming.start()], [], samples.split(portion)
    for i, part in enumerate(portions, start=1):
        (output,), streams = streaming.push(streams, [part], end=i == len(portions))
        found.append(output)
    return torch.cat(found)


@pytest.mark.parametrize("portion", [160, 799, 2560, 10_000, 10**9])
def test_in_portions_is_at_once(portion):
    pair = parts()
    for seconds in (
        0.9,
        0.175,
        0.1745,
        0.73,
    ):  # ragged ends: a block exactly, one sample less, parts of blocks
        samples, streaming = audio(seconds), StreamingEncoder(*pair)
        expected = at_once(*pair, samples)
        streamed = in_portions(streaming, samples, portion)
        assert streamed.shape == expected.shape and (streamed - expected).abs().max() <= 1e-5


def test_sample_by_sample():
    pair, samples = parts(), audio(0.2)
    assert torch.equal(
        in_portions(StreamingEncoder(*pair), samples, 1),
        in_portions(StreamingEncoder(*pair), samples, 900),
    )


def test_size_S():
    pair = parts(torch.float64, dim=176, layers=16, ff_dim=704, kernel=31, channels=32)
    samples = audio(1.5, dtype=torch.float64)
    assert (
        in_portions(StreamingEncoder(*pair), samples, 3000) - at_once(*pair, samples)
    ).abs().max() <= 1e-10


@pytest.mark.parametrize(("chunk", "left", "factor"), [(2, 6, 8), (1, 0, 4)])
def test_other_chunks(chunk, left, factor):
    pair, samples = parts(chunk=chunk, left=left, subsampling=factor), audio(0.9)
    assert (
        in_portions(StreamingEncoder(*pair), samples, 700) - at_once(*pair, samples)
    ).abs().max() <= 1e-5


@pytest.mark.parametrize("rate", [8000, 44_100, 11_025])
def test_other_rates(rate):
    pair, samples = parts(torch.float64), audio(1.1, rate, torch.float64)
    expected = at_once(*pair, samples, rate)
    for portion in (37, 1280, 10**9):
        streamed = in_portions(StreamingEncoder(*pair, rate), samples, portion)
        assert streamed.shape == expected.shape and (streamed - expected).abs().max() <= 1e-10


def test_telephone_speech_in_single_precision():
    pair, samples = parts(), audio(1.1, 8000)
    streamed = in_portions(StreamingEncoder(*pair, 8000), samples, 800)
    assert (streamed - at_once(*pair, samples, 8000)).abs().max() <= 1e-5


def test_three_streams_at_once():
    """Of different length, in portions of different size; each ends when it is its turn."""
    pair = parts()
    streaming = StreamingEncoder(*pair)
    waves = [audio(seconds) for seconds in (1.3, 0.5, 0.9)]
    portions = [
        list(wave.split(size)) for wave, size in zip(waves, (3000, 1000, 2600), strict=True)
    ]
    streams, found = [streaming.start() for _ in waves], [[], [], []]
    for step in range(max(map(len, portions))):
        for end in (False, True):  # those that go on, then those that end now: two batches
            rows = [
                i
                for i in range(3)
                if step < len(portions[i]) and (step + 1 == len(portions[i])) == end
            ]
            if rows:
                outputs, new = streaming.push(
                    [streams[i] for i in rows], [portions[i][step] for i in rows], end
                )
                for i, output, stream in zip(rows, outputs, new, strict=True):
                    found[i].append(output)
                    streams[i] = stream
    for wave, outputs in zip(waves, found, strict=True):
        assert (torch.cat(outputs) - at_once(*pair, wave)).abs().max() <= 1e-5
    together, _ = streaming.push(
        [streaming.start() for _ in waves], waves, end=True
    )  # ragged ends in one batch
    for wave, output in zip(waves, together, strict=True):
        assert (output - at_once(*pair, wave)).abs().max() <= 1e-5


def test_silence_and_nothing():
    pair = parts()
    streaming = StreamingEncoder(*pair)
    silence = torch.zeros(SAMPLE_RATE)
    assert (in_portions(streaming, silence, 1000) - at_once(*pair, silence)).abs().max() <= 1e-5
    for samples in (
        torch.zeros(0),
        torch.zeros(399),
        torch.zeros(880 - 1),
    ):  # 880: the first encoder frame
        (output,), streams = streaming.push([streaming.start()], [samples], end=True)
        assert output.shape == (0, 112) == at_once(*pair, samples).shape
    (output,), streams = streaming.push(streams, [torch.zeros(0)], end=True)  # an end after the end
    assert output.shape == (0, 112)
    assert streaming.push([streaming.start()], [torch.zeros(880)], end=True)[0][0].shape == (1, 112)


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8000])
def test_a_stream_saved_in_the_middle(rate):
    pair, samples = parts(), audio(1.0, rate)
    streaming, half = StreamingEncoder(*pair, rate), int(0.43 * rate)
    (first,), (stream,) = streaming.push([streaming.start()], [samples[:half]])
    file = io.BytesIO()
    torch.save(stream._replace(decoder=("partial", torch.ones(2))), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, Stream) and loaded.decoder[0] == "partial"
    (second,), _ = StreamingEncoder(*pair, rate).push([loaded], [samples[half:]], end=True)
    assert torch.equal(torch.cat([first, second]), in_portions(streaming, samples, 500))


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 8000, 44_100])
def test_memory_does_not_grow_and_blocks_come_in_time(rate):
    streaming = StreamingEncoder(*parts(), rate)
    (stream,), heard, frames, sizes = [streaming.start()], 0, 0, []
    for _ in range(300):
        part = torch.randn(rate // 100)
        heard += len(part)
        (output,), (stream,) = streaming.push([stream], [part])
        frames += len(output)
        sizes.append(len(stream.audio) / rate + len(stream.wave) / SAMPLE_RATE)
        assert [part.shape for part in stream.encoder] == [
            part.shape for part in fresh_state(streaming.encoder, 1)
        ]
        complete = (heard / rate - streaming.delay - 0.015) / 0.160  # blocks
        assert (
            int(complete - 0.15) * 4 <= frames <= int(complete) * 4
        )  # a resampler may have to wait for its last step
    assert max(sizes) <= 0.175 + 0.03
    assert all(
        part.untyped_storage().nbytes() == part.nbytes
        for part in (stream.audio, stream.wave, *stream.encoder)
    )


def test_what_cannot_stream():
    with pytest.raises(ValueError, match="full context"):
        StreamingEncoder(*parts(chunk=0, left=0))
    with pytest.raises(UserError, match="47999 Hz"):
        StreamingEncoder(*parts(), 47_999)


# ------------------------------------------------------------------------------------------------- words as they come


@pytest.fixture(scope="module")
def talkative() -> Recogniser:
    """A streaming transducer whose words depend on what it hears."""
    texts = [
        "the knight grinds flour at night",
        "our flower is in the boats",
        "they grind the flour",
    ]
    tokenizer = SentencePiece.build(texts, 40)
    torch.manual_seed(0)
    recogniser = Recogniser(
        Config(size="smoke", methods=("scratch",)), tokenizer.size, tokenizer
    ).eval()
    weights = recogniser.state_dict()
    ENTRY.make_talk(weights)
    return recogniser


@torch.inference_mode()
def words_in_portions(
    recogniser: Recogniser, samples: torch.Tensor, portion: int
) -> tuple[list[str], list[str]]:
    """All that settles, with the last partial word; and the partial word after every push."""
    encoder, words, partials = StreamingEncoder(recogniser.frontend, recogniser.encoder), [], []
    (stream,), parts = [encoder.start()], samples.split(portion)
    for i, part in enumerate(parts, start=1):
        (frames,), (stream,) = encoder.push([stream], [part], end=i == len(parts))
        settled, partial, decoder = greedy_words(recogniser, frames, stream.decoder)
        stream, words = stream._replace(decoder=decoder), words + settled
        partials.append(partial)
    return [*words, *([partial] if partial else [])], partials


def test_words_in_portions_are_those_of_the_whole(talkative):
    said = set()
    for seconds in (4.0, 2.3, 0.9, 0.1, 0.01):
        samples = audio(seconds)
        (whole,) = talkative.transcribe(batch_of(samples), CPU)
        for portion in (800, 2560, 10**9):
            words, partials = words_in_portions(talkative, samples, portion)
            assert words == whole.text.split() == [word.text for word in whole.words]
            assert all(" " not in partial for partial in partials)
        said |= set(words)
    assert len(said) > 5


def stream(recogniser: Recogniser, capsys, source, rate: int = SAMPLE_RATE) -> tuple[str, str]:
    """What --stream writes to stdout and stderr."""
    capsys.readouterr()
    assert (
        stream_words(recogniser, Transcription(run="run", stream=str(source), rate=rate), CPU)
        is None
    )
    return capsys.readouterr()


def feed(monkeypatch, content: bytes) -> str:
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))
    )
    return "-"


def test_a_file_and_standard_input_as_words(talkative, tmp_path, capsys, monkeypatch):
    """One line of words on stdout, each once; times on stderr. The last half of a sample is dropped."""
    pcm = (audio(3.0).numpy() * 2**15).round().astype(np.int16)
    (whole,) = talkative.transcribe(batch_of(torch.from_numpy(pcm) / 2**15), CPU)
    for rate in (SAMPLE_RATE, 8000):
        soundfile.write(tmp_path / "a.wav", pcm, rate)
        out, error = stream(talkative, capsys, tmp_path / "a.wav")
        assert out.split() and out.endswith("\n") and out.count("\n") == 1
        assert (
            "3.0 s of audio in blocks of 160 ms" in error
            or rate == 8000
            and "6.0 s of audio" in error
        )
        for rest in (b"", b"x"):
            assert (
                stream(talkative, capsys, feed(monkeypatch, pcm.tobytes() + rest), rate)[0].split()
                == out.split()
            )
        assert rate == 8000 or out.split() == whole.text.split() and len(out.split()) > 5


def test_portions_of_standard_input(monkeypatch):
    """16-bit samples in [-1, 1); nothing but the rest of the last portion may be shorter."""
    pcm = np.arange(-(2**15), 2**15, 13, dtype=np.int16)
    for rest in (b"", b"x"):
        config = Transcription(run="run", stream=feed(monkeypatch, pcm.tobytes() + rest), rate=8000)
        first, *parts = portions(config, 0.175, 0.16)
        assert (
            len(first) == 1400
            and {len(part) for part in parts[:-1]} == {1280}
            and len(parts[-1]) <= 1280
        )
        parts = torch.cat([first, *parts])
        assert torch.equal(parts, torch.from_numpy(pcm) / 2**15) and parts[0] == -1
    assert [
        list(portions(Transcription(run="run", stream=feed(monkeypatch, x)), 0.2, 0.16))
        for x in (b"", b"x")
    ] == [[], []]
    with pytest.raises(UserError, match="absent.wav"):
        portions(Transcription(run="run", stream="absent.wav"), 0.2, 0.16)


@pytest.mark.parametrize("rate", [16000, 8000, 22050, 44100])
def test_every_portion_completes_a_block(rate, monkeypatch):
    """Words come as early as they can: no portion waits for the next one."""
    encoder = StreamingEncoder(*parts(), rate)
    config = Transcription(
        run="run", stream=feed(monkeypatch, bytes(2 * rate)), rate=rate
    )  # a second
    *audio, _ = portions(config, 0.16 + encoder.ahead, 0.16)
    (stream,), found = [encoder.start()], []
    for portion in audio:
        (frames,), (stream,) = encoder.push([stream], [portion])
        found.append(len(frames))
    assert found == [4] * 6


def test_ctrl_c_ends_the_audio_but_not_the_words(talkative, capsys, monkeypatch):
    """What was heard is written to its last word, and how long it took; a microphone has no other end."""
    pcm = (audio(6.0).numpy() * 2**15).round().astype(np.int16)
    source = io.BytesIO(pcm.tobytes())

    def read(size: int) -> bytes:
        if source.tell() > pcm.nbytes // 2:
            os.kill(os.getpid(), signal.SIGINT)
        return source.read(size)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=read)))
    out, error = stream(talkative, capsys, "-")
    heard = torch.from_numpy(pcm)[: source.tell() // 2] / 2**15
    (whole,) = talkative.transcribe(batch_of(heard), CPU)
    assert len(heard) < len(pcm) and out.split() == whole.text.split() and len(out.split()) > 2
    assert f"{len(heard) / SAMPLE_RATE:.1f} s of audio" in error


def shown_by_a_terminal(written: str) -> list[str]:
    """The lines that are to be read after all this was written: return, save, restore, erase to the end of the line."""
    lines, column, saved = [""], 0, 0
    for control, text in re.findall(r"(\x1b7|\x1b8|\x1b\[K|\n)|([^\x1b\n]+)", written):
        if text:
            lines[-1] = lines[-1][:column].ljust(column) + text + lines[-1][column + len(text) :]
            column += len(text)
        elif control == "\n":
            lines, column = [*lines, ""], 0
        elif control == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            saved, column = (column, column) if control == "\x1b7" else (saved, saved)
    return lines


def test_on_a_terminal_nothing_hides_the_words(talkative, tmp_path, monkeypatch):
    samples = audio(4.0)
    soundfile.write(tmp_path / "a.wav", samples.numpy(), SAMPLE_RATE, subtype="FLOAT")
    (whole,) = talkative.transcribe(batch_of(samples), CPU)
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    stream_words(talkative, Transcription(run="run", stream=str(tmp_path / "a.wav")), CPU)
    *lines, note, rest = shown_by_a_terminal(screen.getvalue())
    assert (
        " ".join(lines).split() == whole.text.split()
        and len(lines) > 1
        and "real-time factor" in note
        and not rest
    )
    *steps, _ = screen.getvalue().split("\x1b8")
    seen = [
        "\x1b8".join(steps[: i + 1]) for i in range(len(steps))
    ]  # after each block; no line ever wraps
    assert max(len(line) for written in seen for line in shown_by_a_terminal(written)) < 80
    assert all(shown_by_a_terminal(written)[-1].endswith(" ms") for written in seen)


def test_nothing_and_silence_can_be_streamed(talkative, tmp_path, capsys, monkeypatch):
    for samples in (0, 100, 16000):
        soundfile.write(tmp_path / "a.wav", np.zeros(samples, dtype=np.int16), SAMPLE_RATE)
        (whole,) = talkative.transcribe(batch_of(torch.zeros(samples)), CPU)
        for source in ("file", "-") if samples else "-":
            path = feed(monkeypatch, bytes(2 * samples)) if source == "-" else tmp_path / "a.wav"
            assert stream(talkative, capsys, path)[0].split() == whole.text.split()


def test_a_teacher_cannot_stream():
    with pytest.raises(UserError, match="has full context and cannot stream"):
        stream_words(
            Recogniser(Config(size="smoke", methods=("teacher",)), 9),
            Transcription(run="run", stream="x"),
            CPU,
        )


# ------------------------------------------------------------------------------------------- texts without spaces


def text_of(settled: list[str]) -> str:
    """As `Screen` writes it."""
    return "".join(word if isinstance(word, WordPart) else f"{word} " for word in settled)


KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのは"


@pytest.mark.parametrize("letters", ["", KANA])
def test_a_text_without_spaces_settles(talkative, tmp_path, capsys, monkeypatch, letters):
    """Before it ends, and nothing that has settled changes: together it is the text of the whole file."""
    alphabet = str.maketrans("abcdefghijklmnopqrstuvwxyz", letters or "abcdefghijklmnopqrstuvwxyz")
    plain = talkative.tokenizer.decode
    decode = lambda ids: plain(ids).replace(" ", "").translate(alphabet)  # noqa: E731
    monkeypatch.setattr(talkative.tokenizer, "decode", decode)
    samples = audio(4.0)
    (whole,) = talkative.transcribe(batch_of(samples), CPU)
    assert len(whole.text) > 60 and " " not in whole.text
    for portion in (800, 2560, 10**9):
        words, partials = words_in_portions(talkative, samples, portion)
        assert text_of(words[:-1]) + words[-1] == whole.text
        assert len(words) > 10 and max(map(len, partials)) < (10 if letters else 45)
    soundfile.write(tmp_path / "a.wav", samples.numpy(), SAMPLE_RATE, subtype="FLOAT")
    assert stream(talkative, capsys, tmp_path / "a.wav")[0] == whole.text + "\n"


def test_labels_of_settled_text_are_forgotten(talkative, monkeypatch):
    """A stream of hours holds no more than one of seconds."""
    monkeypatch.setattr(talkative.tokenizer, "decode", lambda ids: "字" * len(ids))
    frames = torch.randn(300, talkative.encoder.norm.weight.numel())
    with torch.inference_mode():
        settled, partial, decoder = greedy_words(talkative, frames, ())
    assert (
        len(settled) > 50
        and partial == "字"
        and len(decoder[2]) == 1
        and decoder[3] == len(settled)
    )


def test_what_settles_inside_a_word():
    pieces = {1: "駅", 2: "まで", 3: "", 4: "kn", 5: "ight", 6: "x" * 31}

    def decode(ids):
        return "".join(pieces[i] for i in ids)

    assert (
        settled_part(decode, [1], 2, 0) == "駅" and settled_part(decode, [1, 2], 1, 0) == "駅まで"
    )
    assert settled_part(decode, [], 1, 0) == ""
    assert settled_part(decode, [1], 3, 0) == ""  # a space, as far as one can see
    assert settled_part(decode, [4], 5, 0) == ""  # a word of letters settles at its end
    assert settled_part(decode, [6], 5, 0) == "x" * 31 and settled_part(decode, [4], 5, 30) == "kn"


def test_a_character_of_several_pieces_settles_when_it_is_whole():
    """As bytes are: a part of one is written as a sign that changes with the next piece."""
    content = "駅へ".encode()

    def decode(ids):
        return bytes(content[i - 1] for i in ids).decode(errors="replace")

    settled, labels = [], []
    for label in range(1, len(content) + 1):
        part = settled_part(decode, labels, label, 0)
        settled, labels = [*settled, part], [label] if part else [*labels, label]
    assert "".join(settled) + decode(
        labels
    ) == "駅へ" and "\N{REPLACEMENT CHARACTER}" not in "".join(settled)


def test_wide_characters_on_a_terminal(monkeypatch):
    """They take two columns: a line ends before it wraps."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    for _ in range(30):
        screen.write(
            [WordPart("天気予報")], "明日の天気は晴れるでしょうかと聞いてみたのですが", 0.01
        )
        line = shown_by_a_terminal(terminal.getvalue())[-1]
        assert sum(2 if ord(c) > 0x2FFF else 1 for c in line) < 80
    screen.end_line("")
    assert "".join(shown_by_a_terminal(terminal.getvalue())) == "天気予報" * 30


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="--stream - reads standard input, which is closed"):
        portions(Transcription(run="run", stream="-"), 0.2, 0.16)


def test_a_stream_is_not_transcribed_as_files_are():
    with pytest.raises(UserError, match="give audio files, or --stream FILE"):
        Transcription(run="run", stream="a.wav", files=("b.wav",)).check()
