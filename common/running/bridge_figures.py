"""Pictures of a bridge between HuBERT and a language model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import ctc, figures, prompting
from common.running.batches import first_readable
from common.running.corpora import Corpus
from common.running.options import RunConfig
from common.running.process import Place

FRAME_SECONDS = 0.02  # of HuBERT


def drawings(
    config: RunConfig,
    recogniser: nn.Module,
    corpus: Corpus,
    place: Place,
    vectors_of: Callable[[Tensor, str], Tensor],
) -> figures.Drawings:
    """The pictures of the parts that the recogniser has.

    vectors_of: log_probs (T, V), mode -> the number of each frame's vector (T,).
    """
    found: figures.Drawings = {}
    arguments = (config, recogniser, corpus, place)
    if recogniser.characters is not None:
        found["compression.png"] = partial(draw_compression, *arguments, vectors_of)
    if hasattr(recogniser, "llm"):
        found["attention.png"] = partial(draw_attention, *arguments)
    return found


@torch.inference_mode()
def draw_compression(
    config: RunConfig,
    recogniser: nn.Module,
    corpus: Corpus,
    place: Place,
    vectors_of: Callable[[Tensor, str], Tensor],
) -> None:
    """compression.png: which frames each mode keeps, vectors in alternating colours."""
    batch = first_readable(corpus.dev, config).to(place.device)
    h, _ = recogniser.eval().encode(batch)
    log_probs = recogniser.log_probs(h)[0]  # (T, V)
    rows = {"1 - p(blank)": 1 - log_probs[:, ctc.BLANK].exp()}
    for mode in ("remove_blank", "average", "average_remove_blank"):
        into = vectors_of(log_probs, mode)
        rows[mode] = torch.where(into < 0, 0.0, 0.4 + 0.4 * (into % 2))
    values = torch.stack(list(rows.values()), 1).cpu().numpy()  # (T, rows)
    path = Path(config.out) / "compression.png"
    figures.posteriors(path, values, list(rows), FRAME_SECONDS, batch.utterances[0].text)


@torch.inference_mode()
def draw_attention(config: RunConfig, recogniser: nn.Module, corpus: Corpus, place: Place) -> None:
    """attention.png: from the pieces of the text to the vectors of the speech, in four
    layers of the language model."""
    batch = first_readable(corpus.dev, config).to(place.device)
    h, lengths = recogniser.eval().encode(batch)
    a, sizes = recogniser.bridge(h, lengths)
    n = sizes[0]
    labels = recogniser.tokenizer.encode(batch.utterances[0].text)
    ids = [label - 1 for label in labels]
    attentions = prompting.attentions(recogniser.llm, recogniser.sequences(a, sizes, [ids]))
    some = sorted({round(i * (len(attentions) - 1) / 3) for i in range(4)})
    panels = {f"layer {i + 1}": attentions[i][n + 1 :, 1 : n + 1] for i in some}
    path = Path(config.out) / "attention.png"
    figures.matrices(path, panels, "vector of the speech", "piece of the text")
