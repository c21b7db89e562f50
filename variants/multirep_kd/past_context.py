"""Is it enough if BERT reads the utterances before this one?

While somebody speaks there are no utterances after this one, so that a language model
that reads along has the past only. The digest names this as a next check.

    python -m variants.multirep_kd.past_context --method multirep_kd --context 60
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
