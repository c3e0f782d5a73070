"""How long calls take, side by side, and what this machine could do at best: the two halves of every line that `bench.py` prints."""
from __future__ import annotations

import statistics
import time
from typing import Any, Callable

import torch

from kernels import backend
from kernels.backend import jit, tl

Candidate = Callable[[], Any]


# ------------------------------------------------------------------------------------------------ timing
class Clock:
    """Milliseconds of one call: CUDA events behind a cache flush, or the wall clock."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        if self.cuda:
            self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)  # larger than any L2

    def sample(self, call: Candidate, repeats: int = 1) -> float:
        if not self.cuda:
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            return (time.perf_counter() - started) * 1e3 / repeats
        total = 0.0
        for _ in range(repeats):
            self.flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end)
        return total / repeats


def interleaved(clock: Clock, calls: dict[str, Candidate], rounds: int, sample_ms: float = 5.0) -> dict[str, list[float]]:
    """Milliseconds per call, one list entry per round; every round times every candidate once, in turning order.

    Calls shorter than `sample_ms` are repeated inside a sample, so that the clock's own cost does not count.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # warm: compilation, allocator, page faults
        repeats[name] = max(1, min(100, int(sample_ms / max(clock.sample(call), 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for turn in range(rounds):
        for name in order[turn % len(order):] + order[:turn % len(order)]:
            times[name].append(clock.sample(calls[name], repeats[name]))
    return times


# ------------------------------------------------------------------------------------------------ what the machine can do
@jit
def exp_rate_kernel(
    p_out,  # pointer to float32 [programs * BLOCK], the results, so that nothing is optimised away
    steps,  # int, exponentials per element
    BLOCK: tl.constexpr,
):
    """One program: BLOCK numbers, each replaced `steps` times by exp2(-x). Grid: (programs,)."""
    o_out = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = o_out.to(tl.float32) * 1e-9
    for _ in range(steps):
        b_x = tl.exp2(-b_x)
    tl.store(p_out + o_out, b_x)


def roofline(device: str, clock: Clock) -> dict[str, float]:
    """Measured bytes/s of a copy (read + written), FLOP/s of a large matrix product, exponentials/s; medians of 7."""
    def best(call: Candidate) -> float:
        call()
        return statistics.median(clock.sample(call) for _ in range(7)) * 1e-3

    cuda = device == "cuda"
    source = torch.ones(1 << 28 if cuda else 1 << 24, device=device)  # 1 GiB or 64 MiB: far beyond the caches
    target = torch.empty_like(source)
    copy = 2 * source.numel() * source.element_size() / best(lambda: target.copy_(source))
    n, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.randn(n, n, device=device).to(dtype)
    matmul = 2 * n ** 3 / best(lambda: a @ a)
    if cuda and backend.HAS_TRITON:
        programs, block, steps = 132 * 64, 1024, 512
        out = torch.empty(programs * block, device=device)
        exp = programs * block * steps / best(lambda: exp_rate_kernel[(programs,)](out, steps, BLOCK=block, **backend.launch_options(num_warps=4)))
    else:
        small = torch.linspace(-1, 0, 1 << 17, device=device)  # half a megabyte stays in the cache: the rate of the arithmetic
        result = torch.empty_like(small)
        exp = small.numel() / best(lambda: torch.exp(small, out=result))
    return {"copy_bytes_per_s": copy, "matmul_flops_per_s": matmul, "exp_per_s": exp, "matmul_dtype": str(dtype).removeprefix("torch.")}
