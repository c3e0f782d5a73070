"""Lesson 07's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "07"))
image_loss, mixed_labels, two_teachers, multiply_adds = SOLUTION.image_loss, SOLUTION.mixed_labels, SOLUTION.two_teachers, SOLUTION.multiply_adds


def gram(feature, v, unit=True, turn=False):
    q = F.adaptive_avg_pool2d(feature, v)
    q = (q.transpose(2, 3) if turn else q).flatten(2)
    q = F.normalize(q, dim=1) if unit else q
    return q.transpose(1, 2) @ q


def channels(feature, v):
    q = F.normalize(F.adaptive_avg_pool2d(feature, v).flatten(2), dim=2)
    return q @ q.transpose(1, 2)


def naive(z, a, b):
    normaliser = z.exp().sum(1).log()
    return sum((normaliser - z.gather(1, t.masked_fill(t == 255, 0)[:, None])[:, 0])[t != 255].mean() for t in (a, b))


def loose(z, a, b, mean):
    normaliser = torch.logsumexp(z, 1)
    terms = [torch.where(t != 255, normaliser - z.gather(1, t.masked_fill(t == 255, 0)[:, None])[:, 0], 0.0) for t in (a, b)]
    return mean(terms, [(t != 255).sum() for t in (a, b)])


WRONG = [
    ("relations", lambda f, v: gram(f, v, unit=False), "dot products"),
    ("relations", lambda f, v: gram(f, v, turn=True), "column by column"),
    ("relations", lambda f, v: gram(F.normalize(f, dim=1), v), "normalise before pooling"),
    ("relations", channels, "channels with channels"),
    ("relations", lambda f, v: gram(f, 2), "shape"),
    ("image", lambda s, t: (s.mean((2, 3)) - t.mean((2, 3))).abs().sum(), "is a sum"),
    ("image", lambda s, t: (s - t).abs().mean(), "pixel with pixel"),
    ("image", lambda s, t: (s.mean((2, 3)) - t.mean((2, 3))).square().mean(), "squares"),
    ("image", lambda s, t: (s.softmax(1).mean((2, 3)) - t.softmax(1).mean((2, 3))).abs().mean(), "probabilities"),
    ("image", lambda s, t: (s.mean((2, 3)) - t.mean((2, 3))).abs().mean(), "detach"),
    ("image", lambda s, t: image_loss(s.detach(), t), "lost the student's gradient"),
    ("mixed", lambda a, b, m: mixed_labels(b, a, m), "wrong way round"),
    ("mixed", lambda a, b, m: (a + b).argmax(1), "averages"),
    ("mixed", lambda a, b, m: torch.where(m[:, None], b, a), "hard labels"),
    ("mixed", lambda a, b, m: mixed_labels(a, b, m).int(), "int64"),
    ("two", lambda z, a, b: F.cross_entropy(z, a, ignore_index=255) + F.cross_entropy(z, b, ignore_index=255), "twice"),
    ("two", naive, "overflows"),
    ("two", lambda z, a, b: two_teachers(z, a, b) / 2, "mean of the two"),
    ("two", lambda z, a, b: loose(z, a, b, lambda terms, counts: sum(t.mean() for t in terms)), "all pixels"),
    ("two", lambda z, a, b: loose(z, a, b, lambda terms, counts: 2 * sum(t.sum() for t in terms) / sum(counts)), "pools"),
    ("adds", lambda i, o, k, g, h, w: 2 * multiply_adds(i, o, k, g, h, w), "two operations"),
    ("adds", lambda i, o, k, g, h, w: multiply_adds(i, o, k, g, h, w) // k, "3 x 3"),
    ("adds", lambda i, o, k, g, h, w: multiply_adds(i, o, k, g, 1, 1), "counts weights"),
    ("adds", lambda i, o, k, g, h, w: multiply_adds(i, o, k, 1, h, w), "depthwise filter"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("07", WRONG, 5)
