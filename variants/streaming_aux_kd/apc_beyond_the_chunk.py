"""What does the LSTM learn from frames that the student has not read?

With chunks of four frames and n = 2, half of its targets lie beyond the chunk of frame
t. Here only these count. Compare with `apc_inside_the_chunk.py`.

    python -m variants.streaming_aux_kd.apc_beyond_the_chunk
"""

from torch import Tensor

import streaming_aux_kd
from variants.streaming_aux_kd.apc_inside_the_chunk import distances


def loss_beyond(h: Tensor, r: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The part of L_apc whose targets are new to the student."""
    distance, inside = distances(h, r, mask, steps)
    return distance[:, ~inside].sum()


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"future_loss": loss_beyond})


if __name__ == "__main__":
    main()
