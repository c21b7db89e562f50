"""Is token KD better if the student may be up to four frames late?

As `token_kd_delay_2.py`, with up to a whole chunk of 160 ms.

    python -m variants.streaming_aux_kd.token_kd_delay_4 --method token_kd
"""

from torch import Tensor

import streaming_aux_kd
from variants.streaming_aux_kd.token_kd_delay_2 import best_shift


def delayed_loss(
    teacher: Tensor, student: Tensor, lengths: Tensor, target_lengths: Tensor
) -> Tensor:
    """L_token (B,) with the best of five shifts."""
    return best_shift(teacher, student, lengths, target_lengths, longest=4)


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"token_loss": delayed_loss})


if __name__ == "__main__":
    main()
