"""How good is a predicted label map? Counts first, ratios last.

Every number here is a ratio of pixel counts summed over the *whole data set*, so batches, image sizes and the number of processes
cannot change it. Three counters share one way of use, `counter.add(truth, prediction)`:

    Confusion     one count per (true class, predicted class): IoU, accuracies, false positives and negatives
    BoundaryIoU   the same overlap, but only inside a band along each mask's own contour    (Cheng et al., CVPR 2021, arXiv 2103.16562)
    Trimap        one Confusion per band width around the true boundaries                   (Krähenbühl & Koltun, NIPS 2011; DeepLab)

Label maps hold class ids 0..K-1; 255 in the truth means "ignore this pixel". K classes, H W image size.

mIoU here is the mean over the classes that occur in the truth or in the prediction; the others are left out and listed. Published code
disagrees on this point, so `Confusion.conventions()` gives the same counts under all four rules in use (lesson 01).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IGNORE = 255

CITYSCAPES_RAW = {
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 29: "caravan", 30: "trailer", 31: "train", 32: "motorcycle", 33: "bicycle",
}


# ---- reading label maps -------------------------------------------------------------------------------------------------------------


def best_class(scores: torch.Tensor) -> torch.Tensor:
    """The first of the highest scores per pixel: [B, K, H, W] or [B, K] -> int64 [B, H, W] or [B].

    `scores.argmax(1)`, in a fifth of the time: on a CPU argmax over a dimension that is not the last reads memory in steps, max does not
    (16 x 9 x 64 x 64 floats, one thread: 8.9 and 1.8 ms; it was a tenth of a training step).
    """
    return scores.max(1).indices


def _as_labels(labels, what: str) -> torch.Tensor:
    """A label map (numpy, torch or nested lists; integer or bool) as an int64 tensor of the same shape, on its own device."""
    labels = labels if isinstance(labels, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(labels))
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{what} must hold class ids as integers, got {labels.dtype}; scores become ids with .argmax over the class dimension")
    return labels.detach().long()


def _pair(truth, prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Both label maps as int64 tensors of one shape on the prediction's device."""
    prediction = _as_labels(prediction, "prediction")
    truth = _as_labels(truth, "truth").to(prediction.device)
    if truth.shape != prediction.shape:
        hint = "resize the prediction (its scores, not its ids) to the truth's size before comparing"
        if prediction.ndim == truth.ndim + 1:
            hint = "the prediction has one dimension more: if it is scores [B, K, H, W], take .argmax(1) first"
        raise ValueError(f"truth is {list(truth.shape)} and prediction is {list(prediction.shape)}, expected equal shapes; {hint}")
    return truth, prediction


def _reason(value: int, classes: int) -> str:
    """What a foreign label most likely is, and the way out."""
    if value == IGNORE:
        return "255 means ignore and belongs to the truth alone: a prediction must decide (map undecided pixels to a class, say background)"
    if value < 0:
        return f"negative ids often mark void: map {value} to 255 first"
    if value == 254:
        return "254 marks deleted pixels in pseudo labels: map it to 255 to leave them out, or to background to count them"
    if classes == 19 and value in CITYSCAPES_RAW:
        return f"{value} is Cityscapes' raw id of {CITYSCAPES_RAW[value]}: convert raw ids to the 19 training ids first"
    if value == classes:
        return f"ids seem to run from 1 to {classes}: subtract 1 (with 0 to 255), or count background as a class of its own"
    if value > 255:
        return "the file was read as packed colours: read the palette index (mode P) instead"
    return "the label map belongs to another class list, or a palette image was read as grey values: read its palette indices"


def _refuse_foreign(labels: torch.Tensor, allowed: torch.Tensor, classes: int, what: str, ignores: bool) -> None:
    """Raise one sentence about the first label outside the allowed ones."""
    place = tuple(int(i[0]) for i in torch.where(~allowed))
    value = int(labels[place])
    limits = f"0..{classes - 1}" + (" and 255 (ignore)" if ignores else "")
    raise ValueError(f"{what} holds {value} at {list(place)}; K={classes} allows {limits}. {_reason(value, classes)}")


def check_pair(truth, prediction, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both label maps as int64, and the bool map of pixels that count (truth is not 255).

    truth int [...], prediction int [...], any one shape. Raises ValueError on a truth outside 0..K-1 and 255, and on a prediction outside
    0..K-1 where the truth counts; what is predicted on ignored pixels is never looked at.
    """
    truth, prediction = _pair(truth, prediction)
    valid = truth != IGNORE
    known = (truth >= 0) & (truth < classes) | ~valid
    if not bool(known.all()):
        _refuse_foreign(truth, known, classes, "truth", ignores=True)
    known = (prediction >= 0) & (prediction < classes) | ~valid
    if not bool(known.all()):
        _refuse_foreign(prediction, known, classes, "prediction", ignores=False)
    return truth, prediction, valid


def _class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else tuple(classes)
    if not 1 <= len(names) <= 254:
        raise ValueError(f"a label map can hold 1 to 254 classes (255 is ignore), got {len(names)}")
    return names


def _sum_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """A new tensor: `counts` summed over all processes (itself when there is one)."""
    counts = counts.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # NCCL only reduces CUDA tensors, gloo is fine with CPU ones.
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        counts = counts.to(device)
        torch.distributed.all_reduce(counts)
    return counts.cpu()


# ---- the confusion matrix -----------------------------------------------------------------------------------------------------------


class Confusion:
    """How many pixels of true class r were predicted as class c: `counts[r, c]`, int64 [K, K].

    `classes` is K or the K class names. All ratios are in 0..1; a ratio of nothing (0/0) is NaN for one class and left out of means.
    """

    def __init__(self, classes: int | Sequence[str]):
        self.names = _class_names(classes)
        self.counts = torch.zeros(self.classes, self.classes, dtype=torch.int64)  # [K, K]

    @property
    def classes(self) -> int:
        return len(self.names)

    def add(self, truth, prediction) -> "Confusion":
        """Count one image or batch. truth int [...] with 255 = ignore, prediction int [...]; torch or numpy, any one shape."""
        truth, prediction, valid = check_pair(truth, prediction, self.classes)
        cell = truth[valid] * self.classes + prediction[valid]
        self.counts += torch.bincount(cell, minlength=self.classes**2).view(self.classes, self.classes).cpu()
        return self

    def merge(self, other: "Confusion") -> "Confusion":
        """Add another counter's pixels to this one."""
        if other.names != self.names:
            raise ValueError(f"cannot merge counts over classes {list(other.names)} into counts over {list(self.names)}")
        self.counts += other.counts
        return self

    def across_processes(self) -> "Confusion":
        """A new Confusion with the counts of all processes (a copy when there is one); every process must call it."""
        total = Confusion(self.names)
        total.counts = _sum_over_processes(self.counts)
        return total

    # Per class, float64 [K]; NaN where the class has nothing to divide by.

    @property
    def hits(self) -> np.ndarray:
        return self.counts.diagonal().numpy().astype(np.float64)

    @property
    def in_truth(self) -> np.ndarray:
        return self.counts.sum(1).numpy().astype(np.float64)

    @property
    def in_prediction(self) -> np.ndarray:
        return self.counts.sum(0).numpy().astype(np.float64)

    @property
    def union(self) -> np.ndarray:
        return self.in_truth + self.in_prediction - self.hits

    def iou(self) -> np.ndarray:
        """hits / union."""
        return _ratio(self.hits, self.union)

    def false_positive(self) -> np.ndarray:
        """(predicted - hits) / union: the share of the union that was claimed wrongly (SEAM, MARS section 4). IoU + FP + FN = 1 per class."""
        return _ratio(self.in_prediction - self.hits, self.union)

    def false_negative(self) -> np.ndarray:
        """(true - hits) / union: the share of the union that was missed."""
        return _ratio(self.in_truth - self.hits, self.union)

    def recall(self) -> np.ndarray:
        """hits / true pixels (its mean is the field's "class accuracy")."""
        return _ratio(self.hits, self.in_truth)

    def precision(self) -> np.ndarray:
        """hits / predicted pixels."""
        return _ratio(self.hits, self.in_prediction)

    # One number.

    def miou(self, only: Sequence[int] | None = None) -> float:
        """Mean IoU over the classes in truth or prediction; `only` restricts it to some class ids (old and new classes, say).

        NaN when none of the classes in `only` occurs; ValueError when no pixel at all was counted.
        """
        self._need_pixels()
        iou = self.iou() if only is None else self.iou()[list(only)]
        return _mean(iou)

    def pixel_accuracy(self) -> float:
        """Share of counted pixels that are right."""
        self._need_pixels()
        return float(self.hits.sum() / self.counts.sum().item())

    def class_accuracy(self) -> float:
        """Mean recall over the classes in the truth."""
        self._need_pixels()
        return _mean(self.recall())

    def absent(self) -> list[str]:
        """Names of the classes in neither truth nor prediction: the ones `miou` leaves out."""
        return [name for name, union in zip(self.names, self.union) if union == 0]

    def conventions(self) -> dict[str, float]:
        """The same counts under the four mIoU rules found in published code; they differ as soon as one class is missing.

        occurring     mean over classes in truth or prediction (this project's mIoU)
        in_truth      mean over classes in the truth: a class that is only hallucinated costs nothing by itself
        absent_is_0   mean over all K, 0/0 counted as 0 (a small constant in the denominator)
        absent_is_1   mean over all K, 0/0 counted as 1 (a small constant in numerator and denominator)
        """
        self._need_pixels()
        iou = self.iou()
        return {
            "occurring": _mean(iou),
            "in_truth": _mean(iou[self.in_truth > 0]),
            "absent_is_0": float(np.nan_to_num(iou, nan=0.0).mean()),
            "absent_is_1": float(np.nan_to_num(iou, nan=1.0).mean()),
        }

    def summary(self) -> dict:
        """The headline numbers by name: miou, pixel_accuracy, class_accuracy, fp, fn (means over occurring classes), pixels, absent."""
        return {
            "miou": self.miou(),
            "pixel_accuracy": self.pixel_accuracy(),
            "class_accuracy": self.class_accuracy(),
            "fp": _mean(self.false_positive()),
            "fn": _mean(self.false_negative()),
            "pixels": int(self.counts.sum()),
            "absent": self.absent(),
        }

    def rows(self) -> list[dict]:
        """One dict per class: class, iou, fp, fn, recall, precision, pixels (true). None instead of NaN, ready for JSON and CSV."""
        columns = {"iou": self.iou(), "fp": self.false_positive(), "fn": self.false_negative(),
                   "recall": self.recall(), "precision": self.precision()}
        return [
            {"class": name, **{key: None if np.isnan(v[k]) else float(v[k]) for key, v in columns.items()}, "pixels": int(self.in_truth[k])}
            for k, name in enumerate(self.names)
        ]

    def _need_pixels(self) -> None:
        if int(self.counts.sum()) == 0:
            raise ValueError("no pixel was counted, expected at least one; is the data set empty, or every truth pixel 255 (ignore)?")

    def __repr__(self) -> str:
        pixels = int(self.counts.sum())
        return f"Confusion({self.classes} classes, {pixels} pixels" + (f", mIoU {self.miou():.4f})" if pixels else ")")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


# ---- boundaries ---------------------------------------------------------------------------------------------------------------------


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels at most `radius` rows and `radius` columns away from a True pixel. bool [H, W] -> bool [H, W].

    That is a dilation by a (2*radius+1) square, or `radius` dilations by a 3x3 one. A summed-area table makes the cost independent of the radius.
    """
    if radius == 0:
        return mask.copy()
    H, W = mask.shape
    padded = np.zeros((H + 2 * radius + 1, W + 2 * radius + 1), np.int32)  # [H+2*radius+1, W+2*radius+1]
    padded[radius + 1 : radius + 1 + H, radius + 1 : radius + 1 + W] = mask
    table = padded.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)  # [H+2*radius+1, W+2*radius+1]
    side = 2 * radius + 1
    return table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side] > 0  # [H, W]


def inner_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """The part of a mask within `distance` pixels of its contour: the mask minus its erosion. bool [H, W] -> bool [H, W].

    Distance is Chebyshev's (a square element), and what lies outside the image counts as outside the mask, so a mask cut by the image's
    edge has a contour there: both as in the authors' code.
    """
    outside = np.pad(~mask, distance, constant_values=True)
    return mask & dilate(outside, distance)[distance:-distance, distance:-distance]  # [H, W]


def boundary_pixels(labels: np.ndarray) -> np.ndarray:
    """Pixels with a 4-neighbour of another class; steps to and from 255 do not count. int [H, W] -> bool [H, W]."""
    edge = np.zeros(labels.shape, bool)  # [H, W]
    for a, b in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        change = (labels[a] != labels[b]) & (labels[a] != IGNORE) & (labels[b] != IGNORE)
        edge[a] |= change
        edge[b] |= change
    return edge


def _images(truth, prediction, classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Checked (truth, prediction) pairs, one per image, as int64 [H, W]; input is [H, W] or [B, H, W]."""
    truth, prediction, _ = check_pair(truth, prediction, classes)
    if truth.ndim not in (2, 3):
        raise ValueError(f"boundary measures need label maps [H, W] or [B, H, W], got shape {list(truth.shape)}")
    truth, prediction = (x.cpu().numpy().reshape(-1, *x.shape[-2:]) for x in (truth, prediction))
    return list(zip(truth, prediction))


class BoundaryIoU:
    """IoU of the bands of width d just inside each mask's contour (Cheng et al., CVPR 2021): strict where plain IoU forgives.

    d = `ratio` of the image diagonal, rounded, at least 1 pixel; `ratio` is 2 % in the paper. Intersections and unions are summed over the
    data set per class. Void pixels (255 in the truth) are made void in the prediction too, so that both masks end at the void outline, and
    are not counted: a prediction that equals the truth wherever the truth counts scores 1 (our choice; the paper's data has no void).
    """

    def __init__(self, classes: int | Sequence[str], ratio: float = 0.02):
        if not 0 < ratio < 1:
            raise ValueError(f"ratio is the band's width as a share of the image diagonal, expected between 0 and 1, got {ratio}")
        self.names, self.ratio = _class_names(classes), ratio
        self.both = np.zeros(len(self.names), np.int64)
        self.either = np.zeros(len(self.names), np.int64)

    def distance(self, height: int, width: int) -> int:
        """d in pixels for an image of this size."""
        return max(1, round(self.ratio * (height**2 + width**2) ** 0.5))

    def add(self, truth, prediction) -> "BoundaryIoU":
        """Count one image [H, W] or a batch [B, H, W] of label maps (255 in the truth = ignore)."""
        for t, p in _images(truth, prediction, len(self.names)):
            p = np.where(t == IGNORE, IGNORE, p)
            d = self.distance(*t.shape)
            for k in np.union1d(t, p):
                if k != IGNORE:
                    a, b = inner_band(t == k, d), inner_band(p == k, d)
                    self.both[k] += (a & b).sum()
                    self.either[k] += (a | b).sum()
        return self

    def merge(self, other: "BoundaryIoU") -> "BoundaryIoU":
        """Add another counter's pixels to this one."""
        if (other.names, other.ratio) != (self.names, self.ratio):
            raise ValueError("cannot merge boundary counts with other classes or another band width")
        self.both += other.both
        self.either += other.either
        return self

    def across_processes(self) -> "BoundaryIoU":
        """A new BoundaryIoU with the counts of all processes; every process must call it."""
        total = BoundaryIoU(self.names, self.ratio)
        total.both, total.either = _sum_over_processes(torch.from_numpy(np.stack([self.both, self.either]))).numpy()
        return total

    def iou(self) -> np.ndarray:
        """Boundary IoU per class, float64 [K]; NaN for classes in neither truth nor prediction."""
        return _ratio(self.both.astype(np.float64), self.either.astype(np.float64))

    def miou(self) -> float:
        """Mean over the classes in truth or prediction."""
        if self.either.sum() == 0:
            raise ValueError("no pixel was counted, expected at least one; is the data set empty, or every truth pixel 255 (ignore)?")
        return _mean(self.iou())


class Trimap:
    """mIoU inside bands around the true boundaries, one Confusion per width: where along the edge are the errors?

    The band of width w holds the counted pixels within a (2w+1)-square of a seed pixel. Seeds (`seeds=`):
      "void"    void pixels (255), the protocol of DeepLab's own code: right for VOC, where void is a thin outline of every object
      "edges"   pixels with a 4-neighbour of another class: right for CamVid, Cityscapes and scenes, where void is absent or an area
      "auto"    void where an image has any, edges otherwise
    Compare numbers only between equal seeds; say which was used.
    """

    def __init__(self, classes: int | Sequence[str], widths: Sequence[int] = (1, 2, 5, 10, 20, 40), seeds: str = "auto"):
        if seeds not in ("void", "edges", "auto"):
            raise ValueError(f"seeds must be void, edges or auto, got {seeds!r}")
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be one or more whole numbers of at least 1 pixel, got {list(widths)}")
        self.seeds = seeds
        self.bands = {int(w): Confusion(classes) for w in widths}

    def add(self, truth, prediction) -> "Trimap":
        """Count one image [H, W] or a batch [B, H, W] of label maps (255 in the truth = ignore)."""
        classes = next(iter(self.bands.values())).classes
        for t, p in _images(truth, prediction, classes):
            void = t == IGNORE
            seeds = void if self.seeds == "void" or (self.seeds == "auto" and void.any()) else boundary_pixels(t)
            for width, confusion in self.bands.items():
                confusion.add(np.where(dilate(seeds, width), t, IGNORE), p)
        return self

    def merge(self, other: "Trimap") -> "Trimap":
        """Add another counter's pixels to this one."""
        if (list(other.bands), other.seeds) != (list(self.bands), self.seeds):
            raise ValueError(f"cannot merge bands {list(other.bands)} seeded by {other.seeds} into {list(self.bands)} seeded by {self.seeds}")
        for width, confusion in self.bands.items():
            confusion.merge(other.bands[width])
        return self

    def across_processes(self) -> "Trimap":
        """A new Trimap with the counts of all processes; every process must call it."""
        total = Trimap(1, list(self.bands), self.seeds)
        total.bands = {width: confusion.across_processes() for width, confusion in self.bands.items()}
        return total

    def miou(self) -> dict[int, float]:
        """{width in pixels: mIoU inside that band}; NaN where no pixel fell into the band."""
        return {width: _mean(confusion.iou()) for width, confusion in self.bands.items()}
