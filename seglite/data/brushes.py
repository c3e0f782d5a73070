"""Shapes, patterns, ground textures and light: what `seglite/data/scenes.py` paints with.

Everything here is a plain function on numpy arrays of n pictures at once, so that one call paints a part of n pictures:

    shape(u, v, o)    signed distance to an outline of radius 1, negative inside       [n, H, W] -> [n, H, W]
    pattern(u, v, o)  brightness of a surface, -1 ... 1, u and v in pixels             [n, H, W] -> [n, H, W]
    ground(f)         position 0 ... 1 on a ramp of three colours                      Fields    -> [n, H, W]

Signed distances make the rest cheap: the sign is the label, the value divided by the pixel size is a smooth (anti-aliased) edge,
its gradient is the direction in which the surface falls off, and its size outside is how deep in the shadow the ground lies.

Shapes: n pictures, H W image. All arrays are float32.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TURN = np.float32(2 * np.pi)


@dataclass
class Brush:
    """One object in each of n pictures. Every field is float32 `[n, 1, 1]` so that it broadcasts over the pixels."""

    x: np.ndarray
    """Centre, pixels from the left border."""
    y: np.ndarray
    """Centre, pixels from the top border."""
    r: np.ndarray
    """Radius in pixels: half of the object's longest side."""
    angle: np.ndarray
    """Rotation in radians."""
    phase: np.ndarray
    """A free number in 0 ... 2 pi: where a pattern starts, how an outline wobbles."""
    thin: np.ndarray
    """Half the thickness of thin structures in pixels."""


@dataclass
class Fields:
    """What a ground texture may use. `n` pictures of `H` by `W` pixels."""

    x: np.ndarray
    """Column of every pixel, [1, 1, W]."""
    y: np.ndarray
    """Row of every pixel, [1, H, 1]."""
    grain: np.ndarray
    """White noise of unit variance, [n, H, W]."""
    cloud: np.ndarray
    """Smooth noise of about unit variance, [n, H, W]."""
    phase: np.ndarray
    """A free number in 0 ... 2 pi, [n, 1, 1]."""
    slant: np.ndarray
    """A free number in -1 ... 1: small rotations, [n, 1, 1]."""


# ---------------------------------------------------------------------------------------------------------------- outlines

def disc(u, v, o=None):
    """The unit disc."""
    return np.hypot(u, v) - 1


def oval(u, v, o=None, a=1.0, b=0.62):
    """An ellipse with half axes a and b (first-order distance: exact on the outline, good near it)."""
    k = np.hypot(u / a, v / b)
    return k * (k - 1) / np.maximum(np.hypot(u / a**2, v / b**2), 1e-3)


def box(u, v, o=None, a=0.82, b=0.82, corner=0.15):
    """A box with half sides a and b and rounded corners."""
    p, q = np.abs(u) - (a - corner), np.abs(v) - (b - corner)
    return np.hypot(np.maximum(p, 0), np.maximum(q, 0)) + np.minimum(np.maximum(p, q), 0) - corner


def wagon(u, v, o=None):
    """The long box that trains and boats share."""
    return box(u, v, o, 1.0, 0.54, 0.16)


def bar(u, v, o=None):
    """A thick bar."""
    return box(u, v, o, 1.0, 0.34, 0.12)


def pole(u, v, o):
    """A thin upright pole of 2 o.thin pixels."""
    return box(u, v, o, np.minimum(o.thin / o.r, 0.9), 1.0, 0.0)


def cross(u, v, o=None):
    """Two crossed bars."""
    return np.minimum(box(u, v, o, 1.0, 0.34, 0.08), box(u, v, o, 0.34, 1.0, 0.08))


def ring(u, v, o=None):
    """A ring with a hole; what is seen through the hole is not the ring."""
    return np.abs(np.hypot(u, v) - 0.73) - 0.27


def star(u, v, o=None):
    """Five soft points."""
    return 0.6 * (np.hypot(u, v) - 0.7 - 0.3 * np.cos(5 * np.arctan2(v, u)))


def kite(u, v, o=None):
    """A rhombus."""
    return 0.6 * (np.abs(u) / 0.75 + np.abs(v) - 1)


def cone(u, v, o=None):
    """A triangle that stands on its side."""
    return np.maximum(v - 0.72, 0.88 * np.abs(u) - 0.47 * v - 0.45)


def moon(u, v, o=None):
    """A crescent."""
    return np.maximum(np.hypot(u, v) - 1, 0.74 - np.hypot(u - 0.52, v))


def heart(u, v, o=None):
    """A heart."""
    w = np.abs(u)
    return 0.8 * (np.hypot(w, 1.1 * v + 0.18 - 0.62 * np.sqrt(w)) - 0.85)


def bear(u, v, o=None):
    """A round body with a head and two ears."""
    body = oval(u + 0.18, v - 0.12, o, 0.82, 0.62)
    head = np.hypot(u - 0.62, v + 0.42) - 0.4
    ears = np.hypot(np.abs(u - 0.62) - 0.3, v + 0.78) - 0.16
    return np.minimum(np.minimum(body, head), ears)


def pebble(u, v, o):
    """A wobbly ellipse, another one for every phase."""
    a = np.arctan2(v, u)
    wobble = 1 + 0.16 * np.sin(2 * a + o.phase) + 0.1 * np.sin(3 * a + 2.3 * o.phase)
    return oval(u / wobble, v / wobble, o, 1.0, 0.45 + 0.3 * np.cos(o.phase) ** 2)


def any_shape(u, v, o):
    """Disc, box, oval or triangle by phase: an outline that tells nothing about the class."""
    pick = np.floor(o.phase / TURN * 4)
    return np.where(pick == 0, disc(u, v), np.where(pick == 1, box(u, v), np.where(pick == 2, oval(u, v), cone(u, v))))


# ---------------------------------------------------------------------------------------------------------------- surfaces

def wave(t, sharp=2.5):
    """A square wave with soft edges, period 1."""
    return np.clip(sharp * np.sin(TURN * t), -1, 1)


def windows(u, v, o):
    """A row of dark windows: stripes across the long side, in the middle of it only."""
    inside = (np.abs(v) < 0.36 * o.r) & (np.abs(u) < 0.88 * o.r)
    return np.where(inside, -0.5 - 0.5 * wave(u / 5 + o.phase), 0)


def planks(u, v, o):
    """The same dark stripes along the long side."""
    inside = (np.abs(v) < 0.36 * o.r) & (np.abs(u) < 0.88 * o.r)
    return np.where(inside, -0.5 - 0.5 * wave(v / 4.6 + o.phase), 0)


def stripes(u, v, o):
    """Stripes across the object."""
    return wave(u / 5.7 + o.phase)


def hatch(u, v, o):
    """Fine stripes whose direction is free: says "surface", not which."""
    return np.sin(TURN * (u * np.cos(o.phase) + v * np.sin(o.phase)) / 4)


def checks(u, v, o):
    """A chess board."""
    return np.clip(4 * np.sin(0.8 * u) * np.sin(0.8 * v), -1, 1)


def fur(u, v, o):
    """Rounded patches."""
    return np.clip(2.5 * np.sin(1.0 * u) * np.sin(1.0 * v) - 0.1, -0.7, 1)


def tread(u, v, o):
    """Concentric rings."""
    return wave(np.hypot(u, v) / 5)


def petals(u, v, o):
    """Sectors."""
    return np.cos(5 * np.arctan2(v, u)) * 0.7


def dots(u, v, o):
    """A grid of round dots."""
    return np.clip(3 * (np.cos(TURN * u / 6) + np.cos(TURN * v / 6)) - 3, -1, 1)


def slope_pattern(cu, cv, period):
    """Soft stripes in a direction of the *picture* (used where texture alone is the class)."""
    def pattern(u, v, o):
        x, y = u * np.cos(o.angle) - v * np.sin(o.angle), u * np.sin(o.angle) + v * np.cos(o.angle)
        return np.sin(TURN * (cu * x + cv * y) / period + o.phase)
    return pattern


def weave(u, v, o):
    """Crossed soft stripes in the directions of the picture."""
    return 1.4 * slope_pattern(1, 0, 6)(u, v, o) * slope_pattern(0, 1, 6)(u, v, o)


# ---------------------------------------------------------------------------------------------------------------- grounds

def grass(f):
    """Short blades over patches of lighter and darker green."""
    blades = f.grain.copy()
    blades[:, 1:] += 0.8 * f.grain[:, :-1]
    blades[:, 2:] += 0.5 * f.grain[:, :-2]
    return 0.45 + 0.1 * blades + 0.1 * f.cloud


def sand(f):
    """Wind ripples and grains."""
    ripple = np.sin(TURN * (f.y + f.slant * f.x) / 11 + f.phase + 1.5 * f.cloud)
    return 0.5 + 0.06 * ripple + 0.07 * f.grain + 0.05 * f.cloud


def brick(f):
    """Running bond with light mortar; every brick has a tone of its own."""
    row = np.floor((f.y + f.phase) / 8)
    column = np.floor((f.x + 6 * (row % 2) + 4 * f.phase) / 12)
    tone = np.sin(12.9898 * column + 78.233 * row + 37 * f.phase)
    mortar = ((f.y + f.phase) % 8 < 1.2) | ((f.x + 6 * (row % 2) + 4 * f.phase) % 12 < 1.2)
    return np.where(mortar, 0.85, 0.36 + 0.1 * tone) + 0.05 * f.grain


def wood(f):
    """Floor boards with grain along the board."""
    board = np.floor((f.y + f.phase) / 11)
    tone = np.sin(41.3 * board + 9 * f.phase)
    veins = np.sin(TURN * (f.y / 3.4 + 0.5 * np.sin(f.x / 13 + 5 * board)) + 2 * f.cloud)
    return np.where((f.y + f.phase) % 11 < 1, 0.05, 0.5 + 0.16 * tone + 0.12 * veins) + 0.03 * f.grain


def snow(f):
    """Soft drifts."""
    return 0.7 + 0.2 * f.cloud + 0.05 * f.grain


def tiles(f):
    """Square tiles with thin joints."""
    gap = ((f.x + 3 * f.phase) % 10 < 1) | ((f.y + 2 * f.phase) % 10 < 1)
    return np.where(gap, 0.1, 0.62 + 0.06 * f.cloud) + 0.04 * f.grain


def rails(f):
    """Gravel, dark wooden sleepers and bright steel."""
    along = f.x + 0.25 * f.slant * f.y
    across = f.y - 0.12 * f.slant * f.x
    bed = 0.42 + 0.09 * f.grain
    sleeper = np.clip(2.5 * np.sin(TURN * along / 9 + f.phase), -0.4, 1)
    bed = bed - 0.3 * np.maximum(sleeper, 0)
    steel = np.clip(1.6 - np.abs((across + 3 * f.phase) % 17 - 8.5), 0, 1)
    return bed + steel * (0.95 - bed)


def water(f):
    """Waves with light on their crests."""
    crest = np.sin(TURN * (f.y + 1.8 * np.sin(TURN * f.x / 17 + f.phase) + 0.8 * f.cloud) / 9 + f.phase)
    return 0.4 + 0.22 * crest + 0.25 * np.maximum(crest - 0.75, 0) * 4 * (f.grain > 0) + 0.04 * f.grain


def paper(f):
    """An even surface with a faint cloud."""
    return 0.5 + 0.1 * f.cloud


#          name: (texture, dark, middle, light) with colours 0 ... 1
GROUNDS = {
    "grass": (grass, (0.14, 0.31, 0.12), (0.32, 0.52, 0.20), (0.62, 0.74, 0.36)),
    "sand": (sand, (0.62, 0.50, 0.34), (0.82, 0.71, 0.52), (0.95, 0.88, 0.72)),
    "brick": (brick, (0.42, 0.18, 0.14), (0.66, 0.34, 0.27), (0.80, 0.74, 0.68)),
    "wood": (wood, (0.28, 0.17, 0.10), (0.56, 0.38, 0.23), (0.76, 0.57, 0.38)),
    "snow": (snow, (0.62, 0.70, 0.80), (0.82, 0.87, 0.92), (0.97, 0.97, 0.98)),
    "tiles": (tiles, (0.35, 0.36, 0.38), (0.62, 0.64, 0.64), (0.84, 0.85, 0.82)),
    "rails": (rails, (0.20, 0.15, 0.13), (0.47, 0.44, 0.42), (0.88, 0.89, 0.92)),
    "water": (water, (0.06, 0.25, 0.42), (0.16, 0.44, 0.62), (0.82, 0.93, 0.97)),
    "grey": (paper, (0.40, 0.40, 0.40), (0.50, 0.50, 0.50), (0.60, 0.60, 0.60)),
}


def ground(name: str, f: Fields, jitter: np.ndarray) -> np.ndarray:
    """Paint a ground over the whole picture.

    Args: `name` of GROUNDS; `f` fields of n pictures; `jitter` [n, 1, 1, 3] is added to the colours. Returns rgb `[n, H, W, 3]`.
    """
    texture, dark, middle, light = GROUNDS[name]
    t = np.clip(texture(f), 0, 1)[..., None]  # [n, H, W, 1]
    dark, middle, light = (np.asarray(c, np.float32) for c in (dark, middle, light))
    rgb = dark + (middle - dark) * np.minimum(2 * t, 1)  # [n, H, W, 3]
    rgb += (light - middle) * np.maximum(2 * t - 1, 0)
    rgb += jitter
    return rgb


# ---------------------------------------------------------------------------------------------------------------- parts of a picture

def local(o: Brush, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates `[n, H, W]` in the object's own frame, in pixels: (u along the object, v across it)."""
    dx, dy = x - o.x, y - o.y
    c, s = np.cos(o.angle), np.sin(o.angle)
    return dx * c + dy * s, dy * c - dx * s


def slope(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences of `d [n, H, W]` in x and y, zero on the border."""
    gx, gy = np.zeros_like(d), np.zeros_like(d)
    np.subtract(d[:, :, 2:], d[:, :, :-2], out=gx[:, :, 1:-1])
    np.subtract(d[:, 2:], d[:, :-2], out=gy[:, 1:-1])
    gx *= 0.5
    gy *= 0.5
    return gx, gy


def smooth_noise(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Random numbers `[n, k, k]` stretched bicubically over `[n, height, width]`: soft hills."""
    return _stretch(grid.shape[1], height) @ grid @ _stretch(grid.shape[2], width).T


def _stretch(k: int, size: int) -> np.ndarray:
    """The matrix `[size, k]` of cubic B-spline weights of k knots spread over `size` pixels."""
    at = np.linspace(0, k - 1, size, dtype=np.float32)[:, None] - np.arange(k, dtype=np.float32)
    t = np.abs(at)
    weight = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0))
    return (weight / np.sqrt((weight**2).sum(1, keepdims=True))).astype(np.float32)  # unit variance in, unit variance out


def hue_colour(h: np.ndarray, s: np.ndarray | float, v: np.ndarray | float) -> np.ndarray:
    """Hue, saturation and value in 0 ... 1, arrays of one shape `[...]`, to rgb `[..., 3]`."""
    h, s, v = (np.asarray(a, np.float32)[..., None] for a in np.broadcast_arrays(h, s, v))
    k = (np.array([5, 3, 1], np.float32) + 6 * h) % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)
