"""Lesson 01's checks accept the solution, and tell each known mistake by its name."""
import numpy as np
import pytest

from lessons.check import find, load, main
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "01"))
s_confusion, s_mean, s_boundary = SOLUTION.confusion, SOLUTION.mean_iou, SOLUTION.boundary_iou


def table(truth, prediction, classes, transpose=False, keep_ignored=False, dtype=np.int64, wrap=False, once=False):
    counts = np.zeros((classes, classes), dtype)
    if keep_ignored:
        truth = np.where(truth == 255, 0, truth)
    counted = truth != 255
    if wrap:
        with np.errstate(over="ignore"):
            cell = truth[counted] * np.uint8(classes) + prediction[counted]
        return np.bincount(cell, minlength=classes**2).reshape(classes, classes)
    if once:
        counts[truth[counted], prediction[counted]] += 1
    else:
        np.add.at(counts, (truth[counted], prediction[counted]), 1)
    return counts.T if transpose else counts


def ious(counts):
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    with np.errstate(invalid="ignore"):
        return hits / union


def eroded(mask, distance, frame=False, cross=False):
    for _ in range(distance):
        around = np.pad(mask, 1, constant_values=frame)
        H, W = mask.shape
        mask = np.logical_and.reduce([around[dy : dy + H, dx : dx + W] for dy in range(3) for dx in range(3) if not cross or 1 in (dy, dx)])
    return mask


def overlap(a, b):
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else float("nan")


WRONG = [
    ("confusion", lambda t, p, k: None, "returned None"),
    ("confusion", lambda t, p, k: table(t, p, k, transpose=True), "transposed"),
    ("confusion", lambda t, p, k: table(t, p, k, keep_ignored=True), "must not be counted"),
    ("confusion", lambda t, p, k: table(t, p, k, dtype=np.float32), "float32"),
    ("confusion", lambda t, p, k: table(t, p, k, once=True), "np.bincount"),
    ("confusion", lambda t, p, k: table(t, p, k, wrap=True), "wraps at 256"),
    ("confusion", lambda t, p, k: table(t, p, k).ravel(), "shape"),
    ("confusion", lambda t, p, k: 1 // 0, "ZeroDivisionError"),
    ("mean_iou", lambda c: None, "returned None"),
    ("mean_iou", lambda c: float(np.nan_to_num(ious(c)).mean()), "0/0 as 0"),
    ("mean_iou", lambda c: float(np.nan_to_num(ious(c), nan=1.0).mean()), "0/0 as 1"),
    ("mean_iou", lambda c: float(ious(c)[c.sum(1) > 0].mean()), "hallucinated"),
    ("mean_iou", lambda c: float((np.diag(c) / (c.sum(0) + c.sum(1)).clip(1))[:3].mean()), "hits twice"),
    ("mean_iou", lambda c: float((np.diag(c) / c.sum(1).clip(1))[:3].mean()), "recall"),
    ("mean_iou", lambda c: float(ious(c).mean()), "NaN"),
    ("dataset_miou", lambda pairs, k: None, "returned None"),
    ("dataset_miou", lambda pairs, k: float(np.mean([s_mean(s_confusion(t, p, k)) for t, p in pairs])), "mIoU of single images"),
    ("dataset_miou", lambda pairs, k: float(np.mean(np.nanmean([ious(s_confusion(t, p, k))[:4] for t, p in pairs], 0))), "class's IoU over images"),
    ("dataset_miou", lambda pairs, k: float(np.nan_to_num(ious(sum(s_confusion(t, p, k) for t, p in pairs))).mean()), "in no image"),
    ("dataset_miou", lambda pairs, k: s_mean(s_confusion(*pairs[0], k)), "expected"),
    ("boundary_iou", lambda a, b, d: None, "returned None"),
    ("boundary_iou", lambda a, b, d: overlap(a, b), "plain IoU"),
    ("boundary_iou", lambda a, b, d: overlap(a & ~eroded(a, d, frame=True), b & ~eroded(b, d, frame=True)), "image's edge"),
    ("boundary_iou", lambda a, b, d: overlap((a & ~eroded(a, d)) | (~a & ~eroded(~a, d, frame=True)), (b & ~eroded(b, d)) | (~b & ~eroded(~b, d, frame=True))), "both sides"),
    ("boundary_iou", lambda a, b, d: overlap(a & ~eroded(a, d, cross=True), b & ~eroded(b, d, cross=True)), "square"),
    ("boundary_iou", lambda a, b, d: overlap(a & ~eroded(a, d), b & ~eroded(a, d)), "each mask has its own"),
    ("boundary_iou", lambda a, b, d: overlap(a & ~eroded(a, 1), b & ~eroded(b, 1)), "width 1"),
    ("boundary_iou", lambda a, b, d: 0.0 if not (a | b).any() else s_boundary(a, b, d), "expected nan"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("01", WRONG, 4)


def test_command_line_without_such_a_lesson():
    assert main([]) == 2
    with pytest.raises(SystemExit, match="expected one"):
        main(["77"])
