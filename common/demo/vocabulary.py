"""The written WordPiece vocabulary of the demo world: small, complete, and fair to both twins of a homophone pair.

A vocabulary trained on so little text would keep some homophones whole and split their twins, and would turn foreign
words into [UNK]. So this one is written down by rule: every letter (any word can be spelled), every function word and
every homophone whole, and the frequent short pieces of what is left.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from common.demo.words import DETERMINERS, ONE_HOMOPHONE, TWIN, TWO_HOMOPHONES
from common.text import WordPiece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHORT_PIECES = (
    180  # with 180, speech at 177-215 words a minute has about 1.9 frames of 80 ms per piece
)


def tokenizer_files(sentences: Iterable[str]) -> dict[str, str]:
    """{file name: content} of a folder from which Hugging Face's AutoTokenizer makes a BertTokenizer."""
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    return {
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "vocab.txt": "\n".join(vocabulary(sentences)) + "\n",
    }


def vocabulary(sentences: Iterable[str]) -> list[str]:
    """Special tokens, letters as c and ##c, apostrophe, function words, homophones, frequent pieces of 2-4 letters."""
    letters = [*string.ascii_lowercase, *("##" + c for c in string.ascii_lowercase)]
    text = " ".join([*DETERMINERS, *ONE_HOMOPHONE, *TWO_HOMOPHONES])
    function_words = sorted(set(re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", text))) - set(letters))
    whole = [*function_words, *TWIN]
    counts = Counter(
        word
        for sentence in sentences
        for word in re.findall(r"[a-z]+", sentence)
        if word not in whole
    )
    return [*SPECIAL, *letters, "'", *whole, *_short_pieces(counts, letters, whole)]


def _short_pieces(counts: Counter[str], letters: list[str], whole: list[str]) -> list[str]:
    """The pieces of 2-4 letters that stand most often in the words {word: count}, once they are split.

    Which pieces a longest match uses depends on which others there are. So it starts with all and drops the rarest
    fifth, again and again, until SHORT_PIECES are left.
    """
    short = {
        "##"[: 2 * start] + word[start : start + length]
        for word in counts
        for length in (2, 3, 4)
        for start in range(len(word) - length + 1)
    } - {*whole}
    while True:
        tokenizer, used = WordPiece([*letters, *sorted(short)]), Counter(dict.fromkeys(short, 0))
        for word, n in counts.items():
            used.update({piece: n for piece in tokenizer.split(word) if piece in short})
        if len(short) == SHORT_PIECES:
            return sorted(short)
        short = set(
            sorted(used, key=lambda piece: (-used[piece], piece))[
                : max(SHORT_PIECES, len(short) * 4 // 5)
            ]
        )


def frames_needed(labels: list[int]) -> int:
    """Encoder frames that CTC needs: one per label, and one for the blank between two equal ones."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))
