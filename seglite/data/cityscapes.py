"""Cityscapes: street scenes of 50 cities, 2048 x 1024 pixels, 19 classes that are judged.

    root/leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
    root/gtFine/{train,val,test}/CITY/NAME_gtFine_labelTrainIds.png     0 ... 18, 255 = not judged (made by Cityscapes' own script), or
    root/gtFine/{train,val,test}/CITY/NAME_gtFine_labelIds.png          raw ids 0 ... 33, which are mapped here

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016, arXiv 1604.01685. 2,975 train, 500 val, 1,525 test
images (the test labels are not public: those files hold placeholders). Names, ids, colours: the data set's own table (cityscapesScripts, labels.py).
There is no background class, label 0 is road.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from seglite.data.pairs import FOREIGN, IGNORE, Item, Pairs, identity_table, known_split

# class name, raw id, colour; the place in this list is the training id
LABELS = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)), ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)), ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)), ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)), ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, *_ in LABELS)
RAW_IDS = np.array([raw for _, raw, _ in LABELS], np.uint8)  # training id -> raw id, as the test server wants it
PALETTE = np.array([colour for *_, colour in LABELS], np.uint8)
LARGEST_RAW = 33


@dataclass
class CityscapesSettings:
    """Which part of Cityscapes is used."""

    train: str = "train"
    """Training split: train or val, or the path of a .txt file with one frame name per line (a semi-supervised partition)."""
    val: str = "val"
    """Validation split, in the same form."""
    labels: Literal["auto", "trainIds", "ids"] = "auto"
    """Label files: trainIds (0 ... 18), ids (raw, mapped here), or auto: trainIds where they exist."""


def raw_table() -> np.ndarray:
    """Raw ids 0 ... 33 -> training ids; those that are not judged -> 255. int16 `[256]`."""
    table = np.full(256, FOREIGN, np.int16)
    table[:LARGEST_RAW + 1] = IGNORE
    table[RAW_IDS] = np.arange(len(RAW_IDS))
    table[IGNORE] = IGNORE  # license plates have id -1, stored as 255
    return table


def guess(foreign: list[int]) -> str:
    if max(foreign) > 255:
        return "This is an instanceIds file: take the labelTrainIds or labelIds files"
    if max(foreign) <= LARGEST_RAW:
        return f"{foreign[0]} is a raw id: set cityscapes.labels=ids"
    return "The file is another data set's mask, or the colour picture saved as grey"


def find_root(root: str) -> Path:
    """The folder that holds leftImg8bit and gtFine, at or below `root`."""
    if not root:
        raise ValueError("data=cityscapes needs root=FOLDER, the folder that holds leftImg8bit and gtFine (data_scripts/cityscapes.py prepares it)")
    for folder in (Path(root), Path(root) / "cityscapes"):
        if (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir():
            return folder
    raise FileNotFoundError(f"root={root} has no folders leftImg8bit and gtFine; data_scripts/cityscapes.py unpacks the archives that the Cityscapes "
                            "site gives")


def frames(root: Path, wanted: str, key: str) -> list[tuple[str, str]]:
    """[(split folder, frame name)] of a split's name or of a list file."""
    if wanted.endswith(".txt"):
        if not Path(wanted).is_file():
            raise FileNotFoundError(f"cityscapes.{key}={wanted} is no file; give train, val or the path of a list of frame names")
        names = [Path(line.split()[0]).name.removesuffix("_leftImg8bit.png") for line in Path(wanted).read_text().splitlines() if line.strip()]
        twice = {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else ()
        if twice:
            raise ValueError(f"list {wanted} names {sorted(twice)[0]} more than once; every frame must count once")
        places = {p.name.removesuffix("_leftImg8bit.png"): p.parts[-3] for p in (root / "leftImg8bit").glob("*/*/*_leftImg8bit.png")}
        missing = [n for n in names if n not in places]
        if missing:
            raise FileNotFoundError(f"frame {missing[0]} of list {wanted} is not below {root / 'leftImg8bit'} "
                                    f"({len(missing)} of {len(names)} are missing)")
        return [(places[n], n) for n in names]
    if wanted not in ("train", "val"):
        raise ValueError(f"cityscapes.{key}={wanted} is no split; choose train, val (test has no public labels) or the path of a .txt list")
    return [(wanted, p.name.removesuffix("_leftImg8bit.png")) for p in sorted((root / "leftImg8bit" / wanted).glob("*/*_leftImg8bit.png"))]


def open(config, split: str) -> Pairs:
    """The data set for `config.root` and `config.cityscapes`, split "train" or "val"."""
    settings, key = config.cityscapes, known_split(split, "cityscapes")
    root, kinds = find_root(config.root), {"trainIds": ["labelTrainIds"], "ids": ["labelIds"], "auto": ["labelTrainIds", "labelIds"]}[settings.labels]
    listed = frames(root, getattr(settings, key), key)

    def label_file(part: str, name: str, kind: str) -> Path:
        return root / "gtFine" / part / name.split("_")[0] / f"{name}_gtFine_{kind}.png"

    # One kind for the whole split: a mixture would be silently right here and wrong in the next tool.
    chosen = next((kind for kind in kinds if listed and label_file(*listed[0], kind).is_file()), kinds[-1])
    items = [Item(name, root / "leftImg8bit" / part / name.split("_")[0] / f"{name}_leftImg8bit.png", label_file(part, name, chosen))
             for part, name in listed]
    missing = [item for item in items if not item.mask.is_file()]
    if missing:
        raise FileNotFoundError(f"label file {missing[0].mask} does not exist ({len(missing)} of {len(items)} are missing); "
                                "unpack gtFine_trainvaltest.zip beside leftImg8bit (data_scripts/cityscapes.py)")
    return Pairs("cityscapes", items, CLASSES, PALETTE, identity_table(len(CLASSES)) if chosen == "labelTrainIds" else raw_table(), guess)
