"""How a picture of the procedural world is put together: objects on grounds, long-range puzzles, a street.

A layout draws n pictures at once: `layout(settings, kinds, grounds, dice) -> Painter`, whose rgb, mask and context are then complete but for
light and noise. Layouts that bring their own classes name them in `LABELS`. Shapes: n pictures, H W image, A B bands of rows and columns.
"""
from __future__ import annotations

import numpy as np

from seglite.data import brushes
from seglite.data.brushes import TURN, Brush
from seglite.data.painter import Dice, Kind, Painter, make_plan

BAND = 8  # height (and width) of the bands that carry one answer, pixels
TICK = 5  # depth of the border marks, pixels
BLUE, ORANGE, GREEN, PINK = (np.array(c, np.float32) for c in ((0.20, 0.45, 0.92), (0.95, 0.58, 0.15), (0.25, 0.72, 0.38), (0.92, 0.42, 0.66)))


def draw_objects(s, kinds: dict[str, Kind], grounds: list[str], dice: Dice) -> Painter:
    """Layouts "ground" and "plain": two textures or one cloud, clutter, then the objects, largest first."""
    plan = make_plan(s, kinds, grounds, dice)
    p = Painter(s, dice)
    if s.layout == "ground":
        p.grounds(plan, grounds)
        if s.label_contexts:
            p.mask = p.context + np.uint8(1 + len(kinds))
    else:
        p.cloud()
    p.clutter(kinds)
    p.objects(plan, kinds)
    return p


def draw_axial(s, kinds: dict[str, Kind], grounds: list[str], dice: Dice) -> Painter:
    """Layout "axial": the class of a pixel is written at the left end of its row and at the top of its column, nowhere else.

    Bands of 8 rows wear a blue or an orange mark on the left border, bands of 8 columns a green or a pink one on the top border; the class
    is 1 + 2 * (orange?) + (pink?), the border itself is background. Everything inside is noise (p2at.md, section 9.2).
    """
    p = Painter(s, dice)
    p.cloud()
    h, w = s.size, s.width
    row = dice.pick(2, -(-h // BAND)).repeat(BAND, 1)[:, :h]  # [n, H]
    column = dice.pick(2, -(-w // BAND)).repeat(BAND, 1)[:, :w]  # [n, W]
    inside = (np.arange(h) % BAND > 0)[None, :, None], (np.arange(w) % BAND > 0)[None, :, None]  # a gap between the marks
    left = np.where(row[..., None] == 1, ORANGE, BLUE)  # [n, H, 3]
    top = np.where(column[..., None] == 1, PINK, GREEN)  # [n, W, 3]
    p.rgb[:, :TICK] = np.where(inside[1], top, 0.9)[:, None]
    p.rgb[:, TICK:, :TICK] = np.where(inside[0], left, 0.9)[:, TICK:, None]
    p.mask[:] = 1 + 2 * row[:, :, None] + column[:, None]
    p.mask[:, :TICK] = 0
    p.mask[:, :, :TICK] = 0
    return p


def draw_nearer(s, kinds: dict[str, Kind], grounds: list[str], dice: Dice) -> Painter:
    """Layout "nearer": in every band of 8 rows lie a blue and an orange brick; a pixel belongs to the nearer of the two.

    A row's average tells that there are two bricks but not which one is nearer: what squeezing a row to one vector loses.
    """
    p = Painter(s, dice)
    p.cloud()
    h, w = s.size, s.width
    bands = -(-h // BAND)
    blue = dice.uniform(3, w - 3, bands)  # [n, A]
    orange = 3 + (blue - 3 + dice.uniform(0.2, 0.8, bands) * (w - 6)) % (w - 6)  # [n, A], at least a fifth of the row away
    blue, orange = (np.floor(a).repeat(BAND, 1)[:, :h, None] for a in (blue, orange))  # [n, H, 1]
    to_blue, to_orange = np.abs(p.x - blue), np.abs(p.x - orange)  # [n, H, W]
    inside = (np.arange(h) % BAND > 0)[None, :, None]
    for distance, colour in ((to_blue, BLUE), (to_orange, ORANGE)):
        p.rgb = np.where(((distance < 2.5) & inside)[..., None], colour, p.rgb).astype(np.float32)
    p.mask[:] = 1 + (to_orange < to_blue)
    return p


# ---------------------------------------------------------------------------------------------------------------- a street

ROAD, PAVEMENT, BUILDING, TREE, CAR, POLE, PERSON = range(1, 8)


def _car(u, v, o):
    """Body, cabin and two wheels."""
    body = brushes.box(u, v - 0.12, o, 0.98, 0.3, 0.14)
    cabin = brushes.box(u, v + 0.28, o, 0.6, 0.28, 0.16)
    wheels = np.hypot(np.abs(u) - 0.55, v - 0.4) - 0.2
    return np.minimum(np.minimum(body, cabin), wheels)


def _car_paint(u, v, o):
    """Dark windows and tyres."""
    glass = (v < -0.1 * o.r) & (v > -0.42 * o.r) & (np.abs(u) < 0.46 * o.r) & (np.abs(u) > 0.05 * o.r)
    tyre = np.hypot(np.abs(u) - 0.55 * o.r, v - 0.4 * o.r) < 0.2 * o.r
    return np.where(glass | tyre, -2.6, 0)


def _person(u, v, o):
    """A head on a narrow body."""
    return np.minimum(np.hypot(u, v + 0.76) - 0.21, brushes.box(u, v - 0.2, o, 0.27, 0.78, 0.2))


def _person_paint(u, v, o):
    """Legs darker than the coat, a bright face."""
    return np.where(v > 0.25 * o.r, -1.3, np.where(v < -0.56 * o.r, 1.0, 0))


def _tree(u, v, o):
    """A wobbly crown on a trunk."""
    a = np.arctan2(v + 0.3, u)
    crown = np.hypot(u, v + 0.3) - 0.62 - 0.05 * np.sin(5 * a + o.phase) - 0.04 * np.sin(8 * a + 2 * o.phase)
    return np.minimum(crown, brushes.box(u, v - 0.6, o, 0.09, 0.4, 0.02))


def _leaves(u, v, o):
    """Light and dark leaves, a dark trunk."""
    leaves = np.sin(u * 1.7 + np.sin(v * 1.3 + o.phase) * 2) * np.sin(v * 1.9 + o.phase)
    return np.where(v > 0.36 * o.r, -1.5, 0.7 * leaves)


#            label: (look, colours to choose from)
STREET = {
    TREE: (Kind(_tree, _leaves), [(0.22, 0.46, 0.20), (0.30, 0.52, 0.22), (0.42, 0.50, 0.18)]),
    CAR: (Kind(_car, _car_paint), [(0.82, 0.22, 0.20), (0.22, 0.42, 0.78), (0.90, 0.90, 0.88), (0.92, 0.74, 0.22), (0.32, 0.34, 0.38)]),
    POLE: (Kind(brushes.pole), [(0.46, 0.47, 0.50), (0.30, 0.31, 0.33)]),
    PERSON: (Kind(_person, _person_paint), [(0.78, 0.34, 0.30), (0.30, 0.46, 0.66), (0.62, 0.55, 0.30), (0.46, 0.36, 0.56)]),
}


def draw_road(s, kinds: dict[str, Kind], grounds: list[str], dice: Dice) -> Painter:
    """Layout "road": a street in perspective with sky (background), two rows of houses, cars, trees, poles and people of every size.

    Everything on the ground is placed by its depth: an object whose foot stands f pixels below the horizon is drawn with a size that is
    proportional to f, and f is log-uniform, so that sizes are log-uniform too (p2at.md, section 9.4).
    """
    p = Painter(s, dice)
    h, w, x, y = s.size, s.width, p.x, p.y
    horizon, centre = dice.uniform(0.34, 0.46, 1, 1) * h, dice.uniform(0.4, 0.6, 1, 1) * w  # [n, 1, 1]
    side, below = np.abs(x - centre), y - horizon  # [n, 1, W], [n, H, 1]
    half_road, half_street = dice.uniform(0.7, 0.95, 1, 1), dice.uniform(1.25, 1.7, 1, 1)  # width per pixel below the horizon
    grain = dice.normal(h, w)

    def paint(where: np.ndarray, label: int, colour: np.ndarray) -> None:
        p.rgb = np.where(where[..., None], colour, p.rgb).astype(np.float32)
        p.mask = np.where(where, np.uint8(label), p.mask)

    # Sky: lighter towards the horizon, soft clouds.
    height = np.clip(y / horizon, 0, 1)[..., None]  # [n, H, 1, 1]
    cloud = np.clip(0.5 * p.hills(6) + 0.3 * p.hills(11), 0, 1)[..., None]  # [n, H, W, 1]
    sky = np.array([0.42, 0.62, 0.88], np.float32) + height * np.array([0.4, 0.26, 0.06], np.float32)
    p.rgb = (sky + cloud * (0.96 - sky)).astype(np.float32)

    # Houses: their walls run along the street, so that one is seen per step of depth 1 / side.
    depth = h / (side + 6)  # [n, 1, W]
    house = np.floor(2.2 * np.log(depth) + dice.uniform(0, 1, 1, 1)) + 20 * (x > centre)
    pick = np.sin(12.99 * house + dice.uniform(0, 6.2831, 1, 1))  # a number per house
    eaves = horizon - side * (0.62 + 0.34 * pick)  # [n, 1, W]
    wall = (y > eaves) & (side > half_street * below)
    lum = 0.62 + 0.14 * np.sin(5 * pick)
    tone = np.stack([lum + 0.1 * np.sin(9 * pick), lum, lum - 0.1 * np.cos(7 * pick)], -1)  # [n, 1, W, 3]
    up = -below / (side + 3)  # [n, H, W]: height above the horizon in units of the distance from the centre
    window = (np.sin(TURN * 4.4 * up + 0.6) > 0.25) & (np.sin(TURN * 1.6 * depth) > 0.1) & (y < horizon + 0.1 * side)
    tone = np.where(window[..., None], tone * np.array([0.5, 0.56, 0.66], np.float32), tone) + 0.02 * grain[..., None]
    paint(wall, BUILDING, tone)

    # Ground: pavement, then the road with a dashed line.
    floor = below > 0
    slabs = 0.66 - 0.05 * (np.sin(TURN * 0.9 * h / (below + 4)) > 0.8) + 0.03 * grain
    paint(floor & (side <= half_street * below), PAVEMENT, slabs[..., None] * np.array([1.0, 0.97, 0.92], np.float32))
    dash = (side < 0.035 * below) & (np.sin(TURN * 0.8 * h / (below + 4)) > 0)
    asphalt = np.where(dash, 0.9, 0.37 + 0.03 * grain + 0.06 * below / h)
    paint(floor & (side <= half_road * below), ROAD, asphalt[..., None] * np.array([0.97, 0.98, 1.03], np.float32))

    # What stands on it, from far to near.
    slots = s.objects_max
    labels = np.array(list(STREET))[dice.pick(len(STREET), slots)]  # [n, S]
    filled = np.arange(slots) < (s.objects_min + dice.pick(slots - s.objects_min + 1))[:, None]
    reach = (h - horizon)[..., 0]  # [n, 1]
    foot = np.sort(reach * np.exp(dice.uniform(np.log(0.14), np.log(0.92), slots)), 1)  # [n, S] pixels below the horizon
    across = np.where(labels == CAR, 0.5 * half_road[..., 0], 0.5 * (half_road + half_street)[..., 0]) + dice.uniform(-0.08, 0.08, slots)
    stands = centre[..., 0] + foot * across * np.where(dice.pick(2, slots) == 1, 1, -1)
    #                                   tree, car, pole, person: half of the longest side per pixel below the horizon
    half = foot * np.array([0.95, 0.42, 1.0, 0.36], np.float32)[labels - TREE] * dice.uniform(0.85, 1.15, slots)
    colours, phase = dice.pick(60, slots), dice.uniform(0, 6.2831, slots)
    for j in range(slots):
        for label, (kind, choice) in STREET.items():
            use = np.flatnonzero((labels[:, j] == label) & filled[:, j])
            if len(use):
                r = half[use, j, None, None]
                rise = r * (0.6 if label == CAR else 1.0)  # from the foot to the centre
                x, y = stands[use, j, None, None], horizon[use] + foot[use, j, None, None] - rise
                angle, thin = np.zeros_like(r), np.maximum(0.03 * r, 0.5 * s.thin)
                brush = Brush(*(np.asarray(a, np.float32) for a in (x, y, r, angle, phase[use, j, None, None], thin)))
                colour = np.array(choice, np.float32)[colours[use, j] % len(choice)]
                p.stamp(use, kind, brush, colour, label)
    return p


LAYOUTS = {"ground": draw_objects, "plain": draw_objects, "axial": draw_axial, "nearer": draw_nearer, "road": draw_road}

# The classes of layouts that have their own; label 0 is background (for the road: the sky).
LABELS = {
    "axial": ("blue_green", "blue_pink", "orange_green", "orange_pink"),
    "nearer": ("blue", "orange"),
    "road": ("road", "pavement", "building", "tree", "car", "pole", "person"),
}
