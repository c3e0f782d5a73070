"""Exercises of lesson 13. Replace each `return None`, then run:   python -m lessons.check 13"""
import torch

from kernels.backend import jit, tl


def draw_index(groups: int, images: int, positions: int, generator: torch.Generator) -> torch.Tensor:
    """Exercise 1. The index of a mix: int64 [B, P] with B = groups * images.

    At every position an independent random permutation of the images of each group; group g holds the images g*images ... (g+1)*images - 1.
    Use torch.rand(..., generator=generator) once; no loop over positions.
    """
    return None  # your code here


def mix_gradient(grad: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Exercise 2. The backward pass of token mixing y[b, p] = x[index[b, p], p]: dL/dx from grad = dL/dy, both [B, N, D].

    Plain PyTorch, no autograd, no loop.
    """
    return None  # your code here


def source_address(index: torch.Tensor, shape: tuple[int, int, int, int], strides: tuple[int, int, int, int], patch: int) -> torch.Tensor:
    """Exercise 3. The line of the kernel that matters: where in memory every element of the mixed image is read from.

    x has shape (B, C, H, W) and the given strides (in elements); index is int64 [B, P], P = (H/patch) * (W/patch), positions row by row.
    Returns int64 [B, C, H, W]: the offset from the first element of x. Work with torch.arange and broadcasting only.
    """
    return None  # your code here


def bytes_moved(shape: tuple[int, int, int, int], item_bytes: int, how: str) -> int:
    """Exercise 4. Bytes read plus bytes written to mix a contiguous x of shape (B, C, H, W).

    how = "kernel": the kernel of this lesson; "gather": torch.gather with an int64 index for every element;
    "join": cut into patches (a copy), index them (a copy), put them together (a copy). The small index [B, P] counts as nothing.
    """
    return None  # your code here


@jit
def mix_tokens(p_x, p_index, p_y, P, D, BLOCK: tl.constexpr):
    """Exercise 5. A kernel: y[b, p] = x[index[b, p], p] for tokens x, y [B, P, D] float32 and index [B, P] int64, all contiguous.

    Program (b, p) moves one token; BLOCK is a power of two, at least D. The check counts bytes: the index is one number a token.
    """
    pass  # your code here
