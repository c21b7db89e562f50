"""Does the distance matter? Here only directions are compared, not lengths.

Compare with `multirep_kd`, which has the absolute difference, and with
`l2_distance.py`.

    python -m variants.multirep_kd.cosine_distance --method multirep_kd
"""

from torch import Tensor
from torch.nn.functional import cosine_similarity

import multirep_kd


def by_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """(..., E), (..., E) -> (...), 1 - cos(student, teacher)."""
    return 1 - cosine_similarity(student, teacher, -1)


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"distance": by_cosine})


if __name__ == "__main__":
    main()
