"""Exercises of lesson 08. Replace each `return None`, then run:   python -m lessons.check 08"""
from torch import Tensor


def threshold(mean: Tensor, t0: float, beta: float, low: float, high: float) -> Tensor:
    """Exercise 1, formula 1. mean: the teacher's mean confidence, any shape -> T of that shape, clamped to low ... high."""
    return None  # your code here


def targets(p: Tensor, label: Tensor, T: float) -> Tensor:
    """Exercise 2, formula 2. p [H, W] confidence, label int64 [H, W] -> int64 [H, W]: the label where p exceeds T, else 255."""
    return None  # your code here


def weighted_loss(ce: Tensor, p: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Exercise 3, formula 3. ce, p [H, W] (p carries the teacher's graph), target int64 [H, W] with 255 = ignore -> a scalar.

    The mean over the targets of p^gamma ce. No gradient may reach p; without any target the loss is 0.
    """
    return None  # your code here


def border(labels: Tensor) -> Tensor:
    """Exercise 4, formula 4 with a simpler filter. labels int64 [H, W] -> bool [H, W]: has one of the (up to four) direct neighbours another label?

    The frame of the image is no border.
    """
    return None  # your code here


def remember(visits: Tensor, p: Tensor, T: float, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Exercise 5, formula 6. visits int64 [H, W]: how often in a row each pixel stayed at or below T before this visit.

    Returns the visits after this one, and the weight (alpha^visits p)^gamma, both [H, W]. A pixel above T starts over. The inputs stay as they are.
    """
    return None  # your code here
