"""Which path does a kernel call take, and why?

    CUDA tensor                                  -> the Triton kernel
    CPU tensor                                   -> the fastest PyTorch formulation
    CPU tensor, TRITON_INTERPRET=1 was exported  -> the Triton kernel, run by Triton's interpreter (slow, exact; for tests)

`use("torch")`, `use("reference")` and `use("triton")` override the choice inside a `with` block; that is the one switch that
tests, benchmarks and the `kernels=` setting need. Triton is optional (macOS, Windows): without it the kernels are never built and
everything runs on PyTorch.

Two rules of Triton shape this file. The variable TRITON_INTERPRET is read when triton is first imported, so it must be set before
the process starts (or at the very top of conftest.py). And one process either interprets or compiles, never both.
"""
from __future__ import annotations

import contextlib
import contextvars
import os

import torch

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True")
    jit = triton.jit
except ImportError:  # no triton wheel for this platform: kernels stay undecorated functions that nobody calls
    triton = None
    HAS_TRITON = False
    INTERPRETING = False

    class tl:  # only what is evaluated while a kernel is being *defined*
        constexpr = object

    def jit(function):
        return function


PATHS = ("reference", "torch", "triton")
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("kernel_path", default=None)


@contextlib.contextmanager
def use(path: str | None):
    """Force every kernel call inside the block onto one path: "reference" (the plain formula), "torch" (the fast PyTorch form),
    "triton" (the kernel; on CPU tensors only under the interpreter), or None for the usual choice."""
    if path is not None and path not in PATHS:
        raise ValueError(f"kernel path must be one of {', '.join(PATHS)}; got {path!r}")
    token = _override.set(path)
    try:
        yield
    finally:
        _override.reset(token)


def path_and_reason(tensor: torch.Tensor) -> tuple[str, str]:
    """The path that a call on `tensor` takes, and a phrase that says why (printed at the start of a run)."""
    forced = _override.get()
    if forced == "triton":
        if not HAS_TRITON:
            raise RuntimeError("the Triton path was asked for, but triton is not installed; pip install triton, or use the torch path")
        if not tensor.is_cuda and not INTERPRETING:
            raise RuntimeError(
                f"the Triton path was asked for on a {tensor.device.type} tensor; kernels need a CUDA tensor, "
                "or TRITON_INTERPRET=1 exported before Python starts"
            )
        return "triton", "asked for"
    if forced is not None:
        return forced, "asked for"
    if not HAS_TRITON:
        return "torch", "triton is not installed"
    if tensor.is_cuda:
        return "triton", "CUDA tensor"
    if INTERPRETING:
        return "triton", "TRITON_INTERPRET=1: kernels run in the interpreter"
    return "torch", "no CUDA tensor"


def path_for(tensor: torch.Tensor) -> str:
    """"reference", "torch" or "triton": see `path_and_reason`."""
    return path_and_reason(tensor)[0]


def device_of(tensor: torch.Tensor):
    """A `with` block for launches on this tensor's device: Triton launches on the current one, where the pointers mean nothing."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def launch_options(**options) -> dict:
    """Launch options (num_warps, num_stages) for a kernel call; empty in the interpreter, which has no warps.

    Fused multiply-add is asked for by name: Triton 3.10 switches it off by default, which costs accuracy and speed.
    """
    if INTERPRETING:
        return {}
    return {"enable_fp_fusion": True, **options}
