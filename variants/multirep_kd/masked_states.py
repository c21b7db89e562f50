"""Does it matter that BERT's states have seen the word itself?

Here every token of the transcript is masked once, as for soft labels: e_ik is BERT's
state at the place of a [MASK]. So it says what the words around let one expect, and
nothing of the word that was written.

    e_ik = BERT(transcript without token i)_i at layer k

    python -m variants.multirep_kd.masked_states --method multirep_kd
"""

import torch
from torch import Tensor

import multirep_kd
from multirep_kd import Teacher

ROWS = 256  # that BERT reads at once


def masked_states_of(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """BERT's states at the masked tokens of each transcript: (I, n, E), in fp32."""
    if teacher.known.keys() >= set(names):
        return [teacher.known[name] for name in names]
    chosen = teacher.layers(epoch)
    rows, places = [], []
    for name in names:
        row, first = teacher.read(name, epoch)
        for i in range(first, first + len(teacher.tokens[name].ids)):
            rows.append([*row[:i], teacher.lm.mask, *row[i + 1 :]])
            places.append(i)
    states = [torch.zeros(0, len(chosen), teacher.width, device=teacher.lm.model.device)]
    for begin in range(0, len(rows), ROWS):
        some = rows[begin : begin + ROWS]
        layers = teacher.lm.layers(some, chosen)  # (N, tokens read, n, E)
        states.append(layers[range(len(some)), places[begin : begin + ROWS]])
    sizes = [len(teacher.tokens[name].ids) for name in names]
    return [its.clone() for its in torch.cat(states).split(sizes)]


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"states_of": masked_states_of})


if __name__ == "__main__":
    main()
