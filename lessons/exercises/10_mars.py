"""Exercises of lesson 10. Replace each `return None`, then run:   python -m lessons.check 10"""
import torch
from torch import Tensor


def background_distance(centres: Tensor, background: Tensor) -> Tensor:
    """Exercise 1, Eq. (1). centres [M, D], background [J, D], of any length -> [M]: the mean over j of (1 - cos) / 2.

    With M = J = 200,000 no table [M, J] fits into memory: do not make one, and no loop over j either.
    """
    return None  # your code here


def debiased_centroid(centres: Tensor, distance: Tensor, alpha: float) -> Tensor:
    """Exercise 2, Eq. (2). centres [M, D] of one class, distance [M] -> [D]: the mean of the ceil(alpha M) farthest centres."""
    return None  # your code here


def delete(labels: Tensor, codes: Tensor, V: Tensor, tags: Tensor, threshold: float) -> Tensor:
    """Exercise 3, Eq. (4) and (5), for one image. Deleted pixels become 254.

    labels int64 [H, W] with 0 background and 255 ignore, codes [D, H, W], V [K, D] (row 0 unused), tags [K-1] -> int64 [H, W].
    """
    return None  # your code here


def certainty(labels: Tensor, probability: Tensor, tags: Tensor, with_background: bool) -> Tensor:
    """Exercise 4, Eq. (6), for one image. labels int64 [H, W] (254 deleted), probability [K, H, W], tags [K-1] -> [H, W].

    The image's foreground classes count; with_background=True adds background.
    """
    return None  # your code here
