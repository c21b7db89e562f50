"""What is GPT's pretraining worth?

Here it begins with random weights, all of which are trained.

    python -m variants.hubert_gpt_bridge.untrained_gpt --method gpt
"""

from transformers import GPTNeoXForCausalLM

import hubert_gpt_bridge
from common.errors import UserError
from common.running.process import Place, reseed
from hubert_gpt_bridge import Config, is_gpt_frozen

load_pretrained = hubert_gpt_bridge.load_gpt


def load_untrained(config: Config, place: Place) -> GPTNeoXForCausalLM:
    """A GPT of the same sizes with weights drawn from the seed."""
    if is_gpt_frozen(config):
        raise UserError("an untrained GPT has to learn: leave --lora-rank out, or give --lr-llm.")
    llm = load_pretrained(config, place)
    reseed(config.seed, 3)
    return GPTNeoXForCausalLM(llm.config)


def main(argv: list[str] | None = None) -> dict:
    return hubert_gpt_bridge.main(argv, replace={"load_gpt": load_untrained})


if __name__ == "__main__":
    main()
