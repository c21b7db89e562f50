"""Do adapters learn the words of a domain, or how its speech sounds?

Here every text is learnt behind the audio of another utterance of its batch, so that
only the text can teach anything. A batch of one utterance teaches as ever.

    python -m variants.hubert_gpt_bridge.other_audio --method gpt --data demo-jargon
        --init RUN --lora-rank 8 --lr-hubert 0 --lr-bridge 0
"""

from torch import Tensor

import hubert_gpt_bridge
from common.running.batches import Batch
from common.running.process import Place
from hubert_gpt_bridge import Config, SpeechModel

losses_as_they_are = hubert_gpt_bridge.compute_losses


def losses_behind_others(
    recogniser: SpeechModel, batch: Batch, config: Config, place: Place
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of the script, with the audio of the neighbour in the batch."""
    moved = batch._replace(waves=batch.waves.roll(1, 0), samples=batch.samples.roll(1, 0))
    return losses_as_they_are(recogniser, moved, config, place)


def main(argv: list[str] | None = None) -> dict:
    return hubert_gpt_bridge.main(argv, replace={"compute_losses": losses_behind_others})


if __name__ == "__main__":
    main()
