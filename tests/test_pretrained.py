"""Pretrained models: a masked one that is asked, causal ones for the beam, every answer against the plain model."""

import json
import math
import random
import string

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

import interaed_kd
import multirep_kd
from common import ctc
from common.bert import MaskedLM, by_length
from common.errors import UserError
from common.running import pretrained
from common.running.beam_models import LanguageModel, WordModel
from common.running.corpora import Corpus, Utterance
from common.running.pretrained import (
    begin_and_end,
    load_bert,
    load_masked_lm,
    load_pieces,
    load_vocabulary,
    resolve,
)
from common.running.process import Place
from common.text import Characters, WordPiece

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "'", "the", "knight", "don", "##ing"]
VOCABULARY += [*string.ascii_lowercase, *("##" + c for c in string.ascii_lowercase)]
UNK, CLS, SEP, MASK, APOSTROPHE = 1, 2, 3, 4, 5


def save(folder, model):
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def gpt2(**changes) -> GPT2LMHeadModel:
    sizes = {
        "vocab_size": len(VOCABULARY) + 3,
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
    }
    torch.manual_seed(0)
    special = {"bos_token_id": CLS, "eos_token_id": SEP}
    return GPT2LMHeadModel(
        GPT2Config(**sizes | special | {"initializer_range": 0.5} | changes)
    ).eval()


def bert(seed: int = 0, **changes) -> BertForMaskedLM:
    """With weights so large that every token matters."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    more = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "initializer_range": 0.5}
    torch.manual_seed(seed)
    model = BertForMaskedLM(BertConfig(**sizes | more | changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and LayerNorm
            parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path, gpt2())


# --------------------------------------------------------------------------------------------------- finding a model


def test_a_model_that_is_nowhere_is_one_sentence(tmp_path, monkeypatch):
    """Neither a folder, nor in the local cache, nor is the hub reachable."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "getproxies", dict)
    assert resolve(str(tmp_path), "--teacher") == str(tmp_path)
    for only in (True, False):
        with pytest.raises(
            UserError, match="^--teacher no/such-one is not in the local cache.*local folder"
        ) as caught:
            resolve("no/such-one", "--teacher", only)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError,
        match=r"^--lm no such/\*: no such folder, and not the name of a model: give --lm a",
    ):
        resolve("no such/*", "--lm")


def test_a_folder_without_vocabulary_is_one_sentence(tmp_path):
    """The library would read every word as unknown, and say nothing."""
    save(tmp_path, bert())
    assert load_vocabulary(str(tmp_path), "--teacher", "unused") == VOCABULARY
    (tmp_path / "vocab.txt").unlink()
    for load_it, *more in ((load_pieces,), (load_masked_lm, "cpu"), (LanguageModel, None, "cpu")):
        with pytest.raises(
            UserError, match=r"^--teacher .* has no vocabulary: .*vocab\.txt"
        ) as caught:
            load_it(str(tmp_path), "--teacher", "unused", *more)
        assert "\n" not in str(caught.value)
    some, here = [Utterance("a", "a.flac", "the knight", 1.0)], Place(0, 1, torch.device("cpu"))
    for script, teacher in (
        (interaed_kd, {"teacher": str(tmp_path)}),
        (multirep_kd, {"teachers": (str(tmp_path),)}),
    ):
        with pytest.raises(UserError, match=r"^--teachers? .* has no vocabulary: .*vocab\.txt"):
            script.train(script.Config(**teacher), Corpus(some, some, {}, {}), here)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^--teacher .*holds no tokenizer"):
        load_pieces(str(empty), "--teacher", "unused")


# ------------------------------------------------------------------------------------------------------------ a BERT


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory) -> MaskedLM:
    return load_masked_lm(
        str(save(tmp_path_factory.mktemp("bert"), bert())), "--teacher", "unused", "cpu"
    )


ROWS = [[CLS, *range(5, 5 + n), SEP] for n in (3, 1, 7, 3, 0, 30)]
POSITIONS = [1, 2, 4, 3, 0, 31]


def test_a_masked_token_is_answered_as_by_the_plain_model(masked_lm):
    """Padded in a batch, with the head at one position, against a row alone with the head everywhere."""
    model, found = bert(), masked_lm.logits(ROWS, POSITIONS)
    assert (
        found.shape == (6, len(VOCABULARY))
        and found.dtype == torch.float32
        and not found.requires_grad
    )
    for row, i, logits in zip(ROWS, POSITIONS, found, strict=True):
        masked = [MASK if j == i else piece for j, piece in enumerate(row)]
        torch.testing.assert_close(
            logits, model(torch.tensor([masked])).logits[0, i], rtol=0, atol=1e-4
        )


def test_states_are_those_of_the_plain_model(masked_lm):
    model, found = bert(), masked_lm.layers(ROWS, [2, 0])
    assert found.shape == (6, 32, 2, 16) and not found.requires_grad
    for row, states in zip(ROWS, found, strict=True):
        plain = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for k, layer in enumerate([2, 0]):
            torch.testing.assert_close(states[: len(row), k], plain[layer][0], rtol=0, atol=1e-4)


def test_answers_are_single_precision_wherever_they_are_asked(masked_lm):
    exact = masked_lm.logits(ROWS, POSITIONS), masked_lm.layers(ROWS, [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = masked_lm.logits(ROWS, POSITIONS), masked_lm.layers(ROWS, [1, 2])
    assert all(
        x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(found, exact, strict=True)
    )


def test_what_is_known_of_a_bert(masked_lm, tmp_path):
    assert (masked_lm.cls, masked_lm.sep, masked_lm.mask, masked_lm.unk) == (CLS, SEP, MASK, UNK)
    assert masked_lm.pieces == VOCABULARY and masked_lm.longest == 32
    assert not masked_lm.model.training and not any(
        p.requires_grad for p in masked_lm.model.parameters()
    )
    (save(tmp_path, bert()) / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 8})
    )
    assert load_masked_lm(str(tmp_path), "--teacher", "unused", "cpu").longest == 8


def test_an_untrained_bert(masked_lm):
    """Of the same sizes, with weights that follow from the seed; whatever else is drawn stays as it was."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    folder = masked_lm.model.name_or_path
    first, other, again = (
        load_masked_lm(folder, "--teacher", "unused", "cpu", seed).model for seed in (1, 2, 1)
    )
    assert torch.equal(torch.rand(3), expected)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    weights = [model.get_parameter(name) for model in (masked_lm.model, first, other, again)]
    assert torch.equal(weights[1], weights[3]) and len({w.sum().item() for w in weights}) == 3
    assert (
        first.config.num_hidden_layers == 2 and not first.training and not weights[1].requires_grad
    )


def test_what_is_no_bert_is_one_sentence(tmp_path):
    headless, kinds = "lacks weights .*cls.*saved with its head", "no model of that kind|is no BERT"
    without_mask = [piece.replace("[MASK]", "[NONE]") for piece in VOCABULARY]
    cases = {
        "headless": (
            BertModel(bert().config),
            VOCABULARY,
            headless,
        ),  # the library would fill the head with noise
        "causal": (gpt2(), VOCABULARY, kinds),
        "maskless": (
            bert(),
            without_mask,
            "is no BERT with its vocabulary",
        ),  # the library adds a piece, as the last
        "of another": (bert(), [*VOCABULARY, "trout"], "is no BERT with its vocabulary"),
    }
    for name, (model, vocabulary, message) in cases.items():
        (tmp_path / name).mkdir()
        save(tmp_path / name, model)
        (tmp_path / name / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        with pytest.raises(UserError, match=f"^--teacher .*({message})") as caught:
            load_masked_lm(str(tmp_path / name), "--teacher", "unused", "cpu")
        assert "\n" not in str(caught.value), name


def sentence_bert(folder):
    """A folder as sentence-transformers saves it: the trunk of `bert()`, and what pools its states."""
    trunk = BertModel(bert().config)  # with a pooler, which no masked language model has
    trunk.load_state_dict(bert().bert.state_dict(), strict=False)
    save(folder, trunk)
    modules = [{"idx": 0, "name": "0", "path": ""}, {"idx": 1, "name": "1", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def test_states_need_no_head(tmp_path, masked_lm):
    """A folder of the trunk alone, as sentence-transformers' are, has the states of the whole model."""
    save(tmp_path / "whole", bert())
    trunk = sentence_bert(tmp_path / "trunk")
    states = []
    for folder in (tmp_path / "whole", trunk):
        found = load_bert(str(folder), "--teachers", "unused", "cpu")
        assert not found.model.training and not any(
            p.requires_grad for p in found.model.parameters()
        )
        states.append(found.layers(ROWS, [0, 1, 2]))
    whole = load_masked_lm(str(tmp_path / "whole"), "--teachers", "unused", "cpu")
    assert torch.equal(states[0], states[1]) and torch.equal(
        states[0], whole.layers(ROWS, [0, 1, 2])
    )
    (trunk / "vocab.txt").write_text("\n".join([*VOCABULARY, "trout"]) + "\n")
    with pytest.raises(UserError, match="is no BERT with its vocabulary"):
        load_bert(str(trunk), "--teachers", "unused", "cpu")
    save(tmp_path / "causal", gpt2())
    with pytest.raises(UserError, match="holds no model of that kind"):
        load_bert(str(tmp_path / "causal"), "--teachers", "unused", "cpu")


def test_rows_by_length():
    """Every row once, only equal ones together, and no more than so many tokens of them."""
    rows = [[0] * length for length in (3, 5, 3, 0, 5, 3, 40, 3, 0)]
    parts = list(by_length(rows, tokens=9))
    assert sorted(sum(parts, [])) == list(range(9)) and len(parts) == 6
    for part in parts:
        (length,) = {len(rows[i]) for i in part}
        assert len(part) == 1 or len(part) * length <= 9


def test_the_pieces_of_the_demo_spell_all_of_its_sentences(tmp_path):
    vocabulary = load_vocabulary("demo-smoke", "--teacher", str(tmp_path))  # which needs no speech
    lines = (tmp_path / "demo-smoke" / "text.txt").read_text().splitlines()
    tokenizer = WordPiece.prune(vocabulary, lines, 5000)
    assert (
        all(tokenizer.decode(tokenizer.encode(line)) == line for line in lines)
        and len(lines) > 2000
    )


# ----------------------------------------------------------------------------------------- for CTC: labels are pieces


@pytest.fixture(params=["subset", "all", "with a stranger"])
def tokenizer(request) -> WordPiece:
    texts = {"subset": "the knight's don't 'tis", "with a stranger": "the naïve knight's"}
    if request.param == "all":
        return WordPiece.from_vocabulary(VOCABULARY)
    return WordPiece.prune(VOCABULARY, [texts[request.param]], 2)


def load(folder, tokenizer) -> LanguageModel:
    return LanguageModel(str(folder), "--lm", "unused", tokenizer, torch.device("cpu"))


def spelled(tokenizer: WordPiece, label: int) -> int:
    """The id of a label's piece in the language model's vocabulary, told once more and independently."""
    piece = tokenizer.pieces[label - 1]
    piece = "'" if "'" in piece else piece
    return VOCABULARY.index(piece) if piece in VOCABULARY else UNK


def plain(folder, tokenizer: WordPiece, prefix: tuple[int, ...]) -> torch.Tensor:
    """(V,) by the whole model on this prefix alone."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.tensor([[CLS, *(spelled(tokenizer, label) for label in prefix)]])
    with torch.no_grad():
        log_probs = model(ids).logits[0, -1].log_softmax(-1)
    return log_probs[[SEP, *(spelled(tokenizer, label) for label in range(1, tokenizer.size))]]


def test_scores_are_those_of_the_plain_model(folder, tokenizer):
    lm, rng = load(folder, tokenizer), random.Random(0)
    labels = range(1, tokenizer.size)
    prefixes = [tuple(rng.choices(labels, k=length)) for length in (3, 0, 7, 1, 15, 7, 2)]
    scores = lm(prefixes)
    assert (
        scores.shape == (7, tokenizer.size)
        and scores.dtype == torch.float32
        and not scores.requires_grad
    )
    for prefix, row in zip(prefixes, scores, strict=True):
        torch.testing.assert_close(row, plain(folder, tokenizer, prefix), rtol=0, atol=1e-5)
        torch.testing.assert_close(row, lm([prefix])[0], rtol=0, atol=1e-5)


def test_what_has_no_label_keeps_its_probability(folder):
    tokenizer = WordPiece.prune(VOCABULARY, ["the knight"], 2)
    assert tokenizer.size < len(VOCABULARY) - 5
    scores = load(folder, tokenizer)([()])[
        0, : tokenizer.size - 2
    ]  # with one of the three apostrophes
    assert scores.exp().sum() < 0.9


def test_all_apostrophes_are_one_and_strangers_are_unknown(folder):
    tokenizer = WordPiece.prune(VOCABULARY, ["the naïve knight's"], 2)
    lm = load(folder, tokenizer)
    inside, initial, final = (
        tokenizer.ids[p] for p in (tokenizer.INSIDE, tokenizer.INITIAL, tokenizer.FINAL)
    )
    scores = lm([(inside,), (initial,), (final,)])
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores[0], scores[2], rtol=0, atol=1e-6)
    assert (scores[:, inside] == scores[:, initial]).all() and (
        scores[:, inside] == scores[:, final]
    ).all()
    assert lm.outputs[inside] == APOSTROPHE
    assert lm.outputs[tokenizer.ids["ï"]] == lm.outputs[tokenizer.ids["##ï"]] == UNK


def test_too_long_a_prefix_loses_its_beginning(folder):
    tokenizer = WordPiece.from_vocabulary(VOCABULARY)
    lm, long = load(folder, tokenizer), tuple(range(1, 31))
    torch.testing.assert_close(
        lm([long, long[-15:], (1,)])[0], lm([long[-15:]])[0], rtol=0, atol=1e-5
    )


def test_hypotheses_carry_the_score_of_their_sentence(folder):
    tokenizer = WordPiece.prune(VOCABULARY, ["the knight"], 2)
    log_probs = torch.zeros(4, tokenizer.size).log_softmax(-1)
    fusion = ctc.Fusion(load(folder, tokenizer), lm_weight=1.0)
    found = ctc.prefix_beam_search(log_probs, beam=5, fusion=fusion)
    assert max(len(h.labels) for h in found) > 1
    for labels, score, log_p in found:
        steps = enumerate([*labels, 0])
        expected = sum(
            plain(folder, tokenizer, tuple(labels[:i]))[label].item() for i, label in steps
        )
        assert score - log_p == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("symbol", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("ids", [50256, -1])
def test_a_beginning_or_end_outside_the_vocabulary_is_refused(symbol, ids):
    lm = gpt2()
    setattr(lm.config, symbol, ids)
    with pytest.raises(UserError, match=f"--lm x names .* as {symbol} in its config.json"):
        begin_and_end(lm, "--lm x")


def test_the_first_of_several_ends_is_taken_and_none_is_none():
    lm = gpt2()
    lm.config.bos_token_id, lm.config.eos_token_id = None, [3, 2]
    assert begin_and_end(lm, "--lm x") == (None, 3)
    lm.config.eos_token_id = []
    assert begin_and_end(lm, "--lm x") == (None, None)


def test_other_models_are_one_sentence(tmp_path):
    tokenizer = WordPiece.from_vocabulary(VOCABULARY)
    strangers = {
        "no beginning": gpt2(bos_token_id=None),
        "no end": gpt2(eos_token_id=None),
        "vocabulary too small": gpt2(vocab_size=len(VOCABULARY) - 1),
        "bert": bert(),
    }
    for name, model in strangers.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(
            UserError, match="^--lm .* word pieces: give a causal language model"
        ) as caught:
            load(save(folder, model), tokenizer)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not share the recogniser's word pieces"):
        load(save(tmp_path, gpt2()), WordPiece(["Ж", "##Ж", "the"]))
    load(tmp_path, WordPiece(["Ж", "the"]))  # half of them are enough
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--lm .*holds no"):
        load(empty, tokenizer)


# ------------------------------------------------------------------------------ for a transducer: labels are letters


def test_texts_and_all_that_begin_with_them(folder):
    """As the plain model scores their pieces one by one; spaces do not matter, nor does the batch."""
    characters = Characters.build([*string.ascii_lowercase, "'"])
    words = WordModel(str(folder), "--lm", "unused", characters, "cpu")
    encode = lambda text: tuple(characters.encode(text))  # noqa: E731
    model = gpt2()

    def by_hand(pieces):
        logits = model(torch.tensor([pieces])).logits[0].log_softmax(-1)
        return sum(logits[i, piece].item() for i, piece in enumerate(pieces[1:]))

    def begun(*ways):
        """log of the sum over (pieces, letters): these pieces, and then any that begins with the letters."""
        all_of_them = (
            by_hand([*pieces, v]) for pieces, letters in ways for v, piece in enumerate(VOCABULARY)
            if piece.startswith(letters)
        )  # fmt: skip
        return math.log(sum(map(math.exp, all_of_them)))

    the, knight, ing, t, k, n = (
        VOCABULARY.index(piece) for piece in ("the", "knight", "##ing", "t", "k", "##n")
    )
    so_far = {
        "": 0.0,
        "t": begun(([CLS], "t")),
        "th": begun(([CLS], "th"), ([CLS, t], "##h")),
        "the": begun(([CLS], "the")),
        "the ": by_hand([CLS, the]),
        " the  kni": begun(([CLS, the], "kni"), ([CLS, the, k], "##ni"), ([CLS, the, k, n], "##i")),
        "the knight": begun(([CLS, the], "knight")),
        "the knighting": begun(([CLS, the, knight], "##ing")),
        "the knighting ": by_hand([CLS, the, knight, ing]),
    }
    assert words([encode(text) for text in so_far], False) == pytest.approx(
        list(so_far.values()), abs=1e-5
    )
    ended = {"": [CLS, SEP], "the": [CLS, the, SEP], "the knight": [CLS, the, knight, SEP]}
    found = words([encode(text) for text in ended], True)
    assert found == pytest.approx([by_hand(pieces) for pieces in ended.values()], abs=1e-5)
    assert words([encode("the ")], False)[0] == pytest.approx(
        by_hand([CLS, the]), abs=1e-5
    )  # asked before
    longer = [CLS, *[the, knight] * 30][:16]  # than it reads
    assert words([encode("the knight " * 30)], True)[0] == pytest.approx(by_hand(longer), abs=1e-4)
    letters = words([encode(c) for c in [*string.ascii_lowercase, "'"]], False)
    others = begun(*(([CLS], piece) for piece in VOCABULARY[:5]), ([CLS], "##"))
    no_piece = model(torch.tensor([[CLS]])).logits[0, 0].softmax(-1)[len(VOCABULARY) :].sum().item()
    assert sum(map(math.exp, [*letters, others])) + no_piece == pytest.approx(1)
    for text in (
        "the knight's donut",
        "knightingknightly the",
    ):  # the more is known, the less remains
        fall = words([encode(text[:i]) for i in range(len(text) + 1)], False)
        assert fall == sorted(fall, reverse=True) and words([encode(text)], True)[0] < fall[-1]
    read = (
        "the knight " * 7 + "t"
    )  # as much as it reads, and then a word begins that it cannot read whole
    assert len(set(words([encode(read + more) for more in ("hh", "hhh", "hhh ")], False))) == 1
    save(folder, gpt2(eos_token_id=[SEP, CLS]))
    other = WordModel(str(folder), "--lm", "unused", characters, "cpu")
    assert other([encode("the")], True)[0] == pytest.approx(found[1], abs=1e-5)
    save(folder, gpt2(bos_token_id=None))
    with pytest.raises(UserError, match="bos_token_id"):
        WordModel(str(folder), "--lm", "unused", characters, "cpu")


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_pieces_that_begin_with_a_space(tmp_path, kind):
    """Words begin with "Ġ" or "▁", which may stand alone; the longer a text, the less likely; spaces do not matter."""
    if kind == "bytes":
        merges = [
            tuple(m.split()) for m in ["t h", "th e", "s c", "sc r", "scr i", "Ġ scri", "r e"]
        ]
        letters = [*pre_tokenizers.ByteLevel.alphabet()]
        vocabulary = ["<unk>", "<s>", "</s>", *letters, *map("".join, merges)]
        pieces = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges))
        pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        mark, the = "Ġ", ["the"]
    else:
        vocabulary = ["<unk>", "<s>", "</s>", "▁", *string.ascii_lowercase, "▁the", "▁scri", "re"]
        pieces = Tokenizer(models.Unigram([(piece, -20.0 / len(piece)) for piece in vocabulary], 0))
        pieces.pre_tokenizer = pre_tokenizers.Metaspace()
        mark, the = "▁", ["▁the"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path)
    model = gpt2(vocab_size=len(vocabulary), n_positions=64, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(tmp_path)
    characters = Characters.build(string.ascii_lowercase)
    words = WordModel(str(tmp_path), "--lm", "unused", characters, "cpu")
    encode = lambda text: tuple(characters.encode(text))  # noqa: E731

    def p(*before):
        ids = [1, *map(vocabulary.index, before)]
        following = model(torch.tensor([ids])).logits[0].softmax(-1)
        already = math.prod(following[i, piece].item() for i, piece in enumerate(ids[1:]))
        return lambda letters: (
            already
            * sum(
                following[-1, vocabulary.index(v)].item()
                for v in vocabulary
                if v.startswith(letters)
            )
        )

    ways = p(*the)(mark + "sc") + p(*the, mark)("sc")
    if kind == "sentencepiece":  # to which "sc" is two pieces
        ways += p(*the, mark, "s")("c")
    assert words([encode("the sc")], False)[0] == pytest.approx(math.log(ways), abs=1e-4)
    text = "the script reads"
    values = words([encode(text[:i]) for i in range(len(text) + 1)], False)
    assert values == sorted(values, reverse=True)
    assert words([encode("the  sc"), encode("the  ")], False) == words(
        [encode("the sc"), encode("the ")], False
    )


@pytest.mark.parametrize("damage", ["weights", "sizes", "vocabulary"])
def test_half_copied_folders_are_one_sentence(tmp_path, damage):
    from common.running.pretrained import load_masked_lm

    torch.manual_seed(0)
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    save(tmp_path, BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), **sizes)))
    load_masked_lm(str(tmp_path), "--teacher", "unused", "cpu")
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "sizes":
        config.write_text(config.read_text().replace('"hidden_size": 8', '"hidden_size": 16'))
    else:
        (tmp_path / "vocab.txt").write_bytes((tmp_path / "vocab.txt").read_bytes() + b"caf\xe9\n")
    with pytest.raises(UserError, match="--teacher .* holds no "):
        load_masked_lm(str(tmp_path), "--teacher", "unused", "cpu")
