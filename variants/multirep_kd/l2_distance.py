"""Does the distance matter? Here it is the squared difference.

Compare with `multirep_kd`, which has the absolute difference, and with
`cosine_distance.py`.

    python -m variants.multirep_kd.l2_distance --method multirep_kd
"""

from torch import Tensor

import multirep_kd


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """(..., E), (..., E) -> (...), the mean of (student - teacher)^2 over E."""
    return (student - teacher).square().mean(-1)


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"distance": squared})


if __name__ == "__main__":
    main()
