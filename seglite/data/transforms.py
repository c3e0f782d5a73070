"""Joint augmentation: the image and every label map of a sample move together, label maps by nearest neighbour.

    sample {image uint8 [H, W, 3], mask uint8 [H, W], ...} --> long side --> random scale --> random crop --> flip --> colours --> sample

A transform is a pure function of (sample, rng). Each call takes the same count of numbers from `rng` for the same settings, and the numbers
that choose the geometry come first, so that turning a colour knob does not move any crop.

Padding: images with the data set's mean colour (zero after normalisation), label maps with 255 (ignored by every loss).
A sample may carry "place" float32 [4] = (y, dy, x, dx), which follows every move: pixel (i, j) of the sample shows the point
(y + dy (i + 1/2), x + dx (j + 1/2)) of the source image, in the units that it started with (views.py: shares of the image's sides).
Shapes: H W image before, h w after.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

IGNORE = 255
MAPS = ("mask", "label", "context")  # the keys of a sample that are label maps
CROP_TRIES = 10


@dataclass
class AugmentSettings:
    """Joint augmentation of images and label maps. The defaults do nothing but flip."""

    long_side: int = 0
    """First resize so that the longer side has this many pixels; 0: leave the size."""
    scale_min: float = 1.0
    """Smallest random scale; 0.5 in most recipes for photographs."""
    scale_max: float = 1.0
    """Largest random scale; 2.0 in most recipes for photographs."""
    crop: int = field(default=0, metadata={"least": 0})
    """Side of the random square crop, pixels; smaller images are padded. 0: no crop (all images of a batch must then have one size)."""
    max_share: float = 1.0
    """Try up to ten crops until no class fills more than this share of the labelled pixels; 0.75 is common for street scenes, 1: take the first."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    brightness: float = 0.0
    """Brightness factor is uniform in 1 -/+ this."""
    contrast: float = 0.0
    """Contrast factor (about the image's mean grey) is uniform in 1 -/+ this."""
    saturation: float = 0.0
    """Saturation factor (about the pixel's grey) is uniform in 1 -/+ this."""
    hue: float = 0.0
    """Hue turns by a uniform angle in -/+ this share of a full turn; at most 0.5."""


def resize(sample: dict, height: int, width: int) -> dict:
    """Resize image (bilinear, anti-aliased when shrinking) and label maps (nearest) to `height` by `width`."""
    out = dict(sample)
    for key, filter in (("image", Image.BILINEAR), *((m, Image.NEAREST) for m in MAPS)):
        if key in sample and sample[key].shape[:2] != (height, width):
            out[key] = np.asarray(Image.fromarray(sample[key]).resize((width, height), filter))
    if "place" in sample:
        tall, wide = _size(sample)
        out["place"] = sample["place"] * np.array([1, tall / height, 1, wide / width], np.float32)
    return out


def resize_long(sample: dict, side: int) -> dict:
    """Resize so that the longer side has `side` pixels; the aspect ratio is kept up to rounding."""
    height, width = _size(sample)
    factor = side / max(height, width)
    return resize(sample, max(1, round(height * factor)), max(1, round(width * factor)))


def crop(sample: dict, top: int, left: int, height: int, width: int, fill: np.ndarray) -> dict:
    """Cut the window with corner (`top`, `left`), which may reach outside: images are padded with `fill [3]`, label maps with 255."""
    out = dict(sample)
    tall, wide = _size(sample)
    y0, y1, x0, x1 = max(top, 0), min(top + height, tall), max(left, 0), min(left + width, wide)
    for key in ("image", *MAPS):
        if key in sample:
            source = sample[key]
            window = np.empty((height, width) + source.shape[2:], source.dtype)
            window[:] = fill if key == "image" else IGNORE
            window[y0 - top:y1 - top, x0 - left:x1 - left] = source[y0:y1, x0:x1]
            out[key] = window
    if "place" in sample:
        y, dy, x, dx = sample["place"]
        out["place"] = np.array([y + dy * top, dy, x + dx * left, dx], np.float32)
    return out


def resized_crop(sample: dict, height: int, width: int, top: int, left: int, side: int, fill: np.ndarray) -> dict:
    """crop(resize(sample, height, width), top, left, side, side, fill), computing only the pixels inside the window: less work the larger the scale.

    Equal to the two steps up to rounding: a colour may differ by one of 255, a label where a pixel's centre falls on the border of two.
    """
    tall, wide = _size(sample)
    if (tall, wide) == (height, width):
        return crop(sample, top, left, side, side, fill)
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    box = (x0 * wide / width, y0 * tall / height, x1 * wide / width, y1 * tall / height)
    out = dict(sample)
    for key, filter in (("image", Image.BILINEAR), *((m, Image.NEAREST) for m in MAPS)):
        if key in sample:
            out[key] = np.asarray(Image.fromarray(sample[key]).resize((x1 - x0, y1 - y0), filter, box))
    if "place" in sample:
        y, dy, x, dx = sample["place"] * np.array([1, tall / height, 1, wide / width], np.float32)
        out["place"] = np.array([y + dy * y0, dy, x + dx * x0, dx], np.float32)
    return crop(out, top - y0, left - x0, side, side, fill)


def flip(sample: dict) -> dict:
    """Mirror left and right."""
    out = {k: np.ascontiguousarray(v[:, ::-1]) if k == "image" or k in MAPS else v for k, v in sample.items()}
    if "place" in sample:
        y, dy, x, dx = sample["place"]
        out["place"] = np.array([y, dy, x + dx * _size(sample)[1], -dx], np.float32)
    return out


def jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Change the colours of an image, uint8 `[H, W, 3]` in and out.

    The first three are factors (1: no change), `hue` is in turns. All four are linear in the pixel, so they are one 3 x 3 matrix and one
    offset, and the image is rounded and clipped once. Hue turns the chroma plane of YIQ (our choice: same effect as HSV, no branches).
    """
    grey = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
    to_yiq = np.array([grey, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    c, s = np.cos(2 * np.pi * hue) * saturation, np.sin(2 * np.pi * hue) * saturation
    colour = np.linalg.inv(to_yiq) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ to_yiq
    matrix = (brightness * contrast * colour).astype(np.float32)  # [3, 3]
    middle = brightness * float(image.reshape(-1, 3).mean(0) @ grey)
    changed = image.astype(np.float32) @ matrix.T  # [H, W, 3]
    changed += np.float32((1 - contrast) * middle + 0.5)
    return np.clip(changed, 0, 255).astype(np.uint8)


def dominant_share(labels: np.ndarray) -> float:
    """Largest share that one class has among the labelled pixels of `[H, W]`; 1 if there are none."""
    counts = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def _size(sample: dict) -> tuple[int, int]:
    return sample["image"].shape[:2] if "image" in sample else next(sample[m].shape for m in MAPS if m in sample)


class Transform:
    """The augmentation of `settings` as a callable `(sample, rng) -> sample`; see `make_transform`."""

    def __init__(self, settings: AugmentSettings, mean: tuple[float, float, float]):
        self.settings, self.fill = settings, np.round(np.asarray(mean) * 255).astype(np.uint8)

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        s = self.settings
        scale_at, flip_at = rng.random(2)
        places = rng.random((CROP_TRIES, 2))
        colours = rng.uniform(-1, 1, 4)
        shapes = {key: sample[key].shape[:2] for key in ("image", *MAPS) if key in sample}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{key} {shape[1]} x {shape[0]}" for key, shape in shapes.items())
            raise ValueError(f"the parts of {sample.get('name', 'a sample')} differ in size: {listed}; an image and its labels must have one size")
        if s.long_side:
            sample = resize_long(sample, s.long_side)
        factor = s.scale_min + (s.scale_max - s.scale_min) * scale_at
        height, width = (max(1, round(n * factor)) for n in _size(sample))
        sample = self._crop(sample, height, width, places) if s.crop else resize(sample, height, width)
        if flip_at < s.flip:
            sample = flip(sample)
        if "image" in sample and (s.brightness or s.contrast or s.saturation or s.hue):
            b, c, sat, h = np.array([s.brightness, s.contrast, s.saturation, s.hue]) * colours
            sample = dict(sample, image=jitter(sample["image"], 1 + b, 1 + c, 1 + sat, h))
        return sample

    def _crop(self, sample: dict, height: int, width: int, places: np.ndarray) -> dict:
        """Of the sample scaled to height x width, the first of up to ten random windows that no class dominates, or the last one."""
        side = self.settings.crop
        labels = next((m for m in MAPS if m in sample), None) if self.settings.max_share < 1 else None
        for at_y, at_x in places:
            # An image smaller than the window lies at a random place in it: the corner is then negative.
            window = height, width, _between(side - height, at_y), _between(side - width, at_x), side, self.fill
            if labels is None or dominant_share(resized_crop({labels: sample[labels]}, *window)[labels]) <= self.settings.max_share:
                break
        return resized_crop(sample, *window)


def _between(excess: int, at: float) -> int:
    """A corner between 0 and -excess (either sign), at in [0, 1)."""
    return int(np.floor(at * (abs(excess) + 1))) * (-1 if excess > 0 else 1)


def make_transform(settings: AugmentSettings, mean: tuple[float, float, float]) -> Transform:
    """Build the augmentation. `mean`: the data set's mean colour in 0 ... 1, used for padding. Raises ValueError naming a bad key."""
    s = settings
    if not 0 < s.scale_min <= s.scale_max:
        raise ValueError(f"augment.scale_min={s.scale_min} and augment.scale_max={s.scale_max} must be positive and ordered")
    for key, high in {"flip": 1, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5}.items():
        if not 0 <= getattr(s, key) <= high:
            raise ValueError(f"augment.{key}={getattr(s, key)} must lie in 0 ... {high}")
    if not 0 < s.max_share <= 1:
        raise ValueError(f"augment.max_share={s.max_share} must lie above 0 and at most 1 (0.75 is common, 1 switches it off)")
    for key in ("crop", "long_side"):
        if getattr(s, key) < 0:
            raise ValueError(f"augment.{key}={getattr(s, key)} must be 0 (off) or a number of pixels")
    return Transform(settings, mean)
