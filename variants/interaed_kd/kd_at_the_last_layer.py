"""Where should BERT teach? Here at the last layer only.

The decoder reads the taps too, but learns hard labels there. Compare with
`kd_at_the_taps.py`, and with `interaed_kd`, where BERT teaches at all layers.

    python -m variants.interaed_kd.kd_at_the_last_layer
"""

from torch import Tensor

import interaed_kd


def mix_the_last(att_losses: list[Tensor], kd_losses: list[Tensor], a: float) -> list[Tensor]:
    """att_l at the taps; (1-a) att + a kd at the last layer."""
    last = (1 - a) * att_losses[-1] + a * kd_losses[-1]
    return [*att_losses[:-1], last]


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"mix_losses": mix_the_last})


if __name__ == "__main__":
    main()
