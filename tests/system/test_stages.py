"""Earlier runs that a run builds on: found, trained by default, refused."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

from common.errors import UserError
from common.running import options, stages
from common.running.corpora import Utterance
from common.running.process import Place, open_folder
from common.running.training import Progress, digest_of

CPU = Place(0, 1, torch.device("cpu"))
Method = Literal["first", "second"]


@dataclass(frozen=True)
class Config(options.RunConfig):
    """Of a script whose runs of `second` build on one of `first`."""

    methods: Annotated[tuple[Method, ...], options.METHOD] = ("second",)
    preset: str = "full"
    first_run: str = "auto"  # of first
    units: int = 5  # of second


PRESETS = {"full": Config()}
STAGE = stages.Stage("first", "--first-run", may_differ=("first_run", "units"))
DATA = [Utterance("a", "a.wav", "the king", 1.0), Utterance("b", "b.wav", "a sail", 2.0)]


def finish(config: Config, utterances=DATA) -> None:
    """What a finished run leaves behind."""
    open_folder(config, CPU)
    progress = asdict(Progress(utterances=len(utterances), corpus=digest_of(utterances)))
    torch.save({"model": {}, "progress": progress}, Path(config.out) / "last.pt")
    (Path(config.out) / "model.safetensors").touch()


def find(config: Config, utterances=DATA) -> Config:
    """As the scripts do it: a run that is not finished is trained."""
    earlier = stages.find_run(config, STAGE, PRESETS, CPU)
    if stages.is_finished(earlier):
        stages.check_corpus(earlier, STAGE, utterances, CPU)
    else:
        finish(earlier, utterances)
    return earlier


def test_an_earlier_stage_is_trained_by_default_and_then_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(out="runs/second", variant="a_variant")
    earlier = stages.find_run(config, STAGE, PRESETS, CPU)
    assert not stages.is_finished(earlier) and not earlier.resume
    found = find(config)
    assert found.out == "runs/test_stages-demo-first-s1"
    assert (found.method, found.variant, found.first_run) == ("first", None, "auto")
    again = stages.find_run(replace(config, first_run=found.out, units=7), STAGE, PRESETS, CPU)
    assert stages.is_finished(again) and again.resume
    assert (again.out, again.units) == (found.out, 5)
    message = "was trained otherwise .*--seed 1 -> 2.*another --first-run"
    with pytest.raises(UserError, match=message):
        find(Config(out="runs/second", first_run=found.out, seed=2))


def test_the_run_beside_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(Config(methods=("first",), out="both/first"))
    assert find(Config(out="both/second")).out == "both/first"


def test_a_variants_run_may_be_named(tmp_path):
    folder = str(tmp_path / "first")
    finish(Config(methods=("first",), out=folder, variant="a_variant"))
    assert find(Config(out=str(tmp_path / "x"), first_run=folder)).variant == "a_variant"
    with pytest.raises(UserError, match="trained otherwise .*--variant a_variant -> None"):
        find(Config(out=str(tmp_path / "second")))


def test_a_named_stage_that_does_not_exist_is_refused_and_not_trained(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("mistyped", "empty"):
        config = Config(out=str(tmp_path / "second"), first_run=str(tmp_path / name))
        with pytest.raises(UserError, match=f"--first-run .*{name} holds no run: give the folder"):
            find(config)
    assert not (tmp_path / "mistyped").exists() and not list((tmp_path / "empty").iterdir())


def test_a_run_that_was_cut_short(tmp_path):
    folder = str(tmp_path / "first")
    finish(Config(methods=("first",), out=folder, max_steps=2))
    config = Config(out=str(tmp_path / "second"), first_run=folder)
    assert find(replace(config, max_steps=1)).max_steps == 2
    with pytest.raises(UserError, match="trained otherwise .*--max-steps 2 -> None"):
        find(config)


CHANGED = {
    "another text": [DATA[0], replace(DATA[1], text="a sale")],
    "one fewer": DATA[:1],
    "another length": [DATA[0], replace(DATA[1], duration=2.5)],
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("named", [True, False])
def test_a_stage_trained_on_other_data_is_refused(tmp_path, change, named):
    """Though the data have the same name; whether the stage was named or found."""
    folder = tmp_path / "first"
    finish(Config(methods=("first",), out=str(folder)))
    config = Config(out=str(tmp_path / "second"), first_run=str(folder) if named else "auto")
    assert find(config).out == str(folder)
    message = "the first in .* was trained on other utterances than --data"
    with pytest.raises(UserError, match=message):
        find(config, CHANGED[change])


def test_a_stage_whose_data_cannot_be_asked(tmp_path, capsys):
    folder = tmp_path / "first"
    finish(Config(methods=("first",), out=str(folder)))
    config = Config(out=str(tmp_path / "second"), first_run=str(folder))
    (folder / "last.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="last.pt cannot be read .*give another --first-run"):
        find(config)
    (folder / "last.pt").unlink()
    assert find(config).out == str(folder)
    said = capsys.readouterr().err
    assert "has no last.pt: whether its data were the same cannot be told" in said
