"""A page about finished runs: what was run, scores, learning curves, and sentences to
listen to.

Run
---
    python -m common.running.report RUN                one run: RUN/report.html
    python -m common.running.report RUN RUN            side by side, the baseline first
    python -m common.running.report RUN --no-audio     without players

RUN is the folder of a finished run of any script, or a folder of scores that
evaluate.py wrote. The page is one file that needs no network. Training and evaluate.py
write it too, when they have finished.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from common.errors import UserError, note
from common.files import write_atomically
from common.running import clips, command_line, comparison, curves, sentences
from common.running.comparison import Row, Scores
from common.running.findings import findings

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FIGURES_BUDGET = 1_500_000  # characters of all pictures together
# picture -> what to look for in it
CAPTIONS = {
    "soft_label.png": "What BERT and the decoder expect at a homophone: does BERT give the word "
    "that was meant more than its twin, and has the decoder learnt the same?",
    "lattice.png": "When the transducer writes each character: one clear path from the upper left "
    "to the lower right means that it knows when it hears what.",
    "distances.png": "How far the recogniser's representations are from BERT's: the curve has to "
    "fall, or nothing is transferred.",
    "dependencies.png": "What each output of the streaming encoder depends on: nothing to the "
    "right of its own chunk, or it would hear the future.",
    "features.png": "One layer of teacher, student and branch for one utterance: the more alike "
    "they look, the more the student has taken over.",
    "alignment.png": "How alike vectors of the prompt and pieces of the text are: with its own "
    "audio there should be a diagonal, with other audio none.",
    "listening.png": "How much less likely a transcript is after other audio: near 0 the language "
    "model writes likely sentences and does not listen.",
    "compression.png": "Which frames each mode of compression keeps: look at a double letter, and "
    "at the silence at both ends.",
    "attention.png": "Where the language model looks in the speech while it writes: a diagonal "
    "means that it follows the audio.",
}
KIND_NAMES = {"differ": "rows differ", "homophones": "homophones", "many": "many errors"}


@dataclass(frozen=True)
class Options:
    """Which runs are shown, and where the page goes."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # folders of finished runs, the baseline first
    out: str | None = None  # the page; None: RUN/report.html, of several in the folder of all
    root: str | None = None  # where corpora are; None: where they were when the run was scored
    no_audio: bool = False  # leave out the players

    def check(self) -> None:
        if not self.runs:
            raise UserError("give the folder of a finished run.")


def write_page(
    folders: list[str | Path], out: Path, root: str | None = None, audio: bool = True
) -> None:
    """Writes the page of these runs. Raises UserError where they cannot be read."""
    write_atomically(out, render(comparison.read_rows(folders), root, audio))


def write_when_scored(folders: list[str | Path], together: str = "report.html") -> None:
    """A page for every folder, and one for several, in the folder that holds them all.

    A page may fail in many ways, and none is worth a run: what is missing is said in
    one sentence. Only the first rank writes.
    """
    if int(os.environ.get("RANK", 0)) or not folders:
        return
    pages = {Path(folder) / "report.html": [folder] for folder in folders}
    if len(folders) > 1:
        pages[common_folder(folders) / together] = folders
    for path, some in pages.items():
        try:
            write_page(some, path)
        except Exception as error:  # whatever it is, the results are written
            lines = str(error).strip().splitlines() or [type(error).__name__]
            note(f"{path} could not be written ({lines[0].rstrip('.')}); the results are complete.")
    if path.exists():  # the last one, which shows them all
        note(f"open {path}")


def common_folder(folders: list[str | Path]) -> Path:
    """The folder that holds all of these, relative where they are."""
    if any(Path(folder).is_absolute() for folder in folders):
        folders = [Path(folder).absolute() for folder in folders]
    return Path(os.path.commonpath(folders))


# ===================================================================================== the page


@functools.cache
def template() -> tuple[Template, str]:
    """The template, and the digest of its script: the page runs no other one."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = TEMPLATE.read_text("utf-8")
    script = re.search("<script>(.*?)</script>", source, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(source), digest


def render(rows: list[Row], root: str | None = None, audio: bool = True) -> str:
    """The page as HTML."""
    page, digest = template()
    tables = comparison.scores(rows)
    kinds = comparison.kinds_of_errors(rows)
    chosen = sentences.choose(comparison.sentences_of(rows))
    runs = [(i, run) for i, row in enumerate(rows) for run in row.runs]
    logs = [(i, run.log()) for i, run in runs]
    return page.render(
        script_digest=digest,
        title=" and ".join(row.name for row in rows),
        rows=rows,
        runs=[(rows[i].name, facts_of(run), run.config) for i, run in runs],
        findings=findings(rows, tables, kinds, chosen),
        tables=tables,
        panels=curves.panels(logs),
        box=curves,
        dev=[(rows[i].name, run.result["seed"], dev_scores(run)) for i, run in runs],
        found=[(rows[i].name, curves.found_alignments(log)) for i, log in logs if log],
        sentences=shown_sentences(rows, chosen, root, audio),
        kind_names=KIND_NAMES,
        figures=figures_of(rows),
        kinds=kinds,
        trouble=[(rows[i].name, *trouble_of(run)) for i, run in runs],
    )


def facts_of(run: Scores) -> dict[str, str]:
    """What was run, in words, as far as it was written down."""
    result = run.result
    about = run.about
    of_training = comparison.read_json(run.run / "scored.json") or {}
    facts = {
        "training": of_training.get("command"),
        "scoring": "with it" if run.folder == run.run else about.get("command"),
        "commit": about.get("commit"),
        "date": about.get("date"),
        "seed": str(result["seed"]),
        "data": about.get("data") or run.config.get("data"),
        "search": result["decode"],
        "machine": about.get("machine"),
    }
    trained = trained_result(run) | result
    if "train_seconds" in trained:
        facts["minutes of training"] = f"{trained['train_seconds'] / 60:.1f}"
    if "teacher_seconds" in trained:
        facts["minutes of asking the teacher"] = f"{trained['teacher_seconds'] / 60:.1f}"
    if "params" in result:
        facts["parameters"] = f"{result['params']:,}"
    if result.get("rtf") is not None:
        facts["real-time factor"] = f"{result['rtf']:.3g}"
    return {name: value or "not written down" for name, value in facts.items()}


def trained_result(run: Scores) -> dict[str, Any]:
    """The result.json of the training, where a folder of scores has one of its own."""
    return comparison.read_json(run.run / "result.json") or {}


def dev_scores(run: Scores) -> list[dict[str, Any]]:
    return [entry for entry in run.log() if "dev" in entry]


def shown_sentences(
    rows: list[Row], chosen: list[sentences.Sentence], root: str | None, audio: bool
) -> list[dict[str, Any]]:
    """What the page shows of every sentence."""
    first = rows[0].first
    scored = [first.sets[sentence.split][sentence.id] for sentence in chosen]
    if audio:
        sounds = clips.clips_of(scored, root or first.about.get("root", "data"))
    else:
        sounds = [clips.Clip("", "This page was written without audio.")] * len(chosen)
    found = []
    for sentence, said, sound in zip(chosen, scored, sounds, strict=True):
        by_characters = sentence.split in first.by_characters
        written = []
        for row, errors in zip(rows, sentence.errors, strict=True):
            text = row.first.sets[sentence.split][sentence.id].hypothesis
            marked = sentences.mark_hypothesis(said.reference, text, first.twins, by_characters)
            written.append({"row": row.name, "units": marked, "errors": errors})
        reference = sentences.mark_reference(said.reference, first.twins, by_characters)
        shown = {"reference": reference, "written": written, "clip": sound}
        shown |= {"sentence": sentence, "between": "" if by_characters else " "}
        found.append(shown)
    return found


def figures_of(rows: list[Row]) -> list[tuple[str, str, str, str]]:
    """[(row, file, data URI, what to look for)] of the pictures that scripts drew."""
    found = []
    left = FIGURES_BUDGET
    for row in rows:
        for path in sorted(row.first.run.glob("*.png")):
            if path.name == "loss.png":  # the page has curves of its own
                continue
            uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            if len(uri) > left:
                continue
            left -= len(uri)
            caption = CAPTIONS.get(path.name, f"See {path.stem} in the script.")
            found.append((row.name, path.name, uri, caption))
    return found


def trouble_of(run: Scores) -> tuple[dict[str, int], dict[str, list[tuple[str, str]]]]:
    """What was counted and is not 0, and the files that could not be read, with
    reasons."""
    trained = trained_result(run)
    names = {
        "infeasible": "utterances that were too short for their transcript, at every pass",
        "skipped_updates": "updates without a finite gradient",
        "bad_files": "files that could not be read while training",
        "cancelling_channels": "training utterances of which one channel was read, at every pass",
        "cancelling_channels_scored": "test utterances of which one channel was read",
        "not_scored": "test utterances without a score",
        "unstopped": "answers that hit the limit of their length",
    }
    counts = {}
    for key, name in names.items():
        value = (trained | run.result).get(key, 0)
        if value:
            counts[name] = value
    lists = {"training": comparison.read_json(run.run / "bad_files.json") or {}}
    for what, when in (("missing", "absent at the start"), ("not_scored", "not scored")):
        for split, files in run.about.get(what, {}).items():
            lists[f"{split}, {when}"] = files
    return counts, {name: list(files.items()) for name, files in lists.items() if files}


# ====================================================================================== program


def read_command_line(argv: list[str] | None) -> Options:
    """The checked options. argv: None for the program's own."""
    name = "python -m common.running.report"
    return command_line.read_checked(name, __doc__, Options(runs=()), argv)


def main(argv: list[str] | None = None) -> None:
    """Writes the page of the runs on the command line, and says where it is."""
    given = read_command_line(argv)
    folders = [folder.rstrip("/") or folder for folder in given.runs]
    out = Path(given.out) if given.out else page_of(folders)
    write_page(folders, out, given.root, not given.no_audio)
    note(f"open {out}")


def page_of(folders: list[str]) -> Path:
    folder = Path(folders[0]) if len(folders) == 1 else common_folder(folders)
    return folder / "report.html"


if __name__ == "__main__":
    main()
