"""The command line: who wins, what is suggested, what is refused, and how fast it answers."""

import errno
import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest
from conftest import REPOSITORY, run_script

from common.running.flags import (
    Count,
    Positive,
    Range,
    Real,
    RunConfig,
    Share,
    UserError,
    check_command_line,
    config_as_dict,
    differences,
    load_config,
    parse,
)

DOC = (
    "Title of a paper.\n\nRun\n---\n    python test_flags.py\n\nNotes\n-----\n    not in the help\n"
)


@dataclass(frozen=True)
class Config(RunConfig):
    # -- data --
    max_seconds: Positive = 30.0  # limit
    # -- method --
    method: Literal["a", "b", "c"] = "a"  # the row
    taps: tuple[Count, ...] = (6, 12)  # layers, 50 % of them
    teachers: tuple[str, ...] = ("bert",)  # names
    lam: Share | None = None  # weight
    offset: Real = 0.0  # any number
    context: int = 0  # tokens of the utterances before it and behind it, in so many words that the formatter has to wrap the line
    ramp: float = 0.1  # seconds
    smoothing: Annotated[float, Range("a share, below 1", lambda x: 0 <= x < 1)] = (
        0.1  # a range of the script's own
    )
    # -- model --
    factor: Literal[4, 8] = 4  # of a kind
    kernel: Count = 31  # odd
    dim: Count = 8  # width
    heads: Count = 4  # of attention
    norm: bool = False  # a switch
    # -- optimisation --
    lr: Positive = 1e-3  # peak
    schedule: Literal["inverse-sqrt", "one-cycle"] = "one-cycle"  # of the rate
    warmup: Positive = 0.3  # share or updates
    # -- decoding --
    decode: Literal["greedy", "beam"] = "greedy"  # search
    lm: str | None = None  # language model
    lm_weight: tuple[float, ...] = (0.2, 0.4)  # tried
    bonus: tuple[Real, ...] = (0.0,)  # tried

    def check(self):
        super().check()
        if self.method == "c" and self.context:
            raise UserError("--context goes with --method a or b.")


PRESETS = {
    "smoke": {
        "data": "demo-smoke",
        "taps": (1,),
        "lr": 0.5,
        "workers": 0,
        "save_steps": 7,
        "methods": ("a", "b"),
    },
    "demo": {"lr": 0.1},
}


@dataclass(frozen=True)
class Small(RunConfig):  # a script without model, schedule and decoding
    # -- method --
    method: Literal["a"] = "a"  # the only one


def read_all(*argv) -> list[Config]:
    return parse(Config, PRESETS, DOC, [str(a) for a in argv])


def read(*argv) -> Config:
    (config,) = read_all(*argv)
    return config


def store(folder, config, **changes):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config_as_dict(config) | changes}))
    return folder


def refused(capsys, *argv) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        read_all(*argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 2  # usage, then one sentence
    return error[1]


# ------------------------------------------------------------------------------------------------- values and presets


def test_presets_follow_the_data(tmp_path, monkeypatch):
    assert (read().preset, read().lr, read().taps) == ("demo", 0.1, (6, 12))
    assert (read("--data", "librispeech").preset, read("--data", "librispeech").lr) == (
        "full",
        1e-3,
    )
    assert read("--data", "mydata").preset == read("--data", "demo-mine").preset == "full"
    for argv in (
        ["--preset", "smoke"],
        ["--data", "demo-smoke"],
        ["--data", "demo-smoke", "--preset", "auto"],
    ):
        assert [(c.preset, c.data, c.lr, c.taps) for c in read_all(*argv)] == [
            ("smoke", "demo-smoke", 0.5, (1,))
        ] * 2
    config = read("--preset", "smoke", "--lr", "0.2", "--data", "mydata", "--method", "a")
    assert (config.lr, config.data, config.taps, config.workers) == (0.2, "mydata", (1,), 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert read().preset == "demo"  # a folder of that name does not change what the word means
    assert read("--preset", "full").data == "demo"


def test_values():
    config = read(
        "--taps",
        3,
        6,
        "--method=b",
        "--hours",
        "100",
        "--max-steps",
        5,
        "--offset",
        "-2.5",
        "--norm",
    )
    assert (config.taps, config.method, config.hours, config.max_steps) == ((3, 6), "b", 100.0, 5)
    assert (config.offset, config.norm, config.lam) == (-2.5, True, None)
    assert read("--bonus", "-0.5", "0", "1e-1", "--lam", 1).bonus == (-0.5, 0.0, 0.1)
    assert read("--factor", "8").factor == 8
    assert read("--teachers", "x", "y z").teachers == ("x", "y z")
    assert read("--seed", 1, "--seed", 2).seed == 2
    assert type(read("--lr", "1").lr) is float


def test_the_folder_of_a_run():
    assert read("--method", "b").out == "runs/test_flags-demo-b-s1"
    assert read("--data", "x/y/", "--seed", 3).out == "runs/test_flags-y-a-s3"
    assert read("--data", ".").out == "runs/test_flags-data-a-s1"
    assert [c.out for c in read_all("--preset", "smoke")] == [
        f"runs/test_flags-demo-smoke-a+b-s1/{m}" for m in "ab"
    ]
    assert read("--out", "x/y").out == "x/y" and read("--out", "auto").out == read().out


def test_several_methods():
    configs = read_all("--method", "b", "a", "b", "--seed", 2)
    assert [(c.method, c.seed) for c in configs] == [("b", 2), ("a", 2)]  # in this order, each once
    assert [c.out for c in configs] == [f"runs/test_flags-demo-b+a-s2/{method}" for method in "ba"]
    assert [c.out for c in read_all("--method", "a", "c", "--out", "x")] == ["x/a", "x/c"]
    assert read("--method", "a", "a", "--out", "x").out == "x"
    assert [c.method for c in read_all("--preset", "smoke")] == ["a", "b"]
    assert [c.method for c in read_all("--preset", "smoke", "--method", "c")] == ["c"]


# ------------------------------------------------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--tapps 3", "did you mean --taps?"),
        ("--max-step=3", "did you mean --max-steps?"),
        ("--max-s 3", "unknown option --max-s"),  # no abbreviations
        ("train", "options start with --"),
        ("--method a d", "--method must be one of a, b, c, not 'd'."),
        ("--method ,", "--method must be one of a, b, c, not ','."),
        ("--method", "expected at least one argument"),
        ("--method a,b", "give several values with spaces: --method a b"),
        ("--taps 6,12", "give several values with spaces: --taps 6 12"),
        ("--taps 6, 12", "give several values with spaces: --taps 6 12"),
        ("--taps 3;6", "--taps must be a whole number, not '3;6'."),
        ("--lr fast", "--lr must be a number, not 'fast'."),
        ("--lr 0,1", "--lr must be a number, not '0,1'."),
        ("--seed 1.5", "--seed must be a whole number, not '1.5'."),
        ("--factor 5", "--factor must be one of 4, 8, not 5."),
        ("--factor x", "--factor must be a whole number, not 'x'."),
        ("--preset tiny", "--preset must be one of auto, smoke, demo, full, not 'tiny'."),
        ("--transcribe a.wav", "--transcribe needs --checkpoint"),
        ("--resume --checkpoint x", "give one of the two"),
        ("--times", "--times goes with --transcribe."),
        ("--lm x", "--lm goes with --decode beam."),
        ("--kernel 4", "--kernel must be odd."),
        ("--heads 3", "--heads must divide --dim."),
        ("--warmup 1", "--warmup is a share of the run, below 1, for --schedule one-cycle."),
        (
            "--schedule inverse-sqrt",
            "--warmup is a number of updates, at least 1, for --schedule inverse-sqrt.",
        ),
        (
            "--method a c --context 2",
            "--context goes with --method a or b.",
        ),  # the script's own check, of the second
    ],
)
def test_wrong_command_lines(argv, message, capsys):
    assert message in refused(capsys, *argv.split())


@pytest.mark.parametrize(
    ("argv", "range"),
    [
        *((f"--max-steps {x}", "at least 1") for x in (0, -1)),
        *((f"--save-steps {x}", "at least 1") for x in (0, -1)),
        *((f"--{flag} -1", "at least 0") for flag in ("seed", "workers", "context", "ramp")),
        *((f"--{flag} {x}", "more than 0") for flag in ("lr", "hours") for x in (0, "-1", "nan")),
        *((f"--cut-seconds {x}", "at least 1") for x in (0, "0.001", "nan")),
        *((f"--lam {x}", "a share, from 0 to 1") for x in (-1, 1.1, "nan", "inf")),
        *((f"--smoothing {x}", "a share, below 1") for x in (1, "nan", "inf")),
        *(
            (f"--offset {x}", "between -1000000000 and 1000000000")
            for x in ("nan", "inf", "-2000000000")
        ),
        ("--offset=-inf", "between -1000000000 and 1000000000"),
        *((f"--{flag} inf", "at most 1000000000") for flag in ("lr", "ramp", "hours")),
        *(
            (f"--{flag} 1000000001", "at most 1000000000")
            for flag in ("seed", "lr", "batch-seconds")
        ),
        (f"--seed {10**30}", "at most 1000000000"),
        ("--seed " + "9" * 5000, "a whole number"),
        ("--ramp nan", "at least 0"),
        ("--taps 3 0", "at least 1"),  # in lists as well
        ("--bonus 1 nan", "between -1000000000 and 1000000000"),
    ],
)
def test_numbers_out_of_range(argv, range, capsys):
    flag = argv.replace("=", " ").split()[0]
    assert f"{flag} must be {range}, not " in refused(capsys, *argv.split())


def test_the_sentence_of_a_number_out_of_range(capsys):
    assert (
        refused(capsys, "--kernel", "0")
        == "python test_flags.py: error: --kernel must be at least 1, not 0."
    )


def test_limits_themselves_are_in_range():
    config = read(
        "--lam", 0, "--seed", 0, "--workers", 0, "--max-steps", 1, "--offset", "1e9", "--ramp", 0
    )
    assert (config.lam, config.seed, config.offset) == (0.0, 0, 1e9)
    assert read("--lam", 1, "--seed", 10**9).seed == 10**9


@pytest.mark.parametrize(
    "flag", ["--checkpoint", "--out", "--root", "--data", "--lm", "--transcribe", "--teachers"]
)
def test_empty_names_are_not_absent_ones(flag, capsys):
    for empty in ("", " "):
        assert f"{flag} must be a name, not {empty!r}." in refused(capsys, flag, empty)
    assert "--teachers must be a name" in refused(capsys, "--teachers", "x", "")


@pytest.mark.parametrize(
    "device", ["mps", "gpu", "tpu", "cuda:", "cuda:x", "cuda:1 ", "CUDA", "cuda:-1"]
)
def test_devices(device, capsys):
    assert "--device must be auto, cpu, cuda or cuda:N" in refused(capsys, "--device", device)
    for known in ("auto", "cpu", "cuda", "cuda:0", "cuda:12"):
        assert read("--device", known).device == known


def test_values_that_no_command_line_gave_are_checked():
    for changes in (
        {"taps": (0,)},
        {"taps": ()},
        {"lr": float("nan")},
        {"lr": "1"},
        {"norm": 1},
        {"method": ("a",)},
    ):
        with pytest.raises(UserError, match=f"--{next(iter(changes))} "):
            replace(read(), **changes).check()
    replace(read(), lr=1).check()  # a whole number is a number


def test_checks_ask_only_for_fields_that_are_there(tmp_path):
    RunConfig().check()
    assert parse(Small, {}, DOC, ["--seed", "2"])[0].out == "runs/test_flags-demo-a-s2"
    store(tmp_path, parse(Small, {}, DOC, [])[0])
    assert parse(
        Small, {}, DOC, ["--checkpoint", str(tmp_path), "--transcribe", "a.wav", "--times"]
    )[0].times


def test_wrong_presets_are_found():
    with pytest.raises(SystemExit, match="2"):
        parse(Config, {"demo": {"lr": -1.0}}, DOC, [])


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_brings_its_configuration(tmp_path):
    store(
        tmp_path,
        read("--taps", 3, "--lr", "0.7", "--data", "librispeech", "--seed", 9, "--method", "b"),
    )
    config = read("--checkpoint", tmp_path, "--data", "demo")
    assert (config.taps, config.lr, config.preset, config.data, config.seed) == (
        (3,),
        0.7,
        "full",
        "demo",
        9,
    )
    assert (
        config.out == str(tmp_path / "score-demo")
        and config.method == "b"
        and config.checkpoint == str(tmp_path)
    )
    assert read("--checkpoint", tmp_path, "--decode", "beam").out == str(
        tmp_path / "score-librispeech-beam"
    )
    assert read("--checkpoint", tmp_path, "--out", "x").out == "x"
    assert read("--checkpoint", tmp_path, "--transcribe", "a,b.wav", "c.wav").transcribe == (
        "a,b.wav",
        "c.wav",
    )
    with pytest.raises(
        UserError, match=f"give one of {tmp_path}"
    ):  # where several methods have a folder each
        read("--checkpoint", tmp_path.parent)
    smoke = store(tmp_path / "smoke", read_all("--preset", "smoke")[1])
    config = read("--checkpoint", smoke)  # what is not part of a run comes from the preset
    assert (config.method, config.preset, config.workers, config.save_steps) == ("b", "smoke", 0, 7)


def test_what_scoring_may_change(tmp_path):
    store(
        tmp_path,
        read(
            "--data", "librispeech", "--hours", 100, "--seed", 9, "--method", "b", "--lm-weight", 1
        ),
    )
    how = "--device cpu --workers 1 --batch-seconds 10 --cut-seconds 20 --save-steps 3 --precision bf16 --max-seconds 9"
    what = (
        "--data demo --root x --download --summary --decode beam --lm y --lm-weight 0.5 --bonus 1"
    )
    config = read("--checkpoint", tmp_path, *how.split(), *what.split())
    assert (config.device, config.workers, config.batch_seconds, config.cut_seconds) == (
        "cpu",
        1,
        10.0,
        20.0,
    )
    assert (config.precision, config.max_seconds, config.root, config.lm) == ("bf16", 9.0, "x", "y")
    same = "--seed 9 --method b b --hours 100 --taps 6 12 --preset full --lr 0.001"  # equal values say nothing new
    assert read("--checkpoint", tmp_path, *same.split()).seed == 9
    assert read("--checkpoint", tmp_path, "--preset", "auto", "--out", "auto").preset == "full"


def test_what_scoring_may_not_change(tmp_path, capsys):
    store(tmp_path, read())
    sentence = refused(
        capsys, "--checkpoint", tmp_path, "--heads", 2, "--seed", 9, "--data", "x", "--hours", 2
    )
    assert sentence.endswith(
        "error: --hours None -> 2.0, --seed 1 -> 9, --heads 4 -> 2: a finished run is scored as it was trained; "
        "leave these away or train anew."
    )
    assert "--method a -> b: " in refused(capsys, "--checkpoint", tmp_path, "--method", "b")
    assert "--preset demo -> full: " in refused(
        capsys, "--checkpoint", tmp_path, "--preset", "full"
    )
    assert "--taps 6 12 -> 3: " in refused(capsys, "--checkpoint", tmp_path, "--taps", "3")
    for flags in (
        ["--norm"],
        ["--max-steps", "3"],
        ["--lam", "0.5"],
        ["--dim", "16"],
        ["--teachers", "x"],
    ):
        assert f"{flags[0]} " in refused(capsys, "--checkpoint", tmp_path, *flags)
    assert "--checkpoint scores one run, not --method a b" in refused(
        capsys, "--checkpoint", tmp_path, "--method", "a", "b"
    )


def test_transcribing_with_a_finished_run(tmp_path):
    store(tmp_path, read())
    wav = "--checkpoint", tmp_path, "--transcribe", "a.wav"
    assert read(*wav, "--times").times
    assert read(*wav, "--decode", "beam").decode == "beam"
    assert read(*wav, "--decode", "beam", "--lm", "x", "--lm-weight", 1).lm == "x"
    assert read("--checkpoint", tmp_path, "--decode", "beam", "--lm", "x").lm_weight == (
        0.2,
        0.4,
    )  # scoring tries all


# ------------------------------------------------------------------------------------------------------------- resume


def test_a_run_is_resumed(tmp_path):
    store(tmp_path, read("--taps", 3, "--lr", "0.7", "--data", "librispeech", "--method", "b"))
    again = read("--resume", "--out", tmp_path)
    assert (again.taps, again.lr, again.method, again.data) == ((3,), 0.7, "b", "librispeech")
    assert again.resume and again.out == str(tmp_path)
    how = "--workers 1 --device cpu --batch-seconds 9 --decode beam --root x --method b --seed 1"
    assert (
        read("--resume", "--out", tmp_path, *how.split()).workers == 1
    )  # how to compute may change
    with pytest.raises(
        UserError,
        match=r"--seed 1 -> 2, --precision auto -> bf16, --lr 0.7 -> 0.9\).*another --out",
    ):
        read("--resume", "--out", tmp_path, "--lr", "0.9", "--seed", 2, "--precision", "bf16")
    with pytest.raises(UserError, match="--data librispeech -> demo"):
        read("--resume", "--out", tmp_path, "--data", "demo")
    with pytest.raises(UserError, match="holds no run"):
        read("--resume", "--out", tmp_path / "nothing")


def test_the_usual_folder_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config in (read("--seed", 3), *read_all("--preset", "smoke")):
        store(tmp_path / config.out, config)
    assert read("--seed", 3, "--resume").out == "runs/test_flags-demo-a-s3"
    assert [c.resume for c in read_all("--preset", "smoke", "--resume")] == [True, True]


def test_several_methods_are_resumed_where_they_have_begun(tmp_path):
    command = "--method", "b", "a", "--out", tmp_path
    b, a = read_all(*command, "--seed", 3, "--hours", 2)
    with pytest.raises(UserError, match="holds no run"):
        read_all(*command, "--resume")
    store(tmp_path / "b", b)
    b_again, a_again = read_all(*command, "--resume", "--workers", 1)
    assert b_again == replace(b, resume=True, workers=1)
    assert a_again == replace(a, workers=1)  # begins now, with the other's options
    store(tmp_path / "a", a)
    assert [(c.method, c.resume) for c in read_all(*command, "--resume")] == [
        ("b", True),
        ("a", True),
    ]
    with pytest.raises(UserError, match=f"{tmp_path / 'b'} holds a run .*--seed 3 -> 1"):
        read_all(*command, "--resume", "--seed", 1)
    with pytest.raises(UserError, match=f"give one of {tmp_path / 'a'}, {tmp_path / 'b'}"):
        read_all("--method", "c", "--resume", "--out", tmp_path)


def test_a_folder_that_holds_a_single_run_is_that_run(tmp_path):
    store(tmp_path, read("--method", "b", "--preset", "smoke"))
    assert (
        read("--resume", "--out", tmp_path, "--preset", "smoke").method == "b"
    )  # though the preset has two
    with pytest.raises(UserError, match="--method b -> b a"):
        read_all("--method", "b", "a", "--resume", "--out", tmp_path)


# ------------------------------------------------------------------------------------------------ stored configurations


def test_what_belongs_to_a_run_follows_from_the_band():
    fields = set(config_as_dict(read()))
    assert {
        "data",
        "hours",
        "preset",
        "seed",
        "max_steps",
        "precision",
        "method",
        "taps",
        "lr",
    } <= fields
    assert (
        not {"root", "download", "out", "resume", "checkpoint", "transcribe", "times", "summary"}
        & fields
    )
    assert not {"device", "workers", "batch_seconds", "cut_seconds", "save_steps"} & fields
    assert not {"decode", "lm", "lm_weight", "bonus"} & fields
    assert differences(read(), read("--seed", 2, "--workers", 1, "--taps", 3)) == [
        "--seed 1 -> 2",
        "--taps 6 12 -> 3",
    ]


def test_a_folder_is_the_same_however_it_is_written():
    for name in ("a/b/", "a//b", "./a/b"):
        assert differences(read("--data", "a/b"), read("--data", name)) == []
    assert differences(read("--data", "a/b"), read("--data", "a/c")) == ["--data a/b -> a/c"]


def test_a_stored_configuration_is_read_as_it_was(tmp_path):
    config = read("--taps", 3, "--lr", 1, "--lam", 0.5, "--max-steps", 3, "--norm", "--method", "b")
    assert replace(load_config(Config, store(tmp_path, config), PRESETS), out=config.out) == config
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert stored["method"] == "b" and stored["taps"] == [3]
    del stored["lr"], stored["kernel"]  # options that are newer than the run
    (tmp_path / "config.json").write_text(json.dumps({"config": stored | {"preset": "smoke"}}))
    loaded = load_config(Config, tmp_path, PRESETS)
    assert (loaded.lr, loaded.kernel, loaded.workers, loaded.taps) == (0.5, 31, 0, (3,))


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "3",
        "{}",
        '{"config": 3}',
        '{"config": "x"}',
        '{"config": {"nonsense": 1}}',
        b"\xff\xfe",
        "[" * 99999,
    ],
)
def test_folders_that_hold_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load_config(Config, tmp_path, PRESETS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"taps": 3}, "--taps must be a list, not 3"),
        ({"taps": [3, "x"]}, "--taps must be a whole number, not 'x'"),
        ({"taps": []}, "--taps needs at least one value"),
        ({"heads": 0}, "--heads must be at least 1, not 0"),
        ({"heads": 3}, "--heads must divide --dim"),
        ({"heads": True}, "--heads must be a whole number, not True"),
        ({"heads": 4.0}, "--heads must be a whole number, not 4.0"),
        ({"heads": None}, "--heads must be a whole number, not None"),
        ({"lr": float("nan")}, "--lr must be more than 0, not nan"),
        ({"lr": 10**400}, "--lr must be at most 1000000000"),
        ({"lr": "0.1"}, "--lr must be a number, not '0.1'"),
        ({"norm": 1}, "--norm must be true or false, not 1"),
        ({"factor": 5}, "--factor must be one of 4, 8, not 5"),
        ({"method": ["a"]}, "--method must be a name, not ['a']"),
        ({"method": "z"}, "--method must be one of a, b, c, not 'z'"),
        ({"data": ""}, "--data must be a name, not ''"),
        ({"preset": []}, "--preset must be a name, not []"),
        ({"tapps": 3}, "it has no option 'tapps'"),
        ({"summary": True}, "it has no option 'summary'"),  # no option of a run
        ({"method": "c", "context": 1}, "--context goes with --method a or b"),
    ],
)
def test_a_tampered_configuration(tmp_path, changes, reason):
    store(tmp_path, read(), **changes)
    for argv in (["--checkpoint", tmp_path], ["--resume", "--out", tmp_path]):
        with pytest.raises(UserError) as error:
            read(*argv)
        assert str(error.value).startswith(
            f"{tmp_path}/config.json is not a configuration of this script ({reason}"
        )
        assert str(error.value).endswith("): use the script and version that wrote it.")


def test_what_is_no_readable_file(tmp_path):
    for name in ("config.json", "x" * 300):
        with pytest.raises(UserError, match="holds no run"):
            load_config(Config, tmp_path / name, PRESETS)
    (tmp_path / "a" / "config.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "config.json")
    for folder in (tmp_path / "a", tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match="holds no run"):
            load_config(Config, folder, PRESETS)


# ---------------------------------------------------------------------------------------------------- help, processes


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert (
        "Title of a paper." in text
        and "python test_flags.py" in text
        and "not in the help" not in text
    )
    assert "--taps INT [INT ...] layers, 50 % of them [6 12; smoke 1]" in text
    assert "--method {a,b,c} [NAME ...] the row [a; smoke a b]" in text
    assert (
        "--lr FLOAT peak [0.001; smoke 0.5; demo 0.1]" in text
        and "--factor {4,8} of a kind [4]" in text
    )
    assert "--lam FLOAT weight --" in text and "--norm a switch optimisation:" in text
    assert (
        "--context INT tokens of the utterances before" in text
        and "has to wrap the line [0]" in text
    )
    bands = [
        "corpus:",
        "run:",
        "what to do:",
        "how to compute:",
        "data:",
        "method:",
        "model:",
        "optimisation:",
    ]
    positions = [text.index(f" {band} --") for band in [*bands, "decoding:"]]
    assert positions == sorted(positions)


def test_a_wrong_folder_is_no_wrong_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["x.py", "--checkpoint", str(tmp_path)])
    with pytest.raises(UserError, match="holds no run") as error:
        check_command_line(Config, PRESETS, DOC)
    sys.excepthook(error.type, error.value, error.tb)  # as Python does, before it exits with 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and len(said.err.splitlines()) == 1 and not said.out
    monkeypatch.setattr(sys, "argv", ["x.py", "--seed", "2"])
    assert check_command_line(Config, PRESETS, DOC) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped."),
        (MemoryError(), "lower --batch-seconds"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "lower --batch-seconds",
        ),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), "lower --workers"),
        (RuntimeError("DataLoader timed out after 600 seconds"), "lower --workers"),
        (OSError(errno.ENOSPC, "No space left on device"), "look at the disk"),
        (ValueError("a bug of ours"), "ValueError: a bug of ours"),  # with its traceback
    ],
)
def test_what_ends_a_script(error, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["x.py"])
    check_command_line(Config, PRESETS, DOC)
    sys.excepthook(type(error), error, None)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_help_answers_before_torch_is_imported():
    code = "import sys, common.running.flags; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
    code = (
        "import runpy, sys; sys.argv = ['hubert_gpt_bridge.py', '--help']\n"
        "try: runpy.run_path('hubert_gpt_bridge.py', run_name='__main__')\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )


def test_exit_codes():
    code, _, error = run_script("--sed", "3", script="hubert_gpt_bridge.py")
    assert code == 2 and error.strip().endswith("unknown option --sed: did you mean --seed?")


def test_functions_are_short():
    from common.running import flags

    functions = [
        f
        for _, f in inspect.getmembers(flags, inspect.isfunction)
        if f.__module__ == flags.__name__
    ]
    assert max(len(inspect.getsourcelines(f)[0]) for f in [*functions, RunConfig.check]) <= 60


# ------------------------------------------------------------------------------------------- folders and interpreters


def test_this_folder_and_its_parent_have_names(tmp_path, monkeypatch):
    """A run looks for those that it builds on beside its own folder."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert read("--out", ".").out == str(tmp_path / "a" / "b")
    assert read("--out", "..").out == str(tmp_path / "a")
    assert [c.out for c in read_all("--out", ".", "--method", "a", "b")] == [
        str(tmp_path / "a/b" / x) for x in "ab"
    ]
    assert read("--out", "x").out == "x" and read("--out", "./x").out == "x"


def test_help_without_docstrings(capsys):
    """As python -OO leaves a script: its help is read from its source."""
    with pytest.raises(SystemExit, match="0"):
        parse(Config, PRESETS, None, ["--help"])
    assert inspect.getdoc(sys.modules[__name__]) in capsys.readouterr().out


def test_a_script_goes_on_without_docstrings(tmp_path):
    """transformers needs its own, so the script is started again with them."""
    options = ["--preset", "smoke", "--summary"]
    code, out, error = run_script(
        *options, script="hubert_gpt_bridge.py", launcher=["-OO"], cwd=tmp_path
    )
    assert code == 0 and "total" in out and "docstring" not in error, error
