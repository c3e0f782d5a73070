"""Lesson 10's checks accept the solution, and tell each known mistake by its name."""
import math

import torch
from torch.nn.functional import normalize

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "10"))
distance, centroid, delete, certainty = SOLUTION.background_distance, SOLUTION.debiased_centroid, SOLUTION.delete, SOLUTION.certainty
table = lambda a, b: normalize(a, dim=1) @ normalize(b, dim=1).T


def refuse_big(function):
    def wrapped(a, b):
        if len(a) > 1000:
            raise MemoryError("a table of 160 GB")
        return function(a, b)
    return wrapped


def own_class(labels, codes, V, tags, threshold):
    cosine = (normalize(codes, dim=0) * normalize(V, dim=1)[labels.clamp_max(3)].permute(2, 0, 1)).sum(0)
    return torch.where((labels > 0) & (labels != 255) & (cosine <= threshold), 254, labels)


WRONG = [
    ("distance", refuse_big(lambda a, b: (1 - table(a, b).mean(1)) / 2), "whole table"),
    ("distance", refuse_big(lambda a, b: (1 - table(a, b).amax(1)) / 2), "nearest background centre"),
    ("distance", lambda a, b: 2 * distance(a, b), "twice too large"),
    ("distance", lambda a, b: 1 - distance(a, b), "must be a distance"),
    ("distance", lambda a, b: (1 - normalize(a, dim=1) @ normalize(b.mean(0), dim=0)) / 2, "direction of the mean"),
    ("distance", lambda a, b: (1 - a @ b.mean(0)) / 2, "unit length"),
    ("centroid", lambda c, d, a: centroid(c, -d, a), "those are the context"),
    ("centroid", lambda c, d, a: c[d.argsort(descending=True)[: int(a * len(c))]].mean(0), "rounds down"),
    ("centroid", lambda c, d, a: centroid(c, d, a) * math.ceil(a * len(c)), "sums where"),
    ("centroid", lambda c, d, a: c.mean(0), "three farthest"),
    ("delete", own_class, "its own label"),
    ("delete", lambda l, c, V, t, th: delete(l, c, V, torch.ones_like(t), th), "not in the image"),
    ("delete", lambda l, c, V, t, th: torch.where(delete(l, c, V, t, th) == 254, 0, l), "made background"),
    ("delete", lambda l, c, V, t, th: delete(l, c, V, t, th).masked_fill(l == 0, 254), "touched background"),
    ("delete", lambda l, c, V, t, th: delete(l, c, V, t, th).masked_fill(l == 255, 254), "stay ignored"),
    ("certainty", lambda l, p, t, b: certainty(l, p, t, True), "foreground classes only"),
    ("certainty", lambda l, p, t, b: certainty(l, p, t, False), "ignored with_background"),
    ("certainty", lambda l, p, t, b: certainty(l, p, torch.ones_like(t), b), "tags rule out"),
    ("certainty", lambda l, p, t, b: certainty(torch.full_like(l, 254), p, t, b), "nothing was deleted"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("10", WRONG, 4)
