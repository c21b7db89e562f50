"""What is run and compared in results/<script>.md, read by benchmarks/table.py. Plain data."""

BEAM = "--decode beam --lm demo/lm"
KD = "--method multirep_kd"
LAST = f"{KD} --teacher-layers last --n-layers 1"  # also uniform-1
SHORT = "half the audio, 20 epochs"  # short of data rather than of updates, which is the paper's situation
ROWS = {  # script -> row -> options; "of ROW:" decodes the finished runs of ROW anew by evaluate.py,
    # "variant NAME:" starts the script by variants/<script>/NAME.py
    "interaed_kd": {
        "ctc": "--method ctc",
        "interaed_kd": "--method interaed_kd",
        "interctc": "--method interctc",
        "aed": "--method aed",
        "aed_kd": "--method aed_kd",
        "interaed": "--method interaed",
        "ctc + beam + LM": f"of ctc: {BEAM}",
        "interaed_kd + beam + LM": f"of interaed_kd: {BEAM}",
        "aed_kd, w .66": "variant aed_kd_with_taps: --method aed_kd",
        "interaed_kd, a 1": "variant teacher_alone: --method interaed_kd",
        "interaed_kd, a .1": "variant little_teacher: --method interaed_kd",
        "interaed_kd, uniform teacher": "variant uniform_teacher: --method interaed_kd",
        "interaed_kd, teacher B": "--method interaed_kd --teacher demo/bert-b",
        "interaed_kd, KD at the last layer": "variant kd_at_the_last_layer: --method interaed_kd",
        "interaed_kd, KD at the taps": "variant kd_at_the_taps: --method interaed_kd",
        "ctc, half the audio": "--method ctc --hours 0.9",
        "interaed_kd, half the audio": "--method interaed_kd --hours 0.9",
        "ctc, four times the audio": "--method ctc --hours 7.2",
        "interaed_kd, four times the audio": "--method interaed_kd --hours 7.2",
        **{
            f"{row}, {SHORT}": f"{options} --hours 0.9 --epochs 20"
            for row, options in {
                **{
                    method: f"--method {method}"
                    for method in ("ctc", "interctc", "interaed", "interaed_kd", "aed_kd")
                },
                "aed_kd, w .66": "variant aed_kd_with_taps: --method aed_kd",
                "interaed_kd, uniform teacher": "variant uniform_teacher: --method interaed_kd",
            }.items()
        },
    },
    "multirep_kd": {
        "rnnt": "--method rnnt",
        "uniform-2": KD,
        "last-1": LAST,
        "uniform-2, context": f"{KD} --context 60",
        "uniform-2, two teachers": f"{KD} --teachers demo demo/bert-b",
        "uniform-2, shuffled teacher": f"variant shuffled_teacher: {KD}",
        "uniform-2, untrained teacher": f"variant untrained_teacher: {KD}",
        "rnnt + beam + LM": f"of rnnt: {BEAM}",
        "uniform-2 + beam + LM": f"of uniform-2: {BEAM}",
        **{
            f"{layers}-{k}": f"{KD} --teacher-layers {layers} --n-layers {k}"
            for layers in ("last", "first", "uniform", "random")
            for k in (2, 4)
            if (layers, k) != ("uniform", 2)
        },
        "last-1, two teachers": f"{LAST} --teachers demo demo/bert-b",
        "last-1, teacher B": f"{LAST} --teachers demo/bert-b",
        "uniform-2, teacher B": f"{KD} --teachers demo/bert-b",
        "last-1, context": f"{LAST} --context 60",
        **{
            f"uniform-2, context, mask {mask}": f"{KD} --context 60 --context-mask {mask}"
            for mask in ("0", ".1", ".2")
        },
        "uniform-2, past context": f"variant past_context: {KD} --context 60",
        "uniform-2, context 30": f"{KD} --context 30",
        "uniform-2, context 90": f"{KD} --context 90",  # all: no session has more, so 120 is the same run
        "uniform-2, L2": f"variant l2_distance: {KD}",
        "uniform-2, cosine": f"variant cosine_distance: {KD}",
        "uniform-2, target norm": f"variant normed_states: {KD}",
        "soft labels": f"variant soft_labels: {KD} --kd-weight 0.3",
        "masked states": f"variant masked_states: {KD}",  # uniform-2, but the token itself is masked
        "token embeddings": f"variant token_embeddings: {KD}",  # the token itself, and nothing around it
        **{
            f"{row}, {amount} the audio": f"{options} --hours {hours}"
            for amount, hours in (("half", 0.9), ("twice", 3.6))
            for row, options in (("rnnt", "--method rnnt"), ("uniform-2", KD))
        },
        # as many updates as with all of the audio
        "rnnt, half the audio, 10 epochs": "--method rnnt --hours 0.9 --epochs 10",
        "uniform-2, half the audio, 10 epochs": f"{KD} --hours 0.9 --epochs 10",
    },
}
TWICE = "--epochs 8 --teacher runs/table/streaming_aux_kd/teacher-twice-the-updates-s{seed}"
ROWS["streaming_aux_kd"] = {
    "teacher": "--method teacher",
    **{
        row: f"{options} --teacher runs/table/streaming_aux_kd/teacher-s{{seed}}"
        for row, options in {
            "scratch": "--method scratch",
            "aux_kd": "--method aux_kd",
            "token_kd": "--method token_kd",
            "layer_kd": "--method layer_kd",
            # one scalar per method; 1 and 1e-3 are the rows above
            **{
                f"{row}, weight {w}": f"--method {row} --kd-weight {w}"
                for row in ("aux_kd", "layer_kd")
                for w in (3, 10, 30)
            },
            **{
                f"token_kd, weight {w}": f"--method token_kd --token-weight {w}"
                for w in ("1e-2", "3e-2", "1e-1")
            },
            "scratch, twice the updates": "--method scratch --epochs 8",
            "token_kd, delay 2": "variant token_kd_delay_2: --method token_kd",
            "token_kd, delay 4": "variant token_kd_delay_4: --method token_kd",
            **{
                f"aux_kd, {losses}": f"--method aux_kd --losses {losses}"
                for losses in ("dis", "kld", "apc", "dis kld")
            },
            **{
                f"layer_kd, {losses}": f"--method layer_kd --losses {losses}"
                for losses in ("dis", "dis kld")
            },
            **{
                f"aux_kd, apc {steps}": f"--method aux_kd --apc-steps {steps}"
                for steps in (1, 4, 8)
            },
            **{
                f"aux_kd, {mask} mask": f"--method aux_kd --aux-mask {mask}"
                for mask in ("causal", "none")
            },
            **{f"aux_kd, every {n}": f"--method aux_kd --kd-every {n}" for n in (1, 4)},
            "aux_kd, shuffled teacher": "variant shuffled_teacher: --method aux_kd",
            "aux_kd, untrained teacher": "variant untrained_teacher: --method aux_kd",
            "aux_kd, weight 10, untrained teacher": "variant untrained_teacher: --method aux_kd --kd-weight 10",
            **{
                f"{method}, chunk {chunk}": f"--method {method} --chunk-ms {chunk}"
                for method in ("scratch", "aux_kd")
                for chunk in (80, 320)
            },
        }.items()
    },
    "teacher, twice the updates": "--method teacher --epochs 8",
    **{f"{row}, twice the updates": f"--method {row} {TWICE}" for row in ("token_kd", "aux_kd")},
}
LLM = "--method llm --encoder runs/table/llm_prompt_asr/ctc-s{seed}"
ALL, LORA, FROZEN = (
    f"{LLM} --lora-rank 0",
    f"{LLM} --lora-rank 8 --lr-lm 5e-3",
    f"{LLM} --lora-rank 0 --lr-lm 0",
)
LMS = ("lm-s", "lm-l", "lm-english", "lm-plain", "lm-short", "lm-untrained")
ROWS["llm_prompt_asr"] = {
    "ctc": "--method ctc",
    "all trained, 160 ms": f"{ALL} --stride-ms 160",
    "all trained, 480 ms": f"{ALL} --stride-ms 480",
    "LoRA r 8, 480 ms": f"{LORA} --stride-ms 480",
    "LM frozen, 480 ms": f"{FROZEN} --stride-ms 480",
    "ctc + beam + LM": "of ctc: --decode beam --lm demo-mls/lm-m --lm-weight 0.2 0.4 0.6 0.9 1.2",
    "ctc, 8 epochs": "--method ctc --ctc-epochs 8",  # as many updates as with a language model after it
    "monolingual ctc, 32 epochs": "--method monolingual_ctc --ctc-epochs 32",  # as many updates as the eight, on average
    "all trained, 960 ms": f"{ALL} --stride-ms 960",
    "all trained, encoder from scratch": "--method llm --lora-rank 0 --encoder scratch --stride-ms 480",
    **{f"all trained, {lm}": f"{ALL} --stride-ms 160 --lm demo-mls/{lm}" for lm in LMS},
    "LM frozen, lm-plain": f"{FROZEN} --stride-ms 480 --lm demo-mls/lm-plain",
    "LM frozen, 960 ms": f"{FROZEN} --stride-ms 960",
    "projection alone, 480 ms": f"{FROZEN} --lr-encoder 0 --stride-ms 480",
}  # fmt: skip
BRIDGE = "--method gpt --ctc-run runs/table/hubert_gpt_bridge/ctc-s{seed}"
ADAPT = "--method gpt --data demo-talk --init runs/table/hubert_gpt_bridge/conv-s{seed}"
ADAPTERS = f"{ADAPT} --lr-hubert 0 --lr-bridge 0 --lr-llm 5e-4 --lora-rank"
START = "straight"  # the paper's way: from HuBERT as pretrained
NEW = f"--method gpt --data demo-jargon --init runs/table/hubert_gpt_bridge/{START}-s{{seed}}"
GPT_ALONE = "--lr-hubert 0 --lr-bridge 0"
ADAPTED = ("jargon, LoRA attention r 8", "jargon, LoRA all r 8", "jargon, LoRA all r 32", "jargon, GPT whole",
           "jargon, everything", "jargon, GPT without its pieces")  # fmt: skip
ROWS["hubert_gpt_bridge"] = {
    "ctc": "--method ctc",
    "conv": BRIDGE,
    **{
        mode: f"{BRIDGE} --bridge ctc --compression {mode}"
        for mode in ("remove_blank", "average_remove_blank")
    },
    "ctc, 7 epochs": "--method ctc --ctc-epochs 7",  # as many updates as with GPT after it
    "ctc + beam + LM": "of ctc: --decode beam --lm demo/gpt",
    "conv, not adapted": "of conv: --data demo-talk",
    "conv, adapted by LoRA r 8": f"{ADAPTERS} 8",
    "conv, all adapted": f"{ADAPT} --lr-hubert 1e-4 --lr-bridge 3e-4 --lr-llm 1e-4",
    "conv, all adapted, three times the rates": f"{ADAPT} --lr-hubert 3e-4 --lr-bridge 1e-3 --lr-llm 3e-4",
    "average": f"{BRIDGE} --bridge ctc --compression average",
    **{f"conv, x{2**layers}": f"{BRIDGE} --bridge-layers {layers}" for layers in (1, 3)},
    **{
        f"conv, {name} frozen": f"{BRIDGE} {options}"
        for name, options in {
            "HuBERT": "--lr-hubert 0",
            "GPT": "--lr-llm 0",
            "bridge": "--lr-bridge 0",
            "HuBERT and GPT": "--lr-hubert 0 --lr-llm 0",
            "HuBERT and bridge": "--lr-hubert 0 --lr-bridge 0",
            "bridge and GPT": "--lr-bridge 0 --lr-llm 0",
        }.items()
    },
    "conv, LoRA r 8": f"{BRIDGE} --lora-rank 8 --lr-llm 5e-3",
    "conv, HuBERT as pretrained": "--method gpt --ctc-run none",
    "conv, HuBERT as pretrained, 7 epochs": "--method gpt --ctc-run none --epochs 7",
    "ctc, untrained HuBERT": "variant untrained_hubert: --method ctc",
    "conv, untrained HuBERT": "variant untrained_hubert: --method gpt "
    "--ctc-run runs/table/hubert_gpt_bridge/ctc-untrained-hubert-s{seed}",
    "conv, untrained GPT": f"variant untrained_gpt: {BRIDGE}",
    "ctc, untrained HuBERT, 8 epochs": "variant untrained_hubert: --method ctc --ctc-epochs 8",  # for the time of pretraining
    "ctc, CNN frozen": "--method ctc --train-cnn False",
    "conv, CNN frozen": "--method gpt --train-cnn False --ctc-run runs/table/hubert_gpt_bridge/ctc-cnn-frozen-s{seed}",
    **{f"conv, adapted by LoRA r {rank}": f"{ADAPTERS} {rank}" for rank in (1, 2, 32)},
    **{f"conv, {decode}": f"of conv: --decode {decode}" for decode in ("beam", "top_k", "top_p")},
    START: "--method gpt --ctc-run none --epochs 5",  # where all of demo-jargon begins
    "jargon, not adapted": f"of {START}: --data demo-jargon",
    "jargon, ctc not adapted": "of ctc: --data demo-jargon",
    "jargon, ctc adapted": "--method ctc --data demo-jargon --init runs/table/hubert_gpt_bridge/ctc-s{seed} --ctc-epochs 3 --ctc-lr 1e-2",
    "jargon, LoRA attention r 8": f"{NEW} {GPT_ALONE} --lora-rank 8 --lr-llm 3e-4",
    "jargon, LoRA all r 8": f"{NEW} {GPT_ALONE} --lora-maps all --lora-rank 8 --lr-llm 1e-2",
    "jargon, LoRA all r 32": f"{NEW} {GPT_ALONE} --lora-maps all --lora-rank 32 --lr-llm 3e-3",
    "jargon, LoRA all and head r 32": f"{NEW} {GPT_ALONE} --lora-maps head --lora-rank 32 --lr-llm 3e-3",
    "jargon, GPT whole": f"{NEW} {GPT_ALONE} --lr-llm 3e-3",
    "jargon, everything": f"{NEW} --lr-hubert 3e-3 --lr-bridge 3e-3 --lr-llm 3e-3",
    "jargon, GPT without its pieces": f"variant frozen_pieces: {NEW} {GPT_ALONE} --lr-llm 3e-3",
    "jargon, bridge alone": f"{NEW} --lr-hubert 0 --lr-llm 0 --lr-bridge 3e-3",
    "jargon, LoRA all r 32, other audio": f"variant other_audio: {NEW} {GPT_ALONE} --lora-maps all --lora-rank 32 --lr-llm 3e-3",
}
# Five for every row, but the setting of these was chosen with seeds 1 to 3.
SEEDS = {row: (4, 5, 6, 7, 8) for row in ROWS["interaed_kd"] if row.endswith(SHORT)}
PAIRS = {  # what is compared with what, beside every row with the first
    "interaed_kd": [
        ("interaed_kd", "interctc"),  # what decoder and teacher add to the losses at the taps
        ("interaed_kd", "interaed"),  # what the teacher adds
        ("interaed_kd", "aed"),
        ("interaed_kd", "aed_kd"),  # the paper's claim: against conventional distillation
        ("interaed_kd", "aed_kd, w .66"),  # the same with the same CTC losses
        ("interaed_kd", "interaed_kd, uniform teacher"),
        ("interaed_kd", "interaed_kd, teacher B"),
        *(
            ("interaed_kd", f"interaed_kd, {how}")
            for how in ("a 1", "a .1", "KD at the last layer", "KD at the taps")
        ),
        ("interaed_kd", "ctc + beam + LM"),  # the paper's claim: parallel decoding against the beam
        ("interaed_kd, half the audio", "ctc, half the audio"),
        ("interaed_kd, four times the audio", "ctc, four times the audio"),
        *(
            (f"interaed_kd, {SHORT}", f"{row}, {SHORT}")
            for row in (
                "ctc",
                "interctc",
                "interaed",
                "aed_kd",
                "aed_kd, w .66",
                "interaed_kd, uniform teacher",
            )
        ),
    ],
    "llm_prompt_asr": [
        *((f"all trained, {n} ms", "ctc + beam + LM") for n in (160, 480)),  # more than text helps?
        ("all trained, 160 ms", "ctc, 8 epochs"),
        ("all trained, 960 ms", "all trained, 160 ms"),  # the paper's claims: near one second,
        ("LoRA r 8, 480 ms", "LM frozen, 480 ms"),  # frozen,
        ("all trained, 480 ms", "LoRA r 8, 480 ms"),
        *(
            (f"all trained, {n} ms", "monolingual ctc, 32 epochs") for n in (160, 480)
        ),  # multilingual
        *((f"all trained, {lm}", "all trained, 160 ms") for lm in LMS),
        ("all trained, encoder from scratch", "all trained, 480 ms"),
        ("LM frozen, lm-plain", "LM frozen, 480 ms"),
    ],
    "hubert_gpt_bridge": [
        ("conv", "ctc, 7 epochs"),
        ("conv", "ctc + beam + LM"),  # does it do more than text helps?
        *(
            (row, "conv")
            for row in ("average_remove_blank", "remove_blank", "average", "conv, x2", "conv, x8")
        ),
        *(
            (row, "conv, x2") for row in ("average_remove_blank", "remove_blank", "average")
        ),  # of nearest equal length
        *((row, "jargon, not adapted") for row in ADAPTED),  # the paper's claim: cheap adaptation
        *((row, "jargon, GPT whole") for row in ADAPTED if "LoRA" in row),
        *((row, START) for row in ADAPTED),  # what is forgotten at home
        ("jargon, ctc adapted", "jargon, ctc not adapted"),  # does CTC adapt, without any GPT?
        ("jargon, ctc adapted", "ctc"),
        ("jargon, GPT whole", "jargon, ctc adapted"),
        ("conv, adapted by LoRA r 8", "conv, not adapted"),  # the paper's claim: cheap adaptation
        ("conv, all adapted", "conv, adapted by LoRA r 8"),
        ("conv, all adapted, three times the rates", "conv, not adapted"),
        # its claim: everything trained
        *(
            (row, "conv")
            for row in ROWS["hubert_gpt_bridge"]
            if row.startswith("conv") and row.endswith("frozen")
        ),
        ("conv, LoRA r 8", "conv"),
        ("conv, HuBERT as pretrained, 7 epochs", "conv"),
        ("conv, untrained HuBERT", "conv"),
        ("conv, untrained GPT", "conv"),
        *((f"conv, {decode}", "conv") for decode in ("beam", "top_k", "top_p")),
    ],
    "streaming_aux_kd": [
        (
            "aux_kd",
            "scratch",
        ),  # the paper's claims: better than without teacher, and than token-level distillation
        ("token_kd", "scratch"),
        ("layer_kd", "scratch"),
        ("aux_kd", "token_kd"),
        ("aux_kd", "layer_kd"),  # what the branch adds
        *(
            ("aux_kd, weight 10", row) for row in ("token_kd, weight 3e-2", "layer_kd, weight 10")
        ),  # the best on dev
        ("aux_kd", "scratch, twice the updates"),
        ("aux_kd, twice the updates", "scratch, twice the updates"),
        ("aux_kd, twice the updates", "token_kd, twice the updates"),
        ("aux_kd", "aux_kd, shuffled teacher"),
        ("aux_kd", "aux_kd, untrained teacher"),
        ("aux_kd, weight 10", "aux_kd, weight 10, untrained teacher"),
        *((f"aux_kd, chunk {chunk}", f"scratch, chunk {chunk}") for chunk in (80, 320)),
    ],
    "multirep_kd": [
        (
            "uniform-2",
            "last-1",
        ),  # the paper's claims: several representations against one, context, two teachers
        *(
            (f"uniform-{k}", f"{layers}-{k}")
            for k in (2, 4)
            for layers in ("last", "first", "random")
        ),
        *((f"{layers}-4", f"{layers}-2") for layers in ("last", "first", "uniform", "random")),
        *((f"uniform-2, context{tokens}", "uniform-2") for tokens in ("", " 30", " 90")),
        ("uniform-2, past context", "uniform-2, context"),
        ("last-1, context", "last-1"),
        ("uniform-2, two teachers", "uniform-2"),
        ("last-1, two teachers", "last-1"),
        ("uniform-2", "uniform-2, shuffled teacher"),  # what is left is language
        ("uniform-2", "uniform-2, untrained teacher"),
        *((f"uniform-2, {distance}", "uniform-2") for distance in ("L2", "cosine", "target norm")),
        ("uniform-2", "masked states"),  # does it have to show the token?
        ("uniform-2", "token embeddings"),  # does it have to know the others?
        ("masked states", "soft labels"),  # the same knowledge in another form
        ("uniform-2", "soft labels"),  # other ways to bring in what was learnt from text
        ("uniform-2", "rnnt + beam + LM"),
        ("uniform-2 + beam + LM", "rnnt + beam + LM"),
        ("uniform-2, half the audio", "rnnt, half the audio"),
        ("uniform-2, half the audio, 10 epochs", "rnnt, half the audio, 10 epochs"),
        ("uniform-2, twice the audio", "rnnt, twice the audio"),
    ],
}
