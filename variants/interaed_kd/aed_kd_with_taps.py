"""Does distillation at the taps help, or do CTC losses at the taps?

`aed_kd` is conventional distillation: its decoder reads the last layer only. Here it
has the CTC losses of `interaed_kd` at the taps (w = 0.66), so that the two differ in
the decoder's losses alone.

    python -m variants.interaed_kd.aed_kd_with_taps --method aed_kd
"""

import interaed_kd

plain_weights = interaed_kd.weights_of


def with_ctc_at_the_taps(config: interaed_kd.Config) -> interaed_kd.Weights:
    """w = 0.66, as in the methods with taps."""
    return plain_weights(config)._replace(w=0.66)


def main(argv: list[str] | None = None) -> dict:
    return interaed_kd.main(argv, replace={"weights_of": with_ctc_at_the_taps})


if __name__ == "__main__":
    main()
