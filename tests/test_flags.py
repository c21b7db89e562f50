"""The command line: who wins, what is suggested, what is refused, and how fast it answers."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from conftest import REPOSITORY, run_script

from common.flags import RunConfig, UserError, config_as_dict, load_config, parse

DOC = "Title of a paper.\n\nRun\n---\n    python test_flags.py\n"


@dataclass(frozen=True)
class Config(RunConfig):
    # -- method --
    method: tuple[Literal["a", "b"], ...] = ("a",)  # the row
    taps: tuple[int, ...] = (6, 12)  # layers, 50 % of them
    lr: float = 1e-3  # peak
    factor: Literal[4, 8] = 4  # of a kind


PRESETS = {"smoke": {"taps": (1,), "lr": 0.5, "workers": 0}, "demo": {"lr": 0.1}}


def read(*argv) -> Config:
    return parse(Config, PRESETS, DOC, [str(a) for a in argv])


def test_presets_follow_the_data():
    assert (read().preset, read().lr, read().taps) == ("demo", 0.1, (6, 12))
    assert (read("--data", "librispeech").preset, read("--data", "librispeech").lr) == ("full", 1e-3)
    assert (read("--preset", "smoke").lr, read("--preset", "smoke").taps) == (0.5, (1,))
    assert read("--preset", "smoke", "--lr", "0.2").lr == 0.2


def test_values():
    config = read("--taps", "3,6", "--method=b", "--hours", "100", "--max-steps", 5)
    assert (config.taps, config.method, config.hours, config.max_steps) == ((3, 6), ("b",), 100.0, 5)
    assert config.out == "runs/test_flags-demo-b-s1"
    assert read("--factor", "8").factor == 8
    assert read("--data", "x/y/", "--seed", 3).out == "runs/test_flags-y-a-s3"
    assert read("--preset", "smoke").out == "runs/test_flags-demo-smoke-a-s1"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tapps", "3"], "did you mean --taps?"),
        (["--max-step=3"], "did you mean --max-steps?"),
        (["train"], "options start with --"),
        (["--method", "a,c"], "'c' is none of a, b"),
        (["--method", ","], "give one or more of a, b"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--taps", "3;6"], "invalid"),
        (["--transcribe", "a.wav"], "--transcribe needs --checkpoint"),
        (["--resume", "--checkpoint", "x"], "give one of the two"),
    ],
)
def test_wrong_command_lines(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and len(error) == 2  # usage, then one sentence


def test_a_checkpoint_brings_its_configuration(tmp_path):
    stored = read("--taps", "3", "--lr", "0.7", "--data", "librispeech")
    (tmp_path / "config.json").write_text(json.dumps({"config": config_as_dict(stored)}))
    config = read("--checkpoint", tmp_path, "--lr", "0.9", "--data", "demo")
    assert (config.taps, config.lr, config.preset, config.data) == ((3,), 0.9, "full", "demo")
    assert config.out == str(tmp_path / "score-demo")
    with pytest.raises(UserError, match=f"give one of {tmp_path}"):  # where several methods have a folder each
        read("--checkpoint", tmp_path.parent)
    assert read("--checkpoint", tmp_path, "--transcribe", "a,b.wav", "c.wav").transcribe == ("a,b.wav", "c.wav")
    smoke = tmp_path / "smoke"
    smoke.mkdir()
    (smoke / "config.json").write_text(json.dumps({"config": config_as_dict(read("--preset", "smoke"))}))
    assert read("--checkpoint", smoke).workers == read("--resume", "--out", smoke).workers == 0  # the preset's
    again = read("--resume", "--out", tmp_path)
    assert again.taps == (3,) and again.resume
    how = "--workers", 1, "--device", "cpu"  # how to compute may change, what is learnt may not
    assert read("--resume", "--out", tmp_path, *how).workers == 1
    with pytest.raises(UserError, match=r"lr 0.7 -> 0.9.*--out"):
        read("--resume", "--out", tmp_path, "--lr", "0.9")


def test_several_methods(tmp_path):
    config = read("--method", "b,a,b")
    assert config.method == ("b", "a") and config.out == "runs/test_flags-demo-b+a-s1"
    # --resume with several methods is sorted out run by run; a folder that holds a single run is that run
    assert read("--method", "b,a", "--resume", "--out", tmp_path).method == ("b", "a")
    (tmp_path / "config.json").write_text(json.dumps({"config": config_as_dict(read("--method", "b"))}))
    assert read("--resume", "--out", tmp_path).method == ("b",)
    with pytest.raises(UserError, match="method b -> b,a"):
        read("--method", "b,a", "--resume", "--out", tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", '{"config": {"nonsense": 1}}', '{"config": {"taps": 3}}'])
def test_folders_that_hold_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_config(Config, tmp_path, PRESETS)


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert (
        "Title of a paper." in text
        and "layers, 50 % of them [6,12; smoke 1]" in text
        and "python test_flags.py" in text
    )


def test_help_answers_before_torch_is_imported():
    code = "import sys, common.flags; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
    code = (
        "import runpy, sys; sys.argv = ['interaed_kd.py', '--help']\n"
        "try: runpy.run_path('interaed_kd.py', run_name='__main__')\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == 0


def test_exit_codes():
    code, _, error = run_script("--sed", "3")
    assert code == 2 and error.strip().endswith("unknown option --sed: did you mean --seed?")
