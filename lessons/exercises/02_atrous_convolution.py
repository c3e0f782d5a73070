"""Exercises of lesson 02. Replace each `return None`, then run:   python -m lessons.check 02"""
import torch

from kernels.backend import jit, tl


def polyphase(x: torch.Tensor, weight: torch.Tensor, rate: int) -> torch.Tensor:
    """Exercise 1. Atrous convolution of x [B, C, H, W] with weight [O, C, 3, 3] at `rate`, padding = rate, so the result is [B, O, H, W].

    Use F.conv2d with ordinary filters only: leave its `dilation` alone. H and W need not be multiples of the rate.
    """
    return None  # your code here


def live_taps(low: int, high: int, step: int, size: int, count: int) -> tuple[int, int]:
    """Exercise 2. A tile of outputs reads, through tap j, the rows low + j*step .. high + j*step. Which taps j = 0 .. count-1 touch [0, size)?

    They are a run: return (first j, how many). No loop, no list: integer arithmetic only, as inside a kernel. step >= 1, low <= high.
    When no tap is live the second number must be 0; the first may then be anything.
    """
    return None  # your code here


def readers(q: int, kernel: int, stride: int, padding: int, rate: int, outputs: int) -> list[tuple[int, int]]:
    """Exercise 3. The backward pass, along one axis: all (tap u, output i) that read input q, for i = 0 .. outputs-1, by growing u.

    Output i reads i*stride - padding + u*rate through tap u = 0 .. kernel-1. Loop over u only.
    """
    return None  # your code here


def shift_add(z: torch.Tensor, rates: tuple[int, ...]) -> torch.Tensor:
    """Exercise 4. z [B, R, 3, 3, O, H, W] holds for every tap (branch n, row u, column v) the product of its weights with every pixel.

    Return ASPP's result [B, O, H, W]: y[q] = sum of z[n, u, v] at q + ((u-1)*rates[n], (v-1)*rates[n]), 0 outside the map.
    """
    return None  # your code here


def traffic(pixels: int, channels: int, outputs: int, branches: int, bytes_each: int = 2) -> dict[str, int]:
    """Exercise 5. Bytes that each way of computing ASPP moves at least, counting maps only (weights are small), every map read or written once
    per pass over it. Return {"separate": ..., "fused": ..., "shift_add": ...}.

    separate: R convolutions, each reading x and writing its own result; then R-1 additions, each reading two maps and writing one
    fused: one read of x, one write of y
    shift_add: read x, write z (9*R*O channels), read z, write y
    """
    return None  # your code here


@jit
def aspp_row(p_x, p_w, p_y, n, NEAR: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """Exercise 6. A kernel: two atrous branches of three taps over one row, added, in one pass.

    y[i] = sum over branch b and tap u of w[b, u] x[i + (u - 1) * rate_b], rates NEAR and FAR, 0 outside the row. x and y [n], w [2, 3], float32,
    contiguous; program k makes y[k * BLOCK] ... y[k * BLOCK + BLOCK - 1]. The check counts bytes: is there an x that both branches want?
    """
    pass  # your code here
