"""CamVid in the split of the SegNet tutorial: street scenes from a car, 480 x 360 pixels, 11 classes and void.

    root/{train,val,test}/NAME.png or .jpg       frame
    root/{train,val,test}annot/NAME.png          labels 0 ... 10, 11 = void (not judged; becomes 255)

Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008; split and labels: Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017, arXiv 1511.00561.
Counts: train 367, val 101, test 233. The val frames are neighbours in one video of which train holds other parts, so choose settings there with
care, and publish numbers on test, as the literature does: `camvid.val=test` is the default.

Shapes: H W image, K = 11 classes; there is no background class, label 0 is the sky.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from seglite.data.voc import opened, read_image

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
VOID, IGNORE = 11, 255
COLOURS = ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128),
           (64, 64, 0), (0, 128, 192))  # the data set's own
SPLITS = ("train", "val", "test")


@dataclass
class CamvidSettings:
    """Which part of CamVid is used."""

    train: str = "train"
    """What is trained on: train, val, test, or several joined by + (train+val)."""
    val: str = "test"
    """What is judged, in the same form. Published numbers are on test."""


def read_mask(path: Path) -> np.ndarray:
    """A label PNG as uint8 `[H, W]` with values 0 ... 10 and 255 for void. Raises ValueError naming the file and the value."""
    try:
        with opened(path) as picture:
            mode, labels = picture.mode, np.array(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"mask {path} does not exist though its frame does; the download is incomplete") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"mask {path} cannot be read ({problem}); it is damaged or no PNG: fetch it again") from problem
    if labels.ndim != 2:
        raise ValueError(f"mask {path} is a {mode} picture; expected one class number per pixel. The original CamVid stores colours: take the "
                         "label files of the SegNet tutorial")
    foreign = sorted(int(v) for v in np.unique(labels) if v > VOID and v != IGNORE)
    if foreign:
        raise ValueError(f"mask {path} holds {', '.join(map(str, foreign[:5]))}; the 11-class labels hold 0 ... 10 and 11 for void. CamVid's original "
                         "has 32 classes: take the label files of the SegNet tutorial")
    return np.where(labels == VOID, IGNORE, labels).astype(np.uint8)


class Camvid:
    """One or more splits of CamVid; see `seglite.data` for the contract that every data set keeps."""

    classes = CLASSES
    palette = np.array(COLOURS, np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the pretrained backbones expect
    provides = ("image", "mask")  # no tags: without a background every frame shows nearly every class

    def __init__(self, root: str, parts: str, key: str):
        if not root:
            raise ValueError("data=camvid needs root=FOLDER, the folder that holds train, trainannot, test and testannot")
        self.frames: list[tuple[Path, Path]] = []
        for part in parts.split("+"):
            if part not in SPLITS:
                raise ValueError(f"camvid.{key}={parts}: {part!r} is no split; choose {', '.join(SPLITS)}, or several joined by +")
            folder, labels = Path(root) / part, Path(root) / f"{part}annot"
            for needed in (folder, labels):
                if not needed.is_dir():
                    raise FileNotFoundError(f"root={root} has no folder {needed.name}; expected the SegNet tutorial's CamVid with {part} and {part}annot")
            frames = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
            there = {p.stem for p in labels.glob("*.png")}
            missing = [p for p in frames if p.stem not in there]
            if missing:
                raise FileNotFoundError(f"frame {missing[0]} has no label file {labels / (missing[0].stem + '.png')} ({len(missing)} of {len(frames)} lack one)")
            self.frames += [(p, labels / f"{p.stem}.png") for p in frames]

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        """File stem of frame `index`, "0001TP_006690"."""
        return self.frames[index][0].stem

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        """Frame `index` with what `wants` names: image uint8 `[H, W, 3]`, mask uint8 `[H, W]`, 255 where void."""
        if not 0 <= index < len(self):
            raise IndexError(f"this split of camvid has no frame {index}: it holds 0 ... {len(self) - 1}")
        unknown = [w for w in wants if w not in self.provides]
        if unknown:
            raise ValueError(f"camvid cannot give {', '.join(unknown)}; it gives {', '.join(self.provides)}")
        frame, labels = self.frames[index]
        sample = {"index": int(index), "name": frame.stem}
        if "image" in wants:
            sample["image"] = read_image(frame)
        if "mask" in wants:
            sample["mask"] = read_mask(labels)
        if len(wants) == 2 and sample["mask"].shape != sample["image"].shape[:2]:
            (h, w), (mh, mw) = sample["image"].shape[:2], sample["mask"].shape
            raise ValueError(f"mask {labels} is {mw} x {mh} but its frame is {w} x {h}; frames and labels of different releases were mixed")
        return sample


def open(config, split: str) -> Camvid:
    """The data set for `config.root` and `config.camvid`, split "train" or "val"."""
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r} does not exist; a run has train and val (which part of CamVid they are: camvid.train, camvid.val)")
    return Camvid(config.root, getattr(config.camvid, split), split)
