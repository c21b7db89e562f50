"""A Hugging Face model or tokenizer by name or folder: local files first, the network only if needed, one clear error.

resolve("bert-base-uncased")  -> "/home/…/.cache/…"     from the local cache, else from the hub
resolve("data/demo/bert-a")   -> the folder itself
"""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from common.flags import UserError

# Weights as safetensors only: nothing that a download could execute.
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]


def resolve(name: str, flag: str, tokenizer_only: bool = False) -> str:
    """The local folder of a model named on the hub, or `name` itself if it is a folder.

    flag: the option that names it, for the error message. Raises UserError where it is neither here nor reachable.
    """
    if Path(name).is_dir():
        return name
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [p for p in PATTERNS if p != "*.safetensors"] if tokenizer_only else PATTERNS
    instead = f"give {flag} a local folder with config.json, its tokenizer files and (for a model) model.safetensors."
    try:
        return snapshot_download(name, allow_patterns=patterns, local_files_only=True)
    except HFValidationError:
        raise UserError(f"{flag} {name}: no such folder, and not the name of a model: {instead}") from None
    except LocalEntryNotFoundError:
        pass
    hub = urlsplit(constants.ENDPOINT)
    try:
        if not getproxies():  # asked once and quickly: the library alone would retry for half a minute
            socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
        return snapshot_download(name, allow_patterns=patterns)
    except (OSError, HfHubHTTPError) as error:
        where = f"is not in the local cache, and {hub.hostname} did not give it ({type(error).__name__})"
        raise UserError(f"{flag} {name} {where}: {instead}") from None


def load_vocabulary(name: str, flag: str, root: str) -> list[str]:
    """The pieces of a pretrained tokenizer in the order of their ids. Raises UserError.

    name: on the hub, a folder, or `demo` and `demo-smoke`: what those worlds hold, built in ROOT where it is missing.
    """
    from transformers import AutoTokenizer

    if name in ("demo", "demo-smoke"):
        from common import demo

        folder = str(demo.build_text(Path(root) / name, small=name == "demo-smoke"))
    else:
        folder = resolve(name, flag, tokenizer_only=True)
    try:
        vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name} holds no tokenizer ({str(error).splitlines()[0]}).") from None
    return sorted(vocabulary, key=vocabulary.get)
