"""One result on any number of processes, in any number of parts, in mixed precision and compiled."""
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seglite import parallel, train
from seglite.config import Recipe
from seglite.data import Batches
from seglite.run import Run
from seglite.train import METHODS
from tests.seglite import tiny
from tests.seglite.test_run import losses, start, weights
from tests.test_soak import shortened

CASES = {method: ("" if method != "mixreorg" else "train.batch=8").split() for method in METHODS} | {  # four images make a mix, which stays in one process
    "bas, segmentation": ["task=wsss", "scenes.two_share=0.6"], "bas, labels": ["task=wsss", "scenes.two_share=0.6", "until=labels"],
    "marsstyle on bas": ["wsss=bas"]}
# Stages that are not the same on any number of processes even where their random numbers are: Barlow Twins standardises the places of a
# process's own images (seglite/stego.py, redundancy_loss), and STEGO takes its unrelated images from them. How far that may lead on two processes.
WITHIN = {(case, stage): limit for case in ("marsstyle", "marsstyle on bas") for stage, limit in (("backbone", 0.2), ("head", 0.05))}
ROOT = Path(__file__).resolve().parents[2]


def curves(out: Path) -> dict[tuple[str, int], float]:
    """{(stage, step): loss} of a finished run."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


def launch(processes: int, *words, seconds: int = 900) -> None:
    """Python with these words on its command line, in one process or under torchrun."""
    launcher = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                                                        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    with subprocess.Popen([*launcher, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}) as started:
        try:
            said = started.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            started.terminate()  # torchrun then ends its processes; killed, it would leave them waiting for one another
            pytest.fail(f"not done after {seconds} s, as when processes wait for one another: {' '.join(map(str, words))}; {started.communicate()[1][-2000:]}")
    assert started.returncode == 0, said[-2000:]


def command(case: str) -> list[str]:
    """The words of a case's run of seconds."""
    own = {word.split("=")[0]: word for word in CASES[case]}
    return [word for word in shortened(case.split()[0].rstrip(",")) if word.split("=")[0] not in own] + list(own.values())


# A training run whose random numbers are the same for every image, so that it does not matter which process draws them; dropout is off. Every
# process leaves what each of its stages ended with, and how many numbers the stage's steps drew.
ALIKE = """
import sys, torch
from seglite import parallel, train
from seglite.nets import groupvit
from seglite.run import Run
draws = {name: getattr(torch, name) for name in ("rand", "randn_like")}
drawn = 0

def rows_alike(like):  # [B, ...], each row the same
    global drawn
    drawn += 1
    return draws["rand"](1, *like[1:], generator=torch.Generator().manual_seed(drawn % 7)).expand(*like).contiguous()

def count(value):
    global drawn
    drawn += 1
    return value

torch.rand = lambda *shape, generator=None, device=None: draws["rand"](*shape, generator=generator) if generator else rows_alike(shape)
torch.randn_like = lambda x: rows_alike(x.shape) - 0.5
torch.randint = lambda low, high, shape, **_: count(torch.full(shape, low + (high - low) // 2))
torch.multinomial = lambda weights, number: count(weights.argmax(1, keepdim=True))
groupvit.gumbel = lambda x: -(1 - rows_alike(x.shape)).log().neg().clamp_min(1e-30).log()
for name in ("dropout", "dropout2d"):
    setattr(torch.nn.functional, name, lambda x, p=0.5, training=True, inplace=False: count(x))
finish = Run._finish

def finish_and_leave(run, folder, kept):
    torch.save({"weights": kept["model"].state_dict(), "drawn": drawn}, f"{sys.argv[1]}.{folder.name}.{run.rank}")
    finish(run, folder, kept)

Run._finish = finish_and_leave
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_follow_one(case, tmp_path):
    """Every stage of every method: the same curve, within float error that three steps of training have let grow, and the same weights on both."""
    (tmp_path / "alike.py").write_text(ALIKE)
    launch(1, tmp_path / "alike.py", tmp_path / "one", *command(case), f"out={tmp_path / 'run1'}")
    launch(2, tmp_path / "alike.py", tmp_path / "two", *command(case), f"out={tmp_path / 'run2'}")
    one, two = curves(tmp_path / "run1"), curves(tmp_path / "run2")
    assert one.keys() == two.keys() and len(one) >= 3
    for stage in {stage for stage, _ in one}:
        first, second = (torch.load(tmp_path / f"two.{stage}.{rank}", weights_only=True)["weights"] for rank in (0, 1))
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, msg=lambda text: f"{stage}, {key} on the two processes: {text}")
    for (stage, step), loss in one.items():
        allowed = WITHIN.get((case, stage), 1e-3)
        assert abs(loss - two[stage, step]) < allowed * abs(loss) + 1e-6, f"{stage}, step {step}: {loss} on one process, {two[stage, step]} on two"


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_process_comes_to_the_same_meetings(case, tmp_path, monkeypatch):
    """fit, make, make_labels and report end where processes wait for one another: one that only the first process calls is waited for for ever.

    The first process's walk through a run, then, in what it left, the walk of another: the same calls in the same order.
    """
    calls: list[tuple] = []
    depth = 0

    def noted(kind: str):
        true = getattr(Run, kind)

        def call(self, *arguments, **keywords):
            nonlocal depth
            if depth == 0:  # what is called while an artifact is built, one process calls alone
                calls.append((kind, arguments[0] if kind != "report" else ""))
            depth += 1
            try:
                return true(self, *arguments, **keywords)
            finally:
                depth -= 1

        return call

    for kind in ("fit", "make", "make_labels", "report"):
        monkeypatch.setattr(Run, kind, noted(kind))
    train.train([*command(case), f"out={tmp_path / 'run'}"], METHODS)
    first, calls = calls, []
    monkeypatch.setattr(parallel, "start", lambda device: (1, 1))
    train.train([*command(case), f"out={tmp_path / 'run'}"], METHODS)
    assert len(first) >= 2 and calls == first


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(first, second, tmp_path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert start(whole, TINY_DROPOUT="0").returncode == 0
    killed = start(moved, "die=step:5", processes=first, TINY_DROPOUT="0")
    assert killed.returncode == -signal.SIGKILL if first == 1 else killed.returncode != 0
    ended = start(moved, processes=second, TINY_DROPOUT="0")
    assert ended.returncode == 0 and "main: continuing at step" in ended.stdout, ended.stdout + ended.stderr
    a, b = losses(whole), losses(moved)
    assert len(a) == len(b) == 12 and max(abs(x - y) for x, y in zip(a, b)) < 2e-5 * max(a), list(zip(a, b))
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(moved)[key], value, rtol=1e-4, atol=1e-5)


def short_fit(out: Path, **recipe) -> tuple[torch.Tensor, list[torch.dtype]]:
    """(weights after six steps of a two-layer network, the types its first layer computed in)."""
    config, _ = train.settings.parse(["method=tiny", f"out={out}"], tiny.METHODS)
    run = Run(config, supervision=("image", "mask", "tags"), quiet=True)
    torch.manual_seed(0)
    classes = len(run.data("train").classes)
    model, seen = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 1)), []

    def step(m, batch, t):
        scores = m(batch["image"])
        seen.append(scores.dtype)
        return {"ce": torch.nn.functional.cross_entropy(scores.float(), batch["mask"])}

    run.fit("x", model, step, Batches(run.data("train"), 8, 0), Recipe(steps=6, batch=8, lr=0.1, **recipe))
    run.close()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), seen


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    """Eight bits of mantissa: a few tenths of a percent per product, so the weights end near, and not at, those of float32."""
    plain, types = short_fit(tmp_path / "a")
    mixed, mixed_types = short_fit(tmp_path / "b", amp="bf16")
    assert set(types) == {torch.float32} and set(mixed_types) == {torch.bfloat16} and mixed.dtype == torch.float32
    begun, _ = short_fit(tmp_path / "c", schedule="constant", warmup=10**9)  # a rate near zero: the weights it began with
    gap, way = float((mixed - plain).norm()), float((plain - begun).norm())
    assert 0 < gap < 0.05 * way, (gap, way)


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path, monkeypatch):
    """torch.compile's graphs, run by PyTorch itself (the C++ backend is tested by PyTorch): same weights, and parameters keep their names."""
    compiled = functools.partial(torch.compile, backend="eager")
    calls = []
    monkeypatch.setattr(torch, "compile", lambda network: calls.append(network) or compiled(network))
    plain, _ = short_fit(tmp_path / "a")
    graphs, _ = short_fit(tmp_path / "b", compile=True)
    assert len(calls) == 1
    torch.testing.assert_close(graphs, plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(graphs, short_fit(tmp_path / "b", compile=True)[0], rtol=0, atol=0)  # loaded from final.pt, without prefixes


WHOLE = """
import sys, torch
from seglite import parallel
rank, world = parallel.start("cpu")
torch.manual_seed(0)
norm = torch.nn.BatchNorm2d(3, affine=sys.argv[2] == "affine").double()
whole = parallel.whole_batch_norm(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1).double(), norm)).train()[1]
x = torch.randn(4, 3, 5, 7).double() * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None]
x = x[rank * 4 // world : (rank + 1) * 4 // world].requires_grad_()
y = whole(x)
y.square().mul(torch.arange(3)[:, None, None] + x.detach()).sum().backward()
torch.save({"y": y.detach(), "dx": x.grad, "mean": whole.running_mean, "var": whole.running_var}, f"{sys.argv[1]}.{world}.{rank}")
parallel.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("affine", ["affine", "bare"])
def test_batch_norm_sees_the_whole_batch(affine, tmp_path):
    """Two processes with two images each against one with four: values, gradients and running statistics, with and without scale and shift."""
    (tmp_path / "whole.py").write_text(WHOLE)
    for processes in (1, 2):
        launch(processes, tmp_path / "whole.py", tmp_path / "out", affine)
    one, *two = (torch.load(tmp_path / f"out.{name}") for name in ("1.0", "2.0", "2.1"))
    for key in ("y", "dx"):
        torch.testing.assert_close(torch.cat([part[key] for part in two]), one[key], rtol=1e-9, atol=1e-9)
    for part in two:
        torch.testing.assert_close((part["mean"], part["var"]), (one["mean"], one["var"]), rtol=1e-9, atol=1e-12)


ALONE = """
import sys, torch
from seglite import config, parallel
from seglite.run import Run
from tests.seglite import tiny
settings, _ = config.parse(["method=tiny", f"out={sys.argv[1]}"], tiny.METHODS)
run = Run(settings, supervision=("image", "mask", "tags"), quiet=True)
built = run.make("mean", lambda: {"mean": parallel.mean_over_processes(torch.tensor(run.rank + 1.0)), "world": parallel.world()})
assert float(built["mean"]) == 1 and built["world"] == 1, built  # the first process's own
assert float(parallel.mean_over_processes(torch.tensor(run.rank + 1.0))) == 1.5 and parallel.world() == 2
run.close()
parallel.stop()
"""


@pytest.mark.slow
def test_an_artifact_is_built_by_one_process_alone(tmp_path):
    """A mean over processes inside `run.make` would wait for processes that wait at its end."""
    (tmp_path / "alone.py").write_text(ALONE)
    launch(2, tmp_path / "alone.py", tmp_path / "out")
