"""One decoder for all layers, or one for each?

An abstract of the predecessor says "the decoder", a summary of this paper "decoders". A
shared decoder has to read all layers alike; separate ones may read each in its own way.

    python -m variants.interaed_kd.separate_decoders
"""

from torch import Tensor, nn

import interaed_kd


class SeparateDecoders(nn.Module):
    """An AttentionDecoder for each tap, and one for the last layer."""

    def __init__(self, config: interaed_kd.Config, vocabulary: int):
        super().__init__()
        count = len(interaed_kd.taps_of(config)) + 1
        decoders = [interaed_kd.AttentionDecoder(config, vocabulary) for _ in range(count)]
        self.decoders = nn.ModuleList(decoders)

    def forward(self, states: list[Tensor], lengths: Tensor, targets: Tensor) -> list[Tensor]:
        """As AttentionDecoder: states (B, T, D) -> log-probabilities (B, U+1, V), one
        each."""
        found = []
        for decoder, state in zip(self.decoders, states, strict=True):
            found += decoder([state], lengths, targets)
        return found


def build_decoders(config: interaed_kd.Config, vocabulary: int) -> nn.Module:
    return SeparateDecoders(config, vocabulary)


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"build_decoder": build_decoders})


if __name__ == "__main__":
    main()
