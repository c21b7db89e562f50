"""Labels and text: nothing is unknown, everything comes back, apostrophes included."""

import random

import pytest

from common.flags import UserError
from common.text import Characters, SentencePiece, WordPiece, load_tokenizer, normalise

BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "'"]
BERT += ["the", "knight", "##s", "don", "t", "boys", "##ng"]
BERT += list("abcdefghijklmnopqrsuvwxyz") + ["##" + c for c in "abcdefghijklmnopqrtuvwxyz"]
TEXTS = ["the knights don't sing", "boys' songs 'tis o'clock rock'n'roll", "''quoted'' naïve"]


def test_normalise():
    assert normalise("THE  Boys’ dog-house, 'tis: “naïve” (ﬁne)!") == "the boys' dog house 'tis naïve fine"
    assert normalise(" ' -- ' ") == ""
    assert normalise("rock ' n ' roll 42") == "rock n roll 42"


@pytest.mark.parametrize(
    "tokenizer",
    [
        WordPiece.prune(BERT, TEXTS, 50),
        WordPiece.prune(BERT, TEXTS, 0),
        Characters.build(TEXTS),
        SentencePiece.build(TEXTS, 40),
    ],
    ids=["wordpiece", "letters only", "characters", "sentencepiece"],
)
def test_text_comes_back_and_so_does_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in [*TEXTS, ""]:
        labels = tokenizer.encode(text)
        assert all(1 <= label < tokenizer.size for label in labels)
        assert tokenizer.decode(labels) == text
        assert again.encode(text) == labels and again.decode(labels) == text and again.size == tokenizer.size


def test_every_word_made_of_known_characters_comes_back():
    tokenizer, rng = WordPiece.prune(BERT, TEXTS, 50), random.Random(0)
    letters = "".join(TEXTS).replace(" ", "")
    for _ in range(500):
        text = normalise(" ".join("".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(4)))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_wordpiece_takes_the_longest_match_and_tells_apostrophes_apart():
    tokenizer = WordPiece.prune(BERT, TEXTS, 50)
    assert tokenizer.split("knights") == ["knight", "##s"]
    assert tokenizer.split("don't") == ["don", "##'##", "t"]
    assert tokenizer.split("boys'") == ["boys", "##'"]
    assert tokenizer.split("'tis") == ["'##", "t", "##i", "##s"]


def test_pruning_keeps_the_most_frequent_and_every_character():
    tokenizer = WordPiece.prune(BERT, ["the the knight", "the don"], 1)
    whole = [p for p in tokenizer.pieces if len(p.strip("#'")) > 1]
    assert whole == ["the"]
    characters = set("theknightdon")
    assert characters | {"##" + c for c in characters} <= set(tokenizer.pieces)
    assert not any(p.startswith("[") for p in tokenizer.pieces)
    assert len(set(tokenizer.pieces)) == len(tokenizer.pieces)


def test_wordpiece_splits_as_bert_does(root):
    """Without apostrophes and pruning, the same pieces as Hugging Face's tokenizer gives."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(root / "demo-smoke" / "bert-a")
    vocabulary = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    ours = WordPiece.from_vocabulary(vocabulary)
    for line in (root / "demo-smoke" / "text.txt").read_text().splitlines()[:300]:
        if "'" not in line:
            assert [p for word in line.split() for p in ours.split(word)] == theirs.tokenize(line)


def test_an_unknown_character_is_an_error_that_names_it():
    for tokenizer in (WordPiece.prune(BERT, TEXTS, 50), Characters.build(TEXTS)):
        with pytest.raises(UserError, match="'é'"):
            tokenizer.encode("knighté")


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
