"""A Hugging Face model or tokenizer by name or folder: local files first, the network
only if needed, one clear error.

resolve("bert-base-uncased")  -> "/home/…/.cache/…"     from the local cache, else from the hub
resolve("data/demo/bert-a")   -> the folder itself
"""

from __future__ import annotations

import bisect
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import torch
from torch import Tensor, nn

from common import bert, demo
from common.demo import multilingual
from common.errors import UserError
from common.running.corpora import DEMO_MLS_WORLDS, DEMO_WORLDS
from common.running.process import quiet_bars
from common.running.weights import digest_of_model, weight_files
from common.text import Characters, Pieces, SentencePiece, WordPiece

# Weights as safetensors only: nothing that a download could execute.
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]
PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")  # where do_normalize stands
FORM_OF_MARKS = 2  # of `supplied`; the first, without this number, covered a part of the model


def resolve(name: str, flag: str, tokenizer_only: bool = False) -> str:
    """The local folder of a model named on the hub, or `name` itself if it is a folder.

    flag: the option that names it, for the error message. Raises UserError where it is
    neither here nor reachable.
    """
    if os.path.isdir(name):
        return name
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [p for p in PATTERNS if p != "*.safetensors"] if tokenizer_only else PATTERNS
    instead = f"give {flag} a local folder with config.json, its tokenizer files and (for a model) model.safetensors."
    try:
        return snapshot_download(name, allow_patterns=patterns, local_files_only=True)
    except HFValidationError:
        raise UserError(
            f"{flag} {name}: no such folder, and not the name of a model: {instead}"
        ) from None
    except LocalEntryNotFoundError:
        pass
    hub = urlsplit(constants.ENDPOINT)
    try:
        if (
            not getproxies()
        ):  # asked once and quickly: the library alone would retry for half a minute
            socket.create_connection((hub.hostname, hub.port or 443), timeout=3).close()
        return snapshot_download(name, allow_patterns=patterns)
    except (OSError, HfHubHTTPError) as error:
        where = f"is not in the local cache, and {hub.hostname} did not give it ({type(error).__name__})"
        raise UserError(f"{flag} {name} {where}: {instead}") from None


def find(name: str, flag: str, root: str, tokenizer_only: bool = False) -> str:
    """As `resolve`, and the models of the demo worlds, built in ROOT where they are
    missing.

    demo, demo-smoke: that world's bert-a; demo/bert-b, demo/lm: another of its models;
    demo-mls, demo-mls-smoke: lm-m. Raises UserError.
    """
    world, _, model = name.partition("/")
    if world not in DEMO_WORLDS | DEMO_MLS_WORLDS or os.path.isdir(name):
        return resolve(name, flag, tokenizer_only)
    builder, small = (
        demo if world in DEMO_WORLDS else multilingual,
        (DEMO_WORLDS | DEMO_MLS_WORLDS)[world],
    )
    folder, model = Path(os.path.expanduser(root)) / world, model or builder.MODELS[0]
    if model not in builder.MODELS:
        raise UserError(f"{flag} {name}: the demo world has {', '.join(builder.MODELS)}.")
    if tokenizer_only and model in builder.ONE_TOKENIZER:
        return str(builder.build_tokenizer(folder, small))
    return str(builder.build_model(folder, model, small))


def load_pieces(name: str, flag: str, root: str):
    """A pretrained tokenizer, which also tells the characters that each piece covers.
    name: see `find`.

    Raises UserError.
    """
    from transformers import AutoTokenizer

    folder = find(name, flag, root, tokenizer_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (
        Exception
    ) as error:  # what is raised depends on which file is missing, cut off or of another kind
        raise UserError(f"{flag} {name} holds no tokenizer ({first_line(error)}).") from None
    if set(tokenizer.get_vocab()) <= set(
        tokenizer.all_special_tokens
    ):  # its vocabulary's file is not there
        raise UserError(
            f"{flag} {name} has no vocabulary: copy its tokenizer's files (vocab.txt, ...) there too."
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{flag} {name} has a tokenizer that cannot tell where its pieces stand: give another model."
        )
    return tokenizer


def load_text(name: str, flag: str, root: str) -> Pieces | SentencePiece:
    """What a causal language model writes. name: see `find`. Raises UserError.

    Some models, as rinna's, come with SentencePiece's own file alone; what transformers
    makes of it puts symbols before the text and knows no bytes, so that file is asked
    itself.
    """
    folder = Path(find(name, flag, root, tokenizer_only=True))
    if not (folder / "spiece.model").exists() or (folder / "tokenizer.json").exists():
        return Pieces(load_pieces(name, flag, root))
    try:
        return SentencePiece((folder / "spiece.model").read_bytes())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{flag} {name} holds no tokenizer ({first_line(error)}).") from None


def load_vocabulary(name: str, flag: str, root: str) -> list[str]:
    """The pieces of a pretrained tokenizer in the order of their ids. name: see `find`.
    Raises UserError."""
    vocabulary = load_pieces(name, flag, root).get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_model(
    auto_class: type, name: str, flag: str, root: str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A frozen pretrained model in evaluation mode. name: see `find`; auto_class:
    AutoModelForMaskedLM, ….

    The configuration of a HuBERT also says by do_normalize whether it wants waves of
    mean 0 and variance 1.

    Raises UserError where the folder holds no such model, or one without its head,
    which would be filled with noise, and where its index names weights outside of it.
    """
    quiet_bars()
    folder = find(name, flag, root)
    if os.path.exists(os.path.join(folder, "model.safetensors.index.json")):
        weight_files(Path(folder), f"{flag} {name}")
    try:
        model, loaded = auto_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype,
            output_loading_info=True,
        )  # fmt: skip
    except (
        Exception
    ) as error:  # what is raised depends on which file is missing, cut off or of another kind
        raise UserError(
            f"{flag} {name} holds no model of that kind, or not all of it ({first_line(error)})."
        ) from None
    if loaded["missing_keys"]:
        lacking = sorted(loaded["missing_keys"])[0]
        raise UserError(
            f"{flag} {name} lacks weights ({lacking}, …): give a model saved with its head."
        )
    if model.config.model_type == "hubert":
        model.config.do_normalize = asks_for_normalised(Path(folder), f"{flag} {name}")
    return model.eval().requires_grad_(False)


def has_preprocessor(folder: Path) -> bool:
    return any((folder / name).exists() for name in PREPROCESSOR)


def asks_for_normalised(folder: Path, name: str) -> bool:
    """Whether the HuBERT in a folder wants waves of mean 0 and variance 1.

    name: of the model, for the error message. Raises UserError where the file that says
    it cannot be read. Without that file the default of the library's class holds, which
    normalises, but not for the demo world's own HuBERT.
    """
    from transformers import Wav2Vec2FeatureExtractor

    if not has_preprocessor(folder):
        of_a_demo_world = (folder.parent / "world.json").exists()
        return not of_a_demo_world and Wav2Vec2FeatureExtractor().do_normalize
    try:
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what is raised depends on how the file is damaged
        reason = f"{name} has no readable {PREPROCESSOR[0]} ({first_line(error)})"
        raise UserError(f"{reason}: copy or download it again.") from None
    if not isinstance(extractor.do_normalize, bool):
        raise UserError(f"{name}: do_normalize in its {PREPROCESSOR[0]} is neither true nor false.")
    return extractor.do_normalize


def load_causal(
    name: str, flag: str, root: str, frozen: bool, dtype: torch.dtype | None = None
) -> nn.Module:
    """A causal language model: frozen, in `dtype` and known by its buffer `supplied`;
    or to be trained, in fp32.

    Checkpoints do not hold what is frozen. `supplied` is a digest of every tensor in
    the model's files and of all of its config.json, whatever type it is used in: it
    tells whether the model named at loading is the same. name: see `find`. Raises
    UserError.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or torch.float32 if frozen else torch.float32
    model = load_model(AutoModelForCausalLM, name, flag, root, dtype)
    if not frozen:
        return model.requires_grad_(True)
    folder = Path(find(name, flag, root))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return mark_supplied(model, digest_of_model(config, weight_files(folder, flag), root))


def mark_supplied(model: nn.Module, digits: str) -> nn.Module:
    """A frozen causal language model with its buffer `supplied`, see `load_causal`.

    digits: of a digest, hexadecimal. A number before them says which form they have.
    """
    mark = [FORM_OF_MARKS, *bytes.fromhex(digits)]
    model.register_buffer("supplied", torch.tensor(mark, dtype=torch.uint8))
    return model.requires_grad_(False)


def forget_supplied(model: nn.Module) -> None:
    """Before all of its weights are to be kept."""
    if hasattr(model, "supplied"):
        del model.supplied


def begin_and_end(model: nn.Module, name: str) -> tuple[int | None, int | None]:
    """The ids that begin and end a text; of several the first; None where there is
    none.

    name: of the model, for the error message. Raises UserError where an id that the
    model's configuration names lies outside of its vocabulary.
    """
    size = len(model.get_input_embeddings().weight)
    found = []
    for key in ("bos_token_id", "eos_token_id"):
        ids = getattr(model.config, key, None)
        if isinstance(ids, list | tuple):
            ids = ids[0] if ids else None
        if ids is not None and ids not in range(size):
            raise UserError(
                f"{name} names {ids} as {key} in its config.json, and its vocabulary has {size} "
                "pieces: give another one."
            )
        found.append(ids)
    return found[0], found[1]


def load_masked_lm(
    name: str, flag: str, root: str, device: torch.device | str, untrained: int | None = None
) -> bert.MaskedLM:
    """A frozen BERT. name: see `find`; untrained: a seed for random weights in place of
    its own.

    Raises UserError where the model is no BERT with its vocabulary and its head.
    """
    from transformers import AutoModelForMaskedLM

    tokenizer = load_pieces(name, flag, root)
    model = load_model(AutoModelForMaskedLM, name, flag, root)
    if untrained is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            model = type(model)(model.config).eval().requires_grad_(False)
    if not bert.is_bert(model, tokenizer):
        what = "is no BERT with its vocabulary and masked language model"
        raise UserError(f"{flag} {name} {what}: give another.")
    return bert.MaskedLM(model.to(device), tokenizer)


class LanguageModel:
    """A causal language model for `ctc.prefix_beam_search`: how likely which label
    comes next, or the end.

        lm([(), (17, 4)])  ->  (2, V) log p(next label | prefix), in column 0 that of the end of the sentence

    It must have the recogniser's word pieces, and more if it likes: p is over its whole
    vocabulary, and what has no label is left out. Labels that are one piece to it (the
    three apostrophes; all it lacks) have its whole p each. Every prefix is read from
    its beginning, without a cache of keys and values: simple rather than fast.
    """

    def __init__(self, name: str, flag: str, root: str, tokenizer: WordPiece | Pieces, device):
        """name: see `find`. Raises UserError where it has not even half of the pieces,
        or no beginning or end."""
        from transformers import AutoModelForCausalLM

        vocabulary = load_vocabulary(name, flag, root)
        self.model = load_model(AutoModelForCausalLM, name, flag, root).to(device)
        config, ids = self.model.config, tokenizer.ids_in(vocabulary)
        bos, eos = begin_and_end(self.model, f"{flag} {name}")
        size = config.vocab_size
        unknown = next(
            (i for i, piece in enumerate(vocabulary) if piece in ("[UNK]", "<unk>")), None
        )
        complete = None not in (bos, eos, unknown) and len(vocabulary) <= size
        if not complete or ids.count(-1) > len(ids) / 2:
            raise UserError(
                f"{flag} {name} does not share the recogniser's word pieces: give a causal language model over them, "
                "whose config.json names [CLS] as bos_token_id and [SEP] as eos_token_id."
            )
        ids = [unknown if i < 0 else i for i in ids]
        self.inputs = torch.tensor([bos, *ids], device=device)  # (V,) label -> the model's id
        self.outputs = torch.tensor([eos, *ids], device=device)
        self.longest = getattr(
            config, "max_position_embeddings", 1024
        )  # ids that it can read at once

    @torch.inference_mode()
    def __call__(self, prefixes: list[tuple[int, ...]]) -> Tensor:
        """N prefixes -> (N, V). A prefix too long for the model loses its beginning."""
        rows = [
            torch.tensor([0, *prefix[max(0, len(prefix) - self.longest + 1) :]])
            for prefix in prefixes
        ]
        last = torch.tensor([len(row) - 1 for row in rows], device=self.inputs.device)  # (N,)
        ids = self.inputs[
            nn.utils.rnn.pad_sequence(rows, batch_first=True).to(last.device)
        ]  # (N, L)
        # Causal: no position sees what is padded on its right, so nothing has to be masked.
        states = self.model.base_model(ids, use_cache=False).last_hidden_state  # (N, L, D)
        logits = self.model.get_output_embeddings()(states[torch.arange(len(rows)), last])
        return logits.log_softmax(-1)[:, self.outputs]


class WordModel:
    """A causal language model for `rnnt_beam` over characters: how likely a text
    is, or all that begin with it.

        lm([labels of "the sai", labels of "the sail "], False)  ->  [log p(the sai…), log p(the sail …)]

    Its pieces are WordPiece, byte-level BPE or SentencePiece. How the last word goes on
    is not known yet: "sai" may become "sail", or "sa" and "##iling". So at every cut of
    "sai" into pieces as it is, p(the sai…) sums over all pieces that begin with what
    follows the cut ("look-ahead", over words in Hori et al. 2018, arXiv 1808.02608):
    exact for WordPiece, nearly so for the others, which may cut a longer word
    elsewhere. Were words judged only when they end, a beam would fill with words that
    never do.
    """

    def __init__(
        self, name: str, flag: str, root: str, tokenizer: Characters, device: torch.device | str
    ):
        """name: see `find`. Raises UserError where its sentences have no beginning or
        end."""
        from transformers import AutoModelForCausalLM

        self.pieces = load_pieces(name, flag, root)
        self.model = load_model(AutoModelForCausalLM, name, flag, root).to(device)
        config = self.model.config
        self.bos, self.eos = begin_and_end(self.model, f"{flag} {name}")
        if None in (self.bos, self.eos):
            raise UserError(
                f"{flag} {name} names no bos_token_id or eos_token_id in its config.json: give another one."
            )
        self.longest = getattr(
            config, "max_position_embeddings", 1024
        )  # ids that it can read at once
        # id -> "sa", "##iling", "Ġthe", …
        self.written = {
            i: piece for piece, i in self.pieces.get_vocab().items() if i < config.vocab_size
        }
        order = sorted(self.written, key=self.written.get)
        self.order, self.rank = torch.tensor(order), {i: n for n, i in enumerate(order)}
        self.alphabetical = [self.written[i] for i in order]
        self.tokenizer, self.device = tokenizer, device
        # ids so far -> their log p, and (V,) the next one's, in the alphabetical order of the pieces; as asked before
        self.following: dict[tuple[int, ...], tuple[float, np.ndarray]] = {}

    def __call__(self, prefixes: list[tuple[int, ...]], ended: bool) -> list[float]:
        """ended: of these very texts, and their end. Of one too long for the model,
        only what it can read costs."""
        written = [
            "".join(self.tokenizer.characters[label - 1] for label in prefix) for prefix in prefixes
        ]
        texts = [" ".join(text.split()) for text in written]
        split = self.pieces(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        cut = [(*ids, self.eos) if ended else tuple(ids) for ids in split["input_ids"]]
        self.read({ids[:n] for ids in cut for n in range(min(len(ids), self.longest - 1))})
        found = []
        for as_written, text, ids, spans in zip(
            written, texts, cut, split["offset_mapping"], strict=True
        ):
            goes_on = not ended and not as_written.endswith(" ")  # its last word
            settled = text.rfind(" ") if goes_on else len(text)  # characters
            found.append(self.log_p(ids, len(ids) - sum(end > settled for _, end in spans)))
        return found

    @torch.inference_mode()
    def read(self, beginnings: set[tuple[int, ...]]) -> None:
        """Finds out what follows these ids, where it does not know yet."""
        if len(self.following) * len(self.written) > 1e8:  # numbers
            self.following.clear()
        if not (new := [ids for ids in beginnings if ids not in self.following]):
            return
        rows = [torch.tensor([self.bos, *ids]) for ids in new]
        # Causal: no position sees what is padded on its right, so nothing has to be masked.
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.bos).to(
            self.device
        )
        states = self.model.base_model(inputs, use_cache=False).last_hidden_state  # (N, L, D)
        last = states[range(len(rows)), [len(row) - 1 for row in rows]]
        log_probs = (
            self.model.get_output_embeddings()(last)
            .double()
            .log_softmax(-1)
            .cpu()[:, self.order]
            .numpy()
        )
        for ids, following in sorted(
            zip(new, log_probs, strict=True), key=lambda item: len(item[0])
        ):
            self.following[ids] = self.sum_of(ids), following

    def sum_of(self, ids: tuple[int, ...]) -> float:
        """log p of all texts that begin with these pieces, the last of which it may not
        have read."""
        if not ids:
            return 0.0
        so_far, following = self.following[ids[:-1]]
        return so_far + following[self.rank[ids[-1]]]

    def log_p(self, ids: tuple[int, ...], first: int) -> float:
        """log p of all texts that begin with these pieces, of which those from `first`
        on are an unfinished word's."""
        known = ids[: self.longest - 1]  # as many as it can read
        if first == len(ids) or len(known) < len(ids):
            return self.sum_of(known)
        return np.logaddexp.reduce(
            [self.begin(ids[n:], *self.following[ids[:n]]) for n in range(first, len(ids))]
        )

    def begin(self, ids: tuple[int, ...], so_far: float, following: np.ndarray) -> float:
        """log p of all texts that go on with a piece that begins with what these write
        together."""
        letters = self.written[ids[0]] + "".join(
            self.written[i].removeprefix("##") for i in ids[1:]
        )
        first, end = (
            bisect.bisect_left(self.alphabetical, bound)
            for bound in (letters, letters + chr(0x10FFFF))
        )
        return so_far + np.logaddexp.reduce(following[first:end])


class CharacterModel:
    """A `WordModel` for `ctc.prefix_beam_search` over characters: (N, V) log p(next
    character | prefix), as a `LanguageModel` gives it, from p(all texts that begin with
    the prefix and the character).

    A word that has ended is followed by a space or by nothing: the space has the
    probability of both.
    """

    def __init__(
        self, name: str, flag: str, root: str, tokenizer: Characters, device: torch.device | str
    ):
        """name: see `find`. Raises UserError."""
        self.model, self.size = WordModel(name, flag, root, tokenizer, device), tokenizer.size

    def __call__(self, prefixes: list[tuple[int, ...]]) -> Tensor:
        longer = [(*prefix, label) for prefix in prefixes for label in range(1, self.size)]
        so_far, ended = (torch.tensor(self.model(prefixes, end)) for end in (False, True))  # (N,)
        further = torch.tensor(self.model(longer, False)).view(len(prefixes), -1)  # (N, V - 1)
        return torch.cat([ended[:, None], further], 1) - so_far[:, None]
