"""interaed_kd.py: BERT's soft labels, and the loss that learns from them."""

from exercises.table import Change, Exercise

SCRIPT = "interaed_kd.py"
TESTS = "tests/test_interaed_kd.py"

FAILS_WITHOUT_A_LOSS = (
    f"{TESTS}::test_a_method_with_a_teacher_learns_from_it",
    f"{TESTS}::test_a_taps_loss_teaches_the_layers_at_and_below_it",
    f"{TESTS}::test_alone_is_as_in_a_padded_batch",
    f"{TESTS}::test_loss",
    f"{TESTS}::test_mix",
    f"{TESTS}::test_one_update",
    f"{TESTS}::test_the_decoder_runs_once_on_what_the_method_reads",
    f"{TESTS}::test_the_equation_map_names_what_exists",  # it names a hidden test
    "tests/test_variants.py::test_a_variant_runs_and_differs",
    "tests/test_variants.py::test_a_variant_that_changes_nothing_is_said",
    "tests/system/test_process.py",  # these train it
    "tests/system/test_readers.py::test_what_travels_holds_no_model",
    "tests/system/test_report.py",
    "tests/system/test_runs.py",
)

EXERCISES = [
    Exercise(
        id="interaed-1",
        title="The teacher's soft label",
        minutes=35,
        functions={"soften": SCRIPT, "SharedPieces.top_k": "common/bert.py"},
        tests={"test_soften": 2, "test_top_k": 2, "test_top_k_of_lengths": 2},
        mutants=(
            Change(
                "top = z[:, ids].float().topk(k)",
                "top = z[:, ids].float().softmax(-1).topk(k)",
                "The softmax came before the top K: z are logits, and `soften` makes"
                " probabilities of the K that were kept.",
            ),
            Change(
                "(logits / tau)",
                "(logits * tau)",
                "The logits were multiplied by tau: a high temperature must flatten.",
            ),
            Change(
                "            top = z[:, ids].float().topk(k)  # (n, K) of (n, M)\n"
                "            labels[part] = self.labels[top.indices.cpu()]\n",
                "            top = z.float().topk(k)\n"
                "            labels[part] = top.indices.cpu()\n",
                "All of BERT's pieces were kept, special tokens too, as BERT's ids: only the"
                " shared pieces count, as the student's labels.",
            ),
        ),
        variations=(
            (
                Change(
                    "q_i = softmax(z_i / tau): (U, K) -> (U, K).",
                    "q_i = softmax(z_i / sqrt(tau)): (U, K) -> (U, K).",
                    "The temperature is the root of tau.",
                ),
                Change("(logits / tau)", "(logits / tau**0.5)", ""),
            ),
        ),
        hint="`self.ids` are BERT's ids of the shared pieces, `self.labels` the student's. The"
        " teacher's `logits_at(rows, positions)` takes rows of one length, see `by_length`."
        " A run keeps BERT's answers in data/soft-labels: remove it after a change.",
        question="Does distillation work because of what the teacher knows? What would a teacher"
        " show for which all K pieces are equally likely?",
        docstrings={"soften": "The soft labels q_i from z_i, see Equations: (U, K) -> (U, K)."},
        hidden=(f"{TESTS}::test_q", f"{TESTS}::test_z"),
    ),
    Exercise(
        id="interaed-2",
        title="Cross-entropy to a soft label, smoothed",
        minutes=30,
        functions={"smoothed_cross_entropy": SCRIPT},
        tests={"test_h_of_soft_labels": 2, "test_h_of_padding": 2, "test_h_gradient": 2},
        mutants=(
            Change(
                "* mask).sum()",
                "* mask).sum() / mask.sum()",
                "This is the mean over tokens; the loss is a sum.",
            ),
            Change(
                "even = log_probs.mean(-1)",
                "even = log_probs.gather(-1, q.labels).mean(-1)",
                "This is e/K over the pieces of the soft label; e/V is spread over the whole"
                " vocabulary.",
            ),
            Change(
                "* mask).sum()",
                "* ~mask).sum()",
                "The mask is the other way round: it is True for real tokens.",
            ),
            Change(
                "* mask).sum()",
                ").sum()",
                "Padding was counted.",
            ),
            Change(
                "picked = (q.probs * log_probs.gather(-1, q.labels)).sum(-1)",
                "dense = torch.zeros_like(log_probs).scatter(-1, q.labels, q.probs)\n"
                "    picked = (dense * log_probs).sum(-1)",
                "A label may stand there twice: `scatter` overwrites its probability.",
            ),
        ),
        variations=(
            (
                Change(
                    "[(1-e) q_i(v) + e/V] log p(v | y_<i, x), over all tokens of",
                    "[q_i(v) + e/V] log p(v | y_<i, x), over all tokens of",
                    "The soft label keeps its whole weight, and smoothing is added to it.",
                ),
                Change("(1 - epsilon) * picked", "picked", ""),
            ),
        ),
        hint="Only K of the V pieces have a probability: `gather` finds theirs.",
        question="What is the smallest value of this loss in your class, and when is it reached?",
        hidden=(f"{TESTS}::test_h", f"{TESTS}::test_att_kd"),
        fails=FAILS_WITHOUT_A_LOSS,
    ),
]
