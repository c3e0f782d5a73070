"""Exercises of lesson 04. Replace each `return None`, then run:   python -m lessons.check 04"""
import torch

from kernels.backend import jit, tl


def message_as_attention(features: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Exercise 1. The "after" message by PyTorch's own attention: out_i = sum_j k_ij q_j / sum_j k_ij, k_ij = exp(-|f_i - f_j|^2 / 2).

    features [N, d], q [N, K] -> [N, K]. One call of torch.nn.functional.scaled_dot_product_attention, no exp of your own.
    Expand |f_i - f_j|^2: which of its three terms does a softmax over j not see?
    """
    return None  # your code here


def potts_update(unary: torch.Tensor, messages: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Exercise 2. One mean-field update with Potts compatibility: the new Q [N, K] from energies unary [N, K] (-log p) and the messages
    A_m Q [N, K] of every kernel. Messages attract: a label that a pixel's neighbours hold becomes more probable."""
    return None  # your code here


def message_gradient(features: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Exercise 3. The backward pass of exercise 1's message with respect to q: dJ/dq [N, K] from grad = dJ/dout [N, K].

    Plain PyTorch, no autograd; the N x N matrix is allowed here. It is not the same operator again: look at where the division happens.
    """
    return None  # your code here


def box_distance(low_a: torch.Tensor, high_a: torch.Tensor, low_b: torch.Tensor, high_b: torch.Tensor) -> torch.Tensor:
    """Exercise 4. What culling asks: the squared distance [A, B] between the bounding boxes of A row tiles and B column tiles.

    low_a, high_a [A, d] and low_b, high_b [B, d] are the corners. Boxes that touch or overlap are at distance 0. It must never exceed the
    squared distance of any two points inside the boxes, or the kernel would skip tiles that matter.
    """
    return None  # your code here


@jit
def potts_kernel(p_unary, p_a, p_b, p_q, w_a, w_b, K, BLOCK: tl.constexpr):
    """Exercise 5. A kernel: exercise 2 for two messages. Program i makes row i of q = softmax over labels of -unary + w_a a + w_b b.

    unary, a, b, q [N, K] float32, contiguous; BLOCK is a power of two, at least K. The check counts bytes: everything is needed once.
    """
    pass  # your code here
