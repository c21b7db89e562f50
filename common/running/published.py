"""The layout of rinna/nue-asr: HuBERT, a bridge and GPT-NeoX in one folder.

    config.json          "audio_encoder_config", "llm_config", "bridge_conv_kernel_size", "bridge_conv_stride"
    model.safetensors    audio_encoder.*  bridge_convs.{0,1}.*  bridge_proj.*  llm.*; or parts, with an index
    tokenizer files      of GPT; spiece.model alone, or what transformers writes

    model = ...; read_weights(model, folder, "--init");  write(model, folder)

A model here has parts of these names. Only safetensors are read, and no folder's code
is run.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel

from common import lora
from common.errors import UserError
from common.files import write_atomically
from common.running.pretrained import asks_for_normalised, find, forget_supplied, has_preprocessor
from common.running.weights import digest_of_model, save_weights, weight_files
from common.text import SentencePiece

# Older versions of torch and transformers name these so, and so does the published model.
OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v",
    "llm.lm_head.": "llm.embed_out.",
}  # fmt: skip
SHAPES = "shapes.json"  # of a run
KNOWN = {
    "rinna/japanese-hubert-base": {"feat_extract_norm": "group"},  # HuBERT base: the library's own defaults
    "rinna/japanese-gpt-neox-3.6b": dict(
        vocab_size=32000, hidden_size=2816, num_hidden_layers=36, num_attention_heads=22, intermediate_size=11264,
        rotary_pct=1.0, use_parallel_residual=False,
    ),
}  # fmt: skip
COMPUTED = (".attention.bias", ".masked_bias", ".inv_freq")  # buffers that older versions saved


def read_json(path: Path, flag: str) -> dict:
    """Raises UserError where there is none, half of one, or one that wants code of its
    own to be run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{flag}: there is no readable {path}: give a complete folder.") from None
    if not isinstance(found, dict) or "auto_map" in found:
        raise UserError(
            f"{flag}: {path} asks for code of its own, which is never run: give another folder."
        )
    return found


def read_weights(model: nn.Module, folder: Path, flag: str) -> None:
    """Fills a model from FOLDER/model.safetensors, or from the parts that its index
    names. Raises UserError."""
    state = {}
    for file in weight_files(folder, flag):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{flag} {file} is damaged ({error}): copy or download it again."
            ) from None
    for new, old in OLD_NAMES.items():
        if any(new in name for name in model.state_dict()):
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    try:
        lacking, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError:
        lacking, unknown = ["of another size"], []
    if wrong := [*lacking, *(name for name in unknown if not name.endswith(COMPUTED))]:
        raise UserError(
            f"{flag} {folder} holds other weights than its config.json says ({wrong[0]}, …): copy it anew."
        )


def shapes_of(model: nn.Module) -> dict:
    """Its config.json: what `networks` and the bridge are built from."""
    parts = {"audio_encoder_config": "audio_encoder", "llm_config": "llm"}
    shapes = {
        key: getattr(model, part).config.to_dict()
        for key, part in parts.items()
        if hasattr(model, part)
    }
    convolutions = getattr(model, "bridge_convs", ())
    shapes["bridge_conv_kernel_size"] = [conv.kernel_size[0] for conv in convolutions]
    shapes["bridge_conv_stride"] = [conv.stride[0] for conv in convolutions]
    return shapes


def keep_shapes(model: nn.Module, folder: Path) -> None:
    """Of a run, so that it is scored without the models that it began with; also the
    characters of a CTC head."""
    write_atomically(folder / SHAPES, json.dumps(shapes_of(model), indent=1) + "\n")
    if model.characters and model.characters is not model.tokenizer:
        (folder / "characters").mkdir(exist_ok=True)
        model.characters.save(folder / "characters")


def complete_shapes(shapes: dict, folder: Path) -> None:
    """Whether HuBERT wants normalised audio, where only a file beside config.json says
    it."""
    if has_preprocessor(folder):
        asked = asks_for_normalised(folder, str(folder))
        shapes["audio_encoder_config"].setdefault("do_normalize", asked)


def mark_of(folder: Path, shapes: dict, flag: str, root: str) -> str:
    """The digest of the GPT in a folder in this layout, or in a run's.

    shapes: of the folder's config.json or SHAPES. Where the run itself kept only
    adapters, its mark of the model below them is among the tensors, so that counts too.
    Raises UserError.
    """
    return digest_of_model(shapes["llm_config"], weight_files(folder, flag), root, "llm.")


def bridge_of(shapes: dict, kernel: int, stride: int, flag: str) -> int:
    """How many convolutions the folder's bridge has. Raises UserError where one has
    another kernel or stride."""
    kernels = shapes.get("bridge_conv_kernel_size", [kernel] * 2)
    strides = shapes.get("bridge_conv_stride", [stride] * len(kernels))
    if kernels != [kernel] * len(kernels) or strides != [stride] * len(kernels):
        raise UserError(
            f"{flag}: its bridge has kernels {kernels} and strides {strides}, ours {kernel} and {stride}."
        )
    return len(kernels)


def shapes_by_name(names: dict[str, str], root: str) -> dict:
    """Of {"--hubert": name or folder, "--gpt": the same}; the published models' own are
    known without a look."""
    found = {}
    for (flag, name), key in zip(
        names.items(), ("audio_encoder_config", "llm_config"), strict=True
    ):
        found[key] = KNOWN.get(name) or read_json(
            Path(find(name, flag, root)) / "config.json", flag
        )
    return found


def networks(shapes: dict) -> tuple[HubertModel, GPTNeoXForCausalLM | None]:
    """HuBERT and, where there is one, GPT of these shapes, with random weights."""
    llm = (
        GPTNeoXForCausalLM(GPTNeoXConfig(**shapes["llm_config"]))
        if "llm_config" in shapes
        else None
    )
    return HubertModel(HubertConfig(**shapes["audio_encoder_config"])), llm


def write(model: nn.Module, folder: Path) -> None:
    """Writes the whole layout, adapters merged. Raises UserError where it is another
    kind of model."""
    if not hasattr(model, "bridge_convs"):
        raise UserError(
            "--export writes the published layout, which has GPT and a bridge of convolutions."
        )
    lora.merge(model.llm)
    forget_supplied(model.llm)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    for new, old in OLD_NAMES.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    if isinstance(model.tokenizer, SentencePiece):
        write_atomically(folder / "spiece.model", model.tokenizer.model)
        how = {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 0,
            "legacy": True,
        }  # as rinna's folders say
        write_atomically(folder / "tokenizer_config.json", json.dumps(how) + "\n")
    else:
        model.tokenizer.tokenizer.save_pretrained(folder)
    shapes = {"model_type": "nue_asr", "architectures": ["NueASRModel"]} | shapes_of(model)
    write_atomically(folder / "config.json", json.dumps(shapes, indent=1) + "\n")
    save_weights(folder / "model.safetensors", state)
