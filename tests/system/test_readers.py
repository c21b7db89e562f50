"""What travels to the processes that read audio: no model, whatever starts these processes."""

import importlib
import io
import os
import pickle
import subprocess
import sys
from functools import partial

import pytest
import soundfile
import torch
from conftest import REPOSITORY, slow_after_the_first
from torch import Tensor, nn

from common import hubert
from common.running import training
from common.running.runs import SCRIPTS
from common.text import Characters


def models_in(*things) -> list[str]:
    """The modules and tensors that pickling them meets, as one type name each."""
    found = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if isinstance(thing, nn.Module | Tensor):
                found.append(type(thing).__name__)

    Pickler(io.BytesIO()).dump(things)
    return found


class Reached(Exception):
    """A run would begin to train now."""


@pytest.mark.parametrize("name", slow_after_the_first(SCRIPTS))
def test_what_travels_holds_no_model(name, runs, tmp_path, monkeypatch):
    run = runs(name)
    module, given = importlib.import_module(name), []

    def begin(config, place, models, optimizer, utterances, encode, fits, **order):
        given.append((encode, fits, utterances))
        raise Reached

    for method in run.script.methods:
        with monkeypatch.context() as patch, pytest.raises(Reached):
            # One imports the class, the other the module that it stands in.
            patch.setattr(module if hasattr(module, "Run") else training, "Run", begin)
            run.train("--out", tmp_path / method, "--method", method)
    assert len(given) == 2
    for encode, fits, utterances in given:
        assert models_in(encode, fits, utterances) == []
        again_encode, again_fits = pickle.loads(pickle.dumps((encode, fits)))
        for u in utterances[:5]:
            labels = encode(u.text)
            assert again_encode(u.text) == labels
            assert again_fits(32000, labels, u.text) is fits(32000, labels, u.text)


FORKSERVER = """
import multiprocessing, pickle, sys
from dataclasses import dataclass
from common.running.corpora import Utterance
from common.running.batches import MicroBatch, loader
from common.running.options import Augmentation, RunConfig

@dataclass(frozen=True)
class Config(RunConfig):
    augmentation: Augmentation = Augmentation((1.0,), 0, 0)

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")  # as Python 3.14 does by itself
    spoken = [Utterance(text, sys.argv[1], text, 1.0) for text in ("a b", "ab", "aé")]
    encode, fits = pickle.load(open(sys.argv[2], "rb"))
    config = Config(device="cpu", workers=1)
    for batch in loader([MicroBatch(spoken[:2]), MicroBatch(spoken[2:])], config, encode, fits):
        print(len(batch.utterances), batch.infeasible)
"""


@pytest.mark.slow
def test_a_reading_process_of_its_own_gets_along(tmp_path):
    """Started by forkserver, with what hubert_gpt_bridge.py gives it: CTC knows no é."""
    soundfile.write(tmp_path / "a.wav", torch.randn(16000).numpy() * 0.1, 16000)
    characters, cnn = Characters.build(["a b", "aé"]), ((10, 5), (3, 2), (3, 2))
    given = characters.encode, partial(hubert.fits, " ab", cnn, 400)
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    (tmp_path / "read.py").write_text(FORKSERVER)
    command = [sys.executable, tmp_path / "read.py", tmp_path / "a.wav", tmp_path / "given"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 0", "0 1"]
