"""Views of an unlabelled image: what the teacher sees, what the student sees, and how two images are mixed.

    sample --> weak transform (transforms.py) --> image --> colours, grey, blur, cut-out --> strong, cut       `Views(weak, strong=...)`
                                                    |-----> box masks of CutMix --> mix                        `Views(weak, boxes=3)`

The strong view keeps the geometry of the weak one, so that what the teacher says about a pixel is a target for the student at the same pixel.
Everything is drawn from the sample's own generator: batch t stays a pure function of (seed, t), in any number of processes.

Strong view: Yang, Zhuo, Qi, Shi, Gao, "ST++", CVPR 2022, arXiv 2106.05095 (SDA). CutMix for segmentation: French, Laine, Aila, Mackiewicz, Finlayson,
"Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC 2020, arXiv 1906.01916; MGD and CPS take three boxes that toggle.

B batch, C channels, H W image.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from seglite.data.transforms import jitter


@dataclass
class StrongSettings:
    """The student's view of an unlabelled image; the defaults are ST++'s."""

    colour: float = 0.8
    """Probability of a change of colours."""
    brightness: float = 0.5
    """Brightness factor is uniform in 1 -/+ this."""
    contrast: float = 0.5
    """Contrast factor is uniform in 1 -/+ this."""
    saturation: float = 0.5
    """Saturation factor is uniform in 1 -/+ this."""
    hue: float = 0.25
    """Hue turns by a uniform angle in -/+ this share of a full turn."""
    grey: float = 0.2
    """Probability that all colour is taken away."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_min: float = 0.1
    """Smallest standard deviation of the blur, pixels."""
    blur_max: float = 2.0
    """Largest standard deviation of the blur, pixels."""
    cut: float = 0.5
    """Probability that a rectangle is replaced by noise; its pixels are no targets."""
    cut_min: float = 0.02
    """Smallest rectangle, as a share of the image."""
    cut_max: float = 0.4
    """Largest rectangle, as a share of the image."""
    noise: float = 0.0
    """Standard deviation of pixel noise added to the view, of a range 0 ... 1 (not in ST++; the miniature's)."""


def strong_view(image: np.ndarray, rng: np.random.Generator, settings: StrongSettings) -> tuple[np.ndarray, np.ndarray]:
    """(view uint8 [H, W, 3], cut bool [H, W]) of image uint8 [H, W, 3]; `cut` marks the pixels that were replaced. The input stays as it is."""
    s = settings
    chances, factors = rng.random(4), rng.uniform(-1, 1, 4)
    sigma, size, aspect, at_y, at_x = rng.random(5)
    view, cut = image, np.zeros(image.shape[:2], bool)
    if chances[0] < s.colour:
        b, c, sat, h = np.array([s.brightness, s.contrast, s.saturation, s.hue]) * factors
        view = jitter(view, 1 + b, 1 + c, 1 + sat, h)
    if chances[1] < s.grey:
        view = jitter(view, 1, 1, 0, 0)
    if chances[2] < s.blur:
        radius = s.blur_min + (s.blur_max - s.blur_min) * sigma
        view = np.asarray(Image.fromarray(view).filter(ImageFilter.GaussianBlur(float(radius))))
    if s.noise:
        view = np.clip(view + rng.normal(0, 255 * s.noise, view.shape) + 0.5, 0, 255).astype(np.uint8)
    if chances[3] < s.cut:
        height, width = cut.shape
        area = (s.cut_min + (s.cut_max - s.cut_min) * size) * height * width
        ratio = 0.3 + (1 / 0.3 - 0.3) * aspect  # ST++ draws until the rectangle fits; here a side that does not fit is shortened
        tall, wide = (max(1, min(round(side), most)) for side, most in ((np.sqrt(area * ratio), height), (np.sqrt(area / ratio), width)))
        y, x = int(at_y * (height - tall + 1)), int(at_x * (width - wide + 1))
        view, cut[y:y + tall, x:x + wide] = view.copy(), True
        view[y:y + tall, x:x + wide] = rng.integers(0, 256, (tall, wide, 3), np.uint8)
    return view, cut


def box_mask(rng: np.random.Generator, height: int, width: int, boxes: int = 3, low: float = 0.25, high: float = 0.5) -> np.ndarray:
    """CutMix's mask, bool [H, W]: True where the second image is pasted.

    Each box has an area drawn from U(low, high) of the image and a log-uniform aspect, its sides are then scaled by sqrt(1 / boxes), it lies
    inside the image, and where boxes overlap they toggle. boxes=1 is plain CutMix.
    """
    mask = np.zeros((height, width), bool)  # [H, W]
    for area, shape, at_y, at_x in zip(rng.uniform(low, high, boxes), *rng.random((3, boxes))):
        tall = np.exp(shape * np.log(area))  # between `area` and 1, in shares of the image's side
        sides = [round(length * share * np.sqrt(1 / boxes)) for length, share in ((height, tall), (width, area / tall))]
        y, x = round((height - sides[0]) * at_y), round((width - sides[1]) * at_x)
        mask[y:y + sides[0], x:x + sides[1]] ^= True
    return mask


def paste(first: torch.Tensor, second: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """CutMix: `second` where mix is True, else `first`. Both [B, H, W] or [B, C, H, W] (images, labels, probabilities), mix bool [B, H, W]."""
    if first.shape != second.shape or mix.shape != (len(first), *first.shape[-2:]) or mix.dtype != torch.bool:
        raise ValueError(f"CutMix wants two tensors of one shape and a bool mask [B, H, W]; got {list(first.shape)}, {list(second.shape)} and "
                         f"{mix.dtype} {list(mix.shape)}")
    return torch.where(mix if first.ndim == 3 else mix[:, None], second, first)


class Views:
    """A transform `(sample, rng) -> sample` for unlabelled streams: the weak transform, then what is asked for.

    strong: adds "strong" uint8 [H, W, 3] (normalised by collate like the image) and "cut" bool [H, W].
    boxes: adds "mix" bool [H, W], CutMix's mask with this many boxes.
    place: adds "place" float32 [4]: where the view lies in its source image, see `transforms`; `valid` reads from it which pixels are padding.
    """

    def __init__(self, weak: Callable, strong: StrongSettings | None = None, boxes: int = 0, place: bool = False):
        self.weak, self.strong, self.boxes, self.place = weak, strong, boxes, place

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        if self.place:
            height, width = sample["image"].shape[:2]
            sample = dict(sample, place=np.array([0, 1 / height, 0, 1 / width], np.float32))
        sample = dict(self.weak(sample, rng))
        later = np.random.Generator(np.random.Philox(rng.integers(2 ** 63)))  # a knob of the weak view moves nothing here
        if self.strong is not None:
            sample["strong"], sample["cut"] = strong_view(sample["image"], later, self.strong)
        if self.boxes:
            sample["mix"] = box_mask(later, *sample["image"].shape[:2], self.boxes)
        return sample


def coordinates(place: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixel centres of a view lie in its source image, in 0 ... 1 (outside: padding). place [B, 4] -> rows [B, H], columns [B, W]."""
    rows = place[:, :1] + place[:, 1:2] * (torch.arange(height, device=place.device) + 0.5)  # [B, H]
    columns = place[:, 2:3] + place[:, 3:] * (torch.arange(width, device=place.device) + 0.5)  # [B, W]
    return rows, columns


def valid(place: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Which pixels of a view show the image and not padding. place [B, 4] -> bool [B, H, W]."""
    rows, columns = coordinates(place, height, width)
    return ((rows > 0) & (rows < 1))[:, :, None] & ((columns > 0) & (columns < 1))[:, None, :]  # [B, H, W]
