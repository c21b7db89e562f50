"""From raw samples, in portions of any size: what the encoder gives for the whole utterance."""

import io

import pytest
import torch
import torchaudio.functional as AF

from common.conformer import Conformer
from common.features import SAMPLE_RATE, LogMel
from common.flags import UserError
from common.streaming import Stream, StreamingEncoder


def parts(dtype=torch.float32, **changes) -> tuple[LogMel, Conformer]:
    torch.manual_seed(0)
    sizes = dict(dim=112, layers=4, heads=4, ff_dim=448, kernel=15, dropout=0.1, channels=8, chunk=4, left=16)
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
def at_once(features: LogMel, encoder: Conformer, samples: torch.Tensor, rate: int = SAMPLE_RATE) -> torch.Tensor:
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
    for seconds in (0.9, 0.175, 0.1745, 0.73):  # ragged ends: a block exactly, one sample less, parts of blocks
        samples, streaming = audio(seconds), StreamingEncoder(*pair)
        expected = at_once(*pair, samples)
        streamed = in_portions(streaming, samples, portion)
        assert streamed.shape == expected.shape and (streamed - expected).abs().max() <= 1e-5


def test_sample_by_sample():
    pair, samples = parts(), audio(0.2)
    assert torch.equal(
        in_portions(StreamingEncoder(*pair), samples, 1), in_portions(StreamingEncoder(*pair), samples, 900)
    )


def test_size_S():
    pair = parts(torch.float64, dim=176, layers=16, ff_dim=704, kernel=31, channels=32)
    samples = audio(1.5, dtype=torch.float64)
    assert (in_portions(StreamingEncoder(*pair), samples, 3000) - at_once(*pair, samples)).abs().max() <= 1e-10


@pytest.mark.parametrize(("chunk", "left", "factor"), [(2, 6, 8), (1, 0, 4)])
def test_other_chunks(chunk, left, factor):
    pair, samples = parts(chunk=chunk, left=left, subsampling=factor), audio(0.9)
    assert (in_portions(StreamingEncoder(*pair), samples, 700) - at_once(*pair, samples)).abs().max() <= 1e-5


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
    portions = [list(wave.split(size)) for wave, size in zip(waves, (3000, 1000, 2600), strict=True)]
    streams, found = [streaming.start() for _ in waves], [[], [], []]
    for step in range(max(map(len, portions))):
        for end in (False, True):  # those that go on, then those that end now: two batches
            rows = [i for i in range(3) if step < len(portions[i]) and (step + 1 == len(portions[i])) == end]
            if rows:
                outputs, new = streaming.push([streams[i] for i in rows], [portions[i][step] for i in rows], end)
                for i, output, stream in zip(rows, outputs, new, strict=True):
                    found[i].append(output)
                    streams[i] = stream
    for wave, outputs in zip(waves, found, strict=True):
        assert (torch.cat(outputs) - at_once(*pair, wave)).abs().max() <= 1e-5
    together, _ = streaming.push([streaming.start() for _ in waves], waves, end=True)  # ragged ends in one batch
    for wave, output in zip(waves, together, strict=True):
        assert (output - at_once(*pair, wave)).abs().max() <= 1e-5


def test_silence_and_nothing():
    pair = parts()
    streaming = StreamingEncoder(*pair)
    silence = torch.zeros(SAMPLE_RATE)
    assert (in_portions(streaming, silence, 1000) - at_once(*pair, silence)).abs().max() <= 1e-5
    for samples in (torch.zeros(0), torch.zeros(399), torch.zeros(880 - 1)):  # 880: the first encoder frame
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
        assert [part.shape for part in stream.encoder] == [part.shape for part in streaming.encoder.fresh_state(1)]
        complete = (heard / rate - streaming.delay - 0.015) / 0.160  # blocks
        assert int(complete - 0.15) * 4 <= frames <= int(complete) * 4  # a resampler may have to wait for its last step
    assert max(sizes) <= 0.175 + 0.03
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in (stream.audio, stream.wave, *stream.encoder))


def test_what_cannot_stream():
    with pytest.raises(ValueError, match="full context"):
        StreamingEncoder(*parts(chunk=0, left=0))
    with pytest.raises(UserError, match="47999 Hz"):
        StreamingEncoder(*parts(), 47_999)
