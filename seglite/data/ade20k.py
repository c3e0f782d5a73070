"""ADE20K, the scene parsing challenge of 2016: everyday scenes, 150 classes.

    root/images/{training,validation}/NAME.jpg
    root/annotations/{training,validation}/NAME.png     1 ... 150; 0 = none of them (not judged, becomes 255)

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. 20,210 training and 2,000 validation images. Stored numbers begin at 1,
classes here at 0: stored k is class k - 1, as in the field's tools ("reduce_zero_label"). There is no background class, class 0 is wall.
Colours are VOC's colour map from its second entry on (our choice: the challenge's own are not needed to read the files).
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from seglite.data.pairs import FOREIGN, IGNORE, Pairs, files_below, known_split, paired
from seglite.data.voc import palette

CLASSES = tuple(
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,plant,curtain,chair,car,water,"
    "painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,bathtub,railing,cushion,base,box,column,signboard,"
    "chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,"
    "river,bridge,bookcase,blind,coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,"
    "arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,land,"
    "bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,barrel,basket,"
    "waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,"
    "sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,radiator,glass,clock,flag".split(","))
PALETTE = palette(len(CLASSES) + 1)[1:]
FOLDERS = {"train": "training", "val": "validation"}


def table() -> np.ndarray:
    """Stored numbers 1 ... 150 -> classes 0 ... 149; 0 -> 255. int16 `[256]`."""
    numbers = np.full(256, FOREIGN, np.int16)
    numbers[0] = numbers[IGNORE] = IGNORE
    numbers[1:len(CLASSES) + 1] = np.arange(len(CLASSES))
    return numbers


def guess(foreign: list[int]) -> str:
    full = "These are the labels of the full ADE20K: take annotations of ADEChallengeData2016"
    return full if max(foreign) > 255 else "The file is another data set's mask"


def find_root(root: str) -> Path:
    """The folder that holds images and annotations, at or below `root`."""
    if not root:
        raise ValueError("data=ade20k needs root=FOLDER, the folder that holds images and annotations (data_scripts/ade20k.py fetches it)")
    for folder in (Path(root), Path(root) / "ADEChallengeData2016"):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    raise FileNotFoundError(f"root={root} has no folders images and annotations; data_scripts/ade20k.py fetches ADEChallengeData2016")


def open(config, split: str) -> Pairs:
    """The data set for `config.root`, split "train" or "val"."""
    part, root = FOLDERS[known_split(split, "ade20k")], find_root(config.root)
    images = {p.stem: p for p in files_below(root / "images" / part)}
    masks = {p.stem: p for p in files_below(root / "annotations" / part, (".png",))}
    return Pairs("ade20k", paired(images, masks, f"unpack annotations/{part} too"), CLASSES, PALETTE, table(), guess)
