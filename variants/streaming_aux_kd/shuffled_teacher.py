"""Does it matter what the teacher has read?

Here it reads another utterance of the batch than the student. What remains of the gain
is regularisation.

    python -m variants.streaming_aux_kd.shuffled_teacher
"""

import torch
from torch import Tensor

import streaming_aux_kd
from common.conformer import Encoded
from streaming_aux_kd import SUBSAMPLING, Recogniser, conformer


@torch.no_grad()
def ask_about_another(
    teacher: Recogniser, mel: Tensor, frames: Tensor, layers: list[int]
) -> Encoded:
    """Its outputs for the utterance before in the batch; the shorter length counts."""
    full = teacher.encoder(mel.roll(1, 0), frames.roll(1, 0), layers)
    own = conformer.subsampled(frames, SUBSAMPLING, causal=True)
    lengths = torch.minimum(own, full.lengths)
    if len(mel) == 1:  # there is no other one
        lengths = lengths * 0
    return full._replace(lengths=lengths)


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"ask_teacher": ask_about_another})


if __name__ == "__main__":
    main()
