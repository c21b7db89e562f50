"""Bugs to find from curves and figures."""

from exercises.table import Break, Bug, Change

STREAMING_TESTS = (
    "tests/test_conformer.py",
    "tests/test_streaming.py",
    "tests/test_streaming_aux_kd.py::test_who_hears_the_future",
)
TEACHER_TESTS = ("tests/test_interaed_kd.py::test_z", "tests/test_interaed_kd.py::test_loss")

EXERCISES = [
    Break(
        id="break-1",
        title="A stream that differs from the file",
        minutes=30,
        bugs=(
            Bug(
                "common/conformer.py",
                "Convolution.forward",
                Change(
                    "F.pad(x, (0, 0, self.kernel - 1, 0))  # zeros before the beginning",
                    "F.pad(x, (0, 0, self.kernel // 2, self.kernel // 2))",
                    "In the dependency figure of a streaming student, chunks depend on audio that"
                    " comes later. Its words from `transcribe.py --stream` differ from those of the"
                    " file.",
                ),
                STREAMING_TESTS,
            ),
            Bug(
                "common/conformer_stream.py",
                "LayerPast.extend_tail",
                Change(
                    "extended, self.tail = extend(self.tail, new, self.newest_tail)",
                    "extended, _ = extend(self.tail, new, self.newest_tail)",
                    "The dependency figure of a streaming student is as it should be. Its words"
                    " from `transcribe.py --stream` differ from those of the file, from the second"
                    " chunk on.",
                ),
                STREAMING_TESTS,
            ),
            Bug(
                "common/features.py",
                "LogMel.forward",
                Change(
                    "features = (self.log_mel(waves) - self.mean) / self.std",
                    "features = self.log_mel(waves)\n"
                    "        features = (features - features.mean(1, keepdim=True)) / self.std",
                    "The dependency figure of a streaming student is as it should be. Its words"
                    " from `transcribe.py --stream` differ from those of the file, from the first"
                    " chunk on, and an utterance's words differ alone and in a batch.",
                ),
                (*STREAMING_TESTS, "tests/test_features.py"),
            ),
        ),
        hint="Compare what is computed of a whole utterance with what is computed of its parts.",
        question="Which parts of a block look at other frames, and in which direction?",
    ),
    Break(
        id="break-2",
        title="A teacher that teaches nothing",
        minutes=45,
        bugs=(
            Bug(
                "interaed_kd.py",
                "label_tokens",
                Change(
                    "            row[position] = pieces.teacher.mask\n",
                    "",
                    "In the demo, the log says that BERT's first guess is right at 89 % of the"
                    " tokens. It should be 69 %.",
                ),
                TEACHER_TESTS,
            ),
            Bug(
                "interaed_kd.py",
                "label_tokens",
                Change(
                    "position = question.first + i",
                    "position = question.first + i - 1",
                    "In the demo, the log says that BERT's first guess is right at 1 % of the"
                    " tokens. It should be 69 %.",
                ),
                TEACHER_TESTS,
            ),
            Bug(
                "interaed_kd.py",
                "compute_losses",
                Change(
                    "return row.lam * ctc_part + (1 - row.lam) * weigh(mixed, row.u), parts",
                    "return (1 - row.lam) * ctc_part + row.lam * weigh(mixed, row.u), parts",
                    "The larger --ctc-share is, the slower `ctc` falls in the log, and the faster"
                    " `att`.",
                ),
                TEACHER_TESTS,
            ),
        ),
        hint="Which function computes the number that is wrong? Give it an input whose answer you"
        " know. BERT's answers are kept in data/soft-labels: remove it after a change.",
        question="What would the curve look like if the teacher were right, but useless?",
    ),
]
