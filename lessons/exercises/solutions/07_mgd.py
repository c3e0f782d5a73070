"""Solutions of lesson 07's exercises."""
import torch
from torch import Tensor
from torch.nn import functional as F


def relations(feature: Tensor, v: int) -> Tensor:
    unit = F.normalize(F.adaptive_avg_pool2d(feature, v).flatten(2), dim=1)  # one unit vector per region
    return unit.transpose(1, 2) @ unit


def image_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.mean((2, 3)) - teacher.detach().mean((2, 3))).abs().mean()


def mixed_labels(first: Tensor, second: Tensor, mix: Tensor) -> Tensor:
    return torch.where(mix[:, None], second, first).argmax(1)


def two_teachers(logits: Tensor, deep: Tensor, wide: Tensor) -> Tensor:
    normaliser, total = torch.logsumexp(logits, 1), 0.0
    for labels in (deep, wide):
        counted = labels != 255
        chosen = logits.gather(1, labels.masked_fill(~counted, 0)[:, None])[:, 0]
        total = total + (normaliser - chosen)[counted].sum() / counted.sum().clamp_min(1)
    return total


def multiply_adds(inputs: int, outputs: int, kernel: int, groups: int, height: int, width: int) -> int:
    return outputs * height * width * kernel * kernel * inputs // groups
