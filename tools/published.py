"""The layout of rinna/nue-asr, both ways: HuBERT, a bridge and GPT-NeoX in one folder.

    python -m tools.published to-run rinna/nue-asr runs/nue-asr     a run of hubert_gpt_bridge.py
    python -m tools.published from-run runs/x folder                the published layout

    config.json          "audio_encoder_config", "llm_config", "bridge_conv_kernel_size",
                         "bridge_conv_stride"
    model.safetensors    audio_encoder.*  bridge_convs.{0,1}.*  bridge_proj.*  llm.*; or
                         parts, with an index
    tokenizer files      of GPT; spiece.model alone, or what transformers writes

The run then serves as any other: evaluate.py, transcribe.py, --init. Only safetensors
are read, and no folder's code is run. A target folder that holds anything is refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import hubert_gpt_bridge as script
from common import lora
from common.errors import UserError, explain_errors, note
from common.files import write_atomically
from common.running import options, pretrained, shapes, weights
from common.running.process import Place, make_folder
from common.running.runs import load_run
from common.text import SentencePiece

# The published model has the names that older versions of torch and transformers gave.
OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "llm.lm_head.": "llm.embed_out.",
}
COMPUTED = (".attention.bias", ".masked_bias", ".inv_freq")  # buffers that they saved, too
CPU = Place(0, 1, torch.device("cpu"))


# =================================================================================== to a run


def to_run(name: str, out: Path, root: str = "data") -> None:
    """Writes the published folder as a finished run. name: on the hub, or a folder.

    Raises UserError where the folder is not laid out so, or `out` holds anything.
    """
    folder = Path(pretrained.find(name, "the model", root))
    sizes = shapes.read_json(folder / "config.json", "the model")
    if not sizes.keys() >= {"audio_encoder_config", "llm_config"}:
        raise UserError(f"{name} is not laid out as rinna/nue-asr: its config.json has other keys.")
    layers = bridge_layers(sizes, str(name))
    complete(sizes, folder)
    config = options.with_values(
        script.PRESETS["full"], preset="full", bridge_layers=layers, out=str(out), root=root
    )
    tokenizer = pretrained.load_text(str(folder), "the model", root)
    encoder, llm = shapes.networks(sizes)
    model = script.BridgedGPT(config, encoder, llm, tokenizer)
    read_weights(model, folder)
    open_empty(out)
    write_atomically(out / "config.json", json.dumps(config.stored(), indent=1) + "\n")
    shapes.keep(model, out)
    tokenizer.save(out)
    weights.save_weights(out / "model.safetensors", weights.own_state(model))
    note(f"{out} is a run now")


def complete(sizes: dict[str, Any], folder: Path) -> None:
    """Adds whether HuBERT wants normalised audio, if only its own file says it."""
    if pretrained.has_preprocessor(folder):
        asked = pretrained.asks_for_normalised(folder, str(folder))
        sizes["audio_encoder_config"].setdefault("do_normalize", asked)


def bridge_layers(sizes: dict[str, Any], name: str) -> int:
    """How many convolutions the folder's bridge has. Raises UserError where one has
    another kernel or stride than ours."""
    kernels = sizes.get("bridge_conv_kernel_size", [script.KERNEL] * 2)
    strides = sizes.get("bridge_conv_stride", [script.STRIDE] * len(kernels))
    count = len(kernels)
    if kernels != [script.KERNEL] * count or strides != [script.STRIDE] * count:
        theirs = f"kernels {kernels} and strides {strides}"
        ours = f"{script.KERNEL} and {script.STRIDE}"
        raise UserError(f"{name}: its bridge has {theirs}, ours {ours}.")
    return count


def read_weights(model: nn.Module, folder: Path) -> None:
    """Fills a model from FOLDER/model.safetensors, or from the parts that its index
    names. Raises UserError."""
    state = {}
    for file in weights.weight_files(folder, "the model"):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}): copy or download it again.") from None
    for new, old in OLD_NAMES.items():
        if any(new in name for name in model.state_dict()):
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError:
        lacking, unknown = ["of another size"], []
    wrong = [*lacking, *(name for name in unknown if not name.endswith(COMPUTED))]
    if wrong:
        what = f"{folder} holds other weights than its config.json says"
        raise UserError(f"{what} ({wrong[0]}, …): copy it anew.")


def open_empty(folder: Path) -> None:
    """Makes the folder. Raises UserError where it cannot be, or holds anything: stale
    parts or an index would mix with what is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: give a new folder.")
    make_folder(folder)


# =================================================================================== from a run


def from_run(run: Path, folder: Path, root: str = "data") -> None:
    """Writes a finished run in the published layout; adapters are merged.

    Raises UserError where the run is of another script or has no bridge of
    convolutions, or `folder` holds anything.
    """
    finished = load_run(run, CPU, root)
    model = finished.recogniser
    if not hasattr(model, "bridge_convs"):
        raise UserError(f"{run} has no GPT behind a bridge of convolutions: give such a run.")
    lora.merge(model.llm)
    weights.forget_supplied(model.llm)
    open_empty(folder)
    write_tokenizer(model.tokenizer, folder)
    sizes = {"model_type": "nue_asr", "architectures": ["NueASRModel"]} | shapes.shapes_of(model)
    write_atomically(folder / "config.json", json.dumps(sizes, indent=1) + "\n")
    state = model.state_dict()
    for new, old in OLD_NAMES.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    weights.save_weights(folder / "model.safetensors", state)
    note(f"{folder} has the published layout now")


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """As rinna's folders have it, or as transformers writes it."""
    if isinstance(tokenizer, SentencePiece):
        write_atomically(folder / "spiece.model", tokenizer.model)
        how = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "legacy": True}
        write_atomically(folder / "tokenizer_config.json", json.dumps(how) + "\n")
    else:
        tokenizer.tokenizer.save_pretrained(folder)


# ======================================================================================= main


def read_command_line(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; None: the program's own. Exits with code 2 for a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=["to-run", "from-run"])
    parser.add_argument("source", help="hub name or folder; with from-run a finished run")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--root", default="data", help="where demo models are")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = read_command_line(arguments)
    if given.way == "to-run":
        to_run(given.source, given.target, given.root)
    else:
        from_run(Path(given.source), given.target, given.root)


if __name__ == "__main__":
    explain_errors()
    main()
