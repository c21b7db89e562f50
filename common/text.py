"""Text in, labels out: characters, SentencePiece, a teacher's WordPiece pruned to a
corpus, a pretrained tokenizer.

All tokenizers speak the same language:

    tokenizer.encode("the knight") -> [17, 4]      labels from 1 to size - 1
    tokenizer.decode([17, 4])      -> "the knight"
    tokenizer.size                                 V, label 0 included
    tokenizer.save(folder); load_tokenizer(folder)

Label 0 is never a piece of text: it is the CTC blank, and for attention decoders the
sentence boundary <sos>/<eos>, so that both heads have V outputs.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from common.errors import UserError
from common.files import write_atomically

APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")
JOINERS = "\u200c\u200d"  # zero width non-joiner and zero width joiner
# What Unicode calls ignorable by default (DerivedCoreProperties.txt), without the joiners and
# U+200B: soft hyphen, word joiner, byte order mark, marks of direction, variation selectors, …
INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200e\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
VIRAMA = 9  # Unicode's combining class of the signs that take a consonant's vowel away


@lru_cache(maxsize=1 << 16)  # scores ask for the same texts several times
def normalise(text: str) -> str:
    """The normaliser `basic`: NFKC, lower case, one apostrophe, other signs are spaces.

    Every transcript passes it before training, and references and hypotheses pass it
    before scoring. Apostrophes stay where they touch a letter or digit ("don't",
    "boys'", "'tis"); combining marks stay with their letter.

    Invisible characters do not end a word (as in Unicode's rules for words, UAX 29):

    - Soft hyphen, word joiner, byte order mark, marks of direction, variation selectors
      and the like only say how a text is laid out. They are left out: German
      "Donau<soft hyphen>dampf" is "donaudampf".
    - The zero width non-joiner and joiner belong to the spelling where they change what
      is seen: the non-joiner between Arabic letters (Persian "می‌خواهم"), and both
      beside a virama (Hindi "क्‍ष", Sinhala "ශ්‍රී"). There they stay, so that a model
      writes its language as its readers do; everywhere else they are left out. People
      use them differently in the same word, and nobody hears them: scores do not count
      them (common/metrics.py).
    - The zero width space does end a word: it is how Thai, Khmer, Burmese or Japanese
      texts show where words end without a gap.
    """
    text = INVISIBLE.sub("", text.translate(APOSTROPHES))  # first: NFKC takes "´" apart
    text = unicodedata.normalize("NFKC", text).lower().translate(APOSTROPHES)
    text = "".join(c if _is_written(c) else " " for c in text)
    text = re.sub(f"[{JOINERS}]+", _visible_joiner, text)
    text = unicodedata.normalize("NFC", text)  # a mark may now follow its letter at once
    return " ".join(word for word in text.split() if word.strip("'"))


@cache
def _is_written(character: str) -> bool:
    """Whether it is a letter, a mark, a digit, an apostrophe, or a joiner."""
    return character in "'" + JOINERS or unicodedata.category(character)[0] in "LNM"


def _visible_joiner(found: re.Match) -> str:
    """The first of a row of joiners where it changes what is seen, else nothing."""
    joiner = found[0][0]
    before = found.string[max(0, found.start() - 1) : found.start()] or " "
    after = found.string[found.end() : found.end() + 1] or " "
    if VIRAMA in (unicodedata.combining(before), unicodedata.combining(after)):
        return joiner
    # AL: a letter of Arabic script, and of a few like it; NSM: a vowel mark behind one.
    follows_arabic = unicodedata.bidirectional(before) in ("AL", "NSM")
    is_between = follows_arabic and unicodedata.bidirectional(after) == "AL"
    return joiner if is_between and joiner == "\u200c" else ""


def printable(text: str | Path) -> str:
    """Text from a file, or its name, with whatever a terminal might obey or cannot show
    written as \\x1b or \\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises UserError, with
    the line that is something else.

    Only regular files are opened: a pipe or a device may never answer.
    """
    path, name = Path(path), printable(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{name} cannot be read: not a regular file")
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror.lower()}") from None
    wrong = content.find(b"\0")  # UTF-16, or no text at all
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        wrong = error.start if wrong < 0 else min(wrong, error.start)
    if wrong >= 0:
        line = content.count(b"\n", 0, wrong) + 1
        raise UserError(f"{name}, line {line} is not UTF-8: save the file in that encoding")
    return text


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, without their ends. Raises UserError, see `read_text`.

    A line ends at \\n or \\r\\n. What else `str.splitlines` takes for an end (U+2028,
    U+0085, \\v, a lone \\r, …) may stand in a transcript, where it is a blank.
    """
    text = read_text(path)
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


class Characters:
    """One label per character, the space included."""

    def __init__(self, characters: str):
        self.characters = characters
        self.ids = {c: i for i, c in enumerate(characters, start=1)}
        self.size = len(characters) + 1

    @classmethod
    def build(cls, texts: Iterable[str]) -> Characters:
        return cls("".join(sorted(set().union(*texts) | {" "})))

    def encode(self, text: str) -> list[int]:
        """Raises UserError on a character the training text never had."""
        return [_lookup(self.ids, c, text) for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Words a space apart, however many spaces there are."""
        return " ".join("".join(self.characters[i - 1] for i in ids).split())

    def save(self, folder: str | Path) -> None:
        _write_json(folder, {"kind": "characters", "characters": self.characters})


class SentencePiece:
    """A SentencePiece model, pretrained or (unigram) trained on transcripts; its ids
    shifted by one, for label 0."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self.processor.get_piece_size() + 1

    @classmethod
    def build(cls, texts: Iterable[str], units: int) -> SentencePiece:
        """Trains a model on the texts, which are normalised.

        units: the size of the vocabulary. Where the text cannot fill it, SentencePiece
        gives fewer. Every character is a piece: where `units` has no room for them, as
        in Japanese or Chinese, they come on top of it. Raises UserError for no text.
        """
        import io

        import sentencepiece

        texts = [text for text in texts if text]
        if not texts:
            raise UserError("there is no text to find word pieces in.")
        characters = set("".join(texts)) - {" "}
        least = len(characters) + 2  # with <unk> and the sign that begins a word
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=units if units >= least else units + least,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",  # its own rule would drop the joiners
            max_sentence_length=2**30,  # bytes; it passes over whatever is longer
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        return [i + 1 for i in self.processor.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Words a space apart, however many lone spaces there are among the pieces."""
        return " ".join(self.processor.decode([i - 1 for i in ids]).split())

    def id_of(self, piece: str) -> int | None:
        """The model's own id, not shifted; None where it has no such piece."""
        found = self.processor.piece_to_id(piece)
        return found if self.processor.id_to_piece(found) == piece else None

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / "tokenizer.model", self.model)
        _write_json(folder, {"kind": "sentencepiece"})


class WordPiece:
    """A subset of a BERT vocabulary, applied by greedy longest match.

    A text can be read back from its labels, apostrophes included. BERT makes an
    apostrophe a word of its own and forgets where it was glued. The student needs to
    know, so it has three, and all three are BERT's one to the teacher:

        don't  ->  don ##'## t          boys'  ->  boys ##'          'tis  ->  '## tis

    A piece that starts with ## is glued to the piece on its left, one that ends with ##
    to the piece on its right.
    """

    INSIDE = "##'##"
    INITIAL = "'##"
    FINAL = "##'"

    def __init__(self, pieces: list[str]):
        self.pieces = pieces
        self.ids = {piece: i for i, piece in enumerate(pieces, start=1)}
        self.size = len(pieces) + 1
        self.longest = max(map(len, pieces))

    @classmethod
    def from_vocabulary(cls, vocabulary: Iterable[str]) -> WordPiece:
        """All of a BERT vocabulary but its special and unused tokens, with the three
        apostrophes for its one."""
        kept = [p for p in vocabulary if p != "'" and not re.fullmatch(r"\[.*\]", p)]
        return cls([*kept, cls.INSIDE, cls.INITIAL, cls.FINAL])

    @classmethod
    def prune(cls, vocabulary: Iterable[str], texts: Iterable[str], units: int) -> WordPiece:
        """Keeps the `units` pieces most frequent in `texts`, and every character of
        them in both forms (c and ##c).

        Characters come on top of `units` and are kept even where the teacher lacks
        them: nothing is ever unknown. [choice] We do not know the paper's vocabulary.
        """
        words = Counter(word for text in texts for word in text.split())
        characters = sorted(set("".join(words)) - {"'"})
        everything = [p for p in vocabulary if len(p.removeprefix("##")) > 1]
        full = cls.from_vocabulary([*everything, *characters, *("##" + c for c in characters)])
        counts = Counter()
        for word, n in words.items():
            for piece in full.split(word):
                counts[piece] += n
        whole = [
            p
            for p, _ in sorted(counts.items(), key=lambda x: (-x[1], x[0]))
            if len(p.strip("#'")) > 1
        ]
        return cls.from_vocabulary([*whole[:units], *characters, *("##" + c for c in characters)])

    def split(self, word: str) -> list[str]:
        """The pieces of one word. Raises UserError for a character without a piece."""
        body = word.strip("'")
        before = word.index(body)
        after = len(word) - len(body) - before
        pieces = [self.INITIAL] * before
        for i, part in enumerate(body.split("'")):
            pieces += [self.INSIDE] * (i > 0)
            start = 0
            while start < len(part):
                prefix = "##" if start else ""
                ends = range(min(len(part), start + self.longest), start, -1)
                end = next((e for e in ends if prefix + part[start:e] in self.ids), None)
                if end is None:
                    _lookup({}, part[start], word)
                pieces.append(prefix + part[start:end])
                start = end
        return pieces + [self.FINAL] * after

    def encode(self, text: str) -> list[int]:
        return [self.ids[piece] for word in text.split() for piece in self.split(word)]

    def decode(self, ids: Iterable[int]) -> str:
        text = " ".join(self.pieces[i - 1] for i in ids)
        return text.replace("## ##", "").replace(" ##", "").replace("## ", "").replace("##", "")

    def ids_in(self, vocabulary: list[str]) -> list[int]:
        """For every label from 1 on, the id of its piece in a BERT vocabulary; -1 where
        that has no such piece."""
        bert = {piece: i for i, piece in enumerate(vocabulary)}
        bert |= dict.fromkeys((self.INSIDE, self.INITIAL, self.FINAL), bert.get("'", -1))
        return [bert.get(piece, -1) for piece in self.pieces]

    def save(self, folder: str | Path) -> None:
        _write_json(folder, {"kind": "wordpiece", "pieces": self.pieces})


class Pieces:
    """The pieces of a pretrained model's own tokenizer; its ids shifted by one to make
    room for label 0."""

    def __init__(self, tokenizer):
        """tokenizer: of transformers, see `pretrained.load_pieces`."""
        self.tokenizer = tokenizer
        self.size = len(tokenizer) + 1

    def encode(self, text: str) -> list[int]:
        return [
            i + 1
            for i in self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text, words a space apart; symbols such as the end are left out.

        Nothing is tidied up, whatever the tokenizer's own configuration says: LLaMA 3's
        would make "it's" of "it 's".
        """
        text = self.tokenizer.decode(
            [i - 1 for i in ids],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return " ".join(text.split())

    def id_of(self, piece: str) -> int | None:
        """The model's own id, not shifted; None where it has no such piece."""
        return self.tokenizer.get_vocab().get(piece)

    def ids_in(self, vocabulary: list[str]) -> list[int]:
        """For every label from 1 on, the id of its piece in a vocabulary; -1 where that
        has no such piece."""
        known = {piece: i for i, piece in enumerate(vocabulary)}
        return [
            known.get(piece, -1)
            for piece in self.tokenizer.convert_ids_to_tokens(range(self.size - 1))
        ]

    def save(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")
        _write_json(folder, {"kind": "pretrained"})


Tokenizer = Characters | SentencePiece | WordPiece | Pieces


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer a run wrote into its folder. Raises UserError if there is none,
    or a damaged one."""
    folder = Path(folder)
    model = folder / "tokenizer.model"
    try:
        match json.loads(read_text(folder / "tokenizer.json")):
            case {"kind": "characters", "characters": str(characters)} if _distinct(characters):
                return Characters(characters)
            case {"kind": "wordpiece", "pieces": list(pieces)} if _distinct(pieces):
                return WordPiece(pieces)
            case {"kind": "sentencepiece"} if model.is_file() and model.stat().st_size:
                return SentencePiece(model.read_bytes())
            case {"kind": "pretrained"}:
                from transformers import AutoTokenizer

                return Pieces(
                    AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
                )
    except (OSError, ValueError, RuntimeError, UserError):
        pass
    raise UserError(
        f"{printable(folder)} holds no readable tokenizer: give the folder of a finished run."
    )


def _distinct(pieces: str | list) -> bool:
    """Whether these are pieces of text, at least one, and none twice."""
    return all(isinstance(piece, str) for piece in pieces) and 0 < len(pieces) == len(set(pieces))


def _write_json(folder: str | Path, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=False) + "\n"
    write_atomically(Path(folder) / "tokenizer.json", text)


def _lookup(ids: dict[str, int], character: str, text: str) -> int:
    if character not in ids:
        what = f"{text!r} holds {character!r}, which the training transcripts never had"
        advice = "normalise the text, or train with transcripts that have it."
        raise UserError(f"{what}: {advice}")
    return ids[character]
