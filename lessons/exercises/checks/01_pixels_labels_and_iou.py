"""What can go wrong in the exercises of lesson 01, by name. Expected values are worked out here, without the project's own metrics."""
import numpy as np

from lessons.check import attempt


def _pair(seed: int, classes: int, shape, ignore: float = 0.2):
    rng = np.random.default_rng(seed)
    truth, prediction = rng.integers(0, classes, shape), rng.integers(0, classes, shape)
    prediction = np.where(rng.random(shape) < 0.5, truth, prediction)
    return np.where(rng.random(shape) < ignore, 255, truth).astype(np.uint8), prediction.astype(np.uint8)


def _counts(truth, prediction, classes):
    table = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist()):
        if t != 255:
            table[t, p] += 1
    return table


def _ious(counts) -> list:
    """IoU per class; None for 0/0."""
    unions = [int(counts[k].sum() + counts[:, k].sum() - counts[k, k]) for k in range(len(counts))]
    return [counts[k, k] / union if union else None for k, union in enumerate(unions)]


def _mean(values) -> float:
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


def _same(a, b) -> bool:
    try:
        return abs(float(a) - float(b)) < 1e-9
    except (TypeError, ValueError):
        return False


def check_confusion(function) -> list[str]:
    truth, prediction = _pair(0, 4, (9, 11))
    answer, problem = attempt(function, truth, prediction, 4)
    if problem:
        return [problem]
    answer, expected = np.asarray(answer), _counts(truth, prediction, 4)
    if answer.shape != (4, 4):
        return [f"confusion gave an array of shape {list(answer.shape)}; it must be [4, 4] for 4 classes"]
    if (answer == expected.T).all():
        return ["confusion is transposed: rows are the true classes, columns the predicted ones"]
    if answer.sum() == truth.size:
        return [f"confusion counted all {truth.size} pixels, but {int((truth == 255).sum())} are 255 in the truth and must not be counted at all"]
    if (answer == (expected > 0)).all():
        return ["confusion holds only zeros and ones: an indexed `+= 1` counts repeated cells once; np.add.at or np.bincount count them all"]
    if (answer != expected).any():
        r, c = np.argwhere(answer != expected)[0]
        return [f"confusion[{r}, {c}] is {answer[r, c]}, expected {expected[r, c]}"]
    if answer.dtype.kind != "i" or answer.dtype.itemsize < 8:
        return [f"confusion is {answer.dtype}: counts of a data set need int64 (float32 stops counting at 2**24)"]
    truth, prediction = _pair(1, 150, (30, 30))
    answer, problem = attempt(function, truth, prediction, 150)
    if problem or (np.asarray(answer) != _counts(truth, prediction, 150)).any():
        return ["confusion is wrong for 150 classes: uint8 arithmetic wraps at 256, so widen the ids before multiplying" + (f" ({problem})" if problem else "")]
    return []


def check_mean_iou(function) -> list[str]:
    counts = np.array([[6, 1, 1, 0], [2, 7, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    ious = _ious(counts)
    answer, problem = attempt(function, counts.copy())
    if problem:
        return [problem]
    hits, rows, columns = np.diag(counts), counts.sum(1), counts.sum(0)
    mistakes = {
        "takes 0/0 as 0: the absent class 3 must be left out of the mean": sum(v or 0 for v in ious) / 4,
        "takes 0/0 as 1: the absent class 3 must be left out of the mean": (sum(v or 0 for v in ious) + 1) / 4,
        "leaves out class 2, which is not in the truth but was predicted: a hallucinated class counts with IoU 0": (ious[0] + ious[1]) / 2,
        "adds row and column without taking the hits off once: that union counts hits twice": float(np.mean((hits / (rows + columns).clip(1))[:3])),
        "divides by the truth alone: that is recall": float(np.mean((hits / rows.clip(1))[:3])),
    }
    if not _same(answer, _mean(ious)):
        for sentence, value in mistakes.items():
            if _same(answer, value):
                return [f"mean_iou {sentence}"]
        if isinstance(answer, float) and np.isnan(answer):
            return ["mean_iou gives NaN as soon as a class is absent: leave 0/0 out of the mean"]
        return [f"mean_iou of {counts.tolist()} is {answer}, expected {_mean(ious):.6f}"]
    return []


def check_dataset_miou(function) -> list[str]:
    pairs = [_pair(2, 3, (4, 5)), _pair(3, 4, (12, 7)), _pair(4, 2, (1, 30), ignore=0.6)]
    counts = [_counts(*pair, 5) for pair in pairs]
    answer, problem = attempt(function, [(t.copy(), p.copy()) for t, p in pairs], 5)
    if problem:
        return [problem]
    expected = _mean(_ious(sum(counts)))
    if _same(answer, expected):
        return []
    per_image = [_ious(c) for c in counts]
    per_class = [[ious[k] for ious in per_image if ious[k] is not None] for k in range(5)]
    if _same(answer, _mean([_mean(ious) for ious in per_image])):
        return ["dataset_miou averages the mIoU of single images: add up the counts of all images first and divide once"]
    if _same(answer, _mean([_mean(v) for v in per_class if v])):
        return ["dataset_miou averages each class's IoU over images: a tiny image then weighs as much as a large one; add up the counts first"]
    if _same(answer, sum(v or 0 for v in _ious(sum(counts))) / 5):
        return ["dataset_miou counts the class that occurs in no image as 0: leave it out of the mean"]
    return [f"dataset_miou is {answer}, expected {expected:.6f}"]


def _near_outside(mask: np.ndarray, distance: int, frame_is_outside: bool = True, square: bool = True) -> np.ndarray:
    """Straight from the definition, pixel by pixel."""
    H, W = mask.shape
    near = np.zeros((H, W), bool)
    steps = [(dy, dx) for dy in range(-distance, distance + 1) for dx in range(-distance, distance + 1) if square or abs(dy) + abs(dx) <= distance]
    for y in range(H):
        for x in range(W):
            for dy, dx in steps:
                inside_frame = 0 <= y + dy < H and 0 <= x + dx < W
                near[y, x] |= not mask[y + dy, x + dx] if inside_frame else frame_is_outside
    return near


def check_boundary_iou(function) -> list[str]:
    truth, prediction = np.zeros((16, 20), bool), np.zeros((16, 20), bool)
    truth[0:10, 3:14], prediction[0:12, 5:15] = True, True
    truth[0, 3] = truth[9, 13] = False  # two corners cut: a square element and a diamond see different bands

    def ratio(a, b):
        return (a & b).sum() / (a | b).sum()

    answer, problem = attempt(function, truth.copy(), prediction.copy(), 2)
    if problem:
        return [problem]
    near = {mask: _near_outside(array, 2) for mask, array in (("t", truth), ("p", prediction))}
    expected = ratio(truth & near["t"], prediction & near["p"])
    if not _same(answer, expected):
        both_sides = [_near_outside(m, 2) & _near_outside(~m, 2, frame_is_outside=False) for m in (truth, prediction)]
        outside_too = [(m & _near_outside(m, 2)) | (~m & _near_outside(~m, 2, frame_is_outside=False)) for m in (truth, prediction)]
        mistakes = {
            "is the plain IoU of the masks": ratio(truth, prediction),
            "does not treat the image's edge as a contour: beyond the frame everything is outside":
                ratio(*(m & _near_outside(m, 2, frame_is_outside=False) for m in (truth, prediction))),
            "takes the band on both sides of the contour: only pixels inside the mask belong to it": ratio(*outside_too),
            "takes thin lines on both sides of the contour: only pixels inside the mask belong to the band, all within the distance": ratio(*both_sides),
            "measures distance with a diamond (4 neighbours): rows and columns are bounded separately, so the element is a square":
                ratio(*(m & _near_outside(m, 2, square=False) for m in (truth, prediction))),
            "uses the truth's band for both masks: each mask has its own": ratio(truth & near["t"], prediction & near["t"]),
            "has bands of width 1 whatever the distance": ratio(*(m & _near_outside(m, 1) for m in (truth, prediction))),
        }
        for sentence, value in mistakes.items():
            if _same(answer, value):
                return [f"boundary_iou {sentence}"]
        return [f"boundary_iou of two overlapping boxes is {answer}, expected {expected:.6f}"]
    empty, problem = attempt(function, np.zeros((5, 5), bool), np.zeros((5, 5), bool), 1)
    if problem or not (isinstance(empty, float) and np.isnan(empty)):
        return [f"boundary_iou of two empty masks is {empty}{f' ({problem})' if problem else ''}, expected nan: there is nothing to compare"]
    return []


def check(module) -> list[str]:
    """Sentences that name what is wrong in the four exercises; empty when all is right."""
    return (check_confusion(module.confusion) + check_mean_iou(module.mean_iou)
            + check_dataset_miou(module.dataset_miou) + check_boundary_iou(module.boundary_iou))
