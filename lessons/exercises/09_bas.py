"""Exercises of lesson 09. Replace each `return None`, then run:   python -m lessons.check 09"""
import torch
from torch import Tensor, nn


def ratio(rest: Tensor, whole: Tensor) -> Tensor:
    """Exercise 1, Eq. (3). rest [B] = S_b, whole [B] = S, both >= 0 -> [B]: the share of the activation that survives outside the mask.

    No gradient may reach `whole`. Where rest > whole the answer is 1 and no gradient flows at all. Add 1e-8 under the bar.
    """
    return None  # your code here


def background(f2: nn.Module, features: Tensor, mask: Tensor, label: Tensor) -> Tensor:
    """Exercise 2: S_b. features [B, C, h, w], mask [B, 1, h, w], label int64 [B]; f2: features -> evidence [B, K-1, a, b] -> [B].

    Erase the mask from the features, pool the evidence of the true class over the map, then ReLU. The gradient belongs to the mask alone: not
    to the features, not to f2's weights. And f2 may hold batch norm, whose running statistics must not see an erased feature.
    """
    return None  # your code here


def many_classes(scores: Tensor, tags: Tensor) -> Tensor:
    """Exercise 3, Eq. (9). scores, tags [B, K-1] -> scalar: every class of an image competes by softmax with the classes that are absent.

    Summed over the classes of an image, averaged over images. Scores of 1000 must not overflow.
    """
    return None  # your code here


def box(heat: Tensor, threshold: float) -> list[int]:
    """Exercise 4. heat [h, w] of any range -> [left, top, right, bottom], half open.

    Min-max normalise, keep what exceeds the threshold, take the connected component with most cells (diagonal neighbours are connected), draw the
    tight box. The whole map if nothing is left.
    """
    return None  # your code here
