"""How much of the gain is BERT's knowledge?

Here BERT has random weights. Its states still tell the tokens apart, so that what
remains of the gain needs no knowledge of the language.

    python -m variants.multirep_kd.untrained_teacher --method multirep_kd
"""

import multirep_kd
from common.bert import MaskedLM
from common.running import pretrained
from common.running.process import Place
from multirep_kd import Config


def load_untrained(name: str, config: Config, place: Place) -> MaskedLM:
    """A BERT of the same shape with weights drawn from the seed."""
    return pretrained.load_masked_lm(name, "--teachers", config.root, place.device, config.seed)


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"load_teacher": load_untrained})


if __name__ == "__main__":
    main()
