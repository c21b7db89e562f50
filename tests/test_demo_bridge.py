"""What hubert_gpt_bridge.py needs of the demo world: how people talk, a HuBERT of its audio, a GPT of its text."""

import filecmp
import math
import random
import re
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM, HubertModel

from common.demo import jargon, spontaneous
from common.demo.gpt import spoken
from common.demo.grammar import split_of
from common.demo.hubert import Recipe, configuration, k_means, loss_of, targets_of
from common.demo.words import CUES, DETERMINERS, ONE_HOMOPHONE, TWIN, TWO_HOMOPHONES
from common.errors import UserError
from common.features import LogMel
from common.running.audio import read_audio
from common.running.corpora import load_corpus


def test_how_people_talk(tmp_path):
    """Other words, nothing of dev or test in train, the same bytes when built again, and manifests that can be read."""
    planned = {
        subset: spontaneous.plan(0, subset, count)
        for subset, count in spontaneous.SIZES[False].items()
    }
    new = {word for slots in spontaneous.NEW.values() for word in slots.replace("/", " ").split()}
    known = (
        set(CUES)
        | set(TWIN)
        | set(re.findall(r"[a-z']+", " ".join(DETERMINERS + ONE_HOMOPHONE + TWO_HOMOPHONES)))
    )
    assert len(new) == 60 and not new & known
    plain = {subset: {u["plain"] for u in some} for subset, some in planned.items()}
    assert not plain["train"] & (plain["dev"] | plain["test"]) and not plain["dev"] & plain["test"]
    words = " ".join(u["text"] for u in planned["train"]).split()
    assert all(words.count(filler.split()[0]) > 20 for filler in spontaneous.FILLERS)
    bodies = [word.partition("'")[0] for u in planned["train"] for word in u["plain"].split()]
    cues, others = (sum(word in some for word in bodies) for some in (CUES, new))
    assert abs(others / (cues + others) - spontaneous.NEW_SHARE) < 0.03
    for folder in (tmp_path / "a", tmp_path / "b"):
        spontaneous.build(folder, small=True, progress=False)
    files = sorted(
        path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()
    )
    assert len(files) == 72 + 5 and all(
        filecmp.cmp(tmp_path / "a" / f, tmp_path / "b" / f, False) for f in files
    )
    corpus = load_corpus(str(tmp_path / "a"), "")
    assert (len(corpus.train), len(corpus.dev), len(corpus.tests["test"])) == (40, 12, 20)
    assert [u.text for u in corpus.tests["test"]] == [
        u["text"] for u in spontaneous.plan(0, "test", 20)
    ]


def test_the_second_language(tmp_path):
    """Every cue word is new, a fifth of them in no training sentence, and GPT's text has none of them."""
    planned = {
        subset: jargon.plan(0, subset, count) for subset, count in jargon.SIZES[False].items()
    }
    old = set(CUES) | set(TWIN) | {w for slots in spontaneous.NEW.values() for w in slots.split()}
    old |= set(re.findall(r"[a-z']+", " ".join(DETERMINERS + ONE_HOMOPHONE + TWO_HOMOPHONES)))
    new = set(jargon.WORDS)
    assert len(new) == 60 and len(jargon.UNHEARD) == 12 and not new & old
    said = {subset: [u["text"] for u in some] for subset, some in planned.items()}
    words = {s: Counter(re.findall("[a-z]+", " ".join(texts))) for s, texts in said.items()}
    assert all(not counts.keys() & set(CUES) for counts in words.values())
    assert min(words["train"][word] for word in new - jargon.UNHEARD) > 10
    assert not words["train"].keys() & jargon.UNHEARD and words["test"].keys() >= jargon.UNHEARD
    assert not set(said["train"]) & {*said["dev"], *said["test"]}
    assert len({*said["dev"], *said["test"]}) == 60 + 250
    few = " ".join(u["text"] for u in jargon.plan(0, "train", 500, share=0.3))
    counts = Counter(re.findall("[a-z]+", few))
    cues, others = (sum(counts[word] for word in some) for some in (CUES, new))
    assert abs(others / (cues + others) - 0.3) < 0.04
    jargon.build(tmp_path / "a", small=True, progress=False)
    jargon.build(tmp_path / "a", small=True, progress=False)
    corpus = load_corpus(str(tmp_path / "a"), "")
    assert [u.text for u in corpus.tests["test"]] == [u["text"] for u in jargon.plan(0, "test", 20)]
    with pytest.raises(UserError, match="holds another demo world"):
        jargon.build(tmp_path / "a", small=True, share=0.3, progress=False)


def test_gpt_reads_how_people_talk_but_no_held_out_sentence():
    line, held_out = "that student revised in bright school with her role", 0
    new = {word for slots in spontaneous.NEW.values() for word in slots.replace("/", " ").split()}
    read = re.findall("[a-z]+", " ".join(spoken(line, random.Random(seed)) for seed in range(300)))
    assert "uh" in read and len(set(read) & new) > 9  # of the twelve of the school
    for seed in range(300):
        if split_of(spontaneous.with_new_words(line, random.Random(seed))) != "known":
            said = set(re.findall("[a-z]+", spoken(line, random.Random(seed))))
            assert set(line.split()) <= said and not said & new
            held_out += 1
    assert held_out


def test_hubert_of_the_world(model):
    """It can be loaded, and gives the same alone and in a batch."""
    network = HubertModel.from_pretrained(model("hubert")).eval()
    waves = torch.randn(2, 9000)
    mask = torch.ones(2, 9000, dtype=torch.long)
    mask[1, 5000:], waves[1, 5000:] = 0, 0
    with torch.no_grad():
        together, alone = (
            network(waves, mask).last_hidden_state,
            network(waves[1:, :5000]).last_hidden_state,
        )
    torch.testing.assert_close(together[1, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)


def test_masked_prediction_of_clusters(root):
    """The loss falls below that of a guess; a centre of the clusters is the mean of what is near it."""
    torch.manual_seed(1)
    points = torch.randn(300, 3) + torch.randint(0, 3, (300, 1)) * 5
    centres = k_means(points, 5)
    nearest = torch.cdist(points, centres).argmin(1)
    for i, centre in enumerate(centres):
        torch.testing.assert_close(centre, points[nearest == i].mean(0), atol=0.05, rtol=0)
    files = sorted((root / "demo-smoke" / "LibriSpeech" / "train-000").rglob("*.flac"))[:40]
    torch.manual_seed(1)
    recipe, rng = Recipe(steps=1, clusters=8, layers=1, dim=16), random.Random(1)
    frontend = LogMel()
    waves = [read_audio(path) for path in files]
    frontend.fit(waves)
    centres = k_means(torch.cat([targets_of(frontend, wave) for wave in waves]), 8)
    network, head = HubertModel(configuration(recipe)).train(), torch.nn.Linear(16, 8)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(25):
        loss, _ = loss_of(network, head, frontend, centres, rng.sample(waves, 8))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert network.masked_spec_embed.grad.any()  # what stands where frames are hidden
    assert losses[0] > 0.9 * 2 * math.log(8) and sum(losses[-5:]) / 5 < 0.85 * losses[0]


def test_the_pieces_of_gpt_spell_every_text(root, model):
    tokenizer = AutoTokenizer.from_pretrained(model("gpt"))
    lines = (root / "demo-smoke" / "text.txt").read_text().split("\n")[:500] + [
        "the boys' didn't 'tis",
        "zwq",
    ]
    for ids, line in zip(
        tokenizer(lines, add_special_tokens=False)["input_ids"], lines, strict=True
    ):
        assert tokenizer.decode(ids) == line and tokenizer.unk_token_id not in ids
    network = GPTNeoXForCausalLM.from_pretrained(model("gpt"))
    assert (network.config.bos_token_id, network.config.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
