"""Exercises of lesson 06. Replace each `return None`, then run:   python -m lessons.check 06"""
import torch


def attention_cost(kind: str, h: int, w: int, heads: int = 8, key: int = 16, value: int = 32) -> int:
    """Exercise 1. Multiply-adds of the two products (queries with keys, probabilities with values) on a map of h rows and w columns.

    kind: "full" (every pixel with every pixel), "axial" (every pixel with its column, and with its row), "squeeze" (rows with rows, columns with
    columns, after averaging; the averaging itself is not counted).
    """
    return None  # your code here


def row_answer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Exercise 2. The row branch of squeeze-axial attention with one head and no position tables.

    q, k: [B, D, h, w], v: [B, E, h, w]. Average every row to one token, let the h tokens attend to each other (logits divided by sqrt(D)), and
    return what each row hears: [B, E, h].
    """
    return None  # your code here


def live_taps(weight: torch.Tensor) -> torch.Tensor:
    """Exercise 3. weight [D, C, k, k] (k odd) of a convolution with zero padding k // 2 that is applied to maps of ONE pixel.
    Return the [D, C, 1, 1] weight of the 1x1 convolution that computes the same."""
    return None  # your code here


def fold(weight: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Exercise 4. A convolution without bias, weight [D, C, k, k], then batch norm with stored mean and var, scale gamma and shift beta, all [D].
    Return (weight, bias) of the one convolution that computes both."""
    return None  # your code here


def hard_pixels(likely: torch.Tensor, threshold: float, keep: int) -> torch.Tensor:
    """Exercise 5. OHEM. likely [P]: the probability that the network gives to the true class at each pixel. Return bool [P]: the pixels that are
    learnt from: all whose probability is at most `threshold`, but never fewer than the `keep` least likely (all, if there are fewer than keep)."""
    return None  # your code here
