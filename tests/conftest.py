"""One small demo world for all tests, spoken once per session, and helpers that write real corpora from it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "0"  # tests look at what happens without a network, not at the library's own switch
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on two busy cores wait for each other: many times slower
REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A --root that holds the smoke world: ROOT/demo-smoke/LibriSpeech/train-000 …"""
    from common.corpora import load_corpus

    folder = tmp_path_factory.mktemp("root")
    load_corpus("demo", str(folder), hours=0.1, small=True)
    return folder


@pytest.fixture(scope="session")
def corpus(root):
    from common.corpora import load_corpus

    return load_corpus("demo", str(root), hours=0.1, small=True)


@pytest.fixture
def tiny_data(tmp_path, corpus) -> Path:
    """A folder of JSONL manifests with 24 training, 6 dev and 6 test utterances of the demo world."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, utterances in (("train", corpus.train[:24]), ("dev", corpus.dev[:6]), ("test", corpus.dev[6:12])):
        write_manifest(folder / f"{name}.jsonl", utterances)
    return folder


def write_manifest(path: Path, utterances) -> None:
    keys = {"audio_filepath": "audio", "duration": "duration", "text": "text", "session": "session", "id": "id"}
    lines = [json.dumps({key: getattr(u, name) for key, name in keys.items()}) for u in utterances]
    path.write_text("\n".join(lines) + "\n")


def run_script(*arguments, script="interaed_kd.py", cwd=REPOSITORY, timeout=300, **environment):
    """A script in its own process, as a user runs it: (exit code, stdout, stderr)."""
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def copy_corpus(root: Path, target: Path) -> Path:
    """A copy of the world that a test may damage."""
    shutil.copytree(root / "demo-smoke" / "LibriSpeech", target / "LibriSpeech")
    return target


def start_run(arguments, cwd, script="interaed_kd.py", **options) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / script), *arguments]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for_log(folder: Path, lines: int, process: subprocess.Popen) -> None:
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= lines):
        time.sleep(0.002)


def log_without_clocks(folder: Path) -> list[dict]:
    from common import run

    return [{k: v for k, v in entry.items() if k != "clock"} for entry in run.read_log(folder)]


def first_update(folder: Path) -> tuple[dict, list]:
    """Log entry and gradients of a one-update run: Adam's first moment is then 0.1 times the clipped gradient."""
    import torch

    from common import run

    state = torch.load(folder / "last.pt", weights_only=True)["optimizer"]["state"]
    return run.read_log(folder)[0], [s["exp_avg"] for s in state.values()]
