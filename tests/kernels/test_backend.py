"""Which path a call takes, why, and what happens where Triton or a GPU is missing."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import backend

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.zeros(1)


class OnCuda:
    """Looks like a CUDA tensor to the dispatch."""

    is_cuda = True
    device = torch.device("cuda")


@pytest.mark.parametrize("tensor, has_triton, interpreting, path, reason", [
    (OnCuda(), True, False, "triton", "CUDA tensor"),
    (OnCuda(), False, False, "torch", "triton is not installed"),
    (CPU, True, False, "torch", "no CUDA tensor"),
    (CPU, True, True, "triton", "TRITON_INTERPRET=1: kernels run in the interpreter"),
    (CPU, False, False, "torch", "triton is not installed"),
])
def test_the_usual_choice(tensor, has_triton, interpreting, path, reason, monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", has_triton)
    monkeypatch.setattr(backend, "INTERPRETING", interpreting)
    assert backend.path_and_reason(tensor) == (path, reason)
    assert backend.path_for(tensor) == path


def test_blocks_override_nest_and_end():
    outside = backend.path_for(CPU)
    with backend.use("reference"):
        assert backend.path_and_reason(CPU) == ("reference", "asked for")
        with backend.use("torch"):
            assert backend.path_for(CPU) == "torch"
        with backend.use(None):
            assert backend.path_for(CPU) == outside
        assert backend.path_for(CPU) == "reference"
    with pytest.raises(KeyError):
        with backend.use("reference"):
            raise KeyError("leaves the block")
    assert backend.path_for(CPU) == outside


MEASURED = {"roofline.py"}  # the benchmark of the current device makes its tensors there


@pytest.mark.parametrize("path", sorted(p for p in (ROOT / "kernels").glob("*.py") if p.name not in MEASURED), ids=lambda p: p.name)
def test_every_launch_is_on_the_device_of_its_tensors(path):
    """kernel[grid](...) outside of `with device_of(tensor)` would run on the current device, which need not be the tensor's."""
    tree = ast.parse(path.read_text())
    launches = lambda node: {n.lineno for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Subscript)  # noqa: E731
                             and "launch_options" in ast.unparse(n)}
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.With) and any(ast.unparse(i.context_expr).startswith("device_of(") for i in n.items)]
    assert launches(tree) == set().union(*map(launches, guarded))


def test_the_device_is_asked_for_only_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: ("device", device))
    assert backend.device_of(OnCuda()) == ("device", torch.device("cuda"))
    with backend.device_of(CPU) as nothing:
        assert nothing is None


def test_an_unknown_path_is_told():
    with pytest.raises(ValueError, match="must be one of reference, torch, triton; got 'cuda'"):
        with backend.use("cuda"):
            pass


@pytest.mark.parametrize("has_triton, sentence", [(False, "triton is not installed; pip install triton"), (True, "kernels need a CUDA tensor")])
def test_asking_for_triton_where_it_cannot_run_is_told(has_triton, sentence, monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", has_triton)
    monkeypatch.setattr(backend, "INTERPRETING", False)
    with backend.use("triton"), pytest.raises(RuntimeError, match=sentence):
        backend.path_for(CPU)


def test_launch_options(monkeypatch):
    monkeypatch.setattr(backend, "INTERPRETING", True)
    assert backend.launch_options(num_warps=8) == {}
    monkeypatch.setattr(backend, "INTERPRETING", False)
    assert backend.launch_options(num_warps=8, num_stages=3) == {"enable_fp_fusion": True, "num_warps": 8, "num_stages": 3}


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # import triton now fails, as on macOS and Windows
import importlib, pkgutil, torch
import kernels
names = [m.name for m in pkgutil.iter_modules(kernels.__path__)]
for name in names:
    importlib.import_module("kernels." + name)
from kernels import backend
from kernels.patch_mix import patch_mix, patch_unmix, random_mix_index
assert not backend.HAS_TRITON and not backend.INTERPRETING
x, index = torch.arange(48.0).view(2, 6, 4), random_mix_index(2, 6)
assert torch.equal(patch_unmix(patch_mix(x, index), index), x)
print(len(names), "modules")
"""


def test_every_kernel_file_imports_and_runs_without_triton():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 8  # four kernels, backend, bench, compile_check, ladder


def test_importing_kernels_touches_no_device():
    """Nothing happens on import: CUDA is not initialised, no driver is asked."""
    code = "import torch, kernels.patch_mix, kernels.bench, kernels.ladder, kernels.compile_check; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bf16_products_are_right_in_the_interpreter():
    """tests/kernels/conftest.py repairs `tl.dot` on bf16; without it the numbers are off by many orders of magnitude."""
    if not backend.INTERPRETING:
        pytest.skip("only the interpreter needs the repair")
    from tests.kernels.dot_sample import dot_kernel

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=generator).bfloat16() for _ in range(2))
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c)
    assert (c - a.float() @ b.float()).abs().max() < 1e-4
