"""The procedural world: small toy photographs with perfect labels, drawn from numbers alone. No files, no download.

A picture is a ground (two textures, or a plain cloud) with shaded toys on it. Every toy's class, place, size and colour come from a small
"scene graph" of random numbers, so masks, image tags and captions are exact and cost nothing. Each paper needs its own *phenomenon* in
the data: a class that never leaves its context (MARS), a loud small part on a quiet large one (BAS), objects of every size (ASPP), colours
hardly above the noise (dense CRF), answers that lie far away in the same row (axial attention), a growing list of classes (BARM),
captions (ZeroSeg, MixReorg), few labels (MGD, CW-BASS). `WORLDS` holds one preset per phenomenon; every knob can be turned on the command line:

    python -m seglite.train method=marsstyle scenes.world=mars scenes.q=0.16

    numbers of picture i --> plan (kinds, places, sizes, grounds) --> ground --> clutter --> toys, back to front --> light, noise --> uint8
    Philox(seed, split, i)   [n, S]                                   [n, H, W, 3]                                              cached

Picture i depends on (settings, split, i) only. Sixty-four pictures are drawn at a time with whole-array numpy and kept as uint8; a 64-px
picture takes about a millisecond the first time and some microseconds from then on; `python -c "from seglite.data import scenes; scenes.measure()"`
measures it here.

Shapes: n pictures drawn together, S slots (most objects a picture may hold), H W image, K classes with the background.
"""
from __future__ import annotations

import dataclasses
import difflib
import time
from dataclasses import dataclass, field

import numpy as np

from seglite.data import brushes
from seglite.data.layouts import LABELS, LAYOUTS
from seglite.data.painter import SPLITS, Dice, Kind, names

CHUNK = 64        # pictures drawn together; part of no random stream, so it may change without changing a picture


@dataclass
class ScenesSettings:
    """Knobs of the procedural world. None means "as the chosen world says" (`WORLDS`)."""

    world: str = "general"
    """Preset: general, mars, bas, rims, faint, axial, nearer, road, few, text, steps. A key given besides it wins over the preset."""
    seed: int | None = None
    """Seed of the pictures. None: the run's seed; a number: runs with several seeds share their data."""
    size: int | None = None
    """Picture height, pixels."""
    width: int | None = None
    """Picture width, pixels; in most worlds the same as size."""
    train_images: int | None = field(default=None, metadata={"least": 1})
    """Pictures in the split "train"."""
    val_images: int | None = field(default=None, metadata={"least": 1})
    """Pictures in the split "val"."""
    classes: str | None = None
    """Object classes in label order, comma-separated names of `KINDS`; label 0 is the background. BARM's class order is this order.
    The layouts axial, nearer and road bring their own classes."""
    contexts: str | None = None
    """Ordinary grounds that tell nothing about the class, comma-separated names of `brushes.GROUNDS`."""
    layout: str | None = None
    """ground: two textures with a wavy border; plain: one soft cloud of a random colour; axial, nearer: rows and columns carry the answer; road: a street."""
    objects_min: int | None = None
    """Fewest objects in a picture."""
    objects_max: int | None = None
    """Most objects in a picture (before two_share)."""
    two_share: float | None = None
    """Share of pictures that get one object more, 0 ... 1."""
    home: float | None = None
    """Share of a context-bound class's pictures that do show its context (train on rails), 0 ... 1."""
    q: float | None = None
    """Share of the *other* classes' pictures that show one of those contexts as unlabelled ground, 0 ... 1 (MARS, Observation 2, needs it large)."""
    scale_min: float | None = None
    """Smallest object radius, as a share of the picture's shorter side; radii are log-uniform."""
    scale_max: float | None = None
    """Largest object radius, as a share of the picture's shorter side."""
    tilt: float | None = None
    """Largest rotation to either side, radians."""
    occlusion: float | None = None
    """Share of objects placed without looking, in front of others; the rest take the freest of eight places. 0: an object that would touch is left out."""
    thin: float | None = None
    """Half the thickness of poles and wires, pixels."""
    edge: float | None = None
    """Width of the blend between an object and what is behind it, pixels."""
    texture: float | None = None
    """Strength of the objects' patterns, relative to their brightness."""
    colour_spread: float | None = None
    """Largest change of an object's colour per channel, 0 ... 1."""
    ground_spread: float | None = None
    """Standard deviation of the ground's colour between pictures, 0 ... 1."""
    ground_cloud: float | None = None
    """Strength of the soft clouds of layout=plain, 0 ... 1."""
    clutter: int | None = None
    """Most unlabelled blobs that wear a class's colour with a foreign pattern."""
    tell: float | None = None
    """Probability that the body of a headed object wears its class's colour (BAS: the weak cue); otherwise any class's."""
    relief: float | None = None
    """Strength of the light on rounded edges."""
    shadow: float | None = None
    """Strength of the shadow on the ground, 0 ... 1."""
    light: float | None = None
    """Strength of uneven lighting, exposure and tint."""
    noise: float | None = None
    """Standard deviation of the pixel noise, of a range 0 ... 1."""
    label_contexts: bool | None = None
    """Label the grounds as classes too (after the objects)."""


_b = brushes
KINDS = {
    # Two classes that look alike but for the direction of faint stripes, each bound to a ground of its own. One paint for both: their
    # colour says "a vehicle" and not which, and features learned without labels can see that vehicles are one kind of thing.
    "train": Kind(_b.wagon, _b.windows, (0.62, 0.40, 0.82), home="rails"),
    "boat": Kind(_b.wagon, _b.planks, (0.62, 0.40, 0.82), home="water"),
    # Distinct toys.
    "bear": Kind(_b.bear, _b.fur, (0.58, 0.38, 0.20)),
    "tyre": Kind(_b.disc, _b.tread, (0.27, 0.26, 0.28)),
    "ball": Kind(_b.disc, _b.petals, (0.86, 0.30, 0.26)),
    "flower": Kind(_b.star, _b.petals, (0.93, 0.74, 0.22)),
    "ring": Kind(_b.ring, None, (0.56, 0.38, 0.74)),
    "pole": Kind(_b.pole, None, (0.88, 0.88, 0.84)),
    # Ten things with a hue each, for captions.
    "box": Kind(_b.box, _b.stripes, (0.85, 0.52, 0.20)),
    "cone": Kind(_b.cone, _b.stripes, (0.90, 0.80, 0.25)),
    "cross": Kind(_b.cross, None, (0.30, 0.70, 0.46)),
    "star": Kind(_b.star, None, (0.25, 0.72, 0.72)),
    "kite": Kind(_b.kite, _b.stripes, (0.30, 0.46, 0.86)),
    "bar": Kind(_b.bar, _b.stripes, (0.46, 0.32, 0.80)),
    "moon": Kind(_b.moon, None, (0.76, 0.36, 0.80)),
    "heart": Kind(_b.heart, None, (0.90, 0.36, 0.60)),
    # Birds: a quiet body and a small loud head.
    "cardinal": Kind(_b.oval, _b.hatch, (0.62, 0.50, 0.42), head=(0.93, 0.13, 0.12)),
    "parakeet": Kind(_b.oval, _b.hatch, (0.45, 0.60, 0.45), head=(0.12, 0.82, 0.18)),
    "jay": Kind(_b.oval, _b.hatch, (0.42, 0.48, 0.64), head=(0.16, 0.28, 0.98)),
    "canary": Kind(_b.oval, _b.hatch, (0.60, 0.60, 0.42), head=(0.95, 0.88, 0.08)),
    "sunbird": Kind(_b.oval, _b.hatch, (0.60, 0.45, 0.58), head=(0.88, 0.16, 0.88)),
    "kingfisher": Kind(_b.oval, _b.hatch, (0.42, 0.60, 0.60), head=(0.08, 0.88, 0.90)),
    # Only the rim has a colour; the inside is ground.
    "red_hoop": Kind(_b.disc, None, (0.90, 0.28, 0.24), rim=2.0),
    "green_hoop": Kind(_b.disc, None, (0.22, 0.68, 0.34), rim=2.0),
    "blue_hoop": Kind(_b.disc, None, (0.24, 0.42, 0.90), rim=2.0),
    # Colours little above the noise.
    "rose": Kind(_b.pebble, None, (0.70, 0.45, 0.45)),
    "mint": Kind(_b.pebble, None, (0.45, 0.70, 0.45)),
    "lilac": Kind(_b.pebble, None, (0.45, 0.45, 0.70)),
    "wire": Kind(_b.pole, None, (0.70, 0.70, 0.40)),
    # Texture alone is the class.
    "rows": Kind(_b.any_shape, _b.slope_pattern(0, 1, 6.0)),
    "columns": Kind(_b.any_shape, _b.slope_pattern(1, 0, 6.0)),
    "weave": Kind(_b.any_shape, _b.weave),
    "rising": Kind(_b.any_shape, _b.slope_pattern(1, 1, 8.4)),
    "falling": Kind(_b.any_shape, _b.slope_pattern(1, -1, 8.4)),
    # Every colour is shared by a plain and a striped class.
    "red_disc": Kind(_b.disc, None, (0.80, 0.30, 0.30)),
    "green_box": Kind(_b.box, None, (0.30, 0.70, 0.35)),
    "blue_cone": Kind(_b.cone, None, (0.30, 0.40, 0.85)),
    "gold_ring": Kind(_b.ring, None, (0.80, 0.75, 0.30)),
    "red_cross": Kind(_b.cross, _b.stripes, (0.80, 0.30, 0.30)),
    "green_bar": Kind(_b.bar, _b.stripes, (0.30, 0.70, 0.35)),
    "blue_star": Kind(_b.star, _b.stripes, (0.30, 0.40, 0.85)),
    "gold_moon": Kind(_b.moon, _b.stripes, (0.80, 0.75, 0.30)),
}

# "general" names every knob; the others say only what they change.
WORLDS: dict[str, dict] = {
    "general": dict(
        size=64, train_images=1200, val_images=300, classes="train,boat,bear,tyre,ball,flower,ring,pole",
        contexts="grass,sand,brick,wood,snow", layout="ground", objects_min=1, objects_max=3, two_share=0.2, home=0.8, q=0.3,
        scale_min=0.1, scale_max=0.3, tilt=0.4, occlusion=0.3, thin=1.2, edge=1.0, texture=0.3, colour_spread=0.1, ground_spread=0.03,
        ground_cloud=0.1, clutter=1, tell=0.9, relief=0.3, shadow=0.5, light=0.5, noise=0.025, label_contexts=False),
    # MARS (mars.md, section 11): "train" and "boat" differ by faint stripes only, rails and water are unmistakable.
    "mars": dict(
        classes="train,boat,flower,heart", contexts="grass,sand,brick", objects_max=1, two_share=0.2, home=1.0, q=0.4, scale_min=0.2,
        scale_max=0.28, tilt=0.3, occlusion=0.5, texture=0.25, colour_spread=0.05, ground_spread=0.015, clutter=0, relief=0.2, light=0.15),
    # BAS (bas.md, section 10): a small perfect cue (the head) and a large weak one (the body's dull colour).
    "bas": dict(
        classes="cardinal,parakeet,jay,canary,sunbird,kingfisher", layout="plain", train_images=1500, objects_max=1, two_share=0.0,
        scale_min=0.24, scale_max=0.32, tilt=3.1416, texture=0.28, colour_spread=0.02, ground_spread=0.15, clutter=0, relief=0.12, shadow=0.35,
        light=0.2, noise=0.045),
    # DeepLab's ASPP (deeplab.md, section 8C): rimmed discs of every size; the inside can only be labelled from the rim.
    "rims": dict(
        classes="red_hoop,green_hoop,blue_hoop", contexts="grey", objects_min=3, objects_max=6, two_share=0.0, scale_min=0.0625,
        scale_max=0.4375, occlusion=0.0, colour_spread=0.05, ground_spread=0.0, clutter=0, relief=0.0, shadow=0.0, light=0.15, noise=0.06),
    # Dense CRF (densecrf.md, section 12.3): object and ground differ by little more than the noise of one pixel.
    "faint": dict(
        classes="rose,mint,lilac", contexts="grey", objects_min=2, objects_max=4, two_share=0.0, scale_min=0.1, scale_max=0.34, tilt=3.1416,
        occlusion=0.5, thin=0.8, colour_spread=0.03, ground_spread=0.0, clutter=0, relief=0.0, shadow=0.0, light=0.0, noise=0.08),
    # P2AT (p2at.md, section 9): answers far away in the same row and column; the nearer of two in the same row; a street.
    "axial": dict(layout="axial", ground_cloud=0.06, ground_spread=0.08, light=0.1, noise=0.12),
    "nearer": dict(layout="nearer", ground_cloud=0.06, ground_spread=0.08, light=0.1, noise=0.12),
    "road": dict(layout="road", size=96, width=128, objects_min=4, objects_max=8, thin=1.2, texture=0.25, relief=0.18, shadow=0.35, light=0.4),
    # MGD and CW-BASS (section 11 of each): texture alone is the class; use few of the labels. Set augment.flip=0: a mirror turns rising into falling.
    "few": dict(
        classes="rows,columns,weave,rising,falling", layout="plain", objects_min=2, objects_max=4, two_share=0.0, scale_min=0.13,
        scale_max=0.3, tilt=3.1416, occlusion=0.6, edge=3.0, texture=0.28, ground_spread=0.12, ground_cloud=0.1, clutter=0, relief=0.1,
        shadow=0.25, light=0.6, noise=0.07),
    # ZeroSeg and MixReorg (section 11 of each): ten things on four labelled grounds, with captions.
    "text": dict(
        classes="ball,box,cone,ring,cross,star,kite,bar,moon,heart", contexts="grass,sand,water,brick", train_images=3000, objects_max=3,
        two_share=0.0, scale_min=0.14, scale_max=0.25, occlusion=0.2, texture=0.2, clutter=0, label_contexts=True),
    # BARM (barm.md, section 11.2): eight classes, four colours, look-alike clutter, 3 to 5 objects drawn from all classes.
    "steps": dict(
        classes="red_disc,green_box,blue_cone,gold_ring,red_cross,green_bar,blue_star,gold_moon", layout="plain", train_images=800,
        objects_min=3, objects_max=5, two_share=0.0, scale_min=0.125, scale_max=0.235, tilt=3.1416, occlusion=0.6, texture=0.3,
        colour_spread=0.1, ground_spread=0.04, ground_cloud=0.12, clutter=2, relief=0.15, shadow=0.3, light=0.2, noise=0.045),
}

PALETTE = np.array([
    (34, 38, 46), (231, 111, 81), (69, 123, 207), (168, 118, 78), (120, 124, 134), (222, 73, 104), (243, 190, 70), (150, 106, 200),
    (236, 236, 226), (82, 172, 120), (64, 184, 188), (240, 150, 190), (196, 214, 92), (124, 86, 66), (96, 84, 160), (36, 128, 108),
    (250, 214, 160), (150, 200, 240), (190, 60, 60), (92, 146, 62), (222, 160, 240)], np.uint8)


def resolve(settings: ScenesSettings) -> ScenesSettings:
    """Fill every None from the chosen world and check the result. Raises ValueError with a sentence that names the key."""
    if settings.world not in WORLDS:
        raise ValueError(f"scenes.world={settings.world} is unknown; {_near(settings.world, WORLDS)}")
    given = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    preset = WORLDS[settings.world]
    full = ScenesSettings(**{**WORLDS["general"], **preset, **given})
    full.seed = full.seed or 0
    full.width = full.width or full.size
    for key in ("two_share", "home", "q", "occlusion", "tell", "shadow"):
        if not 0 <= getattr(full, key) <= 1:
            raise ValueError(f"scenes.{key}={getattr(full, key)} is a share and must lie in 0 ... 1")
    for key, low in {"size": 16, "width": 16, "train_images": 1, "val_images": 1, "objects_min": 0, "objects_max": 1, "clutter": 0, "seed": 0, "noise": 0,
                     "edge": 0.1, "thin": 0.1, "colour_spread": 0, "ground_spread": 0, "ground_cloud": 0}.items():
        if getattr(full, key) < low:
            raise ValueError(f"scenes.{key}={getattr(full, key)} is too small; it must be at least {low}")
    if full.clutter > 20:
        raise ValueError(f"scenes.clutter={full.clutter} is too large; a picture holds at most 20 unlabelled blobs")
    for low, high, top in (("scale_min", "scale_max", 1.0), ("objects_min", "objects_max", 8)):
        a, b = getattr(full, low), getattr(full, high)
        if not (a <= b <= top and (low == "objects_min" or a > 0)):
            raise ValueError(f"scenes.{low}={a} and scenes.{high}={b} must be ordered, positive and at most {top}")
    if full.layout not in LAYOUTS:
        raise ValueError(f"scenes.layout={full.layout} is unknown; {_near(full.layout, LAYOUTS)}")
    for key, table in (("classes", KINDS), ("contexts", brushes.GROUNDS)):
        listed = names(getattr(full, key))
        for name in listed:
            if name not in table:
                raise ValueError(f"scenes.{key} names {name!r}, which does not exist; {_near(name, table)}")
        if not listed or len(set(listed)) < len(listed):
            raise ValueError(f"scenes.{key}={getattr(full, key)!r} must name at least one and none twice")
    return full


def _near(name: str, table) -> str:
    close = difflib.get_close_matches(name, table, 3)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(table)}"


class Scenes:
    """The procedural data set; see `seglite.data` for the contract that every data set keeps."""

    provides = ("image", "mask", "tags", "text", "context")
    mean, std = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)

    def __init__(self, settings: ScenesSettings, split: str):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} does not exist in scenes; known are {', '.join(SPLITS)}")
        s = self.settings = resolve(settings)
        self.split = split
        own = LABELS.get(s.layout)
        self.kinds = {} if own else {name: KINDS[name] for name in names(s.classes)}
        ordinary = names(s.contexts)
        self.contexts = tuple(ordinary + sorted({k.home for k in self.kinds.values()} - {None} - set(ordinary)))
        self.classes = ("background", *(own or self.kinds), *(self.contexts if s.label_contexts else ()))
        if len(self.classes) > len(PALETTE):
            raise ValueError(f"scenes.classes asks for {len(self.classes)} labels with the background; the palette has {len(PALETTE)}")
        self.palette = PALETTE[:len(self.classes)]
        count = s.train_images if split == "train" else s.val_images
        self._image = np.empty((count, s.size, s.width, 3), np.uint8)
        self._mask = np.empty((count, s.size, s.width), np.uint8)
        self._context = np.empty((count, s.size, s.width), np.uint8)
        self._text: list[str] = [""] * count
        self._drawn = np.zeros(-(-count // CHUNK), bool)

    def __len__(self) -> int:
        return len(self._image)

    def name(self, index: int) -> str:
        """A name for reports and predicted files."""
        return f"{self.split}_{index:05d}"

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        """Picture `index` with what `wants` names.

        image uint8 `[H, W, 3]` · mask uint8 `[H, W]` · tags float32 `[K - 1]` (1: the class is in the mask) · text str ·
        context uint8 `[H, W]` (which of `self.contexts` the ground shows, also under objects; for diagnostics). The arrays are the caller's.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"scenes has no picture {index} in split {self.split}: it holds 0 ... {len(self) - 1}")
        if not self._drawn[index // CHUNK]:
            self._draw(index // CHUNK)
        sample = {"index": int(index), "name": self.name(index)}
        for want in wants:
            if want in ("image", "mask", "context"):
                sample[want] = getattr(self, "_" + want)[index].copy()
            elif want == "tags":
                sample["tags"] = (np.bincount(self._mask[index].ravel(), minlength=len(self.classes))[1:] > 0).astype(np.float32)  # [K-1]
            elif want == "text":
                sample["text"] = self._text[index]
            else:
                raise ValueError(f"scenes cannot give {want!r}; it gives {', '.join(self.provides)}")
        return sample

    def _draw(self, chunk: int) -> None:
        """Draw CHUNK pictures into the cache."""
        span = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self)))
        dice = Dice(self.settings.seed, self.split, span)
        painter = LAYOUTS[self.settings.layout](self.settings, self.kinds, list(self.contexts), dice)
        self._image[span], self._mask[span], self._context[span] = painter.finish(), painter.mask, painter.context
        for j, i in enumerate(span):
            self._text[i] = self._caption(self._mask[i], self._context[i], dice.streams[j])
        self._drawn[chunk] = True

    def _caption(self, mask: np.ndarray, context: np.ndarray, stream: np.random.Generator) -> str:
        """One sentence that names what can be seen, in random order: "a photo of a ball and a star on grass"."""
        seen, foreground = np.bincount(mask.ravel(), minlength=len(self.classes)), len(self.kinds) or len(self.classes) - 1
        things = [f"a {self.classes[c + 1]}".replace("_", " ") for c in stream.permutation(foreground) if seen[c + 1] > CAPTION_PIXELS]
        ground, with_ground = self.contexts[np.bincount(context.ravel()).argmax()], stream.random() < 0.7
        words = " and ".join(things)
        if self.settings.layout == "ground" and (with_ground or not things):
            words = f"{words} on {ground}" if things else ground
        return TEMPLATES[stream.integers(len(TEMPLATES))].format(words or "nothing")


CAPTION_PIXELS = 25  # a caption names what a person would notice
TEMPLATES = ("a photo of {}", "a picture of {}", "{}", "an image showing {}", "there is {} here")


def open(config, split: str) -> Scenes:
    """The data set for `config.scenes` and one of the splits "train" and "val"; scenes.seed defaults to the run's seed."""
    s = config.scenes
    return Scenes(dataclasses.replace(s, seed=config.seed if s.seed is None else s.seed), split)


def measure(count: int = 512) -> None:
    """Print how many pictures one core of this machine draws and reads per second (CPU time, so that other work does not count)."""
    for world in WORLDS:
        data = Scenes(ScenesSettings(world=world, train_images=count), "train")
        rates = []
        for _ in range(2):
            start = time.process_time()
            for i in range(count):
                data.read(i, ("image", "mask", "tags"))
            rates.append(count / (time.process_time() - start))
        print(f"{world:8s} {data.settings.size:3d} x {data.settings.width:3d}: {rates[0]:6.0f} pictures drawn per second of one core, "
              f"{rates[1]:8.0f} read from the cache")
