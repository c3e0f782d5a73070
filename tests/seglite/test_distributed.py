"""One result on any number of processes, in any number of parts, in mixed precision and compiled.

Random draws inside a step (dropout, noise) differ between processes, as they do between GPUs everywhere: where a method has some, the test
switches them off, or compares what does not depend on them and says so.
"""
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seglite import train
from seglite.config import Recipe
from seglite.data import Batches
from seglite.run import Run
from seglite.train import METHODS
from tests.seglite import tiny
from tests.seglite.test_run import losses, start, weights
from tests.test_soak import shortened

STILL: dict[str, list[str]] = {}
ROOT = Path(__file__).resolve().parents[2]


def curves(out: Path) -> dict[tuple[str, int], float]:
    """{(stage, step): loss} of a finished run."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


def run(out: Path, processes: int, *arguments: str) -> None:
    launcher = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                                                        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run([*launcher, "-m", "seglite.train", *arguments, f"out={out}"], capture_output=True, text=True, timeout=900, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_two_processes_follow_one(method, tmp_path):
    """Every stage of every method: the same curve, within float error that three steps of training have let grow."""
    arguments = [*shortened(method), *STILL.get(method, [])]
    run(tmp_path / "one", 1, *arguments)
    run(tmp_path / "two", 2, *arguments)
    one, two = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) >= 3
    apart = {key: abs(one[key] - two[key]) / max(abs(one[key]), 1e-3) for key in one}
    assert max(apart.values()) < 1e-3, {key: (one[key], two[key]) for key, gap in apart.items() if gap >= 1e-3}


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
