"""Learning classes in steps: which classes each step teaches, which images it may see, and what their pixels are called meanwhile.

    task "15-1" of 20 classes --> groups (1..15) (16) (17) (18) (19) (20)
    step t sees   overlapped  every image with a pixel of its classes; the same image may come back in another step with other labels
                  disjoint    ... and with no class of a later step
                  chunks      its own stretch of the list (half for step 0): for videos whose frames all show nearly every class
    its pixels    classes of step t keep a name, in learning order 1, 2, ...; every other pixel is called 0, background; 255 stays 255

A data set without a background class (CamVid) gets one in front; its void pixels are then the only true background, and are not judged.
Protocol: Cermelli et al., "Modeling the background for incremental learning in semantic segmentation" (MiB), CVPR 2020, arXiv 2002.00718,
section 5.1, with the overlapped image counts of PLOP, SSUL, DKD and BARM.

    python -m seglite.data.steps lists/voc2012/train_aug_cls.txt 10-1        images per step, and how much the meaning of "background" shifts

Shapes: n images, C foreground classes in learning order, H W image.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

IGNORE = 255
SETTINGS = ("overlapped", "disjoint", "chunks")
USUAL = {"scenes": "4-1", "voc": "15-1", "camvid": "6-1", "ade20k": "100-10"}  # the task when none is named


def parse_task(name: str, classes: int) -> tuple[int, ...]:
    """("15-1", 20) -> (15, 1, 1, 1, 1, 1): classes of step 0, then of each later step. Raises ValueError naming what does not fit."""
    first, dash, more = name.partition("-")
    if not (dash and first.isdigit() and more.isdigit() and int(first) and int(more)):
        raise ValueError(f"task={name!r} is no task; write BASE-INCREMENT, for example 15-1: 15 classes at first, then one per step")
    base, increment = int(first), int(more)
    rest = classes - base
    if rest < increment or rest % increment:
        raise ValueError(f"task={name} does not fit {classes} classes: after the first {base}, {rest} are left, which is no multiple of {increment}")
    return base, *(increment,) * (rest // increment)


@dataclass(frozen=True)
class Task:
    """What is learned when."""

    groups: tuple[tuple[int, ...], ...]
    """the data set's ids of the classes of each step"""
    names: tuple[str, ...]
    """"background", then the classes in learning order"""
    background: bool
    """whether the data set's id 0 is a background class"""

    @property
    def steps(self) -> int:
        return len(self.groups)

    def seen(self, t: int) -> int:
        """Channels after step t: background and every class so far."""
        return 1 + sum(len(g) for g in self.groups[: t + 1])

    def new(self, t: int) -> range:
        """Channels of the classes of step t."""
        return range(self.seen(t - 1) if t else 1, self.seen(t))

    def names_for(self, t: int) -> np.ndarray:
        """Training labels of step t, uint8 [256]: the data set's id -> channel for classes of this step, 0 for everything else."""
        table = np.zeros(256, np.uint8)
        table[IGNORE] = IGNORE if self.background else 0  # void is background where there is no other
        table[list(self.groups[t])] = list(self.new(t))
        return table

    def judged(self, t: int) -> np.ndarray:
        """Test labels after step t, uint8 [256]: every class so far; classes not yet taught are not judged (255)."""
        table = np.full(256, IGNORE, np.uint8)
        for s in range(t + 1):
            table[list(self.groups[s])] = list(self.new(s))
        if self.background:
            table[0] = 0
        return table

    def channels(self) -> list[int]:
        """The channel of each of the data set's classes, in the data set's order."""
        order = [c for group in self.groups for c in group]
        return [0] * self.background + [1 + order.index(c) for c in sorted(order)]

    def together(self) -> Task:
        """The same classes in one step."""
        return Task((tuple(c for group in self.groups for c in group),), self.names, self.background)


def make_task(name: str, classes: Sequence[str], order: Sequence[int] = ()) -> Task:
    """The task over a data set's classes. `order`: their ids in the order of learning; empty: as numbered."""
    background = classes[0] == "background"
    ids = list(range(1 if background else 0, len(classes)))
    if order and sorted(order) != ids:
        raise ValueError(f"order={','.join(map(str, order))} must name every class from {ids[0]} to {ids[-1]} once")
    ids = list(order) or ids
    groups, start = [], 0
    for count in parse_task(name, len(ids)):
        groups.append(tuple(ids[start : start + count]))
        start += count
    return Task(tuple(groups), ("background", *(classes[c] for c in ids)), background)


# ---- images per step ------------------------------------------------------------------------------------------------------------------


def presence(data, task: Task) -> np.ndarray:
    """Which classes each image shows: bool [n, C] in learning order, from tags where the data set has them, else from its masks."""
    ids = [c for group in task.groups for c in group]
    found = np.zeros((len(data), len(ids)), bool)  # [n, C]
    for i in range(len(data)):
        if task.background and "tags" in data.provides:
            found[i] = data.read(i, ("tags",))["tags"][np.array(ids) - 1] > 0
        else:
            found[i] = np.bincount(data.read(i, ("mask",))["mask"].ravel(), minlength=256)[ids] > 0
    return found


def images_of_step(present: np.ndarray, task: Task, t: int, setting: str = "overlapped") -> np.ndarray:
    """Numbers of the images that step t may see, in order. present: bool [n, C]."""
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting!r} is unknown; choose {', '.join(SETTINGS)}")
    columns = np.array(task.new(t)) - 1
    chosen = present[:, columns].any(1)
    if setting == "disjoint":
        chosen &= ~present[:, columns[-1] + 1 :].any(1)
    if setting == "chunks":
        n, later = len(present), max(task.steps - 1, 1)
        edges = [0, *(n // 2 + (n - n // 2) * s // later for s in range(task.steps))] if task.steps > 1 else [0, n]
        chosen &= (np.arange(n) >= edges[t]) & (np.arange(n) < edges[t + 1])
    images = np.flatnonzero(chosen)
    if len(images) == 0:
        raise ValueError(f"step {t} of the {setting} setting has no image: none shows {', '.join(task.names[c] for c in task.new(t))}"
                         + (" without a later class" if setting == "disjoint" else "") + "; choose another task or setting")
    return images


class Share(NamedTuple):
    """One row of the plan."""

    step: int
    classes: str
    images: int
    old: float  # share of the images that also show a class of an earlier step
    future: float  # share that show a class of a later step


def plan(present: np.ndarray, task: Task, setting: str = "overlapped") -> list[Share]:
    """Images of every step, and which share of them shows classes that are called background there."""
    rows = []
    for t in range(task.steps):
        shown = present[images_of_step(present, task, t, setting)]
        first, last = task.new(t)[0] - 1, task.new(t)[-1]
        names = task.names[first + 1 : last + 1]
        label = ", ".join(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)})"
        rows.append(Share(t, label, len(shown), float(shown[:, :first].any(1).mean()), float(shown[:, last:].any(1).mean())))
    return rows


# ---- views of a data set --------------------------------------------------------------------------------------------------------------


class StepData:
    """What step t may know: its own images, with every pixel of another step's class called background.

    Images keep the numbers of the whole data set; reading any other image is an error (exemplar-free: nothing of an earlier step is kept).
    """

    provides = ("image", "mask")

    def __init__(self, data, task: Task, t: int, images: Sequence[int]):
        self.data, self.step, self.images, self.table, self.new = data, t, np.asarray(images), task.names_for(t), task.new(t)
        self.allowed = frozenset(int(i) for i in self.images)
        self.classes, self.palette, self.mean, self.std, self.name = task.names[: task.seen(t)], palette(data, task), data.mean, data.std, data.name

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        if int(index) not in self.allowed:
            raise ValueError(f"image {index} is none of the {len(self.allowed)} images of step {self.step}; "
                             "learning is exemplar-free: a step sees its own images and nothing that earlier steps saw")
        sample = self.data.read(index, wants)
        if "mask" in sample:
            sample["mask"] = self.table[sample["mask"]]
        return sample


class Judged:
    """A test set after step t: labels in learning order, classes not yet taught ignored.

    side > 0: shorter side resized to it and the centre cut out, the convention of MiB, PLOP, SSUL and BARM on VOC (513).
    """

    provides = ("image", "mask")

    def __init__(self, data, task: Task, t: int, side: int = 0):
        self.data, self.side, self.table, self.name = data, side, task.judged(t), data.name
        self.classes, self.palette, self.mean, self.std = task.names[: task.seen(t)], palette(data, task), data.mean, data.std

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, wants: tuple[str, ...] = ("image", "mask")) -> dict:
        sample = self.data.read(index, wants)
        if "mask" in sample:
            sample["mask"] = self.table[sample["mask"]]
        return {k: centre(v, self.side, Image.BILINEAR if k == "image" else Image.NEAREST) if self.side and k in self.provides else v
                for k, v in sample.items()}


def centre(picture: np.ndarray, side: int, how) -> np.ndarray:
    """Shorter side resized to `side`, then the middle `side` x `side`. uint8 [H, W] or [H, W, 3]."""
    height, width = picture.shape[:2]
    factor = side / min(height, width)
    size = max(side, round(width * factor)), max(side, round(height * factor))
    resized = np.asarray(Image.fromarray(picture).resize(size, how))
    left, top = ((n - side) // 2 for n in size)
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def palette(data, task: Task) -> np.ndarray:
    """Colours in learning order, uint8 [1 + C, 3]; a background that the data set lacks is black."""
    ids = [c for group in task.groups for c in group]
    first = data.palette[:1] if task.background else np.zeros((1, 3), np.uint8)
    return np.concatenate([first, data.palette[ids]])


class NewClassCrops:
    """Half of all samples are drawn again, up to ten times, until classes of the step fill at least `share` of the labelled pixels."""

    def __init__(self, transform, share: float):
        self.transform, self.share = transform, share

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        wanted = rng.random() < 0.5
        for _ in range(10):
            out = self.transform(sample, rng)
            labelled = out["mask"] != IGNORE
            if not wanted or (out["mask"][labelled] > 0).sum() >= self.share * max(labelled.sum(), 1):
                break
        return out


# ---- a list of tags as a plan ---------------------------------------------------------------------------------------------------------


def read_presence(path: str, classes: int) -> np.ndarray:
    """Lines `ID c1 c2 ...` (0 = the first foreground class) -> bool [n, C]."""
    rows = []
    with open(path) as lines:
        for line in filter(str.strip, lines):
            row = np.zeros(classes, bool)
            row[[int(c) for c in line.split()[1:]]] = True
            rows.append(row)
    return np.stack(rows)  # [n, C]


def main(arguments: list[str]) -> int:
    from seglite.data.voc import CLASSES

    if not 2 <= len(arguments) <= 3:
        print("usage: python -m seglite.data.steps LIST TASK [overlapped|disjoint]    LIST: lines `ID c1 c2 ...`, 0 = aeroplane", file=sys.stderr)
        return 2
    try:
        present = read_presence(arguments[0], len(CLASSES) - 1)
        print(f"{'step':>4}  {'images':>6}  {'old':>5}  {'future':>6}  classes")
        for row in plan(present, make_task(arguments[1], CLASSES), *arguments[2:]):
            print(f"{row.step:>4}  {row.images:>6}  {row.old:>5.0%}  {row.future:>6.0%}  {row.classes}")
    except (OSError, ValueError) as problem:
        print(f"seglite: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
