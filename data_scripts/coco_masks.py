"""COCO's instance annotations as pixels: polygons and run lengths, bit for bit as COCO's own tools draw them.

A polygon is drawn on a grid five times finer: its outline is walked, the points where it moves from one column to the next are brought back to
the image's rows, and a column is filled between pairs of them. A run-length code lists how many pixels are alternately out and in, column by column.
"""
from __future__ import annotations

import numpy as np

FINER = 5


def polygon_mask(points: list[float], height: int, width: int) -> np.ndarray:
    """[x0, y0, x1, y1, ...] in pixels -> bool [H, W]."""
    corners = np.asarray(points, np.float64).reshape(-1, 2)
    x, y = ((FINER * corners + 0.5).astype(np.int64)).T  # truncation, as in C
    steps = [_edge(x[i], y[i], x[(i + 1) % len(x)], y[(i + 1) % len(y)]) for i in range(len(x))]
    u, v = (np.concatenate(parts) for parts in zip(*steps))
    # Where the outline enters another fine column; the lower of both points decides the row.
    moved = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = np.where(u[moved] < u[moved - 1], u[moved], u[moved] - 1)
    column = (column + 0.5) / FINER - 0.5
    inside = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = np.minimum(v[moved], v[moved - 1])
    row = np.ceil(np.clip((row + 0.5) / FINER - 0.5, 0, height))
    starts = np.sort(column[inside].astype(np.int64) * height + row[inside].astype(np.int64))
    toggles = np.bincount(starts, minlength=height * width + 1)[:height * width]
    return (np.cumsum(toggles) % 2).astype(bool).reshape(width, height).T  # [H, W]


def _edge(xs: int, ys: int, xe: int, ye: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of one edge on the fine grid, one per step along its longer direction, in walking order."""
    dx, dy = abs(xe - xs), abs(ys - ye)
    flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
    if flip:
        xs, xe, ys, ye = xe, xs, ye, ys
    if dx >= dy:
        slope = (ye - ys) / dx if dx else 0.0
        t = np.arange(dx + 1)
        along = t + xs, (ys + slope * t + 0.5).astype(np.int64)
    else:
        slope = (xe - xs) / dy
        t = np.arange(dy + 1)
        along = (xs + slope * t + 0.5).astype(np.int64), t + ys
    return (along[0][::-1], along[1][::-1]) if flip else along


def run_lengths(code: str | bytes | list[int]) -> list[int]:
    """COCO's compressed string -> counts: six bits a character from '0' on, five of them payload; from the fourth count on relative to the one
    two before."""
    if isinstance(code, list):
        return code
    code = code.encode() if isinstance(code, str) else code
    counts, place = [], 0
    while place < len(code):
        value, shift, more = 0, 0, True
        while more:
            bits = code[place] - 48
            value |= (bits & 31) << shift
            more, place, shift = bool(bits & 32), place + 1, shift + 5
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def run_mask(code, height: int, width: int) -> np.ndarray:
    """Run lengths -> bool [H, W]. ValueError when they do not cover the image."""
    counts = run_lengths(code)
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"run lengths cover {sum(counts):,} pixels, the image has {height * width:,}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T  # [H, W]


def instance_mask(segmentation, height: int, width: int) -> np.ndarray:
    """One annotation's "segmentation" -> bool [H, W]: a list of polygons, or {"counts", "size"}."""
    if isinstance(segmentation, dict):
        return run_mask(segmentation["counts"], height, width)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= polygon_mask(polygon, height, width)
    return mask


def semantic_mask(annotations: list[dict], height: int, width: int, class_of: dict[int, int], crowd: str = "class") -> np.ndarray:
    """All annotations of one image -> uint8 [H, W], 0 where there is none. Smaller objects lie on top of larger ones.

    class_of: category id -> class. crowd: what to do with groups that were outlined as one: "class" counts them as their class, "ignore" as 255.
    """
    labels = np.zeros((height, width), np.uint8)
    # Crowds first, since single objects were outlined within them.
    for a in sorted(annotations, key=lambda a: (not a.get("iscrowd", 0), -a["area"], a["id"])):
        mask = instance_mask(a["segmentation"], height, width)
        labels[mask] = 255 if a.get("iscrowd") and crowd == "ignore" else class_of[a["category_id"]]
    return labels
