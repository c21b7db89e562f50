"""hubert_gpt_bridge.py: speech is compressed by the path of CTC."""

from exercises.table import Change, Exercise

SCRIPT = "hubert_gpt_bridge.py"
TESTS = "tests/test_hubert_gpt_bridge.py"

EXERCISES = [
    Exercise(
        id="hubert-1",
        title="Which frames go into which vector",
        minutes=40,
        functions={"vectors_of": SCRIPT},
        tests={"test_path": 2, "test_all_blank": 2, "test_random_paths": 2},
        mutants=(
            Change(
                "    counted = kept if mode",
                "    if mode != 'average':\n"
                "        labels = path[path != ctc.BLANK]\n"
                "        changes = labels != torch.cat([labels[:1] - 1, labels[:-1]])\n"
                "        begins = begins.masked_scatter(path != ctc.BLANK, changes)\n"
                "    counted = kept if mode",
                "Equal labels were merged across a blank: a blank between them makes two.",
            ),
            Change(
                "    if not kept.any():\n"
                "        kept = torch.zeros_like(kept)\n"
                "        kept[log_probs[:, ctc.BLANK].argmin()] = True\n"
                "        return torch.where(kept, 0, -1)\n",
                "",
                "Nothing was kept of a path of blanks: its least blank frame has to be.",
            ),
            Change(
                "    counted = kept if mode",
                '    if mode == "average":\n        begins = begins & (path != ctc.BLANK)\n'
                "    counted = kept if mode",
                "Blanks break no run here: in the mode average a run of blanks is a vector.",
            ),
        ),
        variations=(
            (
                Change(
                    "-1: into none (choice: path).",
                    "-1: into none. Of a path of blanks the last frame stays.",
                    "Of a path of blanks the last frame stays, not the least blank one.",
                ),
                Change("kept[log_probs[:, ctc.BLANK].argmin()] = True", "kept[-1] = True", ""),
            ),
        ),
        hint="Mark where a run begins; a cumulative sum then numbers the runs.",
        question="Is the blank silence? Do CTC's frames say when a sound was spoken?",
        hidden=(
            f"{TESTS}::test_runs",
            f"{TESTS}::test_an_utterance_that_is_all_blank_keeps_its_least_blank_frame",
        ),
    ),
    Exercise(
        id="hubert-2",
        title="Means over frames, in a padded batch",
        minutes=35,
        functions={"compress": SCRIPT},
        tests={"test_compress": 2, "test_compress_padding": 2, "test_compress_gradient": 2},
        mutants=(
            Change(
                "rows.append(sums / into.bincount()[:, None].to(x.dtype))",
                "rows.append(sums)",
                "This is the sum of the frames of a vector; their mean is wanted.",
            ),
            Change(
                "        sums = x.new_zeros(int(into[-1]) + 1, x.shape[1]).index_add(0, into, x)"
                "  # (T', D)\n"
                "        rows.append(sums / into.bincount()[:, None].to(x.dtype))\n",
                "        first = torch.searchsorted(into, torch.arange(int(into[-1]) + 1))\n"
                "        rows.append(x[first])\n",
                "Only the first frame of each vector was taken; the mean of all is wanted.",
            ),
            Change(
                "        into = vectors_of(lp[:n], mode)  # (n,)\n"
                "        is_kept = into >= 0\n"
                "        x = x[:n][is_kept]\n",
                "        into = vectors_of(lp, mode)\n"
                "        is_kept = into >= 0\n"
                "        x = x[is_kept]\n",
                "Padded frames were counted: an utterance ends at its length.",
            ),
        ),
        variations=(
            (
                Change(
                    "The mean of the frames of each vector:",
                    "The maximum of the frames of each vector, feature by feature:",
                    "A vector is the maximum of its frames, feature by feature, not their mean.",
                ),
                Change(
                    "sums = x.new_zeros(int(into[-1]) + 1, x.shape[1]).index_add(0, into, x)",
                    "empty = x.new_full((int(into[-1]) + 1, x.shape[1]), float('-inf'))\n"
                    "        largest = empty.index_reduce(0, into, x, 'amax')",
                    "",
                ),
                Change("sums / into.bincount()[:, None].to(x.dtype)", "largest", ""),
            ),
        ),
        hint="`vectors_of` numbers the vector of each frame; -1 is none.",
        question="Does the compression itself learn anything from GPT's loss?",
        hidden=(f"{TESTS}::test_the_compressing_bridge_and_its_figures",),
    ),
]
