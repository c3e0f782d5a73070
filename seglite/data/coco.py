"""COCO 2014 as semantic segmentation: 80 kinds of objects and the background, prepared by data_scripts/coco2014.py.

    root/{train2014,val2014}/COCO_train2014_000000000009.jpg     photographs
    root/masks/{train2014,val2014}/SAME.png                      0 = background, 1 ... 80, 255 = not judged
    root/{train,val}.txt                                         names, of images that show at least one object
    root/{train,val}_tags.txt                                    `NAME c1 c2 ...`, 0 = person: image-level labels for weak supervision

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312. Its annotations are instances; a mask here is their union,
smaller objects on top. Category ids run to 90 with gaps; class k is the k-th category in the order of their ids.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seglite.data.pairs import Item, Pairs, identity_table, known_split
from seglite.data.voc import palette, read_tags

THINGS = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,"
    "elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,"
    "couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,"
    "scissors,teddy bear,hair drier,toothbrush".split(","))
CLASSES = ("background", *THINGS)
PALETTE = palette(len(CLASSES))


@dataclass
class CocoSettings:
    """Which part of COCO is used."""

    train: str = "train"
    """Training list: train, val, or the path of a .txt file with one name per line."""
    val: str = "val"
    """Validation list, in the same form."""
    tags: Literal["auto", "masks", "list"] = "auto"
    """Image-level tags: masks (the classes in the mask), list (SPLIT_tags.txt), or auto: the list where it exists."""


def guess(foreign: list[int]) -> str:
    return "Values up to 90 are COCO's category ids: run data_scripts/coco2014.py, which numbers them 1 ... 80" if max(foreign) <= 90 else \
        "Values up to 182 are COCO-Stuff's: run data_scripts/coco2014.py for masks of the 80 kinds of objects"


def find_root(root: str) -> Path:
    """The folder that holds train2014, val2014 and masks, at or below `root`."""
    if not root:
        raise ValueError("data=coco needs root=FOLDER, the folder that holds train2014, val2014 and masks (data_scripts/coco2014.py prepares it)")
    for folder in (Path(root), Path(root) / "coco2014", Path(root) / "coco"):
        if any((folder / f"{part}2014").is_dir() for part in ("train", "val")):
            return folder
    raise FileNotFoundError(f"root={root} has neither train2014 nor val2014; data_scripts/coco2014.py fetches and prepares them")


def open(config, split: str) -> Pairs:
    """The data set for `config.root` and `config.coco`, split "train" or "val"."""
    settings, root = config.coco, find_root(config.root)
    wanted = getattr(settings, known_split(split, "coco"))
    path = Path(wanted) if wanted.endswith(".txt") else root / f"{wanted}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"list {path} does not exist; data_scripts/coco2014.py writes train.txt and val.txt, or give coco.{split}= the path "
                                "of a list")
    names = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    twice = {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else ()
    if twice:
        raise ValueError(f"list {path} names {sorted(twice)[0]} more than once; every image must count once")
    there = {p.stem: p.parent.name for part in ("train2014", "val2014") if (root / part).is_dir() for p in (root / part).iterdir()}
    missing = [n for n in names if n not in there]
    if missing:
        raise FileNotFoundError(f"image {missing[0]}.jpg of list {path} is not in {root} ({len(missing)} of {len(names)} are missing)")
    items = [Item(n, root / there[n] / f"{n}.jpg", root / "masks" / there[n] / f"{n}.png") for n in names]
    masks = (root / "masks").is_dir()
    if masks:
        made = {p.stem for part in ("train2014", "val2014") for p in (root / "masks" / part).glob("*.png")}
        unmade = [item for item in items if item.name not in made]
        if unmade:
            raise FileNotFoundError(f"mask {unmade[0].mask} does not exist ({len(unmade)} of {len(items)} are missing); data_scripts/coco2014.py "
                                    "makes them")
    listed = root / f"{wanted}_tags.txt"
    tags = None
    if settings.tags == "list" or settings.tags == "auto" and listed.is_file():
        if not listed.is_file():
            raise FileNotFoundError(f"coco.tags=list needs {listed}, which does not exist; data_scripts/coco2014.py writes it, or set coco.tags=masks")
        tags = read_tags(str(listed), len(CLASSES), "coco.tags", CLASSES[1])
        untagged = [n for n in names if n not in tags]
        if untagged:
            raise ValueError(f"{listed} has no line for {untagged[0]} (and {len(untagged) - 1} more of {len(names)} images)")
    return Pairs("coco", items, CLASSES, PALETTE, identity_table(len(CLASSES)), guess, tags, masks=masks)
