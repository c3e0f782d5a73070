"""Checks of lesson 06: each returns sentences that name the mistake, or an empty list."""
import torch
import torch.nn.functional as F

from lessons.check import attempt


def _same(answer, expected) -> bool:
    return isinstance(answer, torch.Tensor) and answer.shape == expected.shape and torch.allclose(answer.double(), expected.double(), atol=1e-5)


def check_attention_cost(function) -> list[str]:
    for kind, h, w in (("full", 12, 15), ("axial", 23, 30), ("squeeze", 23, 30)):
        n = h * w
        pairs = {"full": n * n, "axial": n * (h + w), "squeeze": h * h + w * w}[kind]
        answer, problem = attempt(function, kind, h, w, 8, 16, 32)
        if problem:
            return [problem]
        if answer == 8 * 48 * pairs:
            continue
        where = f"attention_cost({kind!r}, {h}, {w}) is {answer}, expected {8 * 48 * pairs}"
        known = {
            48 * pairs: ": each of the 8 heads does this",
            8 * 16 * pairs: ": the product with the values counts too, 32 channels more",
            8 * 32 * pairs: ": the product of queries and keys counts too, 16 channels more",
            2 * 8 * 48 * pairs: ": a multiply and its add are one",
        }
        if kind == "axial":
            known |= {8 * 48 * n * h * w: ": a pixel meets h + w others, not h * w", 8 * 48 * (h * h + w * w): ": that is squeeze; here every pixel asks, not every row"}
        if kind == "squeeze":
            known |= {8 * 48 * (h + w) ** 2: ": rows do not attend to columns", 8 * 48 * (h + w): ": every row meets every row: a square"}
        return [where + known.get(answer, "")]
    return []


def check_row_answer(function) -> list[str]:
    g = torch.Generator().manual_seed(0)
    q, k = (2 * torch.randn(2, 4, 5, 7, generator=g) for _ in range(2))
    v = torch.randn(2, 3, 5, 7, generator=g)

    def answer_of(axis=3, scale=0.5, dim=-1, total=False, flip=False):
        a, b, c = ((t.sum(axis) if total else t.mean(axis)) for t in (q, k, v))
        share = torch.softmax(a.mT @ b * scale, dim=dim)
        return c @ (share if flip else share.mT)

    answer, problem = attempt(function, q.clone(), k.clone(), v.clone())
    if problem:
        return [problem]
    expected = answer_of()
    if _same(answer, expected):
        return []
    shape = list(getattr(answer, "shape", []))
    if shape == [2, 3, 7]:
        return ["row_answer gave one answer per column: the average of a row runs over w, the last axis, and leaves h tokens"]
    if shape == [2, 5, 3]:
        return ["row_answer gave [B, h, E]: transpose it, channels come before positions here"]
    if shape != [2, 3, 5]:
        return [f"row_answer gave shape {shape}; for v [2, 3, 5, 7] it must be [2, 3, 5]"]
    for wrong, words in ((answer_of(scale=1.0), "the logits are not divided by sqrt(D)"),
                         (answer_of(dim=-2), "the softmax runs over queries: each query's probabilities must sum to 1 over the keys"),
                         (answer_of(total=True), "rows are summed, not averaged: a wider image would give other logits"),
                         (answer_of(flip=True), "the probabilities are transposed: row i must hear the values of the rows it asked for")):
        if _same(answer, wrong):
            return ["row_answer: " + words]
    return ["row_answer differs from softmax(mean(q) mean(k)' / sqrt(D)) mean(v)"]


def check_live_taps(function) -> list[str]:
    g = torch.Generator().manual_seed(1)
    for size in (3, 7):
        weight, x = torch.randn(4, 3, size, size, generator=g), torch.randn(2, 3, 1, 1, generator=g)
        answer, problem = attempt(function, weight.clone())
        if problem:
            return [problem]
        if not isinstance(answer, torch.Tensor) or answer.shape != (4, 3, 1, 1):
            return [f"live_taps gave shape {list(getattr(answer, 'shape', []))} for a kernel of {size}; it must be [4, 3, 1, 1]"]
        if torch.allclose(F.conv2d(x, weight, padding=size // 2), F.conv2d(x, answer), atol=1e-5):
            continue
        if torch.allclose(answer, weight.sum((2, 3), keepdim=True), atol=1e-5):
            return ["live_taps adds all taps: the others meet zeros of the padding, not the pixel"]
        if torch.allclose(answer, weight.mean((2, 3), keepdim=True), atol=1e-5):
            return ["live_taps averages the taps: only one of them ever meets the pixel"]
        if torch.allclose(answer, weight[:, :, :1, :1], atol=1e-5):
            return ["live_taps takes a corner: with padding k // 2 the pixel lies under the middle of the kernel"]
        return [f"live_taps: the 1x1 convolution differs from the {size}x{size} one on a map of one pixel"]
    return []


def check_fold(function) -> list[str]:
    g = torch.Generator().manual_seed(2)
    weight, x = torch.randn(4, 3, 3, 3, generator=g), torch.randn(2, 3, 6, 5, generator=g)
    gamma, beta, mean = (torch.randn(4, generator=g) for _ in range(3))
    var, eps = torch.rand(4, generator=g) * 0.05 + 0.01, 0.01
    answer, problem = attempt(function, weight.clone(), gamma.clone(), beta.clone(), mean.clone(), var.clone(), eps)
    if problem:
        return [problem]
    if not (isinstance(answer, tuple) and len(answer) == 2):
        return [f"fold must return a pair (weight, bias); got {type(answer).__name__}"]
    w, b = answer
    if w.shape != weight.shape or b.shape != (4,):
        return [f"fold gave shapes {list(w.shape)} and {list(b.shape)}; expected [4, 3, 3, 3] and [4]"]
    expected = F.batch_norm(F.conv2d(x, weight), mean, var, gamma, beta, False, 0.0, eps)
    if torch.allclose(F.conv2d(x, w, b), expected, atol=1e-4):
        return []
    true = gamma / torch.sqrt(var + eps)
    for factor, words in ((gamma / torch.sqrt(var), "eps is left out: it stands under the root, with the variance"),
                          (gamma / (var + eps), "the variance wants a square root: one divides by the deviation"),
                          (gamma / (torch.sqrt(var) + eps), "eps belongs under the root"),
                          (1 / torch.sqrt(var + eps), "gamma is left out")):
        if torch.allclose(w, weight * factor[:, None, None, None], atol=1e-5):
            return ["fold: " + words]
    if torch.allclose(w, weight * true[:, None, None, None], atol=1e-5):
        for bias, words in ((beta, "the mean is not moved into the bias"), (beta - mean, "the mean must be scaled like everything else that is subtracted from"),
                            (beta + mean * true, "the mean is subtracted, not added")):
            if torch.allclose(b, bias, atol=1e-5):
                return ["fold: " + words]
        return ["fold: the weight is right, the bias is not"]
    return ["fold: one factor per OUTPUT channel multiplies the weight, gamma / sqrt(var + eps)"]


def check_hard_pixels(function) -> list[str]:
    likely = torch.tensor([0.95, 0.10, 0.60, 0.99, 0.30, 0.91, 0.97])
    for threshold, keep, expected, words in ((0.7, 2, [1, 2, 4], "every pixel at or below the threshold counts, also beyond `keep`"),
                                             (0.2, 4, [1, 2, 4, 5], "with only one pixel below the threshold the 4 least likely must be kept"),
                                             (0.2, 9, range(7), "with fewer pixels than `keep` all of them are kept")):
        answer, problem = attempt(function, likely.clone(), threshold, keep)
        if problem:
            return [problem]
        if not isinstance(answer, torch.Tensor) or answer.dtype != torch.bool or answer.shape != likely.shape:
            return ["hard_pixels must return a bool tensor of the shape of likely"]
        chosen = answer.nonzero()[:, 0].tolist()
        if chosen == list(expected):
            continue
        if chosen == (likely > threshold).nonzero()[:, 0].tolist():
            return ["hard_pixels keeps the easy ones: hard are those whose true class is UNlikely"]
        return [f"hard_pixels(threshold={threshold}, keep={keep}) keeps pixels {chosen}, expected {list(expected)}: {words}"]
    return []


def check(module) -> list[str]:
    return [s for name, function in (("attention_cost", check_attention_cost), ("row_answer", check_row_answer), ("live_taps", check_live_taps),
                                     ("fold", check_fold), ("hard_pixels", check_hard_pixels)) for s in function(getattr(module, name))]
