"""Is it enough to know which token it was?

Here the transducer imitates layer 0 of BERT, the embedding of the token and of its
position: no layer has mixed in anything of the words around.

    python -m variants.multirep_kd.token_embeddings --method multirep_kd
"""

import random

from torch import nn

import multirep_kd
from multirep_kd import Config


def embedding_layer(strategy: str, n: int, depth: int, draw: random.Random) -> list[int]:
    """Layer 0, whatever --teacher-layers and --n-layers say."""
    return [0]


def build_heads(config: Config, sizes: list[tuple[int, int]]) -> nn.ModuleDict:
    """An R for layer 0 of each teacher. sizes: depth and width of each."""
    student_dim = config.encoder.dim + config.transducer.predictor_dim  # D+P
    heads = nn.ModuleDict()
    for number, (_, width) in enumerate(sizes):
        heads[f"{number}-0"] = multirep_kd.RegressionHead(student_dim, config.head_dim, width)
    return heads


def main(argv: list[str] | None = None) -> dict:
    replacements = {"choose_layers": embedding_layer, "build_heads": build_heads}
    return multirep_kd.main(argv, replace=replacements)


if __name__ == "__main__":
    main()
