"""What does the LSTM learn from frames that the student has read anyway?

With chunks of four frames and n = 2, half of its targets lie inside the chunk of frame
t. Here only these count. Compare with `apc_beyond_the_chunk.py`.

    python -m variants.streaming_aux_kd.apc_inside_the_chunk
"""

import torch
from torch import Tensor

import streaming_aux_kd
from streaming_aux_kd import feature_distance

CHUNK = 4  # frames; of --chunk-ms 160


def distances(h: Tensor, r: Tensor, mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """d(h_{t+n}, r_t) (B, T-n), 0 for padding; inside (T-n,), True where both frames
    are in one chunk."""
    T = h.shape[1]
    n = min(steps, T)
    distance = feature_distance(h[:, n:], r[:, : T - n]) * mask[:, n:]
    chunk = torch.arange(T, device=h.device) // CHUNK
    return distance, chunk[n:] == chunk[: T - n]


def loss_inside(h: Tensor, r: Tensor, mask: Tensor, steps: int) -> Tensor:
    """The part of L_apc whose targets the student has read."""
    distance, inside = distances(h, r, mask, steps)
    return distance[:, inside].sum()


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"future_loss": loss_inside})


if __name__ == "__main__":
    main()
