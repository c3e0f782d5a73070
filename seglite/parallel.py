"""Several processes as one: `torchrun --nproc_per_node=2 -m seglite.train ...` and nothing else changes.

The aim is that N processes compute what one process would at the same effective batch. Three things make it so: batch t is cut into
N shares (data), gradients are averaged (DistributedDataParallel), and batch norm and loss normalisers use the statistics of
the whole batch (this file).
"""
from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


def start(device: str) -> tuple[int, int]:
    """(rank, world). Joins the process group that torchrun set up; (0, 1) without torchrun."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        # One process may build an artifact for hours while the others wait, so the usual half hour is too short.
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=datetime.timedelta(hours=24))
    return dist.get_rank(), dist.get_world_size()


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


_alone = False  # inside `alone()`


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What one process computes while the others wait for it (an artifact, a diagnosis): means are its own, or it would wait for them for ever."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def from_first(value):
    """The first process's value of a small Python object, on every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class _Sum(torch.autograd.Function):
    """Sum over processes; each process's gradient is the sum of everybody's, since everybody's result depends on its input."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def mean_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Average of `x` over processes, differentiable; `x` itself in a single process."""
    return x if world() == 1 else _Sum.apply(x) / world()


def gather(x: torch.Tensor) -> torch.Tensor:
    """Every process's `x` (of one shape), one below the other in order of rank; no gradient. `x` itself in a single process."""
    if world() == 1:
        return x
    wire = x.to(torch.uint8) if x.dtype == torch.bool else x.contiguous()
    parts = [torch.empty_like(wire) for _ in range(world())]
    dist.all_gather(parts, wire)
    return torch.cat(parts).to(x.dtype)


class WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of the whole batch over all processes, on any device.

    (torch.nn.SyncBatchNorm does the same faster, but only on GPUs.) Assumes equal shares, which `Run.fit` guarantees. Computes in float32 at
    least, as BatchNorm2d does with the bfloat16 of mixed precision, and returns the input's type.
    """

    def forward(self, x):
        if not (self.training and world() > 1):
            return super().forward(x)
        given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * world()
        mean = mean_over_processes(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]  # two passes: E[x^2] - E[x]^2 would lose digits
        variance = mean_over_processes(centred.square().mean((0, 2, 3)))
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale[:, None, None]).to(given)
        return (centred * (self.weight * scale)[:, None, None] + self.bias[:, None, None]).to(given)


def whole_batch_norm(model: nn.Module) -> nn.Module:
    """Let every BatchNorm2d of `model` see the whole batch; names and weights stay. No change in a single process."""
    if world() == 1:
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = WholeBatchNorm2d
    return model
