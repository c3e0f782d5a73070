"""Exercises of lesson 03. Replace each `return None`, then run:   python -m lessons.check 03"""
import torch


def field_of_view(layers: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Exercise 1. layers: (kernel, stride, rate) of each convolution or pool, in order. Return (pixels of the image that one output sees
    along one axis, pixels of the image between neighbouring outputs)."""
    return None  # your code here


def without_strides(strides: list[int], wanted: int) -> list[tuple[int, int]]:
    """Exercise 2. A network's layers have these strides (1 or 2). Keep strides from the front until the product reaches `wanted`, drop the rest,
    and give every layer the rate under which it touches the pixels that it was trained to touch.

    Return (stride, rate) of each layer. A layer that loses its own stride keeps the rate before it; layers after it are dilated.
    """
    return None  # your code here


def enlarge(scores: torch.Tensor, stride: int) -> torch.Tensor:
    """Exercise 3. scores [h] stand at pixels 0, stride, 2*stride, ... Return all (h - 1) * stride + 1 pixels, straight lines between the scores.

    No F.interpolate: torch.arange, integer division and indexing.
    """
    return None  # your code here


def learning_rate(step: int, steps: int, base: float, new_layer: bool, bias: bool) -> float:
    """Exercise 4. DeepLab's rate of one parameter at `step` (from 0): poly schedule with power 0.9, times 1, 2, 10 or 20."""
    return None  # your code here
