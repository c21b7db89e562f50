"""Language models for beam search, made from a pretrained causal model.

LanguageModel   over the recogniser's own word pieces   ctc.prefix_beam_search
CharacterModel  over characters                         ctc.prefix_beam_search
WordModel       over characters                         rnnt_beam
"""

from __future__ import annotations

import bisect

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.running.pretrained import begin_and_end, load_model, load_pieces, load_vocabulary
from common.text import Characters, Pieces, WordPiece


def longest_input(model: nn.Module) -> int:
    """The number of ids that a model can read at once."""
    return getattr(model.config, "max_position_embeddings", 1024)


class LanguageModel:
    """A causal language model over the recogniser's own word pieces.

        lm([(), (17, 4)])  ->  (2, V) log p(next label | prefix); column 0: its end

    Its vocabulary may hold further pieces: p is over the whole vocabulary, and pieces
    without a label are left out. If several labels are the same piece to the model (the
    three apostrophes, and all labels that it lacks), each has the whole p of that
    piece. Every prefix is read from its beginning, without a cache of keys and values:
    simple rather than fast.
    """

    def __init__(
        self,
        name: str,
        flag: str,
        root: str,
        tokenizer: WordPiece | Pieces,
        device: torch.device | str,
    ):
        """name: see `pretrained.find`.

        Raises UserError if the model has not even half of the labels, or if its texts
        have no beginning or end.
        """
        from transformers import AutoModelForCausalLM

        vocabulary = load_vocabulary(name, flag, root)
        self.model = load_model(AutoModelForCausalLM, name, flag, root).to(device)
        bos, eos = begin_and_end(self.model, f"{flag} {name}")
        unknown = next((i for i, x in enumerate(vocabulary) if x in ("[UNK]", "<unk>")), None)
        ids = tokenizer.ids_in(vocabulary)
        complete = len(vocabulary) <= self.model.config.vocab_size
        complete = complete and None not in (bos, eos, unknown)
        if not complete or ids.count(-1) > len(ids) / 2:
            what = f"{flag} {name} does not share the recogniser's word pieces"
            symbols = "[CLS] as bos_token_id and [SEP] as eos_token_id"
            advice = "give a causal language model over them, whose config.json names"
            raise UserError(f"{what}: {advice} {symbols}.")
        ids = [unknown if i < 0 else i for i in ids]
        self.inputs = torch.tensor([bos, *ids], device=device)  # (V,) label -> the model's id
        self.outputs = torch.tensor([eos, *ids], device=device)
        self.longest = longest_input(self.model)

    @torch.inference_mode()
    def __call__(self, prefixes: list[tuple[int, ...]]) -> Tensor:
        """N prefixes -> (N, V). A prefix too long for the model loses its beginning."""
        most = self.longest - 1  # labels; one more id begins the text
        rows = [torch.tensor([0, *prefix[max(0, len(prefix) - most) :]]) for prefix in prefixes]
        last = torch.tensor([len(row) - 1 for row in rows], device=self.inputs.device)  # (N,)
        labels = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (N, L)
        ids = self.inputs[labels.to(last.device)]
        # The model is causal: no position sees the padding on its right.
        states = self.model.base_model(ids, use_cache=False).last_hidden_state  # (N, L, D)
        logits = self.model.get_output_embeddings()(states[torch.arange(len(rows)), last])
        return logits.log_softmax(-1)[:, self.outputs]


class WordModel:
    """A causal language model over words, for texts that are spelled out.

        lm([labels of "the sai", labels of "the sail "], ended=False)
            ->  [log p(the sai…), log p(the sail …)], each over all texts that go on so

    Its pieces are WordPiece, byte-level BPE or SentencePiece. How the last word goes on
    is not known yet: "sai" may become "sail", or "sa" and "##iling". So for every cut
    of "sai" into pieces, p(the sai…) sums over all pieces that begin with what follows
    the cut ("look-ahead"; over words in Hori et al. 2018, arXiv 1808.02608). This is
    exact for WordPiece, and nearly so for the others, which may cut a longer word
    elsewhere. If words were judged only when they end, a beam would fill with words
    that never end.
    """

    def __init__(
        self, name: str, flag: str, root: str, tokenizer: Characters, device: torch.device | str
    ):
        """name: see `pretrained.find`.

        Raises UserError if the model's texts have no beginning or end.
        """
        from transformers import AutoModelForCausalLM

        self.pieces = load_pieces(name, flag, root)
        self.model = load_model(AutoModelForCausalLM, name, flag, root).to(device)
        self.bos, self.eos = begin_and_end(self.model, f"{flag} {name}")
        if None in (self.bos, self.eos):
            what = f"{flag} {name} names no bos_token_id or eos_token_id in its config.json"
            raise UserError(f"{what}: give another one.")
        self.longest = longest_input(self.model)
        self.written = {}  # id -> "sa", "##iling", "Ġthe", …
        for piece, i in self.pieces.get_vocab().items():
            if i < self.model.config.vocab_size:
                self.written[i] = piece
        order = sorted(self.written, key=self.written.get)
        self.order = torch.tensor(order)
        self.rank = {i: n for n, i in enumerate(order)}
        self.alphabetical = [self.written[i] for i in order]
        self.tokenizer = tokenizer
        self.device = device
        # What is known so far: ids -> (their log p, log p (V,) of each piece that may come next, in
        # the alphabetical order of the pieces).
        self.following: dict[tuple[int, ...], tuple[float, np.ndarray]] = {}

    def __call__(self, prefixes: list[tuple[int, ...]], ended: bool) -> list[float]:
        """log p of N texts: of all that go on so, or (ended) of these very texts.

        The pieces behind the longest input of the model cost nothing.
        """
        written = [self.text_of(prefix) for prefix in prefixes]
        texts = [" ".join(text.split()) for text in written]
        split = self.pieces(
            texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        cut = [(*ids, self.eos) if ended else tuple(ids) for ids in split["input_ids"]]
        self.read({ids[:n] for ids in cut for n in range(min(len(ids), self.longest - 1))})
        found = []
        for i, ids in enumerate(cut):
            last_word_goes_on = not ended and not written[i].endswith(" ")
            settled = texts[i].rfind(" ") if last_word_goes_on else len(texts[i])  # characters
            unsettled = sum(end > settled for _, end in split["offset_mapping"][i])  # pieces
            found.append(self.log_p(ids, len(ids) - unsettled))
        return found

    def text_of(self, prefix: tuple[int, ...]) -> str:
        return "".join(self.tokenizer.characters[label - 1] for label in prefix)

    @torch.inference_mode()
    def read(self, beginnings: set[tuple[int, ...]]) -> None:
        """Adds to `following` those of these ids that it does not have yet."""
        if len(self.following) * len(self.written) > 1e8:  # numbers
            self.following.clear()
        new = [ids for ids in beginnings if ids not in self.following]
        if not new:
            return
        rows = [torch.tensor([self.bos, *ids]) for ids in new]
        # The model is causal: no position sees the padding on its right.
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.bos)
        output = self.model.base_model(inputs.to(self.device), use_cache=False)
        states = output.last_hidden_state  # (N, L, D)
        last = states[range(len(rows)), [len(row) - 1 for row in rows]]  # (N, D)
        logits = self.model.get_output_embeddings()(last)
        log_probs = logits.double().log_softmax(-1).cpu()[:, self.order].numpy()  # (N, V)
        pairs = zip(new, log_probs, strict=True)
        for ids, following in sorted(pairs, key=lambda pair: len(pair[0])):
            self.following[ids] = self.sum_of(ids), following

    def sum_of(self, ids: tuple[int, ...]) -> float:
        """log p of all texts that begin with these pieces.

        All but the last of them must be in `following`.
        """
        if not ids:
            return 0.0
        so_far, following = self.following[ids[:-1]]
        return so_far + following[self.rank[ids[-1]]]

    def log_p(self, ids: tuple[int, ...], first: int) -> float:
        """log p of all texts that begin with what these pieces write.

        first: the pieces from there on are of a word that may go on.
        """
        known = ids[: self.longest - 1]  # as many as it can read
        if first == len(ids) or len(known) < len(ids):
            return self.sum_of(known)
        cuts = range(first, len(ids))
        return np.logaddexp.reduce([self.look_ahead(ids[:n], ids[n:]) for n in cuts])

    def look_ahead(self, before: tuple[int, ...], ids: tuple[int, ...]) -> float:
        """log p of all texts in which one piece with these letters follows `before`."""
        letters = self.written[ids[0]]
        letters += "".join(self.written[i].removeprefix("##") for i in ids[1:])
        first = bisect.bisect_left(self.alphabetical, letters)
        end = bisect.bisect_left(self.alphabetical, letters + chr(0x10FFFF))
        so_far, following = self.following[before]
        return so_far + np.logaddexp.reduce(following[first:end])


class CharacterModel:
    """A `WordModel` that gives, as a `LanguageModel` does, log p(next label | prefix).

    The labels are characters. p(next character | prefix) is p(all texts that begin with
    both) / p(all texts that begin with the prefix). A word that has ended is followed
    by a space or by nothing: the space has the probability of both.
    """

    def __init__(
        self, name: str, flag: str, root: str, tokenizer: Characters, device: torch.device | str
    ):
        """name: see `pretrained.find`. Raises UserError."""
        self.model = WordModel(name, flag, root, tokenizer, device)
        self.size = tokenizer.size

    def __call__(self, prefixes: list[tuple[int, ...]]) -> Tensor:
        """N prefixes -> (N, V); column 0: the text ends."""
        longer = [(*prefix, label) for prefix in prefixes for label in range(1, self.size)]
        so_far = torch.tensor(self.model(prefixes, ended=False))  # (N,)
        ended = torch.tensor(self.model(prefixes, ended=True))
        further = torch.tensor(self.model(longer, False)).view(len(prefixes), -1)  # (N, V - 1)
        return torch.cat([ended[:, None], further], 1) - so_far[:, None]
