"""tools/published.py: a published folder becomes a run, and a run a published folder."""

import io
import json

import pytest
import sentencepiece
import torch

from common.errors import UserError
from common.running.pretrained import load_text
from common.running.weights import load_weights, save_weights
from tools import published as tool


@pytest.fixture(scope="module")
def finished(runs):
    return runs("hubert_gpt_bridge")


@pytest.fixture
def published(finished, tmp_path):
    """A folder in the published layout."""
    folder = tmp_path / "published"
    tool.from_run(finished.folder, folder)
    return folder


def text_of(finished, capsys, corpus, run) -> str:
    """What a run writes of a dev utterance."""
    capsys.readouterr()
    finished.transcribe(run, corpus.dev[0].audio)
    return capsys.readouterr().out


def test_the_published_layout_comes_back_bit_identical(
    finished, published, tmp_path, corpus, capsys
):
    """Whole or in parts; and the run that is made of it serves as any other."""
    state = load_weights(published / "model.safetensors")
    parts = {"audio_encoder", "bridge_convs", "bridge_proj", "llm"}
    assert {name.split(".")[0] for name in state} == parts
    old_names = {"audio_encoder.encoder.pos_conv_embed.conv.weight_g", "llm.embed_out.weight"}
    assert old_names <= state.keys()
    assert json.loads((published / "config.json").read_text())["bridge_conv_stride"] == [2, 2]
    tool.to_run(str(published), tmp_path / "run")
    text = text_of(finished, capsys, corpus, tmp_path / "run")
    tool.from_run(tmp_path / "run", tmp_path / "again")
    again = load_weights(tmp_path / "again" / "model.safetensors")
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    split_into_parts(published, state)
    tool.to_run(str(published), tmp_path / "from-parts")
    assert text and text_of(finished, capsys, corpus, tmp_path / "from-parts") == text
    (published / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors: copy or download it whole"):
        tool.to_run(str(published), tmp_path / "incomplete")
    assert not (tmp_path / "incomplete").exists()
    goes_on = ["--init", tmp_path / "run", "--preset", "smoke", "--max-steps", 1, "--method", "gpt"]
    data = ["--data", finished.data, "--out", tmp_path / "adapted"]
    assert finished.main(*goes_on, *data)["wer"]


def split_into_parts(folder, state) -> None:
    names = sorted(state)
    half = len(names) // 2
    parts = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
    for file, some in parts.items():
        save_weights(folder / file, {name: state[name] for name in some})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.slow
def test_a_folder_with_sentencepieces_file_alone(finished, published, tmp_path, corpus, capsys):
    """As rinna's: bytes for what it does not know, no space and no symbol before the text; written as it was read."""
    model, lines = io.BytesIO(), (u.text for u in corpus.train)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=330, hard_vocab_limit=False, byte_fallback=True,
        add_dummy_prefix=False, bos_id=1, eos_id=2, user_defined_symbols=["[SEP]"], minloglevel=2,
    )  # fmt: skip
    for path in published.glob("*token*"):
        path.unlink()
    (published / "spiece.model").write_bytes(model.getvalue())
    tokenizer = load_text(str(published), "the model", "")
    for text in ("the flour", "今日は鵺", "a  b"):
        labels = tokenizer.encode(text)
        assert tokenizer.decode(labels) == " ".join(text.split())
        assert not {1, 2, 3} & set(labels)  # no <unk>, <s>, </s>
    pieces = ("<s>", "[SEP]", "</s>", "flour flour")
    assert [tokenizer.id_of(piece) for piece in pieces] == [1, 3, 2, None]
    shapes = json.loads((published / "config.json").read_text())
    state = load_weights(published / "model.safetensors")
    for table in ("llm.gpt_neox.embed_in.weight", "llm.embed_out.weight"):
        state[table] = state[table].repeat(99, 1)[: tokenizer.size - 1]
    shapes["llm_config"]["vocab_size"] = tokenizer.size - 1
    (published / "config.json").write_text(json.dumps(shapes))
    save_weights(published / "model.safetensors", state)
    tool.to_run(str(published), tmp_path / "run")
    text = text_of(finished, capsys, corpus, tmp_path / "run")
    tool.from_run(tmp_path / "run", tmp_path / "again")
    assert (tmp_path / "again" / "spiece.model").read_bytes() == model.getvalue()
    tool.to_run(str(tmp_path / "again"), tmp_path / "same")
    assert text and text_of(finished, capsys, corpus, tmp_path / "same") == text
    (published / "spiece.model").write_bytes(b"damaged")
    with pytest.raises(UserError, match="holds no tokenizer"):
        tool.to_run(str(published), tmp_path / "damaged")


def test_published_folders_that_cannot_be_used(published, tmp_path):
    weights = published / "model.safetensors"
    config = json.loads((published / "config.json").read_text())
    content = weights.read_bytes()

    def refused(match: str, **changes) -> None:
        if changes:
            (published / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=match):
            tool.to_run(str(published), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    weights.write_bytes(content[:-1000])
    refused("damaged")
    weights.unlink()
    (published / "pytorch_model.bin").write_bytes(b"x")
    refused(r"weights as \.bin are not read")
    weights.write_bytes(content)
    state = load_weights(weights)
    save_weights(weights, {name: x for name, x in state.items() if name != "bridge_proj.bias"})
    refused(r"holds other weights than its config\.json says \(bridge_proj\.bias")
    refused(r"kernels \[4, 4\] and strides \[2, 3\], ours 4 and 2", bridge_conv_stride=[2, 3])
    refused("code of its own", auto_map={"AutoModel": "x.py"})
    (published / "config.json").write_text(json.dumps(config)[:40])
    refused("no readable")
    (published / "config.json").write_text("{}")
    refused("is not laid out as rinna/nue-asr")


def test_a_folder_that_holds_anything_is_refused(finished, published, tmp_path):
    """Stale parts and an index would be read beside what is written."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model-9.safetensors").touch()
    with pytest.raises(UserError, match="full is not empty: give a new folder"):
        tool.from_run(finished.folder, tmp_path / "full")
    with pytest.raises(UserError, match="full is not empty: give a new folder"):
        tool.to_run(str(published), tmp_path / "full")
    with pytest.raises(UserError, match="cannot be used"):
        tool.to_run(str(published), tmp_path / "full" / "model-9.safetensors" / "run")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["model-9.safetensors"]


def test_runs_that_have_no_published_layout(finished, tmp_path):
    with pytest.raises(UserError, match="has no GPT behind a bridge of convolutions"):
        tool.from_run(finished.first_stage, tmp_path / "folder")
