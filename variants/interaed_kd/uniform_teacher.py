"""Is it BERT's knowledge that helps, or only a softer target?

The student learns the same K pieces per token as from BERT, but all K have the same
probability: the pieces still come from BERT, their probabilities do not. If this helps
as much as BERT, the probabilities teach nothing.

    python -m variants.interaed_kd.uniform_teacher
"""

from torch import Tensor

import interaed_kd


def uniform(logits: Tensor, tau: float) -> Tensor:
    """(U, K) -> (U, K): 1/K for every piece; a hard label, with a single piece, stays
    hard."""
    allowed = logits.isfinite().float()  # a hard label has one finite logit
    return allowed / allowed.sum(-1, keepdim=True)


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"soften": uniform})


if __name__ == "__main__":
    main()
