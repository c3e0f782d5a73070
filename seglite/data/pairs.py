"""What data sets of photographs with one label file each have in common: reading, checking, the contract of `seglite.data`.

cityscapes.py, ade20k.py, coco.py and folder.py only say where the files are and what their numbers mean:

    item    (name, image file, label file)
    table   int16 [256]: stored number -> class; 255: not judged; -1: must not occur

A palette PNG is read by its indices, never by its colours. Colour-coded labels are understood where the data set has a table of colours.
Shapes: H W image, K classes.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from seglite.data.voc import opened, read_image

IGNORE, FOREIGN = 255, -1
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class Item(NamedTuple):
    name: str
    image: Path
    mask: Path


def identity_table(classes: int) -> np.ndarray:
    """Stored numbers are the classes, 255 is not judged: int16 `[256]`."""
    table = np.full(256, FOREIGN, np.int16)
    table[:classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return table


def read_labels(path: Path, table: np.ndarray, guess: Callable[[list[int]], str], colours: np.ndarray | None = None) -> np.ndarray:
    """A label file as uint8 `[H, W]` of classes and 255.

    guess: foreign numbers -> what they probably are and what to do. colours: uint8 `[K, 3]`, for labels that were saved as colours.

    Raises ValueError naming the file and the value, FileNotFoundError.
    """
    try:
        with opened(path) as picture:
            mode = picture.mode
            labels = np.array(picture.convert("RGB") if colours is not None and mode in ("RGB", "RGBA") else picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"mask {path} does not exist though its image does") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"mask {path} cannot be read ({problem}); it is damaged or no picture: fetch it again") from problem
    if colours is not None and labels.ndim == 3:
        return from_colours(labels, colours, path)
    if labels.ndim != 2:
        raise ValueError(f"mask {path} is a {mode} picture; expected one class number per pixel (mode P or L). It was probably saved as colours: "
                         "data_scripts/doctor.py shows which")
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=1)) if labels.dtype == np.uint8 else np.unique(labels)
    foreign = [int(v) for v in values if not 0 <= v < 256 or table[int(v)] == FOREIGN]
    if foreign:
        allowed = np.flatnonzero(table != FOREIGN)
        inner = allowed[allowed != IGNORE]
        raise ValueError(f"mask {path} holds {', '.join(map(str, foreign[:5]))}; allowed are {inner[0]} ... {inner[-1]} and 255. {guess(foreign)}")
    return table[labels].astype(np.uint8)


def from_colours(picture: np.ndarray, colours: np.ndarray, path: Path) -> np.ndarray:
    """uint8 `[H, W, 3]` whose colours are among `colours [K, 3]` -> classes uint8 `[H, W]`; black or white outside the table is not judged."""
    packed = _pack(picture)
    labels = np.full(packed.shape, 254, np.uint8)
    for free in ((255, 255, 255), (0, 0, 0)):
        labels[packed == _pack(np.array(free))] = IGNORE
    for k, colour in enumerate(colours):
        labels[packed == _pack(colour)] = k
    if (labels == 254).any():
        y, x = np.argwhere(labels == 254)[0]
        colour = tuple(int(c) for c in picture[y, x])
        raise ValueError(f"mask {path} has the colour {colour} at row {y}, column {x}, which classes.txt does not list; JPEG files change colours, "
                         "so save labels as PNG")
    return labels


def _pack(colours: np.ndarray) -> np.ndarray:
    c = np.asarray(colours).astype(np.int32)
    return c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]


class Pairs:
    """A split of images with label files; see `seglite.data` for the contract that every data set keeps."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the pretrained backbones expect

    def __init__(self, kind: str, items: Sequence[Item], classes: Sequence[str], palette: np.ndarray, table: np.ndarray,
                 guess: Callable[[list[int]], str], tags: dict[str, np.ndarray] | None = None, colours: np.ndarray | None = None, masks: bool = True):
        self.kind, self.items, self.classes, self.palette = kind, list(items), tuple(classes), np.asarray(palette, np.uint8)
        self.table, self.guess, self.colours = table, guess, colours
        self._tags, self._present = tags, {}
        # Tags are the foreground classes of an image: without a background there is nothing to tell apart.
        tagged = self.classes[0] == "background" and (masks or tags is not None)
        self.provides = ("image",) + ("mask",) * masks + ("tags",) * tagged

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        """Name of image `index`, unique in the split."""
        return self.items[index].name

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        """Image `index` with what `wants` names: image uint8 `[H, W, 3]`, mask uint8 `[H, W]`, tags float32 `[K-1]`.

        Raises ValueError naming the file if it is unreadable, holds a foreign label, or if mask and image differ in size.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"this split of {self.kind} has no image {index}: it holds 0 ... {len(self) - 1}")
        unknown = [w for w in wants if w not in self.provides]
        if unknown:
            raise ValueError(f"{self.kind} cannot give {', '.join(unknown)}; it gives {', '.join(self.provides)}")
        item = self.items[index]
        sample = {"index": int(index), "name": item.name}
        if "image" in wants:
            sample["image"] = read_image(item.image)
        if "mask" in wants:
            sample["mask"] = self._mask(index)
            if "image" in wants and sample["mask"].shape != sample["image"].shape[:2]:
                (h, w), (mh, mw) = sample["image"].shape[:2], sample["mask"].shape
                raise ValueError(f"mask {item.mask} is {mw} x {mh} but its image {item.image.name} is {w} x {h}; one of the two was resized or rotated")
        if "tags" in wants:
            sample["tags"] = self._image_tags(index, sample.get("mask"))
        return sample

    def _mask(self, index: int) -> np.ndarray:
        return read_labels(self.items[index].mask, self.table, self.guess, self.colours)

    def _image_tags(self, index: int, mask: np.ndarray | None) -> np.ndarray:
        if self._tags is not None:
            return self._tags[self.items[index].name].copy()
        if index not in self._present:  # kept, since a weakly supervised run would otherwise decode every mask in every epoch
            mask = self._mask(index) if mask is None else mask
            self._present[index] = (np.bincount(mask.ravel(), minlength=256)[1:len(self.classes)] > 0).astype(np.float32)  # [K-1]
        return self._present[index].copy()


def paired(images: dict[str, Path], masks: dict[str, Path], hint: str) -> list[Item]:
    """One Item per image, in alphabetical order; an image without label file is an error that names it."""
    missing = sorted(name for name in images if name not in masks)
    if missing:
        raise FileNotFoundError(f"image {images[missing[0]]} has no label file ({len(missing)} of {len(images)} lack one); {hint}")
    return [Item(name, images[name], masks[name]) for name in sorted(images)]


def files_below(folder: Path, endings: tuple[str, ...] = IMAGES) -> list[Path]:
    """Every file of these kinds in a folder and the folders below it, hidden ones left out, in alphabetical order."""
    shown = (p for p in Path(folder).rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(p for p in shown if p.suffix.lower() in endings)


def without_suffix(name: str) -> str:
    """Without the suffix of a picture file; what follows any other dot belongs to the name: scan.1 stays scan.1."""
    return name.rpartition(".")[0] if name.lower().endswith(IMAGES) else name


def known_split(split: str, kind: str) -> str:
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r} does not exist in {kind}; a run has train and val")
    return split
