"""One small demo world, its models, and a finished run of each script: made once for all tests and all their processes.

root, mls_root           each a --root with a smoke world; model("lm") builds and returns a model of the first
runs("interaed_kd")      a finished tiny run, its data, and what it takes to run more of them
babbling("interaed_kd")  a copy whose model says words, which takes more than so little training
"""

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = (
    "0"  # tests look at what happens without a network, not at the library's own switch
)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two threads on two busy cores wait for each other: many times slower
REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))


def pytest_addoption(parser) -> None:
    parser.addoption("--slow", action="store_true", help="also the tests that take long")


def pytest_collection_modifyitems(config, items) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="it takes long: add --slow"))


def slow_after_the_first(names) -> list:
    """Parameters of which the first is tested always, and the others with --slow."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


# ---------------------------------------------------------------------------------------------------- what is made once


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder for all processes of this test session; pytest-xdist gives each a folder of its own inside."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """The folder, filled by the first process that asks for it, while the others wait."""
    with FileLock(f"{folder}.lock"):
        complete = folder.with_name(folder.name + ".complete")
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def root(shared) -> Path:
    """A --root that holds the smoke world: ROOT/demo-smoke/LibriSpeech/train-000 …"""
    from common.running.corpora import load_corpus

    return build_once(
        shared / "root", lambda folder: load_corpus("demo-smoke", str(folder), hours=0.1)
    )


@pytest.fixture(scope="session")
def corpus(root):
    from common.running.corpora import load_corpus

    return load_corpus("demo-smoke", str(root), hours=0.1)


@pytest.fixture(scope="session")
def mls_root(shared) -> Path:
    """A --root that holds the small multilingual world: ROOT/demo-mls-smoke/mls_english/train …"""
    from common.running.corpora import load_corpus

    return build_once(
        shared / "mls-root", lambda folder: load_corpus("demo-mls-smoke", str(folder))
    )


@pytest.fixture(scope="session")
def model(root, shared) -> Callable[[str], Path]:
    """model("bert-a"), model("bert-b"), model("lm"): the folder of that model of the smoke world."""
    from common.demo.models import build_english

    def built(name: str) -> Path:
        if name == "llama":
            return build_once(shared / name, lambda folder: build_llama(folder, root))
        build_once(shared / name, lambda _: build_english(root / "demo-smoke", name, small=True))
        return root / "demo-smoke" / name

    return built


def build_llama(folder: Path, root: Path) -> None:
    """A LLaMA that has learnt nothing, but is sure of what it says, over 300 pieces of the smoke world's text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    symbols = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=list(symbols.values()),
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (root / "demo-smoke" / "text.txt").read_text().split("\n"), trainer
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **symbols).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ids = dict(
        pad_token_id=0, bos_token_id=2, eos_token_id=3, vocab_size=tokenizer.get_vocab_size()
    )
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, initializer_range=0.08)).save_pretrained(folder)


@pytest.fixture(scope="session")
def mls_model(mls_root, shared) -> Callable[[str], Path]:
    """mls_model("lm-s"): the folder of that model of the small multilingual world."""
    from common.demo.models import build_multilingual

    def built(name: str) -> Path:
        build_once(
            shared / f"mls-{name}",
            lambda _: build_multilingual(mls_root / "demo-mls-smoke", name, small=True),
        )
        return mls_root / "demo-mls-smoke" / name

    return built


# -------------------------------------------------------------------------------------------------------- tiny runs


class Script(NamedTuple):
    """What tests of whole runs know about a script."""

    methods: tuple[str, str]  # the baseline and the paper's
    teacher: str  # the option that names it
    small: str  # options of a run that takes seconds; what they draw depends on utterance and epoch alone
    random: str  # options that switch on what is drawn for a batch
    exported: set[str]
    trained: set[str]
    files: set[str]
    report: set[str]  # what RESULT says of the teacher
    make_talk: Callable[[dict], None]  # changes exported weights so that they give words
    other: dict = {"dim": 64}  # an option of another model
    beam: bool = True  # its --decode beam takes --lm
    times: bool = True  # it gives word times
    pretrained: str = "bert-a"  # what `teacher` names
    stage: str = ""  # the option that names the run of an earlier stage
    stage_method: str = "ctc"  # its method
    others: dict[str, str] = {}  # more such options, and what they name
    still: str = "--lr 1e-9"  # options with which next to nothing is learnt


SMALL = "--preset smoke --average 2 --update-seconds 6 --epochs 5 --speeds 0.9 1 1.1"
SMALL_CONFORMER = "--dim 32 --heads 2 --ff-dim 64 --channels 4"
AUGMENTED = "--dropout 0.1 --frequency-masks 1 --time-masks 1"


def loud(weights: dict) -> None:
    """Random weights, louder than at first: what they give depends on the frame, and on what was written before."""
    import torch

    draw = torch.Generator().manual_seed(1)
    for weight in weights.values():
        if weight.dim() > 1:
            weight.normal_(generator=draw).mul_(3 * weight[0].numel() ** -0.5)
    weights["joint.output.weight"].normal_(generator=draw)
    weights["joint.predict.weight"] *= 5
    weights["joint.output.bias"].zero_()[:2] = torch.tensor([8.0, 4.0])  # blank and space


def entry_of(name: str) -> Script:
    """What tests of whole runs know about the script: ENTRY of its own tests."""
    return importlib.import_module(f"test_{name}").ENTRY


NOT_THE_TEACHERS = (
    "--out",
    "--method",
    "--workers",
    "--batch-seconds",
    "--resume",
)  # options of a student's run


class Finished(NamedTuple):
    """A finished run of a script's own method with everything random switched on."""

    name: str  # of the script
    script: Script
    folder: Path
    data: Path  # manifests of 24, 4 and 4 utterances, and homophones
    plain: list[str]  # options of such a run, but for --data, --out and what is drawn for a batch

    def options(self, *more, data: Path | None = None, plain: bool = False) -> list[str]:
        drawn = [] if plain else self.script.random.split()
        options = [*self.plain, *drawn, "--data", str(data or self.data), *map(str, more)]
        if (
            self.script.stage and self.script.stage not in more
        ):  # an earlier run with the same options
            groups = re.findall(r"(--[a-z-]+)((?: (?!--).+?)*)(?= --|$)", " ".join(options))
            same = [group for group in groups if group[0] not in NOT_THE_TEACHERS]
            folder = self.folder.parent / f"earlier-{zlib.crc32(repr(same).encode())}"
            self.train_stage(folder, " ".join(map("".join, same)).split())
            options += [self.script.stage, str(folder)]
        return options

    @property
    def first_stage(self) -> Path:
        """The earlier run that this one began with; others of other options may lie beside it."""
        config = json.loads((self.folder / "config.json").read_text())["config"]
        return Path(config[self.script.stage.strip("-").replace("-", "_")])

    def train_stage(self, folder: Path, options: list[str]) -> None:
        """The earlier run in this folder, where it is absent; where it cannot be trained, the later one says why."""
        if not (folder / "config.json").exists():
            method = ["--method", self.script.stage_method, "--out", folder]
            from common.errors import UserError

            with suppress(UserError, SystemExit), redirect_stdout(io.StringIO()):
                self.main(*options, self.script.stage, "auto", *method)

    def train(self, *more, **options) -> dict:
        """In this process, as the finished run; what `main` returns."""
        return self.main(*self.options(*more, **options))

    def main(self, *arguments) -> dict:
        return importlib.import_module(self.name).main([str(argument) for argument in arguments])

    def evaluate(self, *arguments) -> dict:
        """evaluate.py; what it returns."""
        return importlib.import_module("evaluate").main([str(argument) for argument in arguments])

    def transcribe(self, *arguments) -> None:
        """transcribe.py, which prints."""
        importlib.import_module("transcribe").main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def runs(shared, root, corpus, model) -> Callable[[str], Finished]:
    def finished(name: str) -> Finished:
        script, folder = entry_of(name), shared / name
        plain = [
            *script.small.split(),
            "--root",
            root,
            script.teacher,
            model(script.pretrained),
            "--method",
            script.methods[1],
        ]
        plain += [
            word for option, named in script.others.items() for word in (option, model(named))
        ]
        run = Finished(
            name, script, folder / "run", folder / "data", [str(option) for option in plain]
        )

        def build(folder: Path) -> None:
            write_data(run.data, corpus.train[:24], corpus.dev[:4], corpus.dev[4:8])
            shutil.copy(root / "demo-smoke" / "LibriSpeech" / "homophones.txt", run.data)
            run.train("--out", run.folder)

        build_once(folder, build)
        return run

    return finished


@pytest.fixture(scope="session")
def babbling(runs, shared) -> Callable[[str], Path]:
    """The finished run of a script with weights that give words, though not the right ones."""

    def build(name: str, folder: Path) -> None:
        from common.running.weights import load_weights, save_weights

        run = runs(name)
        shutil.copytree(run.folder, folder, dirs_exist_ok=True)
        weights = load_weights(folder / "model.safetensors")
        run.script.make_talk(weights)
        save_weights(folder / "model.safetensors", weights)

    return lambda name: build_once(shared / f"{name}-babbling", lambda folder: build(name, folder))


# ----------------------------------------------------------------------------------------------------------- helpers


def read_configs(name: str, arguments: list[str], variant: str | None = None) -> list:
    """The configurations that a script makes of a command line."""
    from common.running import command_line

    script = importlib.import_module(name)
    return command_line.parse(script.PRESETS, script.__doc__, arguments, variant)


def write_data(folder: Path, train, dev, test) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, utterances in (("train", train), ("dev", dev), ("test", test)):
        write_manifest(folder / f"{name}.jsonl", utterances)
    return folder


def write_manifest(path: Path, utterances) -> None:
    keys = {
        "audio_filepath": "audio",
        "duration": "duration",
        "text": "text",
        "session": "session",
        "id": "id",
    }
    lines = [json.dumps({key: getattr(u, name) for key, name in keys.items()}) for u in utterances]
    path.write_text("\n".join(lines) + "\n")


def copy_corpus(root: Path, target: Path) -> Path:
    """A copy of the world that a test may damage."""
    shutil.copytree(root / "demo-smoke" / "LibriSpeech", target / "LibriSpeech")
    return target


def start_script(
    *arguments, script="interaed_kd.py", launcher=(), cwd=REPOSITORY, **environment
) -> subprocess.Popen:
    """A script in its own process group, as a user runs it; its output as text in two pipes."""
    program = [str(REPOSITORY / script)] if script else []  # None: the launcher names it
    command = [sys.executable, *launcher, *program, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True, **pipes)


def run_script(*arguments, timeout=300, **options) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a script that runs to its end. options: see `start_script`."""
    process = start_script(*arguments, **options)
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out, error


def wait_for_log(folder: Path, lines: int, process: subprocess.Popen) -> None:
    log = folder / "log.jsonl"
    while process.poll() is None and not (
        log.exists() and len(log.read_text().splitlines()) >= lines
    ):
        time.sleep(0.002)


def log_without_clocks(folder: Path) -> list[dict]:
    from common.figures import read_log

    return [{k: v for k, v in entry.items() if k != "clock"} for entry in read_log(folder)]
