"""Week 0: CTC, the transducer and the word error rate by hand."""

from exercises.table import Change, Exercise

FILE = "exercises/week0.py"
LIBRARIES = (
    "torch.ctc_loss",
    "torch.nn.functional.ctc_loss",
    "torchaudio.functional.forced_align",
    "torchaudio.functional.rnnt_loss",
    "jiwer.process_words",
    "jiwer.wer",
    "common.rnnt.lattice",
)

EXERCISES = [
    Exercise(
        id="week0-1",
        title="CTC's alpha by hand",
        minutes=40,
        functions={"ctc_alpha": FILE},
        tests={"test_ctc_likelihood": 2, "test_ctc_equal_labels": 2, "test_ctc_states": 2},
        mutants=(
            Change(
                "if s >= 2 and label != 0 and label != states[s - 2]:",
                "if s >= 2 and label != 0:",
                "A blank was left out between two equal labels: they would be merged to one.",
            ),
            Change(
                "if s >= 2 and label != 0 and label != states[s - 2]:",
                "if s >= 2 and (label == 0 or label != states[s - 2]):",
                "A label was left out: from a blank no path goes to the next blank directly.",
            ),
            Change(
                "        alpha[0, 1] = log_probs[0, target[0]]\n",
                "        pass\n",
                "A path may begin with the first label, not only with a blank.",
            ),
        ),
        hint="Draw the states of the labels 1 1 2 first, and all paths over four frames.",
        question="Is the blank silence? How likely is the most probable path of a text?",
        blocked=LIBRARIES,
    ),
    Exercise(
        id="week0-2",
        title="The transducer's alpha by hand",
        minutes=30,
        functions={"transducer_alpha": FILE},
        tests={"test_transducer_likelihood": 3, "test_transducer_nodes": 3},
        mutants=(
            Change(
                "alpha[t - 1, u] + blank[t - 1, u]",
                "alpha[t - 1, u] + blank[t, u]",
                "The blank was taken at the node that it leads to: it is emitted at (t-1, u).",
            ),
            Change(
                "alpha[t, u - 1] + label[t, u - 1]",
                "alpha[t, u - 1] + label[t, u]",
                "The label was taken at the node that it leads to: it is emitted at (t, u-1).",
            ),
            Change(
                "alpha[t, u - 1] + label[t, u - 1]",
                "(alpha[t - 1, u - 1] if t else alpha[t, u]) + label[t, u - 1]",
                "A label went on to the next frame: in a transducer it stays at its frame.",
            ),
        ),
        hint="Two ways lead to a node. What does each of them emit, and where?",
        question="Does a transducer emit one label for each frame? Must T be at least U?",
        blocked=LIBRARIES,
    ),
    Exercise(
        id="week0-3",
        title="The word error rate",
        minutes=30,
        functions={"word_error_rate": FILE, "edits": FILE},
        tests={"test_wer_of_a_set": 2, "test_wer_of_edits": 2, "test_wer_above_100": 2},
        mutants=(
            Change(
                "    return 100 * errors / words\n",
                "    rates = [\n"
                "        edits(r.split(), h.split()) / len(r.split())\n"
                "        for r, h in zip(references, hypotheses, strict=True)\n"
                "    ]\n"
                "    return 100 * sum(rates) / len(rates)\n",
                "This is the mean over sentences: errors and words are summed over the set.",
            ),
            Change(
                "        words += len(reference.split())\n",
                "        words += len(hypothesis.split())\n",
                "Errors were divided by the words of the hypotheses, not of the references.",
            ),
            Change(
                "above[j - 1] + (word != written)",
                "above[j - 1] + 2 * (word != written)",
                "A substitution was counted as two errors: a deletion and an insertion.",
            ),
        ),
        hint="Fill a table: the fewest edits from the first i to the first j words.",
        question="Can it be above 100 per cent? Does a lower loss mean a lower WER?",
        blocked=LIBRARIES,
    ),
]
