"""What pseudo labels are worth: comparison with the masks, for reports and claims only. Nothing here may feed a training step.

Label maps are uint8 [H, W] with classes 0..K-1, 254 = deleted (open), 255 = ignore; `truth` is a data set that gives masks. Open and ignored
pseudo labels count as background: that is what they would mean to a segmenter that has to decide.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from seglite import pictures
from seglite.data import DELETED, IGNORE
from seglite.metrics import Confusion


def score(confusion: Confusion, problem: Sequence[str] = ()) -> dict[str, float]:
    """mIoU, the same over problem classes and over other foreground classes, and mean FP and FN (SEAM's shares of the union)."""
    chosen = [k for k, name in enumerate(confusion.names) if k and name in problem]
    other = [k for k in range(1, confusion.classes) if k not in chosen]
    fp, fn = confusion.false_positive(), confusion.false_negative()

    def mean(values):
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    return {"mIoU": confusion.miou(), "problem": mean(confusion.iou()[chosen]), "other": mean(confusion.iou()[other]),
            "FP": mean(fp), "FN": mean(fn), "problem FP": mean(fp[chosen])}


def compare(truth, maps: Iterable[np.ndarray]) -> Confusion:
    """Confusion of pseudo labels, one per image in order, with the masks."""
    confusion = Confusion(truth.classes)
    for i, labels in enumerate(maps):
        labels = np.asarray(labels)
        confusion.add(truth.read(i, ("mask",))["mask"], np.where(labels >= DELETED, 0, labels))
    return confusion


def deleted_shares(truth, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> np.ndarray:
    """Per class [K, 2]: which share of wrongly labelled and of rightly labelled pixels of `before` is deleted in `after`; NaN without pixels."""
    K = len(truth.classes)
    counts = np.zeros((2, 2, K))  # right or wrong, kept or deleted
    for i in range(len(truth)):
        mask, old, gone = truth.read(i, ("mask",))["mask"], np.asarray(before[i]), np.asarray(after[i]) == DELETED
        for c in np.unique(old[old < DELETED]):
            counted = (old == c) & (mask != IGNORE)
            for right in (0, 1):
                here = counted & ((mask == c) == bool(right))
                counts[right, :, c] += (here & ~gone).sum(), (here & gone).sum()
    total = counts.sum(1)
    return np.divide(counts[:, 1], total, out=np.full_like(total, np.nan), where=total > 0).T


def label_pictures(truth, maps: dict[str, Sequence[np.ndarray]], count: int = 5) -> list[dict]:
    """A report's figure: some training images, their masks and their pseudo labels."""
    samples = []
    for i in range(0, len(truth), max(len(truth) // count, 1))[:count]:
        sample = truth.read(i, ("image", "mask"))
        extra = {name: np.asarray(labels[i]) for name, labels in maps.items()}
        samples.append({"name": truth.name(i), "image": sample["image"], "truth": sample["mask"], "extra": extra})
    return [{"title": "Pseudo labels of training images", "image": pictures.panels(samples, truth.palette)}]


def target_flags(size: tuple[int, int], regions, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fig. 8: a centre is a target if its cluster overlaps the true object with IoU > 0.3, biased if < 0.1.

    size (h, w) of the feature map, regions as `kmeans.Regions`, masks [B, H, W] -> two bool [G, k].
    """
    truth = (masks[regions.image] == regions.label[:, None, None]).float()
    covered = F.adaptive_avg_pool2d(truth[:, None], size).flatten(2)  # [G, 1, N]
    member = F.one_hot(regions.cluster, regions.centres.shape[1]).mT * regions.inside[:, None]  # [G, k, N]
    both = (member * covered).sum(2)
    iou = both / (member.sum(2) + covered.sum(2) - both).clamp_min(1e-6)
    return iou > 0.3, iou < 0.1


def true_labels(run) -> list[np.ndarray]:
    """The masks, for the pixel-supervised bound only."""
    truth = run.truth("train")
    return [truth.read(i, ("mask",))["mask"] for i in range(len(truth))]
