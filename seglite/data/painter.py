"""From random numbers to pictures: the dice, the plan (scene graph) and the painter of `seglite/data/scenes.py`.

`layouts.py` uses them to put whole pictures together.

Everything works on n pictures at once. Shapes: n pictures, S slots (most objects in a picture), H W image.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Callable, NamedTuple

import numpy as np

from seglite.data import brushes
from seglite.data.brushes import Brush, Fields

CANDIDATES = 8    # places tried per object
NUMBERS = 640     # uniform numbers set aside for the plan of one picture
SPLITS = ("train", "val")


class Kind(NamedTuple):
    """How the objects of one class look."""

    shape: Callable
    """Outline, from `brushes`."""
    pattern: Callable | None = None
    """Surface, from `brushes`; None: plain."""
    colour: tuple[float, float, float] | None = None
    """rgb 0 ... 1; None: any light colour, so that colour tells nothing."""
    home: str | None = None
    """The ground this class lives on."""
    head: tuple[float, float, float] | None = None
    """Colour of a small head at one end of the body."""
    rim: float = 0.0
    """Width in pixels if only the rim is painted and the inside looks like the ground; 0: filled."""


def names(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Dice:
    """Random numbers of n pictures: picture j draws from its own stream only, all of them with one call.

    Every call takes the same count of numbers from every picture, whether they are used or not, so that no choice shifts another.
    """

    def __init__(self, seed: int, split: str, indices: np.ndarray):
        keys = [(seed, (SPLITS.index(split) << 48) + int(i)) for i in indices]
        self.streams = [np.random.Generator(np.random.Philox(key=np.array(key, np.uint64))) for key in keys]
        self.table = np.stack([s.random(NUMBERS, np.float32) for s in self.streams])  # [n, NUMBERS]
        self.next = 0

    def uniform(self, low=0.0, high=1.0, *shape: int) -> np.ndarray:
        """Uniform float32 numbers `[n, *shape]`."""
        count = int(np.prod(shape))
        if self.next + count > NUMBERS:
            raise RuntimeError(f"a picture's plan needs more than NUMBERS={NUMBERS} random numbers; raise the constant")
        part = self.table[:, self.next:self.next + count].reshape(len(self.table), *shape)
        self.next += count
        return np.float32(low) + np.float32(high - low) * part

    def pick(self, options: int, *shape: int) -> np.ndarray:
        """Uniform integers 0 ... options - 1, `[n, *shape]`."""
        return np.minimum((self.uniform(0, options, *shape)).astype(np.int64), options - 1)

    def normal(self, *shape: int) -> np.ndarray:
        """Normal float32 numbers `[n, *shape]`, from a part of the streams that uniform never touches."""
        return np.stack([s.standard_normal(shape, np.float32) for s in self.streams])


@dataclass
class Plan:
    """The scene graph of n pictures: S slots, drawn in order. A slot whose kind is -1 is empty."""

    kind: np.ndarray     # int [n, S]
    x: np.ndarray        # float [n, S], pixels
    y: np.ndarray        # float [n, S]
    r: np.ndarray        # float [n, S]
    angle: np.ndarray    # float [n, S], radians
    phase: np.ndarray    # float [n, S], 0 ... 2 pi
    colour: np.ndarray   # float [n, S, 3]
    ground: np.ndarray   # int [n, 2]: above and below the border
    border: np.ndarray   # float [n]: height of the border between the grounds, pixels


def make_plan(s: ScenesSettings, kinds: dict[str, Kind], grounds: list[str], dice: Dice) -> Plan:
    """Roll the scene graph of n pictures (`s` is resolved; label c + 1 is the c-th of `kinds`; `grounds` are the ordinary ones, then the homes)."""
    n, slots, short = len(dice.streams), s.objects_max + (s.two_share > 0), min(s.size, s.width)
    looks = list(kinds.values())
    home_of = np.array([grounds.index(k.home) if k.home else -1 for k in looks])
    homes, free = np.unique(home_of[home_of >= 0]), np.flatnonzero(home_of < 0)

    # Which objects: at most the first one is bound to a ground, since a picture has one ground to give.
    count = s.objects_min + dice.pick(s.objects_max - s.objects_min + 1) + (dice.uniform() < s.two_share)
    first = dice.pick(len(kinds))
    others = free if len(free) else np.arange(len(kinds))
    kind = np.concatenate([first[:, None], others[dice.pick(len(others), slots)]], 1)[:, :slots]  # [n, S]
    filled = np.arange(slots) < count[:, None]

    # Which grounds.
    ordinary = len(names(s.contexts))
    above = dice.pick(ordinary)
    below = (above + 1 + dice.pick(max(ordinary - 1, 1))) % ordinary
    at_home = (home_of[first] >= 0) & (dice.uniform() < s.home) & (count > 0)
    visits = (home_of[first] < 0) & (dice.uniform() < s.q) & (len(homes) > 0)
    if len(homes):
        below = np.where(at_home, home_of[first], np.where(visits, homes[dice.pick(len(homes))], below))

    # Where: the largest object first, each at the freest of a few places unless it may occlude.
    r = short * np.exp(dice.uniform(np.log(s.scale_min), np.log(s.scale_max), slots))  # [n, S]
    r = -np.sort(-np.where(filled, r, 0), 1)
    margin_x, margin_y = np.minimum(0.9 * r, 0.42 * s.width)[..., None], np.minimum(0.9 * r, 0.42 * s.size)[..., None]
    xs = margin_x + (s.width - 2 * margin_x) * dice.uniform(0, 1, slots, CANDIDATES)  # [n, S, candidates]
    ys = margin_y + (s.size - 2 * margin_y) * dice.uniform(0, 1, slots, CANDIDATES)
    careless, rows = dice.uniform(0, 1, slots) < s.occlusion, np.arange(n)
    x, y = xs[..., 0].copy(), ys[..., 0].copy()
    for j in range(1, slots):
        apart = np.hypot(xs[:, j, :, None] - x[:, None, :j], ys[:, j, :, None] - y[:, None, :j]) - r[:, None, :j] - r[:, j, None, None]
        apart = np.where(filled[:, None, :j], apart, np.inf).min(2)  # [n, candidates]
        best = np.where(careless[:, j], 0, apart.argmax(1))
        x[:, j], y[:, j] = xs[rows, j, best], ys[rows, j, best]
        if s.occlusion == 0:
            filled[:, j] &= apart[rows, best] > 0
    border = np.where(at_home, np.minimum(y[:, 0], 0.7 * s.size) + dice.uniform(0, 0.1) * s.size, s.size * dice.uniform(0.25, 0.62))

    colour = np.array([k.colour or (np.nan,) * 3 for k in looks], np.float32)[kind]  # [n, S, 3]
    if any(k.head for k in looks):  # the body is honest with probability `tell`, else it wears any class's colour
        honest = dice.uniform(0, 1, slots) < s.tell
        worn = np.where(honest, kind, dice.pick(len(kinds), slots))
        colour = np.array([k.colour for k in looks], np.float32)[worn]
    spread = s.colour_spread * dice.uniform(-1, 1, slots, 3)
    paint = brushes.hue_colour(dice.uniform(0, 1, slots), dice.uniform(0.3, 0.65, slots), dice.uniform(0.75, 0.97, slots))
    colour = np.where(np.isnan(colour), paint, colour + spread).astype(np.float32)
    return Plan(kind=np.where(filled, kind, -1), x=x, y=y, r=r, angle=dice.uniform(-s.tilt, s.tilt, slots), phase=dice.uniform(0, 6.2831, slots),
                colour=colour, ground=np.stack([above, below], 1), border=border.astype(np.float32))


class Painter:
    """A canvas of n pictures and the three things one does to it: lay a ground, stamp an object, light the scene."""

    def __init__(self, s: ScenesSettings, dice: Dice):
        self.s, self.dice, self.n = s, dice, len(dice.streams)
        self.x = np.arange(s.width, dtype=np.float32)[None, None]
        self.y = np.arange(s.size, dtype=np.float32)[None, :, None]
        self.rgb = np.zeros((self.n, s.size, s.width, 3), np.float32)
        self.mask = np.zeros((self.n, s.size, s.width), np.uint8)
        self.context = np.zeros((self.n, s.size, s.width), np.uint8)
        towards = np.float32(-2.3) + dice.uniform(-0.6, 0.6)  # the light comes from above left, more or less
        self.light_x, self.light_y = np.cos(towards)[:, None, None], np.sin(towards)[:, None, None]

    def hills(self, k: int) -> np.ndarray:
        """Smooth noise `[n, H, W]` of unit variance from k by k random numbers."""
        return brushes.smooth_noise(self.dice.normal(k, k), self.s.size, self.s.width)

    def grounds(self, plan: Plan, grounds: list[str]) -> None:
        """Two textures with a wavy border between them."""
        d, s = self.dice, self.s
        fields = Fields(self.x, self.y, d.normal(s.size, s.width), 0.8 * self.hills(6) + 0.6 * self.hills(12),
                        d.uniform(0, 6.2831, 1, 1), d.uniform(-1, 1, 1, 1))
        jitter = s.ground_spread * d.normal(1, 1, 3)
        wave = 2.2 * np.sin(self.x / 9 + d.uniform(0, 6.2831, 1, 1))
        below = self.y > plan.border[:, None, None] + wave  # [n, H, W]
        for g, name in enumerate(grounds):
            use = np.flatnonzero((plan.ground == g).any(1))
            if not len(use):
                continue
            part = Fields(fields.x, fields.y, *(getattr(fields, f)[use] for f in ("grain", "cloud", "phase", "slant")))
            here = np.where(below[use], plan.ground[use, 1, None, None], plan.ground[use, 0, None, None]) == g
            self.rgb[use] = np.where(here[..., None], brushes.ground(name, part, jitter[use]), self.rgb[use])
            self.context[use] = np.where(here, g, self.context[use])

    def cloud(self) -> None:
        """One soft cloud of a random colour."""
        d, s = self.dice, self.s
        base = np.clip(0.5 + s.ground_spread * d.normal(1, 1, 3), 0.2, 0.8)
        soft = np.stack([self.hills(7) for _ in range(3)], -1)  # [n, H, W, 3]
        self.rgb[:] = base + s.ground_cloud * (0.45 * soft + 0.9 * self.hills(5)[..., None])

    def stamp(self, use: np.ndarray, kind: Kind, o: Brush, colour: np.ndarray, label: int) -> None:
        """Paint one object in each of the pictures `use [m]`: shadow, surface, light on the edges, label."""
        s, lx, ly = self.s, self.light_x[use], self.light_y[use]
        u, v = brushes.local(o, self.x, self.y)  # [m, H, W]
        d = kind.shape(u / o.r, v / o.r, o) * o.r  # [m, H, W]
        alpha = np.clip(0.5 - d / s.edge, 0, 1)
        if kind.rim:
            alpha *= np.clip(d + kind.rim + 0.5, 0, 1)
        rgb, surface = self.rgb[use], 1.0
        if kind.pattern:
            surface = 1 + s.texture * kind.pattern(u, v, o)
        if s.relief or s.shadow:
            gx, gy = brushes.slope(d)
            facing = gx * lx + gy * ly  # 1: the surface falls off towards the light
            surface = surface + s.relief * facing * np.clip(1 + d / (0.5 * o.r), 0, 1) ** 2
            dark = s.shadow * np.exp(-np.maximum(d, 0) / np.minimum(0.16 * o.r + 1, 4)) * np.clip(0.5 - 0.6 * facing, 0, 1)
            rgb *= (1 - dark)[..., None]
        rgb += alpha[..., None] * (colour[:, None, None] * np.asarray(surface, np.float32)[..., None] - rgb)
        self.rgb[use] = rgb
        if label >= 0:
            self.mask[use] = np.where(d < 0, label, self.mask[use])

    def objects(self, plan: Plan, kinds: dict[str, Kind]) -> None:
        """Stamp every slot, back to front."""
        for j in range(plan.kind.shape[1]):
            for c in np.unique(plan.kind[:, j]):
                if c < 0:
                    continue
                kind, use = list(kinds.values())[c], np.flatnonzero(plan.kind[:, j] == c)
                o = self.brush(plan, use, j)
                self.stamp(use, kind, o, plan.colour[use, j], c + 1)
                if kind.head:
                    r = 0.26 * o.r
                    at = 0.86 * o.r
                    head = dataclasses.replace(o, x=o.x + at * np.cos(o.angle), y=o.y + at * np.sin(o.angle), r=r)
                    bright = np.broadcast_to(np.array(kind.head, np.float32), (len(use), 3))
                    self.stamp(use, Kind(brushes.disc), head, bright, c + 1)

    def brush(self, plan: Plan, use: np.ndarray, j: int) -> Brush:
        """Slot j of the pictures `use`, ready to stamp."""
        part = {f: getattr(plan, f)[use, j, None, None].astype(np.float32) for f in ("x", "y", "r", "angle", "phase")}
        return Brush(**part, thin=np.full_like(part["x"], self.s.thin))

    def clutter(self, kinds: dict[str, Kind]) -> None:
        """Unlabelled blobs in a class's colour with a pattern that no class has."""
        d, s, short = self.dice, self.s, min(self.s.size, self.s.width)
        colours = np.array([k.colour or (0.7, 0.7, 0.7) for k in kinds.values()], np.float32)
        for _ in range(s.clutter):
            use = np.flatnonzero(d.uniform() < 0.75)
            x, y = d.uniform(0, s.width, 1, 1), d.uniform(0, s.size, 1, 1)
            r, angle, phase = d.uniform(0.07 * short, 0.16 * short, 1, 1), d.uniform(0, 3.1416, 1, 1), d.uniform(0, 6.2831, 1, 1)
            colour = colours[d.pick(len(kinds))] + s.colour_spread * d.uniform(-1, 1, 3)
            o = Brush(*(a[use] for a in (x, y, r, angle, phase)), thin=np.ones((len(use), 1, 1), np.float32))
            if len(use):
                self.stamp(use, Kind(brushes.pebble, brushes.checks), o, colour[use].astype(np.float32), -1)

    def finish(self) -> np.ndarray:
        """Light, tint, noise; returns uint8 `[n, H, W, 3]`."""
        d, s = self.dice, self.s
        cx, cy = self.x / s.width - 0.5, self.y / s.size - 0.5
        lamp = 1 + s.light * (0.5 * (cx * self.light_x + cy * self.light_y) + 0.25 * d.uniform(-1, 1, 1, 1) - 0.4 * (cx**2 + cy**2))
        tint = s.light * 0.08 * d.uniform(-1, 1, 1, 1, 1) * np.array([1, 0, -1], np.float32)
        self.rgb *= lamp[..., None] * (1 + tint)
        if s.noise:
            self.rgb += s.noise * d.normal(s.size, s.width, 3)
        return (np.clip(self.rgb, 0, 1) * 255 + 0.5).astype(np.uint8)  # [n, H, W, 3]
