"""Can BERT replace the transcript in the decoder's loss?

With a = 1 the decoder learns BERT's soft labels only, as the digest says in one place;
CTC still learns the transcript.

    python -m variants.interaed_kd.teacher_alone
"""

import interaed_kd

plain_weights = interaed_kd.weights_of


def teacher_alone(config: interaed_kd.Config) -> interaed_kd.Weights:
    """a = 1: mix_l is kd_l."""
    return plain_weights(config)._replace(a=1.0)


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"weights_of": teacher_alone})


if __name__ == "__main__":
    main()
