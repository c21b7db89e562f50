"""HuBERTs that want waves of mean 0 and variance 1 get them, as transformers does it."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from common import hubert
from common.errors import UserError
from common.running import pretrained, shapes
from common.running.process import Place
from tools import published

CPU = Place(0, 1, torch.device("cpu"))
LARGE = dict(  # the form of facebook/hubert-large-ll60k, and small
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True, conv_dim=[16] * 7,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
BASE = LARGE | dict(feat_extract_norm="group", conv_bias=False, do_stable_layer_norm=False)


def saved(folder, shapes: dict = LARGE, **asked):
    """A HuBERT with random weights in a folder; asked: of its preprocessor_config.json."""
    torch.manual_seed(0)
    HubertModel(HubertConfig(**shapes)).save_pretrained(folder)
    if asked:
        mask = shapes["feat_extract_norm"] == "layer"
        Wav2Vec2FeatureExtractor(return_attention_mask=mask, **asked).save_pretrained(folder)
    return folder


def load(folder) -> HubertModel:
    return pretrained.load_hubert(str(folder), "--hubert", "", CPU).eval()


def heard(model: HubertModel, waves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Its states for each wave, of a padded batch of all of them."""
    samples = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.inference_mode():
        states, frames = hubert.encode(model, padded, samples, 400)
    return [row[:n] for row, n in zip(states, frames.tolist(), strict=True)]


def noises() -> list[torch.Tensor]:
    """Of three lengths, loudnesses and means."""
    torch.manual_seed(1)
    sizes = ((9000, 0.01, 0.0), (5000, 0.3, 0.1), (7000, 2.0, -1.0))
    return [gain * torch.randn(n) + mean for n, gain, mean in sizes]


@pytest.mark.parametrize("shapes", [LARGE, BASE], ids=["layer norm", "group norm"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_audio_is_normalised_as_by_the_library(tmp_path, shapes, do_normalize):
    """Alone, and in a padded batch, as the model's preprocessor_config.json asks."""
    folder = saved(tmp_path, shapes, do_normalize=do_normalize)
    ours, theirs = load(folder), HubertModel.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    waves = noises()
    together = heard(ours, waves)
    for wave, states in zip(waves, together, strict=True):
        one = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**one).last_hidden_state[0]
        torch.testing.assert_close(heard(ours, [wave])[0], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states, expected, atol=1e-3, rtol=1e-3)


def test_a_normalised_batch_is_the_librarys_padded_batch():
    """Padding stays 0; silence and a single sample become 0."""
    waves = [*noises(), torch.zeros(300), torch.ones(1)]
    samples = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor(
        [wave.numpy() for wave in waves], sampling_rate=16000, padding=True, return_tensors="pt"
    ).input_values
    found = hubert.normalise(padded, samples)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for row, n in zip(found, samples.tolist(), strict=True):
        assert not row[n:].any()


def test_without_a_file_the_librarys_default_holds_but_not_in_a_demo_world(tmp_path, capsys):
    assert Wav2Vec2FeatureExtractor().do_normalize
    folder = saved(tmp_path / "world" / "hubert")
    assert hubert.wants_normalised(load(folder).config)
    assert "has no preprocessor_config.json: its audio gets mean 0" in capsys.readouterr().err
    (tmp_path / "world" / "world.json").write_text("{}")
    assert not hubert.wants_normalised(load(folder).config)


def test_a_damaged_file_is_refused(tmp_path):
    folder = saved(tmp_path, do_normalize=True)
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content)[:40])
    with pytest.raises(UserError, match="--hubert .* has no readable preprocessor_config.json"):
        load(folder)
    path.write_text(json.dumps(content | {"do_normalize": "no"}))
    with pytest.raises(UserError, match="neither true nor false"):
        load(folder)
    del content["do_normalize"]
    path.write_text(json.dumps(content))
    assert hubert.wants_normalised(load(folder).config)  # the library's default


def test_it_is_kept_with_a_run_whatever_becomes_of_the_file(tmp_path):
    """By the shapes of the run, which are also those of a published folder."""
    folder = saved(tmp_path, do_normalize=True)
    model = load(folder)
    sizes = json.loads(json.dumps(shapes.shapes_of(SimpleNamespace(audio_encoder=model))))
    again, _ = shapes.networks(sizes)
    again.load_state_dict(model.state_dict())
    assert torch.equal(heard(again.eval(), noises())[0], heard(model, noises())[0])
    del sizes["audio_encoder_config"]["do_normalize"]  # as in an older run, or rinna/nue-asr
    older, _ = shapes.networks(sizes)
    assert not hubert.wants_normalised(older.config)
    hubert.hear_as(model.config, older.config)
    assert not hubert.wants_normalised(model.config)
    published.complete(sizes, folder)  # where a file beside it says so
    assert sizes["audio_encoder_config"]["do_normalize"] is True
