"""Weights in files: what a checkpoint leaves out is known again, or refused."""

import json
import os
import re
import shutil

import pytest
import torch
from test_lora import model
from torch import nn

from common.errors import UserError
from common.running import shapes, weights
from common.running.pretrained import load_causal
from common.running.weights import (
    average_of,
    digest_of_weights,
    kept_digest_of_weights,
    load_own_state,
    load_weights,
    mark_supplied,
    own_state,
    save_weights,
    weight_files,
)
from tools import published


def saved(folder, family="llama"):
    model(family).save_pretrained(folder)
    return folder


def mark(folder, dtype=torch.float32):
    return load_causal(str(folder), "--lm", str(folder), True, dtype).supplied.tolist()


# ------------------------------------------------------------------- what is left out


CHANGES = {
    "a layer": lambda state, config: state["model.layers.1.mlp.up_proj.weight"][3, 3].add_(1e-6),
    "the head": lambda state, config: state["lm_head.weight"][5, 0].add_(1e-6),
    "a norm": lambda state, config: state["model.norm.weight"][0].add_(1e-6),
    "a string": lambda state, config: config.update(hidden_act="gelu"),
    "a nested value": lambda state, config: config["rope_parameters"].update(rope_theta=500.0),
    "a number": lambda state, config: config.update(rms_norm_eps=1e-5),
    "a list": lambda state, config: config.update(eos_token_id=[2, 3]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_model_that_changed_on_disk_is_another(tmp_path, change):
    """In one number of one of its tensors, or in any value of its configuration."""
    folder = saved(tmp_path / "lm")
    before, state = mark(folder), load_weights(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    CHANGES[change](state, config)
    save_weights(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(config))
    assert mark(folder) != before


def test_a_base_model_is_the_same_wherever_it_lies_and_however_it_is_divided(tmp_path):
    """Also in whatever type it is loaded, and whoever wrote its config.json."""
    folder = saved(tmp_path / "lm")
    before = mark(folder)
    assert mark(folder, torch.bfloat16) == before
    shutil.copytree(folder, tmp_path / "copy")
    assert mark(tmp_path / "copy") == before
    model("llama").save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    config["transformers_version"] = "0.1"
    (tmp_path / "parts" / "config.json").write_text(json.dumps(config))
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert mark(tmp_path / "parts") == before


def test_the_mark_decides_whether_a_checkpoint_is_loaded(tmp_path):
    folder = saved(tmp_path / "lm")
    lm = load_causal(str(folder), "--lm", "", True)
    state = own_state(nn.ModuleDict({"lm": lm}))
    assert list(state) == ["lm.supplied"]
    load_own_state(nn.ModuleDict({"lm": lm}), state)
    other = mark_supplied(model("llama"), "00" * 16)
    with pytest.raises(UserError, match="another pretrained model than the one named, or that one"):
        load_own_state(nn.ModuleDict({"lm": other}), state)
    old = {"lm.supplied": state["lm.supplied"][1:]}
    with pytest.raises(UserError, match="a mark of an older version.*: train the run anew"):
        load_own_state(nn.ModuleDict({"lm": lm}), old)


def test_a_run_that_an_adapted_one_stands_on_may_not_change(tmp_path):
    """Neither in its GPT's layers, nor in its adapters, nor in the model below them."""
    sizes = {"llm_config": model("gpt_neox").config.to_dict() | {"dtype": "float32"}}
    (tmp_path / shapes.FILE).write_text(json.dumps(sizes))
    whole = {"llm." + name: x for name, x in model("gpt_neox").state_dict().items()}
    adapted = {"llm.a.A": torch.ones(2, 3), "llm.supplied": torch.ones(17, dtype=torch.uint8)}
    for state in (whole, adapted):
        state["audio_encoder.x"] = torch.ones(2)  # which the adapted run keeps itself
        path = tmp_path / "model.safetensors"

        def found(state=state, path=path) -> str:
            save_weights(path, state)
            return shapes.digest_of_gpt(tmp_path, "--init", str(tmp_path))

        before = found()
        state["audio_encoder.x"] += 1
        assert found() == before
        for name in sorted(state):
            if name.startswith("llm."):
                as_it_was = state[name].clone()
                state[name].flatten()[-1].add_(1)
                assert found() != before, name
                state[name] = as_it_was
        assert found() == before


def test_the_digest_of_large_weights_is_computed_once(tmp_path, monkeypatch):
    """It is kept beside sizes and times of the files; what changed there is read again."""
    folder, read = saved(tmp_path / "lm"), []
    monkeypatch.setattr(weights, "KEPT_FROM", 1)
    monkeypatch.setattr(
        weights, "digest_of_weights", lambda *how: read.append(how) or digest_of_weights(*how)
    )
    before = mark(folder)
    assert mark(folder) == before and len(read) == 1
    state = load_weights(folder / "model.safetensors")
    state["lm_head.weight"][5, 0] += 1
    time = os.stat(folder / "model.safetensors")
    save_weights(folder / "model.safetensors", state)
    os.utime(folder / "model.safetensors", ns=(time.st_atime_ns, time.st_mtime_ns))
    assert mark(folder) != before and len(read) == 2
    (kept,) = (folder / "digests").iterdir()
    kept.write_text('{"files": []')
    files = weight_files(folder, "--lm")
    found = kept_digest_of_weights(files, "", str(folder))
    assert found == digest_of_weights(files) and len(read) == 3
    (tmp_path / "file").touch()  # where nothing can be kept
    assert kept_digest_of_weights(files, "", str(tmp_path / "file")) == found and len(read) == 4


# ---------------------------------------------------------------------------- folders


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/secret.safetensors", "a/../../b"])
def test_an_index_that_names_files_outside_its_folder_is_refused(tmp_path, outside):
    folder = saved(tmp_path / "lm")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": outside}}))
    message = f"names {re.escape(outside)}, which is outside of that folder"
    with pytest.raises(UserError, match=message):
        published.read_weights(model("llama"), folder)
    with pytest.raises(UserError, match=message):
        load_causal(str(folder), "--lm", "", True)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'])
def test_an_index_that_is_damaged_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="copy or download it again"):
        published.read_weights(model("llama"), tmp_path)


# --------------------------------------------------------------------------- averages


def test_averaged_adapters_are_averaged_apart():
    """The mean of A and of B; their product is not the mean of the products."""
    torch.manual_seed(0)
    runs = [{"A": torch.randn(2, 5), "B": torch.randn(4, 2)} for _ in range(2)]
    mean = average_of(runs)
    assert torch.equal(mean["A"], (runs[0]["A"] + runs[1]["A"]) / 2)
    products = (runs[0]["B"] @ runs[0]["A"] + runs[1]["B"] @ runs[1]["A"]) / 2
    assert (mean["B"] @ mean["A"] - products).abs().max() > 0.1
    near = [runs[0], {name: x + 1e-3 for name, x in runs[0].items()}]  # epochs of one run
    mean = average_of(near)
    products = (near[0]["B"] @ near[0]["A"] + near[1]["B"] @ near[1]["A"]) / 2
    torch.testing.assert_close(mean["B"] @ mean["A"], products, atol=1e-5, rtol=1e-4)
    assert "adapters" in average_of.__doc__ and "merge" in average_of.__doc__
