"""Does it matter that BERT reads this very sentence?

Here every utterance gets the states of another one, its partner, which stays the same
for the whole run. What remains of the gain is regularisation.

    python -m variants.multirep_kd.shuffled_teacher --method multirep_kd
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
    """The partners' states (B, I, E) for each layer.

    A partner may have fewer tokens: then its states are used again from the beginning.
    """
    partners = partners_of(teacher)
    states = states_of(teacher, [partners[name] for name in names], epoch)
    rows = []
    for name, its_states in zip(names, states, strict=True):
        i = torch.arange(len(teacher.tokens[name].ids), device=its_states.device)
        rows.append(its_states[i % max(1, len(its_states))])
    return list(nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(2))


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"padded_states": shuffled})


if __name__ == "__main__":
    main()
