"""Speech as a prompt: hand-made sequences, losses and answers of every family alone and in a batch."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from test_lora import CONFIGS, model
from transformers import GPT2Config, GPT2LMHeadModel

from common import prompting
from common.prompting import (
    MASKED,
    NONE,
    Frame,
    answer_loss,
    build_sequences,
    cut_repetition,
    write,
)
from common.running import listening, options
from common.running.corpora import Utterance
from common.running.process import Place

CPU = Place(0, 1, torch.device("cpu"))


def counting(size: int = 10) -> torch.nn.Embedding:
    """Embeddings of width 1 that show the id."""
    table = torch.nn.Embedding(size, 1)
    table.weight.data = torch.arange(float(size))[:, None]
    return table


SPEECH = torch.tensor(
    [[[0.1], [0.2]], [[0.5], [99.0]]]
)  # the second has one vector; what is behind it is never read


def test_the_sequence_of_training():
    rows = build_sequences(counting(), SPEECH, [2, 1], [[7, 8], [9]], Frame([1], [2], 3))
    assert torch.allclose(
        rows.inputs[..., 0], torch.tensor([[1, 0.1, 0.2, 2, 7, 8], [1, 0.5, 2, 9, 0, 0]])
    )
    assert rows.mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert rows.targets.tolist() == [[NONE, NONE, NONE, 7, 8, 3], [NONE, NONE, 9, 3, NONE, NONE]]


def test_the_sequence_of_decoding():
    rows = build_sequences(counting(), SPEECH, [2, 1], None, Frame([1], [2], 3))
    assert torch.allclose(rows.inputs[..., 0], torch.tensor([[1, 0.1, 0.2, 2], [0, 1, 0.5, 2]]))
    assert rows.mask.tolist() == [[True] * 4, [False] + [True] * 3]


def test_the_end_is_learnt_where_it_is_also_padding_and_where_the_text_is_empty():
    rows = build_sequences(counting(), SPEECH, [2, 1], [[7], []], Frame([], [0], 0))
    assert torch.allclose(rows.inputs[..., 0], torch.tensor([[0.1, 0.2, 0, 7], [0.5, 0, 0, 0]]))
    assert rows.targets.tolist() == [[NONE, NONE, 7, 0], [NONE, 0, NONE, NONE]]
    assert rows.mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_masked_pieces_are_hidden_from_the_inputs_only():
    rows = build_sequences(
        counting(), SPEECH, [2, 1], [[7, 8], [9]], Frame([1], [2], 3), shown=[[7, MASKED], [MASKED]]
    )
    assert torch.allclose(
        rows.inputs[..., 0], torch.tensor([[1, 0.1, 0.2, 2, 7, 4.5], [1, 0.5, 2, 4.5, 0, 0]])
    )
    assert (
        rows.targets.tolist()
        == build_sequences(
            counting(), SPEECH, [2, 1], [[7, 8], [9]], Frame([1], [2], 3)
        ).targets.tolist()
    )


def spoken(B: int = 3) -> tuple[torch.Tensor, list[int], list[list[int]]]:
    torch.manual_seed(1)
    return torch.randn(B, 6, 16), [6, 2, 4][:B], [[4, 5, 6], [7], [8, 9, 10, 11]][:B]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_is_the_same_alone_in_a_batch_and_summed_by_hand(family):
    lm, (speech, lengths, texts) = model(family), spoken()
    table = lm.get_input_embeddings()
    together = answer_loss(lm, build_sequences(table, speech, lengths, texts, Frame([1], [2], 2)))
    for i, n in enumerate(lengths):
        alone = answer_loss(
            lm, build_sequences(table, speech[i : i + 1], [n], texts[i : i + 1], Frame([1], [2], 2))
        )
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)
        row = torch.cat(
            [table(torch.tensor([1])), speech[i, :n], table(torch.tensor([2, *texts[i]]))]
        )
        log_probs = lm(inputs_embeds=row[None]).logits[0].log_softmax(-1)
        by_hand = -sum(log_probs[n + 1 + j, y] for j, y in enumerate([*texts[i], 2]))
        torch.testing.assert_close(by_hand, together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_answers_are_the_same_alone_and_in_a_batch(family, search):
    lm, (speech, lengths, _) = model(family), spoken()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # surer, and so longer and more varied, than at first
    table, limits = lm.get_input_embeddings(), [9, 9, 9] if search else [9, 4, 7]
    together, counts = write(
        lm, build_sequences(table, speech, lengths, None, Frame([1], [2], 2)), limits, 2, **search
    )
    for i, n in enumerate(lengths):
        alone = write(
            lm,
            build_sequences(table, speech[i : i + 1], [n], None, Frame([1], [2], 2)),
            limits[i : i + 1],
            2,
            **search,
        )
        assert alone == ([together[i]], [counts[i]])
        assert len(together[i]) <= limits[i]


@pytest.mark.parametrize("decode", ["top_k", "top_p"])
def test_drawn_answers_are_the_same_alone_and_in_a_batch(decode):
    lm, (speech, lengths, _) = model("gpt_neox"), spoken()
    search = {decode: {"top_k": 4, "top_p": 0.9}[decode]}
    table = lm.get_input_embeddings()

    def written(rows: list[int], seeds: list[int]) -> list[list[int]]:
        prompts = build_sequences(
            table, speech[rows], [lengths[i] for i in rows], None, Frame([1], [2], 2)
        )
        options = prompting.search_options(search, 1, torch.tensor([seeds[i] for i in rows]))
        return write(lm, prompts, [9] * len(rows), 2, min_new_tokens=3, **options)[0]

    together = written([0, 1, 2], [5, 6, 7])
    assert [written([i], [5, 6, 7])[0] for i in range(3)] == together
    assert written([2, 0], [5, 6, 7]) == [together[2], together[0]]
    assert written([0, 1, 2], [8, 9, 10]) != together
    assert all(len(answer) >= 3 for answer in together)


def test_draws_have_the_probabilities_of_the_model():
    """Of the best three of four pieces, by the softmax of their scores."""
    scores = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    (kept, draw) = prompting.search_options({"top_k": 3}, 1, torch.tensor([5]))["processors"]
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(None, kept(None, scores.clone())).argmax()] += 1
    expected = torch.tensor([1.0, 0.0, 2.0, -torch.inf]).softmax(0)
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_positions_are_counted_over_what_is_real():
    """GPT-2 looks them up: 0 1 2 … from the first vector of an utterance on, also where padding stands before it."""
    lm, asked = model("gpt2"), []
    lm.transformer.wpe.register_forward_pre_hook(lambda _, ids: asked.append(ids[0].tolist()))
    speech = torch.randn(2, 2, 16)
    answer_loss(
        lm,
        build_sequences(
            lm.get_input_embeddings(), speech, [2, 1], [[7, 8], [9]], Frame([1], [2], 3)
        ),
    )
    assert asked.pop()[0] == [0, 1, 2, 3, 4, 5]
    prompts = build_sequences(lm.get_input_embeddings(), speech, [2, 1], None, Frame([1], [2], 3))
    write(lm, prompts, [2, 2], 3, min_new_tokens=2)
    assert asked[0][0] == [0, 1, 2, 3] and asked[0][1][1:] == [0, 1, 2] and asked[1] == [[4], [3]]


def test_perplexity_is_that_of_the_plain_model():
    lm, texts = model("llama"), {"a": [4, 5, 6], "b": [7]}
    recogniser = SimpleNamespace(
        lm=lm, tokenizer=SimpleNamespace(encode=lambda text: [i + 1 for i in texts[text]])
    )
    found = listening.text_perplexity(
        recogniser, [Utterance("", "", text, 1.0) for text in "ab"], 1, 2, CPU
    )
    nats = [
        lm(torch.tensor([[1, *ids, 2]]), labels=torch.tensor([[-100, *ids, 2]])).loss.item()
        for ids in texts.values()
    ]
    assert found == pytest.approx(math.exp((4 * nats[0] + 2 * nats[1]) / 6), abs=1e-3)


def test_what_a_model_can_be_taught_to_write():
    """One limit of an answer for training and decoding, and as many positions as there are."""
    fits = prompting.answer_fits
    assert fits(1, 0, None) and fits(10**6, 200, None) and not fits(0, 5, None)
    assert not fits(3, 201, None)
    assert fits(3, 6, 10) and not fits(3, 7, 10) and not fits(4, 6, 10)  # a symbol stands between
    assert fits(3, 5, 10, around=2) and not fits(3, 6, 10, around=2)


@pytest.mark.parametrize("family, positions", [("llama", 2048), ("gpt2", 1024), ("bloom", None)])
def test_how_much_a_model_reads_at_once(family, positions):
    assert prompting.positions_of(model(family)) == positions


def of_few_positions(positions: int, texts: dict) -> SimpleNamespace:
    """A recogniser whose GPT-2 looks positions up, as long as there are some."""
    config = CONFIGS["gpt2"].to_dict() | {"n_positions": positions}
    lm = GPT2LMHeadModel(GPT2Config(**config)).eval()
    encode = lambda text: [i + 1 for i in texts[text]]  # noqa: E731
    return nn_with(lm, SimpleNamespace(encode=encode))


def nn_with(lm, tokenizer) -> torch.nn.Module:
    recogniser = torch.nn.Module()
    recogniser.lm, recogniser.tokenizer = lm, tokenizer
    return recogniser


def test_perplexity_of_a_transcript_longer_than_the_model_reads():
    texts = {"a": [4, 5, 6, 7, 8, 9], "b": [7]}
    recogniser = of_few_positions(4, texts)
    found = listening.text_perplexity(
        recogniser, [Utterance("", "", text, 1.0) for text in "ab"], 1, 2, CPU
    )
    begun = recogniser.lm(torch.tensor([[1, 4, 5, 6]])).logits.log_softmax(-1)[0]
    nats = -sum(begun[i, piece] for i, piece in enumerate([4, 5, 6, 7]))
    short = recogniser.lm(torch.tensor([[1, 7]])).logits.log_softmax(-1)[0]
    nats -= short[0, 7] + short[1, 2]
    assert found == pytest.approx(math.exp(nats.item() / 6), abs=1e-3)


@dataclass(frozen=True)
class Config(options.RunConfig):
    augmentation: options.Augmentation = options.Augmentation((1.0,), 0, 0)


def test_the_listening_gap_leaves_out_what_does_not_fit(corpus):
    """With its own audio or with the other: pairs stay pairs."""
    some = corpus.dev[:8]
    seconds = sorted(u.duration for u in some)[5]
    encode = lambda text: [1] * len(text)  # noqa: E731
    seen = {False: [], True: []}
    fits = lambda samples, labels, text: samples <= 16000 * seconds + 1  # noqa: E731
    for swapped, batch in listening.batches(some, Config(), encode, fits):
        seen[swapped] += [u.id for u in batch.utterances]
        assert batch.infeasible == 0
    assert sorted(seen[False]) == sorted(seen[True]) and 0 < len(seen[True]) < 8

    def losses(batch):
        return torch.ones(len(batch.utterances))

    recogniser = nn_with(model("gpt2"), SimpleNamespace(encode=encode))
    found = listening.measure_gap(recogniser, losses, some, Config(), CPU, fits)
    assert set(found) == {"listening_gap"}
    nothing = lambda samples, labels, text: False  # noqa: E731
    assert listening.measure_gap(recogniser, losses, some, Config(), CPU, nothing) == {}


def test_cached_greedy_decoding_is_uncached_greedy_decoding():
    """Whatever the model's own folder says about decoding."""
    lm, (speech, lengths, _) = model("llama"), spoken(1)
    lm.generation_config.no_repeat_ngram_size = lm.generation_config.min_new_tokens = 1
    lm.generation_config.suppress_tokens = list(range(3, 20))
    table = lm.get_input_embeddings()
    (found,), _ = write(
        lm, build_sequences(table, speech, lengths, None, Frame([1], [2], 2)), [8], 2
    )
    row, ids = torch.cat([table(torch.tensor([1])), speech[0], table(torch.tensor([2]))]), []
    while len(ids) < 8:
        ids.append(lm(inputs_embeds=row[None]).logits[0, -1].argmax().item())
        if ids[-1] == 2:
            break
        row = torch.cat([row, table(torch.tensor(ids[-1:]))])
    assert found == [i for i in ids if i != 2] and found


def test_endless_repetition_is_cut_and_counted():
    assert cut_repetition([5, 1, 2, 1, 2, 1, 2, 1, 2]) == [5, 1, 2]
    assert cut_repetition([7, 7, 7, 7]) == [7]
    assert cut_repetition([1, 2, 1, 2, 1, 2]) == [
        1,
        2,
        1,
        2,
        1,
        2,
    ]  # three times is still a way of speaking
    lm = model("llama")
    lm.lm_head.weight.data.zero_()
    lm.lm_head.weight.data[6] = 1.0  # says 6, or, where that is less than nothing, 0
    speech, lengths, _ = spoken()
    answers, counts = write(
        lm,
        build_sequences(lm.get_input_embeddings(), speech, lengths, None, Frame([1], [2], 2)),
        [12] * 3,
        2,
    )
    assert all(
        c == {"unstopped": 1.0, "repetitions": 1.0} and len(ids) < 12
        for ids, c in zip(answers, counts, strict=True)
    )


def test_audio_is_swapped_within_a_language_and_between_sessions():
    utterances = [
        Utterance(
            f"{language}-{i}",
            f"{language}-{i}.wav",
            "a",
            1.0,
            session=f"{language}{i // 2}",
            language=language,
        )
        for language in "pq"
        for i in range(6)
    ]
    utterances.append(
        Utterance("r", "r.wav", "a", 1.0, session="r", language="r")
    )  # alone in its language
    same = [Utterance(f"s-{i}", f"s-{i}.wav", "a", 1.0, session="s") for i in range(2)]
    own, swapped = listening.swap_audio(same)
    assert [(u.id, other.audio) for u, other in zip(own, swapped, strict=True)] in (
        [("s-0", "s-1.wav"), ("s-1", "s-0.wav")], [("s-1", "s-0.wav"), ("s-0", "s-1.wav")],
    )  # fmt: skip
    own, swapped = listening.swap_audio(utterances, count=6)
    assert [u.id for u in own] == [u.id for u in swapped] and len(
        own
    ) == 4  # two of each language, none of r
    for u, other in zip(own, swapped, strict=True):
        source = next(o for o in utterances if o.audio == other.audio)
        assert (
            other.text == u.text and source.language == u.language and source.session != u.session
        )
