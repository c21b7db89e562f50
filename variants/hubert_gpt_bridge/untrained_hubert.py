"""What is HuBERT's pretraining worth?

Here it begins with random weights. For the method `gpt` train the first stage by this
variant, too, and name it.

    python -m variants.hubert_gpt_bridge.untrained_hubert --method ctc --out runs/ctc
    python -m variants.hubert_gpt_bridge.untrained_hubert --ctc-run runs/ctc
"""

from transformers import HubertModel

import hubert_gpt_bridge
from common.running.process import Place, reseed
from hubert_gpt_bridge import Config

load_pretrained = hubert_gpt_bridge.load_hubert


def load_untrained(config: Config, place: Place) -> HubertModel:
    """A HuBERT of the same sizes with weights drawn from the seed."""
    encoder = load_pretrained(config, place)
    reseed(config.seed, 3)
    return HubertModel(encoder.config)


def main(argv: list[str] | None = None) -> dict:
    return hubert_gpt_bridge.main(argv, replace={"load_hubert": load_untrained})


if __name__ == "__main__":
    main()
