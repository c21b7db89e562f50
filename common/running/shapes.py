"""The sizes of HuBERT and GPT that a run is built from, in its file shapes.json.

So a finished run is scored without the pretrained models that it began with:

    {"audio_encoder_config": {...}, "llm_config": {...},
     "bridge_conv_kernel_size": [4, 4], "bridge_conv_stride": [2, 2]}

which are the names of the published model's config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel

from common import hubert
from common.errors import UserError
from common.files import write_atomically
from common.running.pretrained import find
from common.running.weights import digest_of_model, weight_files

FILE = "shapes.json"
KNOWN = {  # of the published models, which are large
    "rinna/japanese-hubert-base": {"feat_extract_norm": "group"},  # else the library's defaults
    "rinna/japanese-gpt-neox-3.6b": {
        "vocab_size": 32000,
        "hidden_size": 2816,
        "num_hidden_layers": 36,
        "num_attention_heads": 22,
        "intermediate_size": 11264,
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
    },
}


def read_json(path: Path, flag: str) -> dict[str, Any]:
    """Raises UserError if there is none, half of one, or one that asks for code of its
    own."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{flag}: there is no readable {path}: give a complete folder.") from None
    if not isinstance(found, dict) or "auto_map" in found:
        what = f"{flag}: {path} asks for code of its own, which is never run"
        raise UserError(f"{what}: give another folder.")
    return found


def shapes_of(model: nn.Module) -> dict[str, Any]:
    """The sizes of a model whose parts have the published model's names."""
    found: dict[str, Any] = {"audio_encoder_config": model.audio_encoder.config.to_dict()}
    if hasattr(model, "llm"):
        found["llm_config"] = model.llm.config.to_dict()
    convolutions = getattr(model, "bridge_convs", ())
    found["bridge_conv_kernel_size"] = [conv.kernel_size[0] for conv in convolutions]
    found["bridge_conv_stride"] = [conv.stride[0] for conv in convolutions]
    return found


def networks(shapes: dict[str, Any]) -> tuple[HubertModel, GPTNeoXForCausalLM | None]:
    """HuBERT and, if there is one, GPT of these sizes, with random weights."""
    llm = None
    if "llm_config" in shapes:
        llm = GPTNeoXForCausalLM(GPTNeoXConfig(**shapes["llm_config"]))
    return HubertModel(HubertConfig(**shapes["audio_encoder_config"])), llm


def by_name(hubert_name: str, gpt_name: str, root: str) -> dict[str, Any]:
    """The sizes of pretrained models, by name or folder. Raises UserError."""
    found = {}
    for key, flag, name in (
        ("audio_encoder_config", "--hubert", hubert_name),
        ("llm_config", "--gpt", gpt_name),
    ):
        if name in KNOWN:
            found[key] = KNOWN[name]
        else:
            found[key] = read_json(Path(find(name, flag, root)) / "config.json", flag)
    return found


# ------------------------------------------------------------------------------------ of a run


def keep(model: nn.Module, folder: Path) -> None:
    """Writes shapes.json, and the characters of a CTC bridge beside GPT's pieces."""
    write_atomically(folder / FILE, json.dumps(shapes_of(model), indent=1) + "\n")
    if model.characters is not None and model.characters is not model.tokenizer:
        (folder / "characters").mkdir(exist_ok=True)
        model.characters.save(folder / "characters")


def read(folder: Path, flag: str) -> dict[str, Any]:
    """What shapes.json holds. Raises UserError."""
    return read_json(folder / FILE, flag)


def hear_as_kept(model: nn.Module, folder: Path) -> None:
    """Normalises audio as when the run in this folder began, if it did."""
    if (folder / FILE).exists():
        kept = HubertConfig(**read(folder, "--resume")["audio_encoder_config"])
        hubert.hear_as(model.audio_encoder.config, kept)


def digest_of_gpt(folder: Path, flag: str, root: str) -> str:
    """The digest of the GPT in a finished run.

    Where the run itself kept only adapters, its mark of the model below them is among
    the tensors, so that it counts too. Raises UserError.
    """
    config = read(folder, flag)["llm_config"]
    return digest_of_model(config, weight_files(folder, flag), root, "llm.")
