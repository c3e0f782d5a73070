"""Solutions of lesson 15."""
import torch
from torch import Tensor
from torch.nn.functional import softplus


def labels_of_step(mask: Tensor, groups: list[list[int]], t: int) -> Tensor:
    found = torch.where(mask == 255, 255, 0)
    first = 1 + sum(len(g) for g in groups[:t])
    for channel, c in enumerate(groups[t], first):
        found[mask == c] = channel
    return found


def aggregate(heads: list[Tensor], training: bool) -> Tensor:
    base, *corrections = [z[:, :1] for z in heads]
    if not corrections:
        return heads[0]
    cut = [r.clamp(max=0) for r in corrections]
    if training:
        background = sum(cut[:-1], base).detach() + corrections[-1]
    else:
        background = sum(cut, base)
    return torch.cat([background, *(z[:, 1:] for z in heads)], 1)


def pseudo_labels(target: Tensor, old: Tensor, tau: float) -> Tensor:
    score, found = old.sigmoid().max(1)
    return torch.where((target == 0) & (found > 0) & (score >= tau), found, target)


def adaptation(r: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    new, zero = (target > 0) & (target != 255), target == 0
    positive = (softplus(r) * new).sum() / new.sum().clamp(min=1)
    negative = ((1 - 2 * r.sigmoid()).clamp(min=0) * zero).sum() / zero.sum().clamp(min=1)
    return positive, negative
