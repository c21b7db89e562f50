"""multirep_kd.py: when a transducer emits its labels, and what it knows then."""

from exercises.table import Change, Exercise

LATTICE = """Sums over all alignments, in float64: see the top of this file.

    blank, label (B, T, U+1) log-probabilities; lengths, target_lengths (B,). What stands
    in `label` at u = U, and anything behind an utterance's lengths, means nothing.
    """

EXERCISES = [
    Exercise(
        id="multirep-1",
        title="The emission posterior of a transducer",
        minutes=75,
        functions={"lattice": "common/rnnt.py"},
        tests={"test_loss": 2, "test_gamma": 2, "test_blanks": 2},
        mutants=(
            Change(
                "beta[end] = C[end]",
                "beta[end] = C[target_lengths, end[1], lengths - 1]",
                "The last blank, at (T-1, U), is missing: only it leads to the end.",
            ),
            Change(
                "return Lattice(-log_p, without_subnormals(blanks), without_subnormals(gamma))",
                "return Lattice(\n"
                "        -log_p,\n"
                "        without_subnormals(blanks),\n"
                "        without_subnormals(gamma).transpose(1, 2),\n"
                "    )",
                "t and u are swapped: the shape is (B, T, U+1).",
            ),
            Change(
                "return Lattice(-log_p, without_subnormals(blanks), without_subnormals(gamma))",
                "return Lattice(-log_p, without_subnormals(gamma), without_subnormals(blanks))",
                "This is the blank's mass; gamma is that of the label.",
            ),
        ),
        variations=(
            (
                Change(
                    "label = label.double().masked_fill(",
                    "label = label.double().mul(0.5).masked_fill(",
                    "Labels count half: in all sums label / 2 stands for label.",
                ),
            ),
        ),
        hint="Week 0's alpha, and beta in the same way from the end. Loops are fine.",
        question="Is gamma, summed over u, a probability too? Does T have to be at least U?",
        docstrings={"lattice": LATTICE},
        hidden=(
            "tests/test_rnnt.py::test_loss_and_gradient_against_all_alignments",
            "tests/test_rnnt.py::test_gamma_is_the_emission_posterior",
            "tests/test_multirep_kd.py::test_rnnt_l",
            "tests/test_multirep_kd.py::test_gamma",
        ),
        blocked=("torchaudio.functional.rnnt_loss",),
    ),
    Exercise(
        id="multirep-2",
        title="What both networks know at a label",
        minutes=25,
        functions={"label_features": "multirep_kd.py"},
        tests={"test_c": 2, "test_c_of_sharp_gamma": 1, "test_c_gradient": 2},
        mutants=(
            Change("g[:, :-1]", "g[:, 1:]", "This is g_(u+1), which knows y_(u+1) already."),
            Change(
                "@ h  # (B",
                "@ h / h.shape[1]  # (B",
                "This is a mean over t; gamma sums to 1 over t, so its sum is wanted.",
            ),
            Change(
                "gamma.transpose(1, 2).to(h.dtype) @ h",
                "h[torch.arange(len(h))[:, None], gamma.argmax(1)]",
                "Only the most probable frame was taken; gamma weighs all of them.",
            ),
        ),
        variations=(
            (
                Change(
                    "c_u = [sum_t gamma(t, u) h_t ; g_u]",
                    "c_u = [g_u ; sum_t gamma(t, u) h_t]",
                    "The predictor's state stands first: c_u = [g_u ; sum_t gamma(t, u) h_t].",
                ),
                Change("[acoustic, text_features]", "[text_features, acoustic]", ""),
            ),
        ),
        hint="Which axis of gamma is summed over?",
        question="Is a transducer's predictor a full language model?",
        hidden=("tests/test_multirep_kd.py::test_c",),
    ),
]
