"""How much later than its teacher a streaming recogniser writes its words."""

from __future__ import annotations

from statistics import fmean

from torch import nn

from common import metrics
from common.running.corpora import Corpus
from common.running.decoding import decode
from common.running.options import RunConfig
from common.running.process import Place


def emission_delay(
    student: nn.Module,
    teacher: nn.Module,
    corpus: Corpus,
    config: RunConfig,
    place: Place,
) -> float | None:
    """How many ms later than the teacher's the student's words end, on average.

    Counted are the words of the first test set that both get right; None if there are
    none. A word appears when its chunk is complete, up to --chunk-ms later.
    """
    utterances = next(iter(corpus.tests.values()))
    read = decode(student, utterances, config, place)
    full = decode(teacher, utterances, config, place)
    found = []
    for utterance in utterances:
        if utterance.id not in read or utterance.id not in full:  # its audio could not be read
            continue
        ends = {}  # index of a word in the reference -> where the teacher's ends, in seconds
        for i, j in metrics.hits(utterance.text, full[utterance.id].text):
            ends[i] = full[utterance.id].words[j].end
        for i, j in metrics.hits(utterance.text, read[utterance.id].text):
            if i in ends:
                found.append(1000 * (read[utterance.id].words[j].end - ends[i]))
    return round(fmean(found), 1) if found else None
