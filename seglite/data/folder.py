"""Your own data: a folder of images and a folder of label files with the same names.

    root/images/NAME.jpg      photographs (jpg, png, bmp, tif, webp), folders below are fine
    root/masks/NAME.png       one class number per pixel, 255 = not judged; or colours, when classes.txt lists them
    root/classes.txt          one class per line: `name`, or `name R G B`; the line number from 0 is the class
    root/train.txt, val.txt   optional: the names of each split

Without lists, the folders images/train and images/val decide where they exist, else a share of the images, drawn by their names: adding an image
never moves another one between the splits. `python -m data_scripts.doctor FOLDER` prints what is there and what to set.
"""
from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seglite.data.pairs import IGNORE, Item, Pairs, files_below, identity_table, known_split, without_suffix
from seglite.data.voc import palette


@dataclass
class FolderSettings:
    """Where your own data lies and what its numbers mean."""

    images: str = "images"
    """Folder of the photographs, below root."""
    masks: str = "masks"
    """Folder of the label files, below root."""
    classes: str = ""
    """Class names, comma-separated (background,road,car), or a number of unnamed classes; empty: root/classes.txt."""
    ending: str = ""
    """What label files have behind the name of their image: _mask for a.jpg and a_mask.png."""
    ignore: int = 255
    """A further stored number that is not judged."""
    first: int = 0
    """The stored number of the first class; 1 where labels run from 1 and 0 means nothing."""
    val: float = 0.2
    """Share of the images that is kept for validation when neither lists nor folders name the splits."""


def read_classes(settings: FolderSettings, root: Path) -> tuple[tuple[str, ...], np.ndarray | None]:
    """(names, colours uint8 `[K, 3]` or None)."""
    text = settings.classes.strip()
    if text.isdigit():
        return tuple(f"class {k}" for k in range(int(text))), None
    if text:
        return tuple(part.strip() for part in text.split(",") if part.strip()), None
    path = root / "classes.txt"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: write one class name per line, or set folder.classes=background,road,car or folder.classes=3; "
                         f"`python -m data_scripts.doctor {root}` shows which numbers the masks hold")
    names, colours = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        coloured = len(words) > 3 and all(w.isdigit() for w in words[-3:])
        if coloured and max(map(int, words[-3:])) > 255:
            raise ValueError(f"{path} line {number}: {line!r}; colours are three numbers 0 ... 255")
        names.append(" ".join(words[:-3] if coloured else words))
        colours.append(tuple(map(int, words[-3:])) if coloured else None)
    given = [c for c in colours if c is not None]
    if given and len(given) != len(colours):
        raise ValueError(f"{path} gives colours for {len(given)} of {len(colours)} classes; give all or none")
    if len(set(given)) < len(given):
        raise ValueError(f"{path} gives one colour to two classes")
    return tuple(names), np.array(given, np.uint8) if given else None


def by_key(folder: Path, ending: str = "") -> dict[str, Path]:
    """{path below `folder` without suffix: file}; two files of one key are an error."""
    found: dict[str, Path] = {}
    for path in files_below(folder):
        key = str(path.relative_to(folder).with_suffix("")).replace("\\", "/")
        if not key.endswith(ending):
            continue
        key = key.removesuffix(ending) if ending else key
        if key in found:
            raise ValueError(f"{found[key]} and {path} have the same name; keep one of them")
        found[key] = path
    return found


def belongs_to_val(key: str, share: float) -> bool:
    """A draw that depends on the name alone."""
    return zlib.crc32(key.encode()) / 2**32 < share


def in_split(keys: list[str], root: Path, split: str, share: float) -> list[str]:
    """The images of a split: by lists, by folders, or by a draw."""
    lists = {s: root / f"{s}.txt" for s in ("train", "val")}
    if any(path.is_file() for path in lists.values()):
        if not lists[split].is_file():
            raise FileNotFoundError(f"{lists[split]} does not exist though the list of the other split does; write both or none")
        # An image's suffix may stand in a list; a dot inside a name is no suffix.
        wanted = [line.strip() for line in lists[split].read_text().splitlines() if line.strip()]
        known = set(keys)
        named = [w if w in known else without_suffix(w) for w in wanted]
        missing = [w for w, n in zip(wanted, named) if n not in known]
        if missing:
            raise FileNotFoundError(f"{lists[split]} names {missing[0]}, which is not among the images ({len(missing)} of {len(wanted)} are missing)")
        if len(set(named)) < len(named):
            raise ValueError(f"{lists[split]} names {next(n for n in named if named.count(n) > 1)} more than once; every image must count once")
        return named
    if {"train", "val"} <= {key.split("/")[0] for key in keys}:
        return [key for key in keys if key.split("/")[0] == split]
    if not 0 < share < 1:
        raise ValueError(f"folder.val={share} must lie between 0 and 1: the share of the images that is kept for validation")
    return [key for key in keys if belongs_to_val(key, share) == (split == "val")]


def open(config, split: str) -> Pairs:
    """The data set for `config.root` and `config.folder`, split "train" or "val"."""
    settings, root = config.folder, Path(config.root)
    known_split(split, "folder")
    if not config.root:
        raise ValueError("data=folder needs root=FOLDER, the folder that holds images and masks")
    for key, folder in (("images", settings.images), ("masks", settings.masks)):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"root={root} has no folder {folder}; name it with folder.{key}=")
    images, masks = by_key(root / settings.images), by_key(root / settings.masks, settings.ending)
    classes, colours = read_classes(settings, root)
    if not classes or not 0 <= settings.first <= IGNORE - len(classes) or not 0 <= settings.ignore <= IGNORE:
        raise ValueError(f"{len(classes)} classes from folder.first={settings.first} on, folder.ignore={settings.ignore}: a label file has room for the "
                         "numbers 0 ... 254, and needs at least one class")
    names = in_split(sorted(images), root, split, settings.val)
    missing = [n for n in names if n not in masks]
    if missing:
        stray = next((m for m in masks if m not in images), None)
        raise FileNotFoundError(f"image {images[missing[0]]} has no label file in {root / settings.masks} ({len(missing)} of {len(names)} lack one)"
                                + (f"; there is {masks[stray].name} without an image: if all have such names, set folder.ending=" if stray else ""))
    table = np.roll(identity_table(len(classes)), settings.first)
    table[:settings.first] = table[IGNORE] = table[settings.ignore] = IGNORE  # what is stored below the first class means nothing

    def guess(foreign: list[int]) -> str:
        if settings.first == 0 and foreign == [len(classes)]:
            return "Labels seem to run from 1: set folder.first=1, or add a class"
        return f"`python -m data_scripts.doctor {root}` looks through all masks"

    items = [Item(n.replace("/", "__"), images[n], masks[n]) for n in names]
    return Pairs("folder", items, classes, colours if colours is not None else palette(len(classes)), table, guess, colours=colours)
