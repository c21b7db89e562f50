"""The plumbing: schedules, gradients, averages, files never half-written, and the rules that keep it plumbing."""

import ast
import math

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from common import run
from common.flags import UserError

CPU = run.Place(0, 1, torch.device("cpu"), None)


def test_learning_rates():
    assert [run.one_cycle(s, 0.25) for s in (0, 0.125, 0.25, 1)] == pytest.approx([0, 0.5, 1, 0])
    assert run.one_cycle(0.625, 0.25) == pytest.approx(0.5)
    assert [run.inverse_sqrt(s - 1, 100) for s in (1, 50, 100, 400)] == pytest.approx([0.01, 0.5, 1, 0.5])
    assert run.learning_rate("one-cycle", 0.3, 0, 10) > 0 and run.learning_rate("one-cycle", 0.3, 9, 10) == 0
    assert run.learning_rate("inverse-sqrt", 100, 399, 10) == pytest.approx(0.5)


def test_seeds_differ_in_every_part_and_repeat():
    def draw(*parts):
        run.reseed(*parts)
        return torch.rand(3).tolist()

    seen = [draw(*parts) for parts in [(1, 2, 3), (1, 2, 4), (1, 23), (12, 3), (1, 2, 3, 0)]]
    assert len({tuple(s) for s in seen}) == len(seen) and draw(1, 2, 3) == seen[0]


def test_gradients_are_sums_divided_by_the_utterances_of_the_update():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    for _ in range(4):
        (used * 6).sum().backward()
    run.sum_gradients([used, unused], 8, CPU)
    assert used.grad.tolist() == [3, 3, 3] and unused.grad.tolist() == [0, 0]


def test_average_of_the_best_epochs(tmp_path):
    progress, model = run.Progress(), nn.Linear(1, 1, bias=False)
    for epoch, (error, weight) in enumerate([(50.0, 1.0), (30.0, 2.0), (30.0, 9.0), (30.0, 4.0), (60.0, 7.0)]):
        nn.init.constant_(model.weight, weight)
        progress.epoch = epoch
        run.keep_epoch(tmp_path, model, error, 2, progress)
    assert progress.best == [[30.0, 3], [30.0, 2]]  # of equal ones, the later
    assert {"0002.safetensors", "0003.safetensors"} < {p.name for p in (tmp_path / "epochs").iterdir()}
    run.drop_epochs(tmp_path, progress)
    assert sorted(p.name for p in (tmp_path / "epochs").iterdir()) == ["0002.safetensors", "0003.safetensors"]
    assert run.average_best_epochs(tmp_path, progress)["weight"].item() == 6.5


def test_checkpoints_come_back_whole_and_cut_the_log(tmp_path):
    def one_step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    progress = run.Progress(step=7, bad={"u": "why"}, best=[[1.5, 2]])
    one_step(model, optimizer)
    run.write_log(tmp_path, progress, step=1)
    run.save_checkpoint(tmp_path, model, optimizer, progress)
    run.write_log(tmp_path, progress, step=2)
    (tmp_path / ".last.pt.partial").write_bytes(b"what a kill in the middle of the next save leaves")
    again = nn.Linear(3, 2)
    again_optimizer = torch.optim.AdamW(again.parameters(), fused=True)
    loaded = run.load_checkpoint(tmp_path, again, again_optimizer, run.Progress(), CPU)
    assert (loaded.step, loaded.bad, loaded.best, loaded.log_lines) == (7, {"u": "why"}, [[1.5, 2]], 1)
    assert run.read_log(tmp_path) == [{"step": 1}]
    one_step(model, optimizer)
    one_step(again, again_optimizer)
    assert torch.equal(model.weight, again.weight)
    with pytest.raises(UserError, match="trained on 0 utterances, and --data now has 5"):
        run.load_checkpoint(tmp_path, again, again_optimizer, run.Progress(utterances=5), CPU)


@pytest.mark.parametrize("content", [b"", b"rubbish", bytes(range(256)) * 9, None])
def test_damaged_checkpoints_are_one_sentence(tmp_path, content):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    if content is None:  # cut off in the middle
        run.save_checkpoint(tmp_path, model, optimizer, run.Progress())
        content = (tmp_path / "last.pt").read_bytes()[:900]
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt cannot be resumed"):
        run.load_checkpoint(tmp_path, model, optimizer, run.Progress(), CPU)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        run.load_weights(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not finished"):
        run.load_weights(tmp_path / "none.safetensors")


def test_too_many_bad_files_stop_the_run(tmp_path):
    def book(bad, progress):
        with run.progress_bar(progress, 10, CPU) as bar:
            run.count_update(tmp_path, progress, run.Sums(bad=bad), CPU, bar, norm=1.0, lr=0.1, usable=True)

    progress = run.Progress(utterances=700)
    book({f"u{i}": f"u{i} is broken" for i in range(10)}, progress)
    with pytest.raises(UserError, match="11 of 700 (.|\n)*u0 is broken"):
        book({"v": "v is broken"}, progress)
    progress.utterances = 1200  # 1 % of many is more than 10
    book({}, progress)
    assert progress.step == 3


def test_parameters_by_part():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert run.parameters_by_part(model) == {"0": 9, "1": 4, "total": 13}


def test_devices_that_are_not_there():
    from dataclasses import replace

    from common.flags import RunConfig

    assert run.start(replace(RunConfig(), device="cpu")).autocast is None
    assert run.start(replace(RunConfig(), device="cpu", precision="bf16")).autocast == torch.bfloat16
    with pytest.raises(UserError, match="is not a device"):
        run.start(replace(RunConfig(), device="gpu"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cpu"):
            run.start(replace(RunConfig(), device="cuda"))


# ---------------------------------------------------------------------------------------------- rules of the house


def names_and_calls(path):
    tree = ast.parse(path.read_text())
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    return tree, calls, functions


def test_plumbing_calls_nothing_back():
    """run.py takes no callables and no loss; training loops stand in scripts, and where the demo's models are made."""
    _, _, functions = names_and_calls(REPOSITORY / "common" / "run.py")
    for function in functions:
        arguments = [*function.args.args, *function.args.kwonlyargs]
        assert not {"loss", "losses", "callback", "fn"} & {a.arg for a in arguments}, function.name
        assert not any("Callable" in ast.unparse(a.annotation) for a in arguments if a.annotation), function.name
    for path in {*(REPOSITORY / "common").rglob("*.py")} - {REPOSITORY / "common" / "demo" / "pretraining.py"}:
        tree, calls, _ = names_and_calls(path)
        assert not any(call.endswith((".backward", "optimizer.step")) for call in calls), path
        assert not any(ast.unparse(n.target) == "batch" for n in ast.walk(tree) if isinstance(n, ast.For)), path


def test_the_command_line_imports_nothing_heavy():
    tree, _, _ = names_and_calls(REPOSITORY / "common" / "flags.py")
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"torch", "numpy", "transformers", "soundfile", "common"}


def test_one_cycle_is_smooth():
    shares = [i / 1000 for i in range(1001)]
    steps = [abs(run.one_cycle(b, 0.3) - run.one_cycle(a, 0.3)) for a, b in zip(shares, shares[1:], strict=False)]
    assert max(steps) < 0.01 and not math.isnan(sum(steps))
