"""Exercises of lesson 12. Replace each `return None`, then run:   python -m lessons.check 12"""
from torch import Tensor


def cells(grids: list[int], side: float) -> list[tuple[float, float, float, float]]:
    """Exercise 1. Boxes (left, top, right, bottom) in pixels of all cells of all grids in a square image, grid by grid, row by row.

    A grid of s has s x s cells that cover the image once. Do not round: 224 / 3 is 74.67.
    """
    return None  # your code here


def hide(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Exercise 2. noise [B, N] -> places of the visible patches int64 [B, n] and removed [B, N] (1 hidden, 0 visible).

    The n = int(N (1 - ratio)) patches of lowest noise stay, each image by its own noise.
    """
    return None  # your code here


def matching(segments: Tensor, views: Tensor) -> Tensor:
    """Exercise 3, Eq. (1). segments [B, S, E], views [B, V, E] of any length, views[:, 0] the whole image -> scalar.

    All vectors to unit length. Each segment's L1 distance (sum over coordinates) to its nearest *local* view; the mean over segments and images.
    """
    return None  # your code here


def scores(tokens: Tensor, pooled: Tensor, classes: Tensor, scale: float, top: int) -> Tensor:
    """Exercise 4, GroupViT's zero-shot rule for one image. Unit vectors: tokens [S, E], pooled [E], classes [K, E] -> [S, K].

    softmax over all classes times softmax over the `top` classes nearest to `pooled` (the others score 0).
    """
    return None  # your code here


def with_background(scores: Tensor, threshold: float) -> Tensor:
    """Exercise 5. scores [S, K] of one image -> int64 [S]: 0 for background, else 1 + the best class.

    Background where a segment's best score is below min(threshold, the best score in the image).
    """
    return None  # your code here
