"""What a network costs: multiply-adds, time against others in the same minutes, and the most memory it holds at once.

    multiply_adds(model, (720, 960))          counted on shapes alone, nothing is computed; attention is counted
    interleaved({"a": f, "b": g}, seconds=6)  milliseconds a call, all callables in turn, so that a busy machine is busy for all of them
    peak_bytes(f, device)                     tensors alive at once, parameters and what was alive before left out
"""
from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kernels import backend


def multiply_adds(model: Callable, size: tuple[int, int], batch: int = 1) -> int:
    """Multiply-adds of model(image [batch, 3, *size]) in convolutions, linear layers and attention; a multiply and its add are one.

    Norms, activations, pooling and resizing are not counted, as usual. Tensors are fake: shapes without numbers, so 1024 x 2048 costs nothing.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu")) if isinstance(model, nn.Module) else torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), backend.use("reference"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(batch, 3, *size, device=device))
    return counter.get_total_flops() // 2


def synchronise(device) -> None:
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


@torch.no_grad()
def interleaved(calls: dict[str, Callable], seconds: float = 6.0, warm_up: int = 2, least: int = 5, device="cpu") -> dict[str, float]:
    """Median milliseconds of each call. In turn, one call of each, until every one had `least` turns and `seconds` per callable have passed.

    On a CPU the clock is this process's own (with one thread: time on the core), so other programs do not count. On a GPU it is the wall's, between
    synchronisations.
    """
    clock = time.perf_counter if str(device).startswith("cuda") else cpu_clock
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    began, turns = time.perf_counter(), 0
    while turns < least or time.perf_counter() - began < seconds * len(calls):
        for name, call in calls.items():
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            times[name].append(1000 * (clock() - start))
        turns += 1
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_clock() -> float:
    """Process time over threads: the time a call would take if all its threads ran at once without waiting."""
    return time.process_time() / torch.get_num_threads()


class _Alive(TorchDispatchMode):
    """Adds up the storages of all results, and takes each away when it dies."""

    def __init__(self):
        super().__init__()
        self.known: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self.known and not any(isinstance(a, torch.Tensor) and a.untyped_storage()._cdata == key for a in tree_leaves((args, kwargs))):
                    self.known[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._died, key)
        return found

    def _died(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


@torch.no_grad()
def peak_bytes(call: Callable, device="cpu") -> int:
    """The most bytes of tensors that call() holds at once, beside what was there before it (parameters, the image).

    On a GPU the allocator's own count. On a CPU every operation's results are followed until they die; scratch memory inside an operation is not seen.
    """
    gc.collect()
    if str(device).startswith("cuda"):
        synchronise(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated() - before
    with _Alive() as alive:
        call()
    return alive.most
