"""Are new words learnt in GPT's layers, or in the vectors of its pieces?

Here the embeddings and the output matrix stay as they are, and the layers learn whole.

    python -m variants.hubert_gpt_bridge.frozen_pieces --method gpt --data demo-jargon
        --init RUN --lr-hubert 0 --lr-bridge 0
"""

import hubert_gpt_bridge
from common.errors import UserError
from common.running.corpora import Utterance
from common.running.process import Place
from hubert_gpt_bridge import Config, SpeechModel, has_gpt, is_gpt_frozen

build_as_it_is = hubert_gpt_bridge.build


def build(config: Config, utterances: list[Utterance], place: Place) -> SpeechModel:
    """The model of the script; GPT's first and last matrix do not learn."""
    if not has_gpt(config) or is_gpt_frozen(config):
        raise UserError("frozen_pieces is about a GPT that learns: give --method gpt, no adapters.")
    recogniser = build_as_it_is(config, utterances, place)
    recogniser.llm.get_input_embeddings().requires_grad_(False)
    recogniser.llm.get_output_embeddings().requires_grad_(False)
    return recogniser


def main(argv: list[str] | None = None) -> dict:
    return hubert_gpt_bridge.main(argv, replace={"build": build})


if __name__ == "__main__":
    main()
