"""Is it enough to know which token was said?

Here the only target is layer 0 of BERT, the embedding of the token and of its position:
it has nothing of the words around. --teacher-layers and --n-layers have no effect.
Compare with `multirep_kd`, and with `masked_states.py`, the reverse.

    python -m variants.multirep_kd.embeddings --method multirep_kd
"""

import random
from dataclasses import replace

from torch import nn

import multirep_kd
from multirep_kd import Config

build_all = multirep_kd.build_heads


def layer_0(strategy: str, n: int, depth: int, draw: random.Random) -> list[int]:
    """The only layer, whatever the strategy."""
    return [0]


def build_one(config: Config, sizes: list[tuple[int, int]]) -> nn.ModuleDict:
    """R_0 of each teacher; for `random` the script would build one for every layer."""
    return build_all(replace(config, teacher_layers="uniform"), sizes)


def main(argv: list[str] | None = None) -> dict:
    replacements = {"choose_layers": layer_0, "build_heads": build_one}
    return multirep_kd.main(argv, replace=replacements)


if __name__ == "__main__":
    main()
