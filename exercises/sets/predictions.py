"""Comparisons to predict, with a reason, before they are measured."""

from exercises.table import Predict

# As in common/running/comparison.py.
CLEAN = "test-clean"
MEAN = "mean of the sets"
HOMOPHONES = "homophones written as their twin"
ERRORS = "errors in words"

EXERCISES = [
    Predict(
        id="interaed-3",
        title="A teacher without knowledge, beside BERT",
        minutes=40,
        commands=(
            "python interaed_kd.py --method interaed_kd",
            "python -m variants.interaed_kd.uniform_teacher --method interaed_kd",
        ),
        rows=("interaed_kd", "uniform_teacher"),
        split=CLEAN,
        what=HOMOPHONES,
        hint="Open soft_label.png of a run: what does BERT know there?",
        question="Does distillation work because of what the teacher knows?",
    ),
    Predict(
        id="multirep-3",
        title="A BERT that reads another sentence",
        minutes=50,
        commands=(
            "python multirep_kd.py --method multirep_kd",
            "python -m variants.multirep_kd.shuffled_teacher --method multirep_kd",
        ),
        rows=("multirep_kd", "shuffled_teacher"),
        split=CLEAN,
        what=HOMOPHONES,
        hint="What is left in the states of a sentence that was not spoken?",
        question="Of which words is the denominator of the homophone error counted?",
    ),
    Predict(
        id="streaming-3",
        title="A streaming student with and without a teacher",
        minutes=75,
        commands=(
            "python streaming_aux_kd.py --method scratch",
            "python streaming_aux_kd.py --method aux_kd",
        ),
        rows=("scratch", "aux_kd"),
        split=CLEAN,
        what=ERRORS,
        hint="How far apart are two seeds of the same row?",
        question="Would twice the training without a teacher have done the same?",
    ),
    Predict(
        id="hubert-3",
        title="GPT behind HuBERT, and CTC on HuBERT",
        minutes=120,
        commands=(
            "python hubert_gpt_bridge.py --method ctc",
            "python hubert_gpt_bridge.py --method gpt",
        ),
        rows=("ctc", "gpt"),
        split=CLEAN,
        what=ERRORS,
        hint="What happens to a word that GPT knows, and to a name that it does not?",
        question="Why can words become better and characters worse?",
    ),
    Predict(
        id="llm-3",
        title="A prompted language model, and the encoder that prompts it",
        minutes=70,
        commands=("python llm_prompt_asr.py --method ctc", "python llm_prompt_asr.py --method llm"),
        rows=("ctc", "llm"),
        split=MEAN,
        what="errors",
        hint="The listening gap in the log says whether the model listens. What else has to work?",
        question="Was a fluent answer heard?",
    ),
]
