"""Solutions of lesson 03."""
import torch


def field_of_view(layers: list[tuple[int, int, int]]) -> tuple[int, int]:
    seen, apart = 1, 1
    for kernel, stride, rate in layers:
        seen += (kernel - 1) * rate * apart
        apart *= stride
    return seen, apart


def without_strides(strides: list[int], wanted: int) -> list[tuple[int, int]]:
    plan, reached, rate = [], 1, 1
    for stride in strides:
        if reached * stride <= wanted:
            plan.append((stride, rate))
            reached *= stride
        else:
            plan.append((1, rate))
            rate *= stride
    return plan


def enlarge(scores: torch.Tensor, stride: int) -> torch.Tensor:
    at = torch.arange((len(scores) - 1) * stride + 1)
    left = at // stride
    share = (at % stride) / stride
    right = (left + 1).clamp_max(len(scores) - 1)
    return scores[left] * (1 - share) + scores[right] * share


def learning_rate(step: int, steps: int, base: float, new_layer: bool, bias: bool) -> float:
    return base * (1 - step / steps) ** 0.9 * (10 if new_layer else 1) * (2 if bias else 1)
