"""Exercises of lesson 14. Replace each `return None`, then run:   python -m lessons.check 14"""
import torch
from torch import Tensor


def assign(logits: Tensor) -> Tensor:
    """Exercise 1. Every token goes to one group, and gradients still flow.

    logits [S, N] of S groups and N tokens -> [S, N]: one-hot over the groups of each token, in value; in gradient the softmax over the groups
    (straight through). No noise here.
    """
    return None  # your code here


def group_means(assignment: Tensor, values: Tensor) -> Tensor:
    """Exercise 2. A group becomes the mean of its tokens, with 1 added to the number of tokens it is divided by.

    assignment [S, N] (one-hot per token), values [N, D] -> [S, D].
    """
    return None  # your code here


def mask_loss(cosines: Tensor, shares: Tensor, r: Tensor, scale: float) -> Tensor:
    """Exercise 3. The loss of one mixed image, a scalar: sort its N patches by the K captions of its mix.

    cosines [S, K]: segment against caption; shares [S, N]: how much of patch n belongs to segment s (sums to 1 over s);
    r int64 [N]: which of the K captions a patch came with. A patch's logit for a caption is scale times its segments' mean cosine; then
    cross-entropy over the captions, mean over the patches.
    """
    return None  # your code here


def name_segments(tokens: Tensor, pooled: Tensor, classes: Tensor, scale: float, top: int) -> Tensor:
    """Exercise 4. GroupViT's scores at test time: tokens [S, E], pooled [E], classes [K, E], all of unit length -> [S, K].

    The softmax (of scale x cosine) over all classes, times the softmax over the `top` classes that fit the *pooled* image vector best; a class
    outside those scores 0.
    """
    return None  # your code here
