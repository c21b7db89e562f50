"""Where should BERT teach? Here at the taps only.

At the last layer the decoder learns hard labels. Compare with
`kd_at_the_last_layer.py`, and with `interaed_kd`, where BERT teaches at all layers.

    python -m variants.interaed_kd.kd_at_the_taps
"""

from torch import Tensor

import interaed_kd

mix_all = interaed_kd.mix_losses


def mix_the_taps(att_losses: list[Tensor], kd_losses: list[Tensor], a: float) -> list[Tensor]:
    """(1-a) att_l + a kd_l at the taps; att at the last layer."""
    taps = mix_all(att_losses[:-1], kd_losses[:-1], a)
    return [*taps, att_losses[-1]]


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"mix_losses": mix_the_taps})


if __name__ == "__main__":
    main()
