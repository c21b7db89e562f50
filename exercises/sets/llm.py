"""llm_prompt_asr.py: speech becomes the prompt of a language model."""

from exercises.table import Change, Exercise

EXERCISES = [
    Exercise(
        id="llm-1",
        title="Stacking frames",
        minutes=25,
        functions={"stack": "llm_prompt_asr.py"},
        tests={"test_stack": 2, "test_stack_padding": 2, "test_stack_gradient": 1},
        mutants=(
            Change(
                "    h = F.pad(h, (0, 0, 0, -h.shape[1] % n))\n"
                "    return h.unflatten(1, (-1, n)).flatten(2), (lengths + n - 1) // n\n",
                "    h = h[:, : h.shape[1] // n * n]\n"
                "    return h.unflatten(1, (-1, n)).flatten(2), lengths // n\n",
                "The tail was dropped: the last frames are filled up with zeros.",
            ),
            Change(
                "h.unflatten(1, (-1, n)).flatten(2)",
                "h.unflatten(1, (-1, n)).transpose(2, 3).flatten(2)",
                "The frames are interleaved: they stand side by side, one after another.",
            ),
            Change(
                "    h = h * conformer.length_mask(lengths, h.shape[1])[..., None]\n",
                "",
                "Behind an utterance's end stand no zeros, but what the encoder left there.",
            ),
        ),
        variations=(
            (
                Change(
                    "n frames side by side (B,",
                    "n frames side by side, the last of them first (B,",
                    "The last of n frames stands first: s_0 = [h_(n-1) ... h_0].",
                ),
                Change(
                    "h.unflatten(1, (-1, n)).flatten(2)",
                    "h.unflatten(1, (-1, n)).flip(2).flatten(2)",
                    "",
                ),
            ),
        ),
        hint="T need not be divisible by n. What belongs behind an utterance's end?",
        question="How many vectors does a language model get for a second of speech?",
        hidden=("tests/test_llm_prompt_asr.py::test_stack",),
    ),
    Exercise(
        id="llm-2",
        title="The sequence that the language model reads",
        minutes=50,
        functions={"build_sequences": "common/prompting.py"},
        tests={"test_training": 3, "test_decoding": 2, "test_shown": 1},
        mutants=(
            Change(
                "    return pad(rows",
                "    if texts is not None:\n"
                "        for row, length in zip(targets, lengths, strict=True):\n"
                "            row[: len(frame.before) + length] = frame.end\n"
                "    return pad(rows",
                "The loss is on the speech: only the text and its end have targets.",
            ),
            Change(
                "        without_target = len(row) - len(text) - 1\n"
                "        target = [NONE] * without_target + [*text, frame.end]\n",
                "        without_target = len(row) - len(text) - 1\n"
                "        target = [NONE] * without_target + [*text, NONE]\n",
                "The end is missing: the model would never learn to stop.",
            ),
            Change(
                "[*frame.after, *read]",
                "[*frame.after, *frame.after, *read]",
                "The symbols of `after` stand there twice.",
            ),
        ),
        variations=(
            (
                Change(
                    "A row per utterance: frame.before, its speech, frame.after, its text.",
                    "A row per utterance: frame.before, its speech, frame.after, its text; and\n"
                    "    targets for frame.after and the text.",
                    "The symbols of `after` are learnt too: they have targets, as the text has.",
                ),
                Change(
                    "without_target = len(row) - len(text) - 1",
                    "without_target = len(row) - len(text) - len(frame.after) - 1",
                    "",
                ),
                Change("[*text, frame.end]", "[*frame.after, *text, frame.end]", ""),
            ),
        ),
        hint="The top of the file has an example of integers. `embed` and `pad` are there.",
        question="Why is it harmless, or not, that the end and the padding are the same id?",
        hidden=(
            "tests/test_prompting.py::test_the_sequence_of_training",
            "tests/test_prompting.py::test_the_sequence_of_decoding",
            "tests/test_prompting.py::"
            "test_the_end_is_learnt_where_it_is_also_padding_and_where_the_text_is_empty",
            "tests/test_prompting.py::test_masked_pieces_are_hidden_from_the_inputs_only",
            "tests/test_llm_prompt_asr.py::test_prompt",
        ),
    ),
]
