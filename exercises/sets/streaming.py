"""streaming_aux_kd.py: the distance to the teacher's frames, and a look ahead."""

from exercises.table import Change, Exercise

SCRIPT = "streaming_aux_kd.py"
TESTS = "tests/test_streaming_aux_kd.py"

EXERCISES = [
    Exercise(
        id="streaming-1",
        title="The distance between two frames",
        minutes=25,
        functions={"feature_distance": SCRIPT},
        tests={"test_distance": 2, "test_distance_of_scaled": 2, "test_distance_gradient": 2},
        mutants=(
            Change(
                "- F.logsigmoid(F.cosine_similarity(h, z, dim=-1))",
                "- F.cosine_similarity(h, z, dim=-1) + 1",
                "This is 1 - cos; the distance has -log sigmoid(cos).",
            ),
            Change(
                "    h = F.layer_norm(h.float(), h.shape[-1:])\n"
                "    z = F.layer_norm(z.float(), z.shape[-1:])\n",
                "",
                "The frames were not normalised: a louder teacher would be further away.",
            ),
            Change(
                ".abs().mean(-1)",
                ".abs().sum(-1)",
                "This is the sum over D; the distance is divided by D.",
            ),
        ),
        variations=(
            (
                Change(
                    "d(h, z) = |h - z|_1 / D",
                    "d(h, z) = |h - z|_2^2 / D",
                    "The distance is d(h, z) = |h - z|_2^2 / D - log sigmoid(cos(h, z)).",
                ),
                Change(".abs().mean(-1)", ".square().mean(-1)", ""),
            ),
        ),
        hint="LayerNorm without weights is a function of torch.nn.functional.",
        question="What would the student learn if the frames were not normalised?",
        hidden=(f"{TESTS}::test_d", f"{TESTS}::test_dis"),
    ),
    Exercise(
        id="streaming-2",
        title="The loss of a prediction n frames ahead",
        minutes=15,
        functions={"future_loss": SCRIPT},
        tests={"test_future_of_a_ramp": 2, "test_future_of_padding": 2, "test_future_is_short": 1},
        mutants=(
            Change(
                "    future = h[:, steps:]  # (B, T-n, D): h_n ... h_{T-1}\n"
                "    prediction = r[:, : T - steps]",
                "    future = h[:, : T - steps]\n    prediction = r[:, steps:]",
                "The shift has the wrong sign: r_t predicts h_(t+n), not h_(t-n).",
            ),
            Change(
                "    future = h[:, steps:]  # (B, T-n, D): h_n ... h_{T-1}\n"
                "    prediction = r[:, : T - steps]  # (B, T-n, D): r_0 ... r_{T-1-n}\n"
                "    return (feature_distance(future, prediction) * mask[:, steps:]).sum()",
                "    return (feature_distance(h.roll(-steps, 1), r) * mask).sum()",
                "The shift wraps around: the last frames were compared with the first ones.",
            ),
            Change(
                "mask[:, steps:]",
                "mask[:, : T - steps]",
                "Padded targets were counted: the mask has to be shifted as h is.",
            ),
            Change(" * mask[:, steps:]).sum()", ").sum()", "Padded targets were counted."),
            Change(
                " * mask[:, steps:]).sum()",
                " * mask[:, steps:]).sum() / mask[:, steps:].sum().clamp(min=1)",
                "This is the mean over frames; the loss is a sum.",
            ),
            Change(
                "    T = h.shape[1]\n",
                "    T = h.shape[1]\n    steps = steps + 1\n",
                "This looks one frame too far ahead.",
            ),
        ),
        variations=(
            (
                Change(
                    "L_apc = sum_{t < T-n} d(h_{t+n}, r_t):",
                    "L_apc = sum_{t < T-2n} d(h_{t+2n}, r_t):",
                    "The prediction is for twice as many frames ahead: d(h_(t+2n), r_t).",
                ),
                Change("    T = h.shape[1]\n", "    T = h.shape[1]\n    steps = 2 * steps\n", ""),
            ),
        ),
        hint="Write down which frame r_0 is compared with, and which one r_(T-1).",
        question="With chunks of eight frames and n = 3, which targets has the student heard?",
        hidden=(
            f"{TESTS}::test_apc",
            "variants/streaming_aux_kd/apc_inside_the_chunk.py",
            "variants/streaming_aux_kd/apc_beyond_the_chunk.py",
        ),
    ),
]
