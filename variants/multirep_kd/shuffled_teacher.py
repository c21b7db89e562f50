"""Is it what BERT knows of this sentence that teaches?

Here every utterance gets the states of another one, always of the same: token i gets
state number i modulo their number. What remains of the gain is regularisation.

    python -m variants.multirep_kd.shuffled_teacher
"""

import functools
import random

import torch
from torch import Tensor, nn

import multirep_kd
from multirep_kd import Teacher, states_of


@functools.cache
def partners_of(teacher: Teacher) -> dict[str, str]:
    """{utterance: the one whose states it gets}, for all that have a text."""
    order = [name for name, transcript in teacher.transcripts.items() if transcript]
    random.Random(teacher.config.seed).shuffle(order)
    shifted = order[1:] + order[:1]
    return dict(zip(order, shifted, strict=True))


def shuffled(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """For each layer, states of the partners (B, I, E)."""
    partners = partners_of(teacher)
    states = states_of(teacher, [partners[name] for name in names], epoch)
    rows = []
    for name, its_states in zip(names, states, strict=True):
        i = torch.arange(len(teacher.tokens[name].ids), device=its_states.device)
        rows.append(its_states[i % max(1, len(its_states))])
    return list(nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(2))


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"targets_of": shuffled})


if __name__ == "__main__":
    main()
