"""Exercises of lesson 15. Replace each `return None`, then run:   python -m lessons.check 15"""
from torch import Tensor


def labels_of_step(mask: Tensor, groups: list[list[int]], t: int) -> Tensor:
    """Exercise 1. What step t may know of a label map. mask int64 [H, W] of 0, class ids and 255 -> int64 [H, W].

    groups: the class ids of every step, in learning order. A class of step t becomes its channel: classes are counted 1, 2, ... in learning order.
    Every other class is called background, 0; 255 stays.
    """
    return None  # your code here


def aggregate(heads: list[Tensor], training: bool) -> Tensor:
    """Exercise 2. One output from the heads of all steps. heads: list of [B, 1 + C_s, h, w] -> [B, 1 + C_0 + C_1 + ..., h, w].

    Channel 0 of the first head is the background logit, of every later head a correction to it. At test time all corrections are cut above
    zero and added. In training the last one is not cut, and it alone receives the background's gradient.
    """
    return None  # your code here


def pseudo_labels(target: Tensor, old: Tensor, tau: float) -> Tensor:
    """Exercise 3. target int64 [B, H, W] with 0, new classes and 255; old: the old model's logits [B, K, H, W] -> int64 [B, H, W].

    A label-0 pixel takes the old model's class where its sigmoid is at least tau; background votes change nothing.
    """
    return None  # your code here


def adaptation(r: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Exercise 4. BgA+ and BgA-, unweighted. r [B, H, W]: the raw correction; target int64 [B, H, W] with 0, new classes and 255 -> two scalars.

    BgA+: mean over new-class pixels of binary cross-entropy against 0. BgA-: mean over label-0 pixels of max((s - 1)^2 - s^2, 0), s = sigmoid(r).
    A mean over no pixel is 0.
    """
    return None  # your code here
