"""How much of the gain is the teacher's knowledge?

Here the teacher's encoder has random weights. What remains of the gain is
regularisation.

    python -m variants.streaming_aux_kd.untrained_teacher
"""

from torch import nn

import streaming_aux_kd
from common.running.corpora import Utterance
from common.running.process import Place, reseed
from streaming_aux_kd import Config, Recogniser

find_trained = streaming_aux_kd.find_teacher


def find_untrained(config: Config, utterances: list[Utterance], place: Place) -> Recogniser:
    """The teacher, with new weights in its encoder."""
    teacher = find_trained(config, utterances, place)
    reseed(config.seed, 2)
    teacher.encoder.apply(forget)
    return teacher


def forget(part: nn.Module) -> None:
    """Gives a layer the weights of a new one."""
    if hasattr(part, "reset_parameters"):
        part.reset_parameters()


def main(argv: list[str] | None = None) -> dict:
    return streaming_aux_kd.main(argv, replace={"find_teacher": find_untrained})


if __name__ == "__main__":
    main()
