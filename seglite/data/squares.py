"""Square images for image-text models: the centre of a photograph, random squares, and the cells of a grid of views.

    image uint8 [H, W, 3] --> centre_square: shorter side to S, middle cut out                 uint8 [S, S, 3]
                          --> grid_views: every cell of 1x1, 2x2, 3x3 ... resized to side      uint8 [V, side, side, 3]
    RandomSquare: a transform that cuts a random square of a random size, resizes it, flips it

Everything is bicubic with anti-aliasing (Pillow), as in CLIP's own preprocessing. Cells of a 3x3 grid of 224 pixels are 74.67 pixels wide: boxes
are fractional, nothing is rounded.

H W image, S side of a square, V views.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def cut(image: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """The part of an image inside box (left, top, right, bottom; fractions of pixels allowed) as uint8 [side, side, 3]."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC, box=box))


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """The largest centred square, resized: uint8 [H, W, 3] -> [side, side, 3]."""
    H, W = image.shape[:2]
    if H == W == side:
        return image
    edge = min(H, W)
    left, top = (W - edge) / 2, (H - edge) / 2
    return cut(image, (left, top, left + edge, top + edge), side)


def cells(grids: Sequence[int]) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) of all cells of all grids in shares of the side, grid by grid, row by row."""
    if not grids or min(grids) < 1 or len(set(grids)) < len(grids):
        raise ValueError(f"grids={','.join(map(str, grids))} must name different numbers of cells per side, each at least 1")
    return [(c / s, r / s, (c + 1) / s, (r + 1) / s) for s in grids for r in range(s) for c in range(s)]


def grid_views(square: np.ndarray, grids: Sequence[int], side: int) -> np.ndarray:
    """Non-overlapping cells of a square image, each resized: uint8 [S, S, 3] -> [V, side, side, 3], V = sum of s * s over the grids."""
    S = square.shape[0]
    return np.stack([cut(square, tuple(S * edge for edge in box), side) for box in cells(grids)])


class CentreSquare:
    """A transform (sample, rng) -> sample whose image is the centre square. Nothing is random: what is cached for an image stays true."""

    def __init__(self, side: int):
        self.side = side

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        return {**sample, "image": centre_square(sample["image"], self.side)}


class RandomSquare:
    """A transform that cuts a random square of at least `smallest` of the largest square's area, resizes it to `side` and flips it half the time."""

    def __init__(self, side: int, smallest: float = 0.35, flip: float = 0.5):
        if not 0 < smallest <= 1:
            raise ValueError(f"the smallest share of the area is {smallest}; it must lie above 0 and at most 1")
        self.side, self.smallest, self.flip = side, smallest, flip

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        share, at_x, at_y, mirrored = rng.random(4)
        image = sample["image"]
        H, W = image.shape[:2]
        edge = min(H, W) * (self.smallest + (1 - self.smallest) * share) ** 0.5
        left, top = (W - edge) * at_x, (H - edge) * at_y
        image = cut(image, (left, top, min(left + edge, W), min(top + edge, H)), self.side)
        return {**sample, "image": np.ascontiguousarray(image[:, ::-1]) if mirrored < self.flip else image}
