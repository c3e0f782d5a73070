"""Which pairs of pixel tiles must the exact CRF kernel visit? Those whose bounding boxes in feature space come near enough to matter.

Pixels are sorted along a Hilbert curve through their features (position and colour), so that 64 consecutive ones are alike. A skipped pair
of tiles takes at most 64 exp(-distance^2 / 2) max|v| from the message of a pixel; `TilePlan.bound` adds that up for every row tile. The bound
lies far above the loss that occurs, because box distances are lower bounds of the pixels' distances, but it needs no luck.
"""
from __future__ import annotations

from typing import NamedTuple

import torch


class TilePlan(NamedTuple):
    """Which pairs of tiles the kernel visits, for one image."""
    order: torch.Tensor
    """int64 [N]: the pixels along a Hilbert curve in feature space"""
    start: torch.Tensor
    """int64 [tiles + 1]: where each row tile's list begins in `live`"""
    live: torch.Tensor
    """int32: column tiles, row tile after row tile"""
    kept: float
    """visited share of all tile pairs"""
    bound: torch.Tensor
    """[tiles]: no pixel of a row tile loses more than bound * max|v| of its message"""


def hilbert_order(features: torch.Tensor) -> torch.Tensor:
    """Pixels sorted along a Hilbert curve through their features [N, d] -> int64 [N]. Skilling's transform (AIP Conf. Proc. 707, 2004)."""
    n, d = features.shape
    bits = min(10, 62 // d)
    low = features.amin(0)
    width = (features.amax(0) - low).amax().clamp_min(1e-30)
    axes = list(((features - low) / width * (2**bits - 1)).to(torch.int64).unbind(1))
    for level in range(bits - 1, 0, -1):
        mask = (1 << level) - 1
        for i in range(d):
            inside = (axes[i] >> level) & 1 != 0
            swap = torch.where(inside, 0, (axes[0] ^ axes[i]) & mask)
            axes[i] = axes[i] ^ swap
            axes[0] = axes[0] ^ torch.where(inside, mask, swap)
    for i in range(1, d):
        axes[i] = axes[i] ^ axes[i - 1]
    twist = torch.zeros_like(axes[0])
    for level in range(bits - 1, 0, -1):
        twist ^= ((axes[-1] >> level) & 1) * ((1 << level) - 1)
    index = torch.zeros_like(axes[0])
    for level in range(bits - 1, -1, -1):
        for axis in axes:
            index = (index << 1) | (((axis ^ twist) >> level) & 1)
    return torch.argsort(index, stable=True)


def plan_tiles(features: torch.Tensor, cull: float | None, block: int = 64) -> TilePlan:
    """Sort pixels into tiles of `block` and list the pairs whose bounding boxes are within squared distance `cull` (None: all of them).

    features [N, d], in standard deviations.
    """
    n, d = features.shape
    tiles = -(-n // block)
    if cull is None:
        everything = torch.arange(tiles, dtype=torch.int32, device=features.device)
        return TilePlan(torch.arange(n, device=features.device), torch.arange(tiles + 1, device=features.device) * tiles,
                        everything.repeat(tiles), 1.0, torch.zeros(tiles, device=features.device))
    order = hilbert_order(features)
    padded = torch.cat([order, order[-1:].expand(tiles * block - n)])
    boxes = features.index_select(0, padded).view(tiles, block, d)
    low, high = boxes.amin(1).t().contiguous(), boxes.amax(1).t().contiguous()
    members = torch.full((tiles,), float(block), dtype=features.dtype, device=features.device)
    members[-1] = n - (tiles - 1) * block
    live, counts, bound = [], [], []
    rows = max(1, 2**24 // tiles)
    for first in range(0, tiles, rows):
        part = slice(first, first + rows)
        distance = torch.zeros(low[0, part].numel(), tiles, dtype=features.dtype, device=features.device)
        for c in range(d):
            gap = torch.maximum(low[c, part, None] - high[c], low[c] - high[c, part, None]).clamp_min_(0)
            distance.addcmul_(gap, gap)
        near = distance <= cull
        live.append(near.nonzero()[:, 1].to(torch.int32))
        counts.append(near.sum(1))
        bound.append(torch.exp(-0.5 * distance).masked_fill_(near, 0) @ members)
    start = torch.zeros(tiles + 1, dtype=torch.int64, device=features.device)
    torch.cumsum(torch.cat(counts), 0, out=start[1:])
    live = torch.cat(live)
    return TilePlan(order, start, live, live.numel() / tiles**2, torch.cat(bound))
