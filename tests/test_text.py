"""Labels and text: nothing is unknown, everything comes back, apostrophes included."""

import json
import os
import random

import pytest

from common.errors import UserError
from common.text import (
    Characters,
    Pieces,
    SentencePiece,
    WordPiece,
    load_tokenizer,
    normalise,
    printable,
    read_lines,
    read_text,
)

BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "'"]
BERT += ["the", "knight", "##s", "don", "t", "boys", "##ng"]
BERT += list("abcdefghijklmnopqrsuvwxyz") + ["##" + c for c in "abcdefghijklmnopqrtuvwxyz"]
TEXTS = ["the knights don't sing", "boys' songs 'tis o'clock rock'n'roll", "''quoted'' naïve"]


def test_normalise():
    assert (
        normalise("THE  Boys’ dog-house, 'tis: “naïve” (ﬁne)!")
        == "the boys' dog house 'tis naïve fine"
    )
    assert normalise(" ' -- ' ") == ""
    assert normalise("rock ' n ' roll 42") == "rock n roll 42"


@pytest.mark.parametrize(
    "language, written, expected",
    [
        ("Persian", "می\u200cخواهم", "می\u200cخواهم"),
        ("Hindi", "क्\u200dष", "क्\u200dष"),
        ("Hindi, two joiners", "क्\u200c\u200cष", "क्\u200cष"),
        ("Sinhala", "ශ්\u200dරී", "ශ්\u200dරී"),
        ("German", "Donau\u00addampf\u00adschiff", "donaudampfschiff"),
        ("a joiner that changes nothing", "sh\u200ci\u200dp", "ship"),
        ("a joiner between letter and accent", "caf\u200de\u0301", "café"),
        ("a joiner at the end of a word", "کار\u200c و", "کار و"),
        (
            "word joiner, byte order mark, marks of direction",
            "\ufeffs\u2060h\u200ei\u202ap",
            "ship",
        ),
        ("variation selector", "葛\U000e0100飾", "葛飾"),
        ("Thai, with a zero width space", "ฉัน\u200bรัก", "ฉัน รัก"),
        ("a visible sign of the same category", "1\u06dd2", "1 2"),
        ("apostrophes around a soft hyphen", "don\u00ad’t don´t", "don't don't"),
    ],
)
def test_invisible_characters_do_not_end_a_word(language, written, expected):
    assert normalise(written) == expected == normalise(expected)


def test_normalising_twice_changes_nothing():
    for sign in map(chr, range(0x30000)):
        if not 0xD800 <= ord(sign) < 0xE000:
            text = normalise(f"a{sign}b क्{sign}\u200dब م\u200c{sign}ب")
            assert normalise(text) == text


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
        assert (
            again.encode(text) == labels
            and again.decode(labels) == text
            and again.size == tokenizer.size
        )


def test_every_word_made_of_known_characters_comes_back():
    tokenizer, rng = WordPiece.prune(BERT, TEXTS, 50), random.Random(0)
    letters = "".join(TEXTS).replace(" ", "")
    for _ in range(500):
        text = normalise(
            " ".join("".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in range(4))
        )
        assert tokenizer.decode(tokenizer.encode(text)) == text


ALPHABETS = {
    "English": "ab'cdefg'h",
    "accents that have no letter of their own": "aeiñṩ'" + "\u0308\u0307\u0323",
    "Japanese": "今日は東京都ヴァガザーの'5",
    "Persian": "میخواهمکتابش\u200c\u064b",
    "Hindi": "कषतरमहिन्दी\u094d\u200d\u200c\u093c",
    "Sinhala": "ශරීලංක\u0dca\u200d",
    "Korean": "한국어말",
}


def random_texts(alphabet: str, count: int = 200) -> list[str]:
    """Normalised texts of such characters, and one that holds them all."""
    rng = random.Random(alphabet)
    words = ["".join(rng.choices(alphabet, k=rng.randint(1, 7))) for _ in range(4 * count)]
    texts = [normalise(" ".join(words[i : i + 4])) for i in range(0, len(words), 4)]
    return [*filter(None, texts), "it 's a pity that we 're late", "boys' 'tis do n't i 'm"]


def train_pretrained(texts: list[str], kind: str):
    """A tokenizer of transformers, which tidies up as LLaMA 3's does: bytes, or pieces with "▁"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=True
    )


@pytest.mark.parametrize("language", ALPHABETS)
@pytest.mark.parametrize("kind", ["characters", "sentencepiece", "wordpiece", "bytes", "metaspace"])
def test_every_text_comes_back(kind, language):
    texts = random_texts(ALPHABETS[language])
    if kind == "characters":
        tokenizer = Characters.build(texts)
    elif kind == "sentencepiece":
        tokenizer = SentencePiece.build(texts, 100)
    elif kind == "wordpiece":
        tokenizer = WordPiece.prune(BERT, texts, 50)
    else:
        tokenizer = Pieces(train_pretrained(texts, kind))
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_pretrained_tokenizer_comes_back_from_its_folder_as_it_was(tmp_path):
    texts = random_texts(ALPHABETS["English"])
    Pieces(train_pretrained(texts, "bytes")).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def vocabulary_of(tokenizer: SentencePiece) -> list[str]:
    return [tokenizer.processor.id_to_piece(i) for i in range(tokenizer.size - 1)]


def test_more_characters_than_units():
    signs = [chr(0x4E00 + 7 * i) for i in range(150)]
    rng = random.Random(0)
    pairs = ["".join(rng.choices(signs[:5], k=2)) for _ in range(3)]
    texts = ["".join(signs[i : i + 10]) for i in range(0, 150, 10)]
    texts += ["".join(rng.choices(pairs, k=4)) for _ in range(50)]
    for units in (1, 100, 151):  # 152 have room for all of them, <unk> and the beginning of a word
        tokenizer = SentencePiece.build(texts, units)
        pieces = set(vocabulary_of(tokenizer))
        assert set(signs) <= pieces and len(pieces) <= units + 152
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
        if units > 1:
            assert any(len(piece.strip("▁")) > 1 for piece in pieces - {"<unk>"})
    assert SentencePiece.build(texts, 152).size == 153  # characters alone


def test_units_that_suffice_give_the_pieces_that_they_gave(root):
    import io

    import sentencepiece

    texts = [line for line in read_lines(root / "demo-smoke" / "text.txt") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    plain, ours = SentencePiece(model.getvalue()), SentencePiece.build(texts, 100)
    assert vocabulary_of(ours) == vocabulary_of(plain)
    assert [ours.encode(text) for text in texts] == [plain.encode(text) for text in texts]


def test_long_texts_count_as_others_do():
    tokenizer = SentencePiece.build(["ab " * 3000 + "é", "ab"], 20)
    assert tokenizer.decode(tokenizer.encode("é ab")) == "é ab"


def test_without_text_there_are_no_pieces():
    with pytest.raises(UserError, match="no text"):
        SentencePiece.build(["", ""], 20)


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
    (tmp_path / "tokenizer.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
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


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "a.txt"
    inside = "a\u2028b\u2029c\x85d\ve\ff\x1cg\x1dh\x1ei\rj"
    path.write_bytes(f"{inside}\r\n\nsecond\n".encode())
    assert read_lines(path) == [inside, "", "second"]
    assert normalise(inside) == "a b c d e f g h i j"
    path.write_bytes(b"no end")
    assert read_lines(path) == ["no end"]
    path.write_bytes(b"")
    assert read_lines(path) == []


def test_hypotheses_are_read_as_they_were_written(tmp_path):
    from common.running.hypotheses import read_hypotheses

    path = tmp_path / "hyp_test.tsv"
    path.write_bytes("id\treference\thypothesis\na\tx\u2028y\tz\rz\n".encode())
    assert read_hypotheses(path) == [["a", "x\u2028y", "z\rz"]]
