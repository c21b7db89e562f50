"""The cache of a teacher's answers, and what interaed_kd.py keeps there: what is asked, by whom, how often."""

from unittest.mock import DEFAULT, Mock

import pytest
import torch
from test_interaed_kd import read_config
from test_pretrained import VOCABULARY, bert, save

import interaed_kd
from common.bert import SharedPieces
from common.errors import UserError
from common.running import cache
from common.running.corpora import Utterance
from common.running.pretrained import load_masked_lm
from common.running.process import Place
from common.text import WordPiece
from variants.interaed_kd import session_context, uniform_teacher

CPU = Place(0, 1, torch.device("cpu"))
KEYS = [cache.digest(str(i)) for i in range(40)]


def answer(key: str) -> dict[str, torch.Tensor]:
    """Of its own for every key, with 0 to 3 rows."""
    rows = int(key[:4], 16) % 4
    return {
        "labels": torch.full((rows, 2), int(key[:3], 16), dtype=torch.short),
        "probs": torch.rand(rows, 3),
    }


def fill(folder, keys=KEYS, place=CPU, most=10**9) -> list[list[str]]:
    """Asks as a script does, and stops as one killed before part `most` was answered; returns what was answered."""
    parts = []
    for part in cache.missing(folder, keys, place, "asking"):
        if len(parts) == most:
            break
        cache.add(folder, {key: answer(key) for key in part}, seconds=0.5)
        parts.append(part)
    return parts


@pytest.fixture(autouse=True)
def seven_at_once(monkeypatch):
    monkeypatch.setattr(cache, "ASKED_AT_ONCE", 7)


def test_a_digest_changes_with_every_part_and_their_order():
    found = [
        cache.digest(*parts)
        for parts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], ["ab", "c", ""], [])
    ]
    assert len(set(found)) == 6 and all(
        len(digest) == 32 and int(digest, 16) >= 0 for digest in found
    )
    assert cache.digest(b"ab", "c") == found[0]


def test_what_was_added_comes_back(tmp_path):
    """Whatever the lengths, to the bit, with its type; the seconds are summed over pieces, not over entries."""
    entries = {key: answer(key) for key in KEYS}
    assert {len(entry["probs"]) for entry in entries.values()} == {0, 1, 2, 3}
    cache.add(tmp_path, dict(list(entries.items())[:25]), 2.0)
    cache.add(tmp_path, dict(list(entries.items())[25:]), 0.25)
    found, seconds = cache.load(tmp_path)
    assert found.keys() == entries.keys() and seconds == 2.25
    for key, entry in entries.items():
        assert found[key].keys() == entry.keys()
        assert all(
            torch.equal(found[key][name], x) and found[key][name].dtype == x.dtype
            for name, x in entry.items()
        )
    assert cache.load(tmp_path / "nothing") == ({}, 0.0)


def test_everything_is_asked_once_in_order_some_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    parts = fill(folder, [*KEYS[:20], *KEYS])
    assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5] and sum(parts, []) == KEYS
    assert fill(folder) == [] and cache.load(folder)[1] == 3.0
    assert fill(folder, ["ff" * 16, *KEYS]) == [["ff" * 16]]


def test_ranks_share_the_work_and_wait_for_each_other(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(cache, "barrier", lambda place: waited.append(place.rank))
    places = [CPU._replace(rank=rank, ranks=3) for rank in range(3)]
    shares = [
        sum(fill(tmp_path / str(place.rank), place=place), []) for place in places
    ]  # nobody sees another's yet
    assert sorted(sum(shares, [])) == sorted(KEYS) and all(len(share) > 5 for share in shares)
    assert all(share == [key for key in KEYS if key in share] for share in shares)
    (
        fill(tmp_path / "all", place=places[0]),
        fill(tmp_path / "all", place=places[2]),
    )  # rank 1 comes last, and sees theirs
    assert sum(fill(tmp_path / "all", place=places[1]), []) == shares[1]
    assert [fill(tmp_path / "all", place=place) for place in places] == [[], [], []]
    assert waited == [0, 1, 2, 0, 2, 1, 0, 1, 2]  # also who had nothing to do


def test_a_run_killed_while_asking_asks_for_the_rest_only(tmp_path):
    first = fill(tmp_path, most=2)
    kept = cache.load(tmp_path)[0]
    rest = fill(tmp_path)
    assert len(first) == 2 and sum(first, []) + sum(rest, []) == KEYS
    assert all(
        torch.equal(cache.load(tmp_path)[0][key]["probs"], entry["probs"])
        for key, entry in kept.items()
    )


@pytest.mark.parametrize(
    "damage", [lambda content: content[:50], lambda content: content[:-50], lambda _: b""]
)
def test_a_damaged_cache_is_completed(tmp_path, damage):
    parts = fill(tmp_path)
    path = tmp_path / f"{cache.digest(*parts[1])}.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    (tmp_path / ".draft.safetensors.1.partial").write_bytes(b"of a run that was killed")
    assert (
        cache.load(tmp_path)[0].keys() == set(KEYS) - set(parts[1])
        and cache.load(tmp_path)[1] == 2.5
    )
    assert fill(tmp_path) == [parts[1]]
    assert cache.load(tmp_path)[0].keys() == set(KEYS)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"answers of the teacher cannot be kept in .*file/x.*--root"
    ) as caught:
        fill(tmp_path / "file" / "x")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------- soft labels kept in it


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """ask(options, ...) -> soft labels, report, and for how many tokens BERT, one of random weights, was asked."""
    folder, tokenizer = (
        tmp_path / "bert",
        WordPiece.prune(VOCABULARY, ["the baker's flour knight é"], 5),
    )
    counting = Mock(wraps=interaed_kd.label_tokens)
    monkeypatch.setattr(interaed_kd, "label_tokens", counting)
    save(folder, bert())

    def ask(
        options: str = "",
        texts=("the flour", "knight", "the flour"),
        tokenizer=tokenizer,
        folder=folder,
    ):
        counting.reset_mock()
        config = read_config(
            "aed_kd", f"--top-k 8 {options}", root=str(tmp_path), teacher=str(folder)
        )
        utterances = [Utterance(str(i), "", text, 1.0) for i, text in enumerate(texts)]
        labels, report = interaed_kd.soft_labels_of(config, tokenizer, utterances, CPU)
        return (
            labels,
            report,
            sum(
                len(question.labels)
                for call in counting.call_args_list
                for question in call.args[1]
            ),
        )

    ask.tokenizer = tokenizer
    return ask


def test_no_token_is_asked_twice_and_nothing_stale_is_read(ask, tmp_path):
    (once, report, asked), again = ask(), ask()
    assert (
        asked == len(ask.tokenizer.encode("the flour knight")) and again[2] == 0
    )  # equal sentences are asked once
    assert report == again[1] and report["teacher_seconds"] > 0
    assert all(
        torch.equal(a, b) for name in once for a, b in zip(once[name], again[0][name], strict=True)
    )
    fewer, other = WordPiece(ask.tokenizer.pieces[1:]), save(tmp_path / "other", bert(seed=1))
    news = [ask("--top-k 4"), ask(tokenizer=fewer), ask(folder=other)]
    assert all(asked for *_, asked in news) and len(list((tmp_path / "soft-labels").iterdir())) == 4
    assert news[0][0]["0"].probs.shape[1] == 4
    surer, _, asked = ask("--temperature 1")  # made of the same answers
    assert asked == 0 and (surer["0"].probs > once["0"].probs)[:-1, 0].all()


def test_answers_are_kept_as_soon_as_they_are_there(ask):
    """A run that is killed while it asks for the second part has kept the first, the shortest texts."""
    texts, interaed_kd.label_tokens.side_effect = (
        ["the " * n for n in range(10, 0, -1)],
        [DEFAULT, KeyboardInterrupt],
    )
    with pytest.raises(KeyboardInterrupt):
        ask(texts=texts)
    interaed_kd.label_tokens.side_effect = None
    assert ask(texts=texts)[2] == 8 + 9 + 10


def test_uniform_labels_keep_the_pieces_and_forget_the_rest(ask, monkeypatch):
    """The variant uniform_teacher: made of the same answers; what BERT cannot be asked about stays hard."""
    (learnt, _, _), uniform = ask(texts=["the é flour"]), uniform_teacher.uniform
    monkeypatch.setattr(interaed_kd, "soften", uniform)
    even, _, asked = ask(texts=["the é flour"])
    learnt, even = learnt["0"], even["0"]
    assert asked == 0 and torch.equal(even.labels, learnt.labels)
    assert even.probs[0].tolist() == pytest.approx([1 / 8] * 8)
    for i in (1, -1):  # é, which BERT does not know, and <eos>
        assert even.probs[i].tolist() == learnt.probs[i].tolist() == [1.0] + [0.0] * 7
    assert even.labels[-1, 0] == 0


def test_the_session_around_an_utterance(tmp_path, monkeypatch):
    """The variant session_context: as many neighbours as fit, nearer ones first."""
    lm = load_masked_lm(str(save(tmp_path / "bert", bert())), "--teacher", "unused", "cpu")
    tokenizer = WordPiece.prune(lm.pieces, ["the baker's flour é", "boys' knight 'tis x"], 5)
    said = [("the", "a"), ("knight", "a"), ("flour the", "a"), ("x é", "b")]
    utterances = [
        Utterance(str(i), "", text, 1.0, session=session) for i, (text, session) in enumerate(said)
    ]

    def read(questions_of, utterances=utterances, longest=32):
        monkeypatch.setattr(lm, "longest", longest)
        questions = questions_of(tokenizer, SharedPieces(tokenizer, lm), utterances)
        return [
            (" ".join(lm.pieces[i] for i in question.ids), question.first) for question in questions
        ]

    full = session_context.questions_in_context
    assert read(interaed_kd.questions_of)[1] == ("[CLS] knight [SEP]", 1)
    whole = "[CLS] the knight f ##l ##o ##u ##r the [SEP]"
    assert read(full) == [(whole, 1), (whole, 2), (whole, 3), ("[CLS] x [UNK] [SEP]", 1)]
    assert read(full, longest=4)[1] == ("[CLS] the knight [SEP]", 2)
    many = [Utterance(str(i), "", "the knight the", 1.0, session="a") for i in range(200)]
    assert {len(text.split()) for text, _ in read(full, many, longest=512)} == {
        2 + 3 * 84
    }  # 256 at most


def test_hard_labels_are_no_guesses_of_the_teacher(ask):
    """Only tokens that BERT was asked about count, as right and as all; not é, nor what is beyond its longest input."""
    texts = ["the baker's flour", "knight é", "é flour" + " the" * 40]
    (found, report, _), first, some = ask(texts=texts), [], []
    for text, label in zip(texts, found.values(), strict=True):
        tokens = zip(
            [*ask.tokenizer.encode(text), 0],
            label.labels.tolist(),
            label.probs.tolist(),
            strict=True,
        )
        for y, guesses, _ in (token for token in tokens if token[2][1] > 0):
            first.append(guesses[0] == y)
            some.append(y in guesses)
    assert (
        0 < sum(some) < len(some) == sum(len(ask.tokenizer.encode(text)) for text in texts) - 2 - 15
    )
    assert report["teacher_top1"] == pytest.approx(sum(first) / len(first), abs=1e-4)
    assert report["teacher_top_k"] == pytest.approx(sum(some) / len(some), abs=1e-4)


def test_what_soft_labels_cannot_be(ask):
    with pytest.raises(UserError, match="--top-k must be at most"):
        ask("--top-k 400")
