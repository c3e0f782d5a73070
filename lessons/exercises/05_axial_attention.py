"""Exercises of lesson 05. Replace each `return None`, then run:   python -m lessons.check 05"""
import torch
from torch import Tensor

from kernels.backend import jit, tl


def table_rows(length: int) -> Tensor:
    """Exercise 1. int64 [length, length]: which row of a table [2 * length - 1, D] belongs to query i (first axis) and key j (second axis).

    Row 0 is the offset j - i = -(length - 1), the last row is j - i = length - 1. No loops.
    """
    return None  # your code here


def attend_in_blocks(q: Tensor, read, length: int, block: int) -> Tensor:
    """Exercise 2. Softmax attention of q [N, D] over `length` keys that you never hold together. Returns [N, E].

    read(start, stop) returns keys [stop - start, D] and values [stop - start, E]; ask for at most `block` positions at a time, each once.
    No scale. Logits may be in the hundreds.
    """
    return None  # your code here


def line_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Exercise 3. dq, dk, dv of o = softmax(scale q k') v for one line; q, k [L, D], v, grad = dloss/do [L, E]. No autograd."""
    return None  # your code here


def table_gradient(ds: Tensor, q: Tensor) -> Tensor:
    """Exercise 4. The gradient of the query table: row r is the sum of ds[i, j] q[i] over all j - i = r - (L - 1). [2L - 1, D].

    ds [L, L] is dloss/dlogits, q [L, D].
    """
    return None  # your code here


def bytes_moved(B: int, G: int, H: int, W: int, D: int, element: int) -> tuple[int, int]:
    """Exercise 5. Bytes that one forward pass over columns must read and write for q, k, v, o of [B, G, H, W, D], elements of `element` bytes:
    (with a permuted copy of each input, and of the output back; with strides alone). Attention itself reads each input and writes its output once.
    """
    return None  # your code here


@jit
def attend_line(p_q, p_k, p_v, p_o, scale, s_line, s_position, L: tl.constexpr, D: tl.constexpr):
    """Exercise 6. A kernel: program n attends along line n. o = softmax(scale q k') v for q, k, v, o [L, D] of that line, float32.

    Element d of position i of line n lies at n * s_line + i * s_position + d: rows and columns of a map differ in these two strides only, so no copy
    is ever needed. L and D are powers of two, 16 at least (tl.dot and tl.trans work). The check counts bytes: q, k, v read once, o written once.
    """
    pass  # your code here
