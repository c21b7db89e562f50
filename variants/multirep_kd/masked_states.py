"""Do BERT's states help because they show which token was said?

BERT's state at a token depends on this token. Here BERT reads a transcript once for
each of its tokens, with [MASK] in its place, and the target is the state at [MASK]:
what the other tokens tell about this one. `soft_labels.py` masks in the same way, and
has the answer in another form. `embeddings.py` is the reverse: the token alone.

One token is masked at a time, so that BERT sees the other pieces of its word. Every
homophone of the demo is a single piece.

    python -m variants.multirep_kd.masked_states --method multirep_kd
"""

import torch
from torch import Tensor

import multirep_kd
from multirep_kd import Teacher


def masked_states(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """e_ik, BERT's states at [MASK] in place of token i: (I, n, E) for each transcript,
    in fp32."""
    if teacher.known.keys() >= set(names):
        return [teacher.known[name] for name in names]
    layers = teacher.layers(epoch)
    rows = []
    positions = []
    sizes = []
    for name in names:
        row, first = teacher.read(name, epoch)
        size = len(teacher.tokens[name].ids)
        rows += [row] * size
        positions += range(first, first + size)
        sizes.append(size)
    rows = teacher.lm.masked(rows, positions)
    # None of the transcripts may have a token.
    found = [torch.zeros(0, len(layers), teacher.width, device=teacher.lm.model.device)]
    for i in range(0, len(rows), 256):
        states = teacher.lm.layers(rows[i : i + 256], layers)  # (N, tokens read, n, E)
        found.append(states[range(len(states)), positions[i : i + 256]])  # (N, n, E)
    return list(torch.cat(found).split(sizes))


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"states_of": masked_states})


if __name__ == "__main__":
    main()
