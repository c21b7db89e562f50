"""Scores that can be checked by hand."""

import math

import pytest
import torch

from common.metrics import (
    character_errors,
    homophone_errors,
    score,
    side_by_side,
    spearman,
    word_errors,
    written_without_spaces,
)

TWINS = {"sail": "sale", "sale": "sail"}


def test_word_errors():
    errors = word_errors(["a b c d", "x y"], ["a c d e", "X, y!"])
    assert (errors.substitutions, errors.deletions, errors.insertions, errors.words) == (0, 1, 1, 6)
    assert errors.errors == 2 and errors.rate == pytest.approx(100 * 2 / 6)
    assert word_errors(["a"], [""]).rate == 100 and word_errors([""], ["b"]) == (0, 0, 1, 0)
    assert word_errors([], []).rate == 0 and word_errors([""], ["b"]).rate == 100


def test_a_corpus_has_the_errors_of_its_sentences():
    references = ["the sail", "", "a b c a b", "", "don't", "日本 語"]
    hypotheses = ["the sale", "x y", "a c b b", "", "", "日本"]
    for errors in (word_errors, character_errors):
        one_by_one = [errors([r], [h]) for r, h in zip(references, hypotheses, strict=True)]
        assert errors(references, hypotheses) == tuple(map(sum, zip(*one_by_one, strict=True)))
    with pytest.raises(ValueError):
        word_errors(["a", "b"], ["a"])


def test_joiners_that_nobody_hears_are_no_errors():
    for written, plain in (("می\u200cخواهم", "میخواهم"), ("क्\u200dष", "क्ष"), ("ශ්\u200dරී", "ශ්රී")):
        for a, b in ((written, plain), (plain, written)):
            assert word_errors([a], [b]) == (0, 0, 0, 1) and character_errors([a], [b]).errors == 0
    assert word_errors(["می\u200cخواهم"], ["می خواهم"]).errors == 2


def test_twins_may_count_as_equal():
    references, hypotheses = ["The sail was", "a sale"], ["the sale was red", "a Sail"]
    assert word_errors(references, hypotheses) == (2, 0, 1, 5)
    assert word_errors(references, hypotheses, TWINS) == (0, 0, 1, 5)
    assert word_errors(["sail on"], ["snail on"], TWINS) == (1, 0, 0, 2)
    missing = ["the sail"], ["sale"]
    assert word_errors(*missing).errors == 2 and word_errors(*missing, TWINS) == (0, 1, 0, 2)


def test_character_errors_ignore_spaces_and_apostrophes():
    assert character_errors(["ab cd"], ["abcd"]).rate == 0
    assert character_errors(["ab cd"], ["ab xd"]).rate == 25
    assert character_errors(["don't"], ["dont"]) == (0, 0, 0, 4)


def test_homophone_errors():
    references = ["the sail was red", "the sale was on", "a sail", "a sale", "no twin here"]
    hypotheses = ["the sale was red", "the sale was on", "a snail", "", "no sale here"]
    errors = homophone_errors(references, hypotheses, TWINS)
    assert (errors.wrong, errors.count, errors.rate) == (
        1,
        2,
        50,
    )  # misheard and missing ones do not count
    assert errors.chance == 50  # one "sail" and one "sale" were counted: either guess is right once
    assert homophone_errors(["sail", "sail", "sale"], ["sail"] * 3, TWINS) == (1, 3, 100 / 3)
    assert homophone_errors(["a"], ["a"], TWINS) == (0, 0, 0)


def test_what_was_not_found_is_not_scored():
    references = {"a": "the sail", "b": "a sale", "c": "unread"}
    errors, homophones = score(references, {"b": "a sail", "a": "the sail"}, TWINS)
    assert (errors.words, errors.substitutions) == (4, 1) and (
        homophones.count,
        homophones.wrong,
    ) == (2, 1)


def test_side_by_side():
    assert side_by_side("the knight rode home", "the night rode out home").splitlines() == [
        "REF: the KNIGHT rode *** home",
        "HYP: the NIGHT  rode OUT home",
    ]
    assert side_by_side("", "") == "REF: \nHYP: "


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "characters"),
    [
        ("東京、大阪。", "東京 大阪", 0, 4),  # punctuation and spaces
        ("ｶﾞｯｺｳへ行く", "ガッコウへ行く", 0, 7),  # half-width kana, a voiced sign of its own
        ("１２％の「人々」", "12%の人々", 0, 5),  # full-width digits; signs are not spoken
        ("ラーメン・カレー〜", "ラーメンカレー", 0, 7),  # the long vowel is a letter
        ("彼はａＢｃだ！", "彼はabcだ", 0, 6),
        ("今日は晴れ", "今日晴", 2, 5),
    ],
)
def test_character_errors_of_japanese(reference, hypothesis, errors, characters):
    found = character_errors([reference], [hypothesis])
    assert (found.errors, found.words) == (errors, characters)


def test_spearman():
    x = torch.arange(6.0)
    assert spearman(x, x**3) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.ones(6)) == 0
    # Ranks 1 2 3 4 and, of 5 5 1 7, 2.5 2.5 1 4: covariance 2.5 over the root of 5 x 4.5.
    assert spearman(torch.arange(4.0), torch.tensor([5.0, 5, 1, 7])) == pytest.approx(
        1.5 / math.sqrt(5 * 4.5)
    )


@pytest.mark.parametrize(
    "text",
    [
        "今日は、天気がいいですね。",  # the signs become spaces, as for pauses
        "打开空调",
        "我们今天去iphone商店",
        "สวัสดีครับผมชื่อสมชาย",
        "thecaptainhadhersail",
    ],
)
def test_texts_without_spaces(text):
    assert written_without_spaces([text]) and written_without_spaces([text, "", text])


@pytest.mark.parametrize(
    "text",
    [
        "今日 は 天気 が いい です ね",  # cut into words
        "สวัสดี ครับ ผม ชื่อ สมชาย",
        "안녕하세요 저는 학생입니다",
        "the captain had her sail",
        "epäjärjestelmällisyys on pitkä sana",
        "yes",
        "12345678901234567890",
        "",
    ],
)
def test_texts_with_words(text):
    assert not written_without_spaces([text])


def test_all_texts_of_a_language_decide_whether_it_has_spaces():
    assert not written_without_spaces(
        ["donaudampfschifffahrtsgesellschaft", "das ist ein langes wort"]
    )
    assert not written_without_spaces([])
