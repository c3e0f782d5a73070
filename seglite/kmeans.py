"""K-means on the unit sphere for many small point sets at once: G regions, N cells each, D dimensions, k clusters."""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F


def cosine_kmeans(vectors: torch.Tensor, mask: torch.Tensor, k: int, iterations: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """K-means on the unit sphere for many regions at once, without random numbers.

    vectors [G, N, D], mask bool [G, N] (which cells belong to the region; at least one) -> centres [G, k, D] of unit length,
    cluster of each cell int64 [G, N]. Starts from the cell least like the region's mean, then the one farthest from those chosen, which
    finds small clusters that random starts miss. An emptied cluster keeps its centre.
    """
    unit = F.normalize(vectors, dim=2) * mask[..., None]  # [G, N, D]
    rows = torch.arange(len(unit), device=unit.device)
    seen = unit.sum(1, keepdim=True)  # the mean's direction
    centres = unit[:, :0]
    for _ in range(k):
        nearest = (unit @ seen.mT).amax(2).masked_fill(~mask, math.inf)  # [G, N]
        centres = torch.cat([centres, unit[rows, nearest.argmin(1)][:, None]], 1)
        seen = centres
    for _ in range(iterations):
        member = F.one_hot((unit @ centres.mT).argmax(2), k).to(unit) * mask[..., None]
        moved = F.normalize(member.mT @ unit, dim=2)
        centres = torch.where(member.sum(1)[..., None] > 0, moved, centres)
    return centres, (unit @ centres.mT).argmax(2)  # [G, k, D], [G, N]


class Regions(NamedTuple):
    """K-means of every (image, class) region of a few images."""

    image: torch.Tensor  # int64 [G], place of the image among those given
    label: torch.Tensor  # int64 [G]
    centres: torch.Tensor  # float [G, k, D]
    cluster: torch.Tensor  # int64 [G, N]
    inside: torch.Tensor  # bool [G, N]


def cluster_regions(codes: torch.Tensor, labels: torch.Tensor, classes: range, k: int, smallest: int = 4, iterations: int = 10) -> Regions:
    """Cluster the codes of each image inside each of `classes`; regions of fewer than `smallest` cells are left out.

    codes [B, D, h, w], labels int64 [B, H, W] (resized to the cells, nearest).
    """
    cells = F.interpolate(labels[:, None].float(), codes.shape[-2:], mode="nearest")[:, 0].flatten(1).long()  # [B, N]
    vectors = codes.flatten(2).mT  # [B, N, D]
    inside = cells[:, None] == torch.tensor(list(classes), device=cells.device)[None, :, None]
    image, which = (inside.sum(2) >= max(k, smallest)).nonzero(as_tuple=True)
    inside = inside[image, which]  # [G, N]
    centres, cluster = cosine_kmeans(vectors[image], inside, k, iterations)
    return Regions(image, which + classes.start, centres, cluster, inside)
