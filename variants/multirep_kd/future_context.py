"""Is it enough if BERT reads the utterances after this one?

They answer, and so tell what was said. Compare with `past_context.py`, and with
`multirep_kd --context 60`, where BERT reads both sides.

    python -m variants.multirep_kd.future_context --method multirep_kd --context 60
"""

import multirep_kd

take_both = multirep_kd.take_context


def take_future(past: list[int], future: list[int], budget: int) -> tuple[list[int], list[int]]:
    """The nearest `budget` tokens of the future, and none of the past."""
    return take_both([], future, budget)


def main(argv: list[str] | None = None) -> dict:
    return multirep_kd.main(argv, replace={"take_context": take_future})


if __name__ == "__main__":
    main()
