"""Do a few huge dimensions decide what is learned?

The middle layers of BERT have dimensions that are much larger than all others. Here
BERT's states pass a LayerNorm without parameters before the transducer imitates them.

    python -m variants.multirep_kd.normed_states --method multirep_kd
"""

from torch import Tensor
from torch.nn.functional import layer_norm

import multirep_kd
from multirep_kd import Teacher

states_as_they_are = multirep_kd.padded_states


def normed(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """e_k for each layer (B, I, E), with mean 0 and variance 1 over dimensions."""
    states = states_as_they_are(teacher, names, epoch)
    return [layer_norm(e, e.shape[-1:]) for e in states]


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"padded_states": normed})


if __name__ == "__main__":
    main()
