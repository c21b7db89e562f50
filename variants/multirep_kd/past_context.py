"""Is it enough if BERT reads the utterances before this one?

A recogniser that has to answer at once has no utterances after it, and neither would a
language model that is used while somebody speaks.

    python -m variants.multirep_kd.past_context --context 60
"""

import multirep_kd

take_both = multirep_kd.take_context


def take_past(past: list[int], future: list[int], budget: int) -> tuple[list[int], list[int]]:
    """The nearest `budget` tokens of the past, and none of the future."""
    return take_both(past, [], budget)


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"take_context": take_past})


if __name__ == "__main__":
    main()
