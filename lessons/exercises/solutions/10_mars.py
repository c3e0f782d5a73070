"""Solutions of lesson 10."""
import math

import torch
from torch import Tensor
from torch.nn.functional import normalize


def background_distance(centres: Tensor, background: Tensor) -> Tensor:
    return (1 - normalize(centres, dim=1) @ normalize(background, dim=1).mean(0)) / 2


def debiased_centroid(centres: Tensor, distance: Tensor, alpha: float) -> Tensor:
    return centres[distance.argsort(descending=True)[: math.ceil(alpha * len(centres))]].mean(0)


def delete(labels: Tensor, codes: Tensor, V: Tensor, tags: Tensor, threshold: float) -> Tensor:
    cosine = torch.einsum("dhw,kd->khw", normalize(codes, dim=0), normalize(V[1:], dim=1))
    similarity = cosine[tags > 0].amax(0).relu()
    return torch.where((labels > 0) & (labels != 255) & (similarity <= threshold), 254, labels)


def certainty(labels: Tensor, probability: Tensor, tags: Tensor, with_background: bool) -> Tensor:
    allowed = torch.cat([torch.tensor([with_background]), tags > 0])
    return torch.where(labels == 254, probability[allowed].amax(0), 1.0)
