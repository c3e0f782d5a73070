"""Weakly supervised localisation, scored as the field does: boxes drawn around maps, and the maps themselves against masks.

    GT-known      share of images whose box overlaps a true box by IoU >= 0.5, the class being given
    Top-1, Top-5  the same, and the true class is the first (one of the first five) of the classification
    MaxBoxAcc     GT-known at the threshold that suits the method best;  V2: mean over IoU 0.3, 0.5, 0.7, the best of all components counts
    PxAP          area under the precision-recall curve of all pixels of all images, over 1,000 thresholds;  pIoU: the best pooled IoU
    recall, IoU at half     of all pixels where the map reaches half of its range: nothing is searched, so being high on a part only shows

Choe et al., "Evaluating weakly supervised object localization methods right", CVPR 2020 (arXiv 2001.12268) for the last two lines; Zhou et al.,
CVPR 2016 for the first two. A map is min-max normalised per image, the box is the tight one around the largest connected component of what
exceeds the threshold (8-connected), or the whole image where nothing does.

Maps float [H, W] in 0..1. Boxes are half open, (left, top, right, bottom): a box of one pixel has area 1.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seglite.data import IGNORE, normalise
from seglite.data.transforms import crop, resize

THRESHOLDS = np.arange(100) / 100
LEVELS = 1000  # thresholds of the pixel curve


def box_of(mask: np.ndarray) -> np.ndarray:
    """The tight box around the True pixels. bool [H, W] -> int [4]; ValueError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError(f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels without a single True one has no box")
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of a [n, 4] with every box of b [m, 4] -> [n, m].

    The authors' evaluation adds 1 to both sides of both boxes although the predicted box is half open already, one pixel in its own favour; we do not.
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])  # [n, m, 2], [n, m, 2]
    both = (high - low).clip(0).prod(2)  # [n, m]
    area = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return both / (area(a)[:, None] + area(b)[None] - both)  # [n, m]


def component_boxes(heat: np.ndarray, thresholds: Sequence[float]) -> list[np.ndarray]:
    """Box and size of every connected component of `heat > threshold`, for all thresholds in one pass.

    heat float [H, W] -> per threshold int [n, 5]: left, top, right, bottom, pixels. Pixels enter from the highest down and join the components
    they touch (a union-find forest); a component keeps its box as it grows, so a threshold costs no more than the pixels between it and the last.
    """
    H, W = heat.shape
    stride = W + 2  # a border of absent pixels instead of tests for the edge
    flat = heat.ravel()
    order = np.argsort(-flat, kind="stable")
    values = flat[order].tolist()
    rows, columns = (part.tolist() for part in np.divmod(order, W))
    parent = [-1] * ((H + 2) * stride)
    boxes: dict[int, list[int]] = {}  # root -> left, top, right, bottom, pixels
    around = (-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1)
    found: dict[float, np.ndarray] = {}
    i, count = 0, len(values)
    for threshold in sorted({float(t) for t in thresholds}, reverse=True):
        while i < count and values[i] > threshold:
            y, x = rows[i], columns[i]
            i += 1
            own = (y + 1) * stride + x + 1
            parent[own] = own
            box = [x, y, x + 1, y + 1, 1]
            for step in around:
                other = own + step
                if parent[other] < 0:
                    continue
                while parent[other] != other:
                    parent[other] = parent[parent[other]]  # halves the path for the next one who asks
                    other = parent[other]
                root = parent[own]
                if other == root:
                    continue
                theirs = boxes.pop(other)
                boxes.pop(root, None)
                box = [min(box[0], theirs[0]), min(box[1], theirs[1]), max(box[2], theirs[2]), max(box[3], theirs[3]), box[4] + theirs[4]]
                parent[root] = parent[own] = other
            boxes[parent[own]] = box
        found[threshold] = np.array(list(boxes.values()), np.int64).reshape(-1, 5)
    return [found[float(t)] for t in thresholds]


def largest_box(components: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The box of the component with most pixels, or the whole image (H, W) without any. [n, 5] -> [4]."""
    return components[components[:, 4].argmax(), :4] if len(components) else np.array([0, 0, size[1], size[0]])


class Localisation:
    """Collects images one by one; the scores can be asked for at any time, also for some of the images only.

    add(heat float [H, W] in 0..1, boxes int [m, 4], mask bool [H, W] or None, ignore bool [H, W] or None, rank): rank is the place of the true class
    in the classification, 0 for the first. Any of the true boxes may be matched.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS):
        self.thresholds = np.asarray(thresholds, float)
        self.largest: list[np.ndarray] = []  # per image: IoU of the largest component's box, per threshold
        self.best: list[np.ndarray] = []  # per image: the best IoU of any component's box, per threshold
        self.rank: list[int] = []
        self.inside: list[np.ndarray] = []  # per image: histogram of the map over the object's pixels
        self.outside: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.rank)

    def add(self, heat: np.ndarray, boxes: np.ndarray, mask: np.ndarray | None = None, ignore: np.ndarray | None = None, rank: int = 0) -> None:
        boxes = np.asarray(boxes).reshape(-1, 4)
        if not len(boxes):
            raise ValueError("an image without a true box cannot be scored for localisation; leave it out of the list")
        if not (np.isfinite(heat).all() and 0 <= heat.min() and heat.max() <= 1):
            raise ValueError(f"a localisation map lies in {heat.min():.3g}..{heat.max():.3g}; normalise it to 0..1 first")
        largest, best = [], []
        for components in component_boxes(heat, self.thresholds):
            chosen = largest_box(components, heat.shape)[None]
            largest.append(box_iou(chosen, boxes).max())
            best.append(box_iou(components[:, :4] if len(components) else chosen, boxes).max())
        self.largest.append(np.array(largest))
        self.best.append(np.array(best))
        self.rank.append(int(rank))
        if mask is not None:
            counted = np.ones(mask.shape, bool) if ignore is None else ~ignore
            level = np.minimum((heat * LEVELS).astype(int), LEVELS)
            self.inside.append(np.bincount(level[mask & counted], minlength=LEVELS + 1))
            self.outside.append(np.bincount(level[~mask & counted], minlength=LEVELS + 1))

    def _rows(self, images) -> np.ndarray:
        return np.arange(len(self)) if images is None else np.asarray(images)

    # ---- boxes ----

    def best_threshold(self, iou: float = 0.5, images: Sequence[int] | None = None) -> float:
        """The threshold with most boxes right; the middle one of equals."""
        right = (np.stack(self.largest)[self._rows(images)] >= iou).mean(0)
        equal = np.flatnonzero(right == right.max())
        return float(self.thresholds[equal[len(equal) // 2]])

    def box_accuracy(self, threshold: float, iou: float = 0.5, top: int | None = None, images: Sequence[int] | None = None) -> float:
        """GT-known localisation at one threshold; with top=1 or 5 the class must be right as well."""
        at = int(np.abs(self.thresholds - threshold).argmin())
        if abs(self.thresholds[at] - threshold) > 1e-6:
            raise ValueError(f"threshold {threshold} was not measured; the nearest measured one is {self.thresholds[at]:g}")
        rows = self._rows(images)
        right = np.stack(self.largest)[rows, at] >= iou
        return float((right & (np.array(self.rank)[rows] < top)).mean() if top else right.mean())

    def max_box_acc(self, iou: float = 0.5, images: Sequence[int] | None = None) -> float:
        """MaxBoxAcc: the largest component's box at the best threshold."""
        return float((np.stack(self.largest)[self._rows(images)] >= iou).mean(0).max())

    def max_box_acc_v2(self, ious: Sequence[float] = (0.3, 0.5, 0.7), images: Sequence[int] | None = None) -> float:
        """MaxBoxAccV2: the best component's box, the best threshold for each IoU, averaged over the IoUs."""
        best = np.stack(self.best)[self._rows(images)]
        return float(np.mean([(best >= iou).mean(0).max() for iou in ious]))

    # ---- pixels ----

    def _levels(self, images) -> tuple[np.ndarray, np.ndarray]:
        if len(self.inside) != len(self):
            raise ValueError("the pixel curve needs a mask with every image; some were added without")
        rows = self._rows(images)
        return np.stack(self.inside)[rows].sum(0), np.stack(self.outside)[rows].sum(0)

    def pixel_curve(self, images: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and IoU of all pixels together at thresholds from high to low; a threshold that no pixel reaches is left out."""
        inside, outside = self._levels(images)
        hit, false = inside[::-1].cumsum(), outside[::-1].cumsum()
        reached = hit + false > 0
        hit, false = hit[reached], false[reached]
        return hit / (hit + false), hit / hit[-1], hit / (hit[-1] + false)

    def pxap(self, images: Sequence[int] | None = None) -> float:
        """Area under the curve: every step of recall at the precision after it."""
        precision, recall, _ = self.pixel_curve(images)
        return float((precision * np.diff(recall, prepend=0.0)).sum())

    def piou(self, images: Sequence[int] | None = None) -> float:
        """The best IoU of all pixels together."""
        return float(self.pixel_curve(images)[2].max())

    def at_half(self, images: Sequence[int] | None = None) -> tuple[float, float]:
        """Recall and IoU of all pixels together where the map is at least 0.5. PxAP and pIoU are blind to a map's height, these are not."""
        inside, outside = self._levels(images)
        hit, false = inside[LEVELS // 2 :].sum(), outside[LEVELS // 2 :].sum()
        return float(hit / inside.sum()), float(hit / (inside.sum() + false))

    def summary(self, threshold: float, images: Sequence[int] | None = None) -> dict[str, float]:
        """All scores by name, boxes at `threshold`."""
        at = lambda top=None: self.box_accuracy(threshold, 0.5, top, images)
        recall, iou = self.at_half(images)
        return {"GT-known": at(), "Top-1": at(1), "Top-5": at(5), "MaxBoxAcc": self.max_box_acc(0.5, images), "MaxBoxAccV2": self.max_box_acc_v2(images=images),
                "PxAP": self.pxap(images), "pIoU": self.piou(images), "recall at half": recall, "IoU at half": iou}


# ---- images and pictures -----------------------------------------------------------------------------------------------------------------


def scored_frames(data, square: int = 0, test_crop: int = 0) -> Iterator[tuple[list[dict], torch.Tensor, torch.Tensor]]:
    """Images of one class in the frame in which they are scored: samples (image, mask, tags), what is classified and what is localised.

    square: images are first resized to that square; test_crop: localised in its centre; 0 leaves either out. Fifty at a time, [B, 3, H, W] each.
    """
    for first in range(0, len(data), 50):
        samples, whole = [], []
        for index in range(first, min(first + 50, len(data))):
            sample = dict(data.read(index, ("image", "mask", "tags")), index=index)
            if sample["tags"].sum() != 1:
                raise ValueError(f"{data.name(index)} has {int(sample['tags'].sum())} classes; localisation is scored on images with exactly one")
            if square:
                sample = resize(sample, square, square)
            whole.append(normalise(np.array(sample["image"]), data))
            if test_crop:
                edge = (sample["image"].shape[0] - test_crop) // 2, (sample["image"].shape[1] - test_crop) // 2
                sample = crop(sample, *edge, test_crop, test_crop, np.zeros(3, np.uint8))
            samples.append(sample)
        shapes = {s["image"].shape for s in samples}
        if len(shapes) > 1:
            raise ValueError(f"validation images {first} to {index} differ in size ({len(shapes)} sizes); set square=256 to give them one")
        yield samples, torch.stack(whole), normalise(np.stack([s["image"] for s in samples]), data)


def ten_crops(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Four corners, the centre, and the mirror images of the five. [B, 3, H, W] -> ten of [B, 3, side, side]."""
    H, W = image.shape[-2:]
    places = [(0, 0), (0, W - side), (H - side, 0), (H - side, W - side), ((H - side) // 2, (W - side) // 2)]
    crops = [image[..., y : y + side, x : x + side] for y, x in places]
    return crops + [c.flip(-1) for c in crops]


def with_boxes(sample: dict, heat: np.ndarray, threshold: float) -> np.ndarray:
    """The map as red on grey, the predicted box in yellow, the true one in green. uint8 [H, W, 3]."""
    grey = sample["image"].mean(2, keepdims=True) * 0.8  # [H, W, 1]
    picture = (grey * (1 - heat[..., None]) + np.array([230, 60, 40]) * heat[..., None]).astype(np.uint8)  # [H, W, 3]
    boxes = [((240, 220, 40), largest_box(component_boxes(heat, [threshold])[0], heat.shape))]
    objects = (sample["truth"] > 0) & (sample["truth"] != IGNORE)  # [H, W]
    if objects.any():
        boxes.insert(0, ((60, 200, 90), box_of(objects)))
    for colour, (left, top, right, bottom) in boxes:
        picture[[top, bottom - 1], left:right] = colour
        picture[top:bottom, [left, right - 1]] = colour
    return picture
