"""Labels and text: nothing is unknown, everything comes back, apostrophes included."""

import json
import os
import random

import pytest

from common.flags import UserError
from common.text import Characters, SentencePiece, WordPiece, load_tokenizer, normalise, printable, read_text

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

    bert = AutoTokenizer.from_pretrained(root / "demo-smoke" / "bert-a")
    vocabulary = sorted(bert.get_vocab(), key=bert.get_vocab().get)
    ours = WordPiece.from_vocabulary(vocabulary)
    for line in (root / "demo-smoke" / "text.txt").read_text().splitlines()[:300]:
        if "'" not in line:
            assert [p for word in line.split() for p in ours.split(word)] == bert.tokenize(line)


def test_an_unknown_character_is_an_error_that_names_it():
    for tokenizer in (WordPiece.prune(BERT, TEXTS, 50), Characters.build(TEXTS)):
        with pytest.raises(UserError, match="'é'"):
            tokenizer.encode("knighté")


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", '"characters"', "[" * 100_000, "{}", '{"kind": "runes"}', '{"kind": ["a"]}',
        '{"kind": "characters"}', '{"kind": "characters", "characters": 5}', '{"kind": "characters", "characters": ""}',
        '{"kind": "characters", "characters": ["a", "b"]}', '{"kind": "characters", "characters": "aba"}',
        '{"kind": "wordpiece"}', '{"kind": "wordpiece", "pieces": []}', '{"kind": "wordpiece", "pieces": "abc"}',
        '{"kind": "wordpiece", "pieces": ["a", 1]}', '{"kind": "wordpiece", "pieces": ["a", ["b"]]}',
        '{"kind": "wordpiece", "pieces": {"a": 1}}', '{"kind": "wordpiece", "pieces": ["a", "a"]}',
        '{"kind": "characters", "characters": "ab\\u0000"}'.encode("utf-16"), b'{"kind": "characters\xff"}',
    ],
)  # fmt: skip
def test_a_tokenizer_that_someone_has_damaged(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_that_someone_has_damaged(tmp_path):
    SentencePiece.build(TEXTS, 40).save(tmp_path)
    model = tmp_path / "tokenizer.model"
    content = model.read_bytes()
    for damaged in (b"", b"x", content[:50], content[: len(content) // 2], bytes(len(content))):
        model.write_bytes(damaged)
        with pytest.raises(UserError, match="no readable tokenizer"):
            load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
    os.mkfifo(model)  # a pipe, which nobody fills
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    Characters.build(["abc"]).save(tmp_path)

    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    for tokenizer in (Characters.build(["xyz"]), WordPiece(["x"]), SentencePiece.build(TEXTS, 40)):
        with pytest.raises(UserError, match="cannot be written"):
            tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert load_tokenizer(tmp_path).characters == " abc"


def test_printable():
    assert printable("naïve 日本 …") == "naïve 日本 …"
    text = "\x1b[2J\a\r\n\t\0\x7f\x9b1m \u202e \u2028 \u200b \ud800 \U000e0041"
    assert printable(text).isprintable() and printable(text).startswith(r"\x1b[2J\x07\r\n\t\x00")
    assert printable(printable(text)) == printable(text)


def test_reading_text(tmp_path):
    path = tmp_path / "a\x1b.txt"
    for content in ("naïve\n", "\ufeffnaïve\n"):
        path.write_text(content, encoding="utf-8")
        assert read_text(path) == "naïve\n"
    wrong = {
        "naïve\nnaïve".encode("latin-1"): 1, b"a\nb\n\xff": 3, "naïve".encode("utf-16"): 1, b"a\nb\0\n\xff": 2,
        b"\xef\xbb\xbfa\n\xff": 2, json.dumps("abc").encode("utf-16-le"): 1,
    }  # fmt: skip
    for content, line in wrong.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\\x1b.txt, line {line} is not UTF-8"):
            read_text(path)
    with pytest.raises(UserError, match="cannot be read: no such file or directory"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read: is a directory"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read: not a regular file"):
        read_text(tmp_path / "pipe")
