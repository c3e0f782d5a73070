"""What can go wrong in the exercises of lesson 12, by name. Expected values are worked out here with plain loops."""
import math

import torch
from torch.nn import functional as F

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(a, b) -> bool:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool(torch.allclose(a, b, atol=1e-5))


def check_cells(function) -> list[str]:
    answer, problem = attempt(function, [1, 3], 224)
    if problem:
        return [problem]
    answer = [tuple(float(v) for v in box) for box in answer]
    box = lambda s, r, c: (224 * c / s, 224 * r / s, 224 * (c + 1) / s, 224 * (r + 1) / s)  # noqa: E731
    expected = [box(1, 0, 0)] + [box(3, r, c) for r in range(3) for c in range(3)]
    if len(answer) != 10:
        return [f"cells of the grids 1 and 3 are 1 + 9 = 10, got {len(answer)}"]
    if _close(answer, expected):
        return []
    if _close(answer, [expected[0]] + [box(3, r, c) for c in range(3) for r in range(3)]):
        return ["cells goes down the columns, or gives (top, left, bottom, right): the second cell lies to the right of the first"]
    if any(float(v) != int(v) for e in expected for v in e) and all(v == int(v) for b in answer for v in b):
        return ["cells rounds to whole pixels: 224 / 3 is 74.67, and the resize takes fractional boxes"]
    if _close([(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in answer], expected):
        return ["cells gives widths and heights; wanted are the right and the bottom edge"]
    return [f"cells gave {answer[1]} for the second cell, expected {tuple(round(v, 2) for v in expected[1])}"]


def check_hide(function) -> list[str]:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.7, 0.3], [0.1, 0.9, 0.8, 0.2, 0.4]])
    answer, problem = attempt(function, noise, 0.5)
    if problem:
        return [problem]
    keep, removed = answer
    places = [sorted(row) for row in torch.as_tensor(keep).tolist()]
    if [len(p) for p in places] == [3, 3]:
        return ["hide keeps 3 of 5 patches at ratio 0.5: int(5 * 0.5) = 2 stay"]
    if places == [[0, 3], [1, 2]]:
        return ["hide keeps the patches of highest noise; the lowest stay"]
    if places[0] == places[1] == [1, 4]:
        return ["hide hides the same places in every image: each has its own noise"]
    if places != [[1, 4], [0, 3]]:
        return [f"hide keeps places {places}, expected [[1, 4], [0, 3]]"]
    expected = [[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]]
    if _close(removed, 1 - torch.tensor(expected)):
        return ["hide marks visible patches with 1; removed is 1 where a patch is hidden"]
    if not _close(removed, expected):
        return [f"hide gives removed {torch.as_tensor(removed).tolist()}, expected {expected}"]
    answer, problem = attempt(function, _random(1, 196), 0.6)
    return [] if answer is not None and answer[0].shape[1] == 78 else [problem or "hide at ratio 0.6 must leave 78 of 196 patches"]


def check_matching(function) -> list[str]:
    segments, views = 3 * _random(2, 3, 4), 5 * _random(2, 5, 4, seed=1)
    segments[0, 0] = 2 * views[0, 0]  # the whole image, which must not count
    answer, problem = attempt(function, segments, views)
    if problem:
        return [problem]
    unit = lambda x: F.normalize(x, dim=-1)  # noqa: E731

    def by_hand(g, v, distance, choose=min):
        return sum(choose(float(distance(g[b, i], v[b, k])) for k in range(v.shape[1])) for b in range(2) for i in range(3)) / 6

    l1 = lambda a, b: (a - b).abs().sum()  # noqa: E731
    expected = by_hand(unit(segments), unit(views[:, 1:]), l1)
    if _close(answer, expected):
        return []
    mean = lambda values: (lambda v: sum(v) / len(v))(list(values))  # noqa: E731
    for wrong, why in ((by_hand(unit(segments), unit(views), l1), "lets the whole image take part: every token could settle for it"),
                       (by_hand(segments, views[:, 1:], l1), "compares raw vectors: make them unit vectors first"),
                       (by_hand(unit(segments), unit(views[:, 1:]), lambda a, b: (a - b).norm()), "measures L2; the paper takes L1"),
                       (expected / 4, "averages over the coordinates; wanted is their sum"),
                       (expected * 3, "sums over segments where the mean is wanted"), (expected * 6, "sums over segments and images where the mean is wanted"),
                       (by_hand(unit(segments), unit(views[:, 1:]), l1, max), "takes the farthest view"),
                       (by_hand(unit(segments), unit(views[:, 1:]), l1, mean), "averages over the views: that is distillation; matching takes the nearest")):
        if _close(answer, wrong):
            return [f"matching {why}"]
    return [f"matching gave {float(torch.as_tensor(answer).double().mean()):.4f}, expected {expected:.4f}"]


def check_scores(function) -> list[str]:
    tokens, pooled, classes = (F.normalize(_random(*s, seed=i), dim=-1) for i, s in enumerate(((3, 4), (4,), (6, 4))))
    answer, problem = attempt(function, tokens, pooled, classes, 5.0, 2)
    if problem:
        return [problem]
    cosine = [[float(t @ c) for c in classes] for t in tokens]

    def softmax(line, kept):
        e = [math.exp(v) if k in kept else 0.0 for k, v in enumerate(line)]
        return [v / sum(e) for v in e]

    kept = sorted(range(6), key=lambda k: -float(pooled @ classes[k]))[:2]
    everywhere = [softmax([5 * v for v in line], range(6)) for line in cosine]
    filtered = [softmax([5 * v for v in line], kept) for line in cosine]
    product = lambda a, b: [[x * y for x, y in zip(p, q)] for p, q in zip(a, b)]  # noqa: E731
    if _close(answer, product(everywhere, filtered)):
        return []
    own = [softmax([5 * v for v in line], sorted(range(6), key=lambda k: -line[k])[:2]) for line in cosine]
    flat = [softmax(line, range(6)) for line in cosine], [softmax(line, kept) for line in cosine]
    for wrong, why in ((everywhere, "leaves out the image's filter"), (filtered, "leaves out the softmax over all classes: the filtered one alone is too sure"),
                       (product(everywhere, own), "lets every segment choose its own top classes; the image's pooled vector chooses for all"),
                       (product(*flat), "does not use the scale: cosines are near each other, so their softmax is flat")):
        if _close(answer, wrong):
            return [f"scores {why}"]
    return ["scores is not softmax over all classes times softmax over the image's top classes"]


def check_with_background(function) -> list[str]:
    table = torch.tensor([[0.2, 0.7], [0.6, 0.1], [0.3, 0.3]])
    for threshold, expected in ((0.65, [2, 0, 0]), (0.1, [2, 1, 1]), (0.95, [2, 0, 0])):
        answer, problem = attempt(function, table, threshold)
        if problem:
            return [problem]
        found = torch.as_tensor(answer).tolist()
        if found == expected:
            continue
        if found == [0, 0, 0]:
            return ["with_background made everything background: min(threshold, best score of the image) lets at least one segment live"]
        if len(found) == 3 and found == [e - 1 if e else 0 for e in expected] or max(found) < max(expected):
            return ["with_background numbers classes from 0: 0 is background, the first class is 1"]
        return [f"with_background(threshold={threshold}) gave {found}, expected {expected}"]
    return []


def check(module) -> list[str]:
    parts = ((check_cells, "cells"), (check_hide, "hide"), (check_matching, "matching"), (check_scores, "scores"), (check_with_background, "with_background"))
    return [problem for part, name in parts for problem in part(getattr(module, name))]
