"""Photographs in the PASCAL VOC 2012 layout, the common currency of segmentation.

    root/JPEGImages/ID.jpg                     photograph
    root/SegmentationClass/ID.png              labels: palette PNG whose indices are the classes 0 ... 20, 255 = border, not judged
    root/SegmentationClassAug/ID.png           the same for the 10,582 images of the augmented training list (SBD)
    root/ImageSets/Segmentation/LIST.txt       one ID per line (extra columns and DeepLab-style paths are understood)

`root` may also be a folder above (VOCdevkit, or the one that holds it). Image-level tags are read off the masks, or from a list file
with lines `ID c1 c2 ...` where 0 is aeroplane and 19 tvmonitor (`voc.tags=train_aug_cls.txt`), so that a weakly supervised run needs no mask.

Nothing is decoded before it is asked for; a bad file is an error that names the file, what is wrong with it and what to do.
Shapes: H W image, K = 21 classes with the background.
"""
from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from seglite.pictures import voc_palette as palette

CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
           "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
IGNORE = 255


@dataclass
class VocSettings:
    """Which part of a VOC tree is used."""

    train: str = "train"
    """Training list: a name in ImageSets/Segmentation (train, train_aug, trainval) or the path of a .txt file (a semi-supervised partition)."""
    val: str = "val"
    """Validation list, in the same form."""
    masks: str = "SegmentationClass"
    """Folder of the label PNGs; SegmentationClassAug goes with train_aug."""
    tags: str = "masks"
    """Image-level tags: masks (the classes present in the label PNG) or the path of a list with lines `ID c1 c2 ...`, 0 = aeroplane."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """`Image.open` for pictures that may be anything. ValueError where Pillow would only warn (more than Image.MAX_IMAGE_PIXELS, about 89 million),
    because a file of some kilobytes can unpack to gigabytes, and where memory does not suffice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path)
        with picture:
            yield picture
    except Image.DecompressionBombWarning as problem:
        raise ValueError(str(problem)) from problem
    except MemoryError as problem:
        raise ValueError(f"not enough memory for its {picture.width} x {picture.height} pixels") from problem


def read_image(path: Path) -> np.ndarray:
    """A photograph as uint8 `[H, W, 3]` RGB, turned upright as its EXIF note says. Raises ValueError naming the file."""
    try:
        with opened(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits per pixel: Pillow's conversion would clip at 255 and give a white picture
                upright = Image.fromarray((np.asarray(upright) // 257).clip(0, 255).astype(np.uint8))
            return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} does not exist though its list names it; the download is incomplete") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"image {path} cannot be read ({problem}); it is damaged or no image: fetch it again") from problem


def read_mask(path: Path, classes: int) -> np.ndarray:
    """A label PNG as uint8 `[H, W]` with values 0 ... classes - 1 and 255. Raises ValueError naming the file and the value."""
    try:
        with opened(path) as picture:
            mode, labels = picture.mode, np.array(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"mask {path} does not exist though its list names it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"mask {path} cannot be read ({problem}); it is damaged or no PNG: fetch it again") from problem
    if labels.ndim != 2:
        raise ValueError(f"mask {path} is a {mode} picture; expected one class number per pixel (mode P or L). It was probably saved "
                         "as colours: save the class numbers instead")
    # Counting beats sorting for bytes; wider types are already wrong or rare.
    values = np.flatnonzero(np.bincount(labels.ravel())) if labels.dtype == np.uint8 else np.unique(labels)
    foreign = [int(v) for v in values if not 0 <= v < classes and v != IGNORE]
    if foreign:
        raise ValueError(f"mask {path} holds {', '.join(map(str, foreign[:5]))}; K={classes} allows 0 ... {classes - 1} and 255. {_guess(foreign)}")
    return labels.astype(np.uint8)


def _guess(foreign: list[int]) -> str:
    if max(foreign) == 254 or max(foreign) > 255:
        return "This looks like an instance or depth map, not a class map"
    if max(foreign) <= 33:
        return "Values up to 33 are Cityscapes' raw ids: use its labelTrainIds files and data set"
    if max(foreign) <= 150:
        return "Values up to 150 look like ADE20K (or 59 like PASCAL-Context) labels: this folder holds another data set"
    return "The file is another data set's mask, or a grey-scale picture of one"


def find_root(root: str) -> Path:
    """The folder that holds JPEGImages, at or below `root`. Raises FileNotFoundError that says how to get one."""
    if not root:
        raise ValueError("data=voc needs root=FOLDER, the folder that holds JPEGImages and ImageSets (data_scripts/voc2012.py fetches it)")
    for folder in (Path(root), Path(root) / "VOC2012", Path(root) / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    state = "has no folder JPEGImages" if Path(root).is_dir() else "is not a folder"
    raise FileNotFoundError(f"root={root} {state}; expected a PASCAL VOC tree with JPEGImages, {VocSettings.masks} and ImageSets/Segmentation "
                            "(data_scripts/voc2012.py fetches it)")


def read_list(root: Path, name: str, key: str) -> list[str]:
    """The ids of a list. `name`: a list of ImageSets/Segmentation or the path of a .txt file. `key`: the setting, for the error."""
    folder = root / "ImageSets" / "Segmentation"
    path = Path(name) if name.endswith(".txt") and Path(name).is_file() else folder / (name.removesuffix(".txt") + ".txt")
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.txt"))
        raise FileNotFoundError(f"list {path} does not exist; voc.{key}={name} must be one of {', '.join(known) or '(that folder has none)'} "
                                "or the path of a .txt file")
    ids = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"list {path} is empty; the split voc.{key}={name} needs at least one id")
    twice = {i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else ()
    if twice:
        raise ValueError(f"list {path} names {sorted(twice)[0]} more than once; every image must count once")
    return ids


def read_tags(path: str, classes: int, key: str = "voc.tags", first: str = "aeroplane") -> dict[str, np.ndarray]:
    """Image-level labels from lines `ID c1 c2 ...` (0 = the first foreground class): {id: float32 `[K-1]`}. `key`, `first`: for the errors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key}={path} is neither the word masks nor an existing list file")
    table = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        name, *labels = line.split()
        if not all(label.isdigit() and int(label) < classes - 1 for label in labels):
            raise ValueError(f"{path} line {number}: {line.strip()!r}; expected `ID c1 c2 ...` with classes 0 ... {classes - 2} (0 = {first})")
        tags = np.zeros(classes - 1, np.float32)  # [K-1]
        tags[[int(label) for label in labels]] = 1
        table[name] = tags
    return table


class Voc:
    """A split of a VOC tree; see `seglite.data` for the contract that every data set keeps."""

    classes = CLASSES
    palette = palette(len(CLASSES))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the pretrained backbones expect

    def __init__(self, root: str, settings: VocSettings, split: str):
        if split not in ("train", "val"):
            raise ValueError(f"split {split!r} does not exist in voc; known are train, val (their lists are voc.train and voc.val)")
        self.root, self.settings = find_root(root), settings
        listed = settings.train if split == "train" else settings.val
        self.ids = read_list(self.root, listed, split)
        self._require("JPEGImages", ".jpg", "image", f"list {listed} of root={self.root} does not fit these photographs")
        self._tags = None if settings.tags == "masks" else read_tags(settings.tags, len(self.classes))
        untagged = [] if self._tags is None else [i for i in self.ids if i not in self._tags]
        if untagged:
            raise ValueError(f"voc.tags={settings.tags} has no line for {untagged[0]} (and {len(untagged) - 1} more of {len(self.ids)} images); "
                             "take the list that belongs to this split")
        masks = (self.root / settings.masks).is_dir()
        self.provides = ("image",) + ("mask",) * masks + ("tags",) * (masks or self._tags is not None)
        self._masks_checked = False
        self._present: dict[int, np.ndarray] = {}

    def _require(self, folder: str, ending: str, what: str, hint: str) -> None:
        """All files of the split exist: better now than after an hour."""
        there = {p.name for p in (self.root / folder).iterdir()} if (self.root / folder).is_dir() else set()
        missing = [i for i in self.ids if i + ending not in there]
        if missing:
            raise FileNotFoundError(f"{what} {self.root / folder / (missing[0] + ending)} does not exist "
                                    f"({len(missing)} of {len(self.ids)} are missing); {hint}")

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        """VOC's id of image `index`, "2007_000032"."""
        return self.ids[index]

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        """Image `index` with what `wants` names: image uint8 `[H, W, 3]`, mask uint8 `[H, W]`, tags float32 `[K-1]`.

        Raises ValueError naming the file if it is unreadable, holds a foreign label, or if mask and image differ in size.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"this split of voc has no image {index}: it holds 0 ... {len(self) - 1}")
        unknown = [w for w in wants if w not in self.provides]
        if unknown:
            hint = f"; {self.root / self.settings.masks} does not exist" if "mask" not in self.provides else ""
            raise ValueError(f"voc cannot give {', '.join(unknown)}; it gives {', '.join(self.provides)}{hint}")
        sample = {"index": int(index), "name": self.ids[index]}
        if "image" in wants:
            sample["image"] = read_image(self.root / "JPEGImages" / f"{self.ids[index]}.jpg")
        if "mask" in wants:
            sample["mask"] = self._mask(index)
            if "image" in wants and sample["mask"].shape != sample["image"].shape[:2]:
                (h, w), (mh, mw) = sample["image"].shape[:2], sample["mask"].shape
                raise ValueError(f"mask {self._mask_path(index)} is {mw} x {mh} but its image is {w} x {h}; one of the two was resized or rotated")
        if "tags" in wants:
            sample["tags"] = self._image_tags(index, sample.get("mask"))
        return sample

    def _mask_path(self, index: int) -> Path:
        return self.root / self.settings.masks / f"{self.ids[index]}.png"

    def _mask(self, index: int) -> np.ndarray:
        if not self._masks_checked:
            aug = self.settings.masks != "SegmentationClassAug" and (self.root / "SegmentationClassAug").is_dir()
            self._require(self.settings.masks, ".png", "mask", "voc.masks=SegmentationClassAug holds the labels of the augmented list" if aug
                          else "take a list whose images have labels")
            self._masks_checked = True
        return read_mask(self._mask_path(index), len(self.classes))

    def _image_tags(self, index: int, mask: np.ndarray | None) -> np.ndarray:
        if self._tags is not None:
            return self._tags[self.ids[index]].copy()
        if index not in self._present:  # kept, since a weakly supervised run would otherwise decode every mask in every epoch
            mask = self._mask(index) if mask is None else mask
            seen = np.bincount(mask.ravel(), minlength=256)[1:len(self.classes)] > 0
            self._present[index] = seen.astype(np.float32)  # [K-1]
        return self._present[index].copy()


def open(config, split: str) -> Voc:
    """The data set for `config.root` and `config.voc`, split "train" or "val"."""
    return Voc(config.root, config.voc, split)
