"""Lesson 14's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "14"))
assign, means, loss, names = SOLUTION.assign, SOLUTION.group_means, SOLUTION.mask_loss, SOLUTION.name_segments
hard = lambda x, dim: torch.zeros_like(x).scatter_(dim, x.argmax(dim, keepdim=True), 1.0)


def through(value, gradient):
    return value - gradient.detach() + gradient


def own_top(tokens, pooled, classes, scale, top):
    return torch.cat([names(t[None], t, classes, scale, top) for t in tokens])


WRONG = [
    ("assign", lambda l: through(hard(l, 1), l.softmax(1)), "gives every group its best token"),
    ("assign", lambda l: l.softmax(0), "stays soft"),
    ("assign", lambda l: hard(l.detach(), 0), "has no gradient"),
    ("assign", lambda l: through(hard(l, 0), l.softmax(1)), "softmax over tokens"),
    ("assign", lambda l: through(hard(l, 0), l), "gradient is not the softmax's"),
    ("assign", lambda l: through(hard(-l, 0), l.softmax(0)), "not one-hot at each token's best group"),
    ("group_means", lambda a, v: a @ v, "gives sums"),
    ("group_means", lambda a, v: a / a.sum(1, keepdim=True) @ v, "divides by zero"),
    ("group_means", lambda a, v: a / (a.sum(1, keepdim=True) + 1e-8) @ v, "divides by the size alone"),
    ("group_means", lambda a, v: a / (a.sum(0, keepdim=True) + 1) @ v, "counts the groups of a token"),
    ("group_means", lambda a, v: 2 * means(a, v), "wrong values"),
    ("mask_loss", lambda c, s, r, k: loss(c, s, r, 1.0), "forgets the scale"),
    ("mask_loss", lambda c, s, r, k: F.cross_entropy(k * s.T @ c, r, reduction="sum"), "sums over the patches"),
    ("mask_loss", lambda c, s, r, k: F.cross_entropy(k * s.T @ c, r, reduction="none"), "must return one number"),
    ("mask_loss", lambda c, s, r, k: F.cross_entropy(k * c[s.argmax(0)], r), "strongest segment only"),
    ("mask_loss", lambda c, s, r, k: F.nll_loss((s.T @ (k * c).softmax(1)).log(), r), "mixes probabilities"),
    ("mask_loss", lambda c, s, r, k: loss(c, s, 3 - r, k), "expected"),
    ("name_segments", lambda t, p, c, s, k: (s * t @ c.T).masked_fill(~(names(t, p, c, s, k) > 0), -torch.inf).softmax(1), "leaves out the unfiltered"),
    ("name_segments", lambda t, p, c, s, k: (s * t @ c.T).softmax(1), "ignores the filter"),
    ("name_segments", own_top, "by its own best classes"),
    ("name_segments", lambda t, p, c, s, k: names(t, p, c, 1.0, k), "forgets the scale"),
    ("name_segments", lambda t, p, c, s, k: names(t, -p, c, s, k), "wrong values"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("14", WRONG, 4)


def test_the_solutions_agree_with_the_project():
    """The same numbers from seglite's own functions, on random input."""
    from seglite.nets import groupvit
    from seglite.openvocab import segment_scores
    from seglite.papers import mixreorg

    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, generator=random)
    assert torch.allclose(assign(logits), groupvit.assign(logits[None], noisy=False).hard[0])
    cut = lambda *shape: F.normalize(torch.randn(*shape, generator=random), dim=-1)
    segments, captions, shares, r = cut(5, 6), cut(4, 6), torch.rand(5, 9, generator=random).softmax(0), torch.randint(0, 4, (9,), generator=random)
    theirs = mixreorg.mask_loss(mixreorg.caption_logits(segments[None], shares[None], captions[None], torch.tensor(7.0)), r[None], torch.eye(4).bool()[None])
    assert torch.allclose(loss(segments @ captions.T, shares, r, 7.0), theirs, atol=1e-5)
    pooled = cut(6)
    assert torch.allclose(names(segments, pooled, captions, 7.0, 2), segment_scores(segments[None], pooled[None], captions, 7.0, 2)[0], atol=1e-6)
