"""The command line by tyro: who wins, what is refused, and what a run stores."""

import errno
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest
from conftest import REPOSITORY, run_script

from common import errors
from common.errors import UserError
from common.running import command_line, options
from common.running.options import Count, Extent, Odd, Positive, Real, Share

DOC = """Title of a paper.

Run
---
    python test_command_line.py

Notes
-----
    not in the help
"""
ROWS = ("a", "b", "c")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    dim: Extent  # width
    heads: Extent  # of attention
    kernel: Odd = 31  # frames

    def check(self):
        if self.dim % self.heads:
            raise UserError("--heads must divide --dim.")


@dataclass(frozen=True)
class Config(options.RunConfig):
    methods: Annotated[tuple[Literal[ROWS], ...], options.METHOD] = ("a",)  # the rows
    taps: tuple[Count, ...] = (6, 12)  # layers, 50 % of them
    teachers: tuple[str, ...] = ("bert",)  # names
    lam: Share | None = None  # weight
    offset: Real = 0.0  # any number
    context: int = 0  # tokens
    norm: bool = False  # a switch
    factor: Literal[4, 8] = 4  # of a kind
    lr: Positive = 1e-3  # peak
    sizes: Sizes = Sizes(dim=8, heads=4)

    def check(self):
        super().check()
        if self.method == "c" and self.context:
            raise UserError("--context goes with --method a or b.")


DEMO = Config(lr=0.1)
SMOKE = options.with_values(
    DEMO, methods=("a", "b"), data="demo-smoke", taps=(1,), lr=0.5, workers=0, save_steps=7, dim=4
)
PRESETS = {"full": Config(), "demo": DEMO, "smoke": SMOKE}


def read_all(*argv) -> list[Config]:
    return command_line.parse(PRESETS, DOC, [str(a) for a in argv])


def read(*argv) -> Config:
    (config,) = read_all(*argv)
    return config


def store(folder, config, **changes):
    folder.mkdir(exist_ok=True, parents=True)
    stored = config.stored()
    stored["config"] |= changes
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def refused(capsys, *argv) -> str:
    """What is printed when a command line is refused, without the lines of its box."""
    with pytest.raises(SystemExit) as stop:
        read_all(*argv)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err) < 1500
    return " ".join(said.err.replace("│", " ").split())


# -------------------------------------------------------------------- values and presets


def test_presets_follow_the_data(tmp_path, monkeypatch):
    assert (read().preset, read().lr, read().taps) == ("demo", 0.1, (6, 12))
    full = read("--data", "librispeech")
    assert (full.preset, full.lr, full.sizes.dim) == ("full", 1e-3, 8)
    assert read("--data", "mydata").preset == read("--data", "demo-mine").preset == "full"
    for argv in ("--preset smoke", "--data demo-smoke", "--data demo-smoke --preset auto"):
        found = [(c.preset, c.data, c.lr, c.sizes.dim) for c in read_all(*argv.split())]
        assert found == [("smoke", "demo-smoke", 0.5, 4)] * 2
    config = read(
        *["--preset", "smoke", "--lr", "0.2", "--data", "mydata", "--method", "a", "--dim", "16"]
    )
    assert (config.lr, config.data, config.taps, config.workers) == (0.2, "mydata", (1,), 0)
    assert (config.sizes.dim, config.sizes.heads) == (16, 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert read().preset == "demo"  # a folder of that name does not change what the word means
    assert read("--preset", "full").data == "demo"


def test_values():
    config = read(
        *[
            "--taps",
            "3",
            "6",
            "--method=b",
            "--hours",
            "100",
            "--max-steps",
            "5",
            "--offset",
            "-2.5",
            "--norm",
        ]
    )
    assert (config.taps, config.method, config.hours) == ((3, 6), "b", 100.0)
    assert (config.max_steps, config.offset, config.norm, config.lam) == (5, -2.5, True, None)
    assert read("--lam", 1).lam == 1 and read("--factor", "8").factor == 8
    assert read("--teachers", "x", "y z").teachers == ("x", "y z")
    assert read("--seed", 1, "--seed", 2).seed == 2
    assert type(read("--lr", "1").lr) is float
    assert read("--data", "x/y/").data == "x/y"  # a trailing slash names the same folder


def test_the_folder_of_a_run():
    assert read("--method", "b").out == "runs/test_command_line-demo-b-s1"
    assert read("--data", "x/y/", "--seed", 3).out == "runs/test_command_line-y-a-s3"
    assert read("--data", ".").out == "runs/test_command_line-data-a-s1"
    both = [f"runs/test_command_line-demo-smoke-a+b-s1/{m}" for m in "ab"]
    assert [c.out for c in read_all("--preset", "smoke")] == both
    assert read("--out", "x/y").out == "x/y" and read("--out", "auto").out == read().out
    (variant,) = command_line.parse(PRESETS, DOC, [], variant="uniform")
    assert variant.out == "runs/test_command_line-demo-a-uniform-s1"


def test_several_methods():
    configs = read_all("--method", "b", "a", "b", "--seed", 2)
    assert [(c.method, c.seed) for c in configs] == [("b", 2), ("a", 2)]  # each once, in this order
    assert [c.out for c in read_all("--method", "a", "c", "--out", "x")] == ["x/a", "x/c"]
    assert read("--method", "a", "a", "--out", "x").out == "x"
    assert [c.method for c in read_all("--preset", "smoke", "--method", "c")] == ["c"]


# --------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--tapps 3", "Perhaps you meant: --taps"),
        ("--max-step=3", "Perhaps you meant: --max-steps"),
        ("--max-st 3", "--max-steps"),  # no abbreviations
        ("train", "train"),
        ("--method a d", "invalid choice 'd'"),
        ("--method", "--method needs at least one value"),
        ("--method a,b", "invalid choice 'a,b'"),
        ("--taps 6,12", "--taps"),
        ("--lr fast", "--lr"),
        ("--seed 1.5", "--seed"),
        ("--factor 5", "--factor"),
        ("--preset tiny", "--preset"),
        ("--kernel 4", "--kernel must be odd, not 4."),
        ("--heads 3", "--heads must divide --dim."),
        ("--checkpoint x", "--checkpoint"),
        ("--variant x", "--variant"),
        ("--method a c --context 2", "--context goes with --method a or b."),  # of the second
        *((f"--max-steps {x}", "--max-steps must be at least 1") for x in (0, -1)),
        *(
            (f"--{flag} -1", f"--{flag} must be at least 0")
            for flag in ("seed", "workers", "context")
        ),
        *((f"--{flag} {x}", "more than 0") for flag in ("lr", "hours") for x in (0, "-1", "nan")),
        *((f"--cut-seconds {x}", "at least 1") for x in (0, "0.001", "nan")),
        *((f"--lam {x}", "a share, from 0 to 1") for x in (-1, 1.1, "nan", "inf")),
        *((f"--offset {x}", "between -1000000000") for x in ("nan", "inf", "-2000000000")),
        *((f"--{flag} 1000000001", "at most 1000000000") for flag in ("seed", "lr")),
        ("--taps 3 0", "--taps must be at least 1, not 0"),  # in lists as well
    ],
)
def test_wrong_command_lines(argv, message, capsys):
    assert message in refused(capsys, *argv.split())


def test_limits_themselves_are_in_range():
    config = read(
        *["--lam", "0", "--seed", "0", "--workers", "0", "--max-steps", "1", "--offset", "1e9"]
    )
    assert (config.lam, config.seed, config.offset) == (0.0, 0, 1e9)
    assert read("--lam", 1, "--seed", 10**9).seed == 10**9


@pytest.mark.parametrize("flag", ["--out", "--root", "--data", "--teachers"])
def test_empty_names_are_not_absent_ones(flag, capsys):
    for empty in ("", " "):
        assert f"{flag} must be a name, not {empty!r}." in refused(capsys, flag, empty)


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:", "cuda:x", "cuda:1 ", "CUDA", "cuda:-1"])
def test_devices(device, capsys):
    assert "--device must be auto, cpu, cuda or cuda:N" in refused(capsys, "--device", device)
    for known in ("auto", "cpu", "cuda", "cuda:0", "cuda:12"):
        assert read("--device", known).device == known


def test_values_that_no_command_line_gave_are_checked():
    wrong = [
        {"taps": (0,)},
        {"taps": ()},
        {"lr": float("nan")},
        {"lr": "1"},
        {"norm": 1},
        {"dim": 0},
    ]
    for changes in wrong:
        with pytest.raises(UserError, match=f"--{next(iter(changes))} "):
            options.with_values(read(), **changes).check()
    replace(read(), lr=1).check()  # a whole number is a number


# --------------------------------------------------------------------------------- resume


def test_a_run_is_resumed(tmp_path):
    store(
        tmp_path,
        read(
            *["--taps", "3", "--lr", "0.7", "--data", "librispeech", "--method", "b", "--dim", "16"]
        ),
    )
    again = read("--resume", "--out", tmp_path)
    assert (again.taps, again.lr, again.method, again.sizes.dim) == ((3,), 0.7, "b", 16)
    assert again.resume and again.out == str(tmp_path) and again.data == "librispeech"
    how = "--workers 1 --device cpu --batch-seconds 9 --root x --method b --seed 1"
    assert (
        read("--resume", "--out", tmp_path, *how.split()).workers == 1
    )  # local options may change
    changed = r"--seed 1 -> 2, --precision auto -> bf16, --lr 0.7 -> 0.9\).*another --out"
    with pytest.raises(UserError, match=changed):
        read("--resume", "--out", tmp_path, *["--lr", "0.9", "--seed", "2", "--precision", "bf16"])
    for more in (["--data", "demo"], ["--dim", "8"]):
        with pytest.raises(UserError, match=f"{more[0]} .* -> {more[1]}"):
            read("--resume", "--out", tmp_path, *more)
    with pytest.raises(UserError, match="holds no run"):
        read("--resume", "--out", tmp_path / "nothing")


def test_a_variant_is_another_run(tmp_path):
    (variant,) = command_line.parse(PRESETS, DOC, ["--out", str(tmp_path)], variant="uniform")
    store(tmp_path, variant)
    with pytest.raises(UserError, match="--variant uniform -> None"):
        read("--resume", "--out", tmp_path)
    again = command_line.parse(
        PRESETS, DOC, ["--resume", "--out", str(tmp_path)], variant="uniform"
    )
    assert again[0].variant == "uniform"
    store(tmp_path, read())
    with pytest.raises(UserError, match="--variant None -> uniform"):
        command_line.parse(PRESETS, DOC, ["--resume", "--out", str(tmp_path)], variant="uniform")


def test_the_usual_folder_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config in (read("--seed", 3), *read_all("--preset", "smoke")):
        store(tmp_path / config.out, config)
    assert read("--seed", 3, "--resume").out == "runs/test_command_line-demo-a-s3"
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
    assert [c.resume for c in read_all(*command, "--resume")] == [True, True]
    with pytest.raises(UserError, match=f"{tmp_path / 'b'} holds a run .*--seed 3 -> 1"):
        read_all(*command, "--resume", "--seed", 1)
    with pytest.raises(UserError, match=f"give one of {tmp_path / 'a'}, {tmp_path / 'b'}"):
        read_all("--method", "c", "--resume", "--out", tmp_path)


def test_a_folder_that_holds_a_single_run_is_that_run(tmp_path):
    store(tmp_path, read("--method", "b", "--preset", "smoke"))
    assert read("--resume", "--out", tmp_path, "--preset", "smoke").method == "b"
    with pytest.raises(UserError, match="--method b -> b a"):
        read_all("--method", "b", "a", "--resume", "--out", tmp_path)


# ------------------------------------------------------------------ stored configurations


def test_what_belongs_to_a_run():
    stored = set(options.stored_values(read()))
    assert {"data", "hours", "preset", "seed", "methods", "taps", "lr", "dim", "variant"} <= stored
    local = {"root", "download", "out", "resume", "summary", "device", "workers", "batch_seconds"}
    assert not local & stored and local <= set(options.flat(read()))
    changed = options.differences(read(), read("--seed", 2, "--workers", 1, "--taps", 3))
    assert changed == ["--seed 1 -> 2", "--taps 6 12 -> 3"]


def test_a_stored_configuration_is_read_as_it_was(tmp_path):
    config = read(
        *["--taps", "3", "--lr", "1", "--lam", "0.5", "--max-steps", "3", "--norm", "--method", "b"]
    )
    loaded = command_line.load_config(store(tmp_path, config), PRESETS)
    assert replace(loaded, out=config.out) == config
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"]["methods"] == ["b"] and stored["config"]["taps"] == [3]
    del stored["config"]["lr"], stored["config"]["kernel"]  # options that are newer than the run
    stored["config"]["preset"] = "smoke"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = command_line.load_config(tmp_path, PRESETS)
    assert (loaded.lr, loaded.sizes.kernel, loaded.workers, loaded.taps) == (0.5, 31, 0, (3,))


CONTENTS = [None, "", "[]", "3", "{}", '{"config": 3}', '{"script": 3, "config": {}}']
CONTENTS += [
    '{"script": "interaed_kd", "config": {}}',
    '{"config": {"seed": 1}}',
    b"\xff\xfe",
    "[" * 99999,
]
CONTENTS += ['{"script": "test_command_line", "config": {"nonsense": 1}}']


@pytest.mark.parametrize("content", CONTENTS)
def test_folders_that_hold_no_run(tmp_path, content):
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        command_line.load_config(tmp_path, PRESETS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"taps": 3}, "--taps must be a list, not 3"),
        ({"taps": [3, "x"]}, "--taps must be a whole number, not 'x'"),
        ({"taps": []}, "--taps needs at least one value"),
        ({"heads": 0}, "--heads must be at least 1 and at most 100000, not 0"),
        ({"heads": 3}, "--heads must divide --dim"),
        ({"heads": True}, "--heads must be a whole number, not True"),
        ({"heads": None}, "--heads must be a whole number, not None"),
        ({"lr": float("nan")}, "--lr must be more than 0, not nan"),
        ({"lr": 10**400}, "--lr must be at most 1000000000"),
        ({"lr": "0.1"}, "--lr must be a number, not '0.1'"),
        ({"norm": 1}, "--norm must be true or false, not 1"),
        ({"factor": 5}, "--factor must be one of 4, 8, not 5"),
        ({"methods": "a"}, "--method must be a list, not 'a'"),
        ({"methods": ["z"]}, "--method must be one of a, b, c, not 'z'"),
        ({"data": ""}, "--data must be a name, not ''"),
        ({"preset": "tiny"}, "there is no preset 'tiny'"),
        ({"tapps": 3}, "it has no option 'tapps'"),
        ({"summary": True}, "it has no option 'summary'"),  # no option of a run
        ({"methods": ["c"], "context": 1}, "--context goes with --method a or b"),
    ],
)
def test_a_tampered_configuration(tmp_path, changes, reason):
    store(tmp_path, read(), **changes)
    with pytest.raises(UserError) as error:
        read("--resume", "--out", tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json is of another version ({reason}")


# ------------------------------------------------------------------------ help, processes


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    assert "Title of a paper." in text and "python test_command_line.py" in text
    assert "not in the help" not in text and "--variant" not in text
    assert "layers, 50 % of them (default: 6 12)" in text
    assert "peak (default: 0.1)" in text and "Sizes of a model." in text  # of the demo's preset
    read_help = pytest.raises(SystemExit)
    with read_help:
        read("--preset", "smoke", "--help")
    assert "peak (default: 0.5)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped."),
        (UserError("Mend it."), "error: Mend it."),
        (MemoryError(), "lower --batch-seconds"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower --batch-seconds"),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly"), "lower --workers"),
        (RuntimeError("DataLoader timed out after 600 seconds"), "lower --workers"),
        (OSError(errno.ENOSPC, "No space left on device"), "look at the disk"),
        (ValueError("a bug of ours"), "ValueError: a bug of ours"),  # with its traceback
    ],
)
def test_what_ends_a_script(error, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    errors.explain_errors()
    sys.excepthook(type(error), error, None)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_typo_ends_with_exit_code_2():
    code, out, error = run_script("--sed", "3")
    assert code == 2 and "--seed" in error and "Traceback" not in error and not out


def test_help_imports_neither_transformers_nor_matplotlib():
    code = (
        "import runpy, sys; sys.argv = ['interaed_kd.py', '--help']\n"
        "try: runpy.run_path('interaed_kd.py', run_name='__main__')\n"
        "except SystemExit: sys.exit('transformers' in sys.modules or 'matplotlib' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("program", "argv", "message"),
    [
        ("evaluate", "", "give the folder of a finished run"),
        ("evaluate", "x --device mps", "--device must be auto, cpu, cuda or cuda:N"),
        ("evaluate", "x --lm y", "--lm goes with --decode beam"),
        ("evaluate", "x --cut-seconds 0.1", "--cut-seconds must be at least 1"),
        ("transcribe", "x", "give audio files, or --stream"),
        ("transcribe", "x a.wav --stream b.wav", "give audio files, or --stream"),
        ("transcribe", "x a.wav --times --srt", "give one of the two"),
        ("transcribe", "x --stream a.wav --times", "leave --stream out"),
        ("transcribe", "x --stream a.wav --decode beam", "--stream decodes greedily"),
        ("transcribe", "x a.wav --device cuda:", "--device must be auto"),
    ],
)
def test_wrong_command_lines_of_programs_for_finished_runs(program, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(program).read_command_line(argv.split())
    assert stop.value.code == 2 and message in capsys.readouterr().err
