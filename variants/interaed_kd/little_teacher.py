"""How much of the teacher is needed?

With a = 0.1 nine tenths of the decoder's loss come from the transcript (0.5 otherwise).

    python -m variants.interaed_kd.little_teacher
"""

import interaed_kd

plain_weights = interaed_kd.weights_of


def little_teacher(config: interaed_kd.Config) -> interaed_kd.Weights:
    """a = 0.1: mix_l is nearly att_l."""
    return plain_weights(config)._replace(a=0.1)


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"weights_of": little_teacher})


if __name__ == "__main__":
    main()
