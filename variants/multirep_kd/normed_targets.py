"""Do a few huge dimensions decide what is learned?

The middle layers of BERT have dimensions that are much larger than all others. Here its
states pass a LayerNorm without parameters before they become targets.

    python -m variants.multirep_kd.normed_targets
"""

from torch import Tensor
from torch.nn.functional import layer_norm

import multirep_kd
from multirep_kd import Teacher

targets_as_they_are = multirep_kd.targets_of


def normed(teacher: Teacher, names: list[str], epoch: int) -> list[Tensor]:
    """e_k for each layer (B, I, E), with mean 0 and variance 1 over dimensions."""
    targets = targets_as_they_are(teacher, names, epoch)
    return [layer_norm(e, e.shape[-1:]) for e in targets]


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"targets_of": normed})


if __name__ == "__main__":
    main()
