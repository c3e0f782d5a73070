"""Exercises of lesson 07. Replace each `return None`, then run:   python -m lessons.check 07"""
import torch
from torch import Tensor


def relations(feature: Tensor, v: int) -> Tensor:
    """Exercise 1. Cosines between the v x v regions of every image: feature [B, D, h, w] -> [B, v*v, v*v].

    h and w need not be multiples of v; regions are numbered row by row.
    """
    return None  # your code here


def image_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Exercise 2. Mean absolute difference between the mean logits of student and teacher. Both [B, K, H, W] -> scalar.

    The gradient flows to the student only.
    """
    return None  # your code here


def mixed_labels(first: Tensor, second: Tensor, mix: Tensor) -> Tensor:
    """Exercise 3. A teacher's hard labels for a CutMix of two images, from its logits on the two *unmixed* images.

    first, second [B, K, H, W], mix bool [B, H, W] (True: the second image) -> int64 [B, H, W].
    """
    return None  # your code here


def two_teachers(logits: Tensor, deep: Tensor, wide: Tensor) -> Tensor:
    """Exercise 4. cross_entropy(logits, deep) + cross_entropy(logits, wide), with ONE log-sum-exp over the logits.

    logits [B, K, H, W]; deep, wide int64 [B, H, W], 255 = ignore, each averaged over its own counted pixels -> scalar.
    """
    return None  # your code here


def multiply_adds(inputs: int, outputs: int, kernel: int, groups: int, height: int, width: int) -> int:
    """Exercise 5. Multiply-adds of a kernel x kernel convolution with an output of height x width; bias and norm not counted."""
    return None  # your code here
