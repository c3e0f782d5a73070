"""Lesson 11's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "11"))
nce, merge, embedding, recall = SOLUTION.contrastive, SOLUTION.merge, SOLUTION.class_embedding, SOLUTION.recall_at
unit = lambda x: F.normalize(x, dim=1)


def one_way(a, b, s):
    return F.cross_entropy(s * unit(a) @ unit(b).T, torch.arange(len(a)))


def raw(a, b, s):
    t = s * a @ b.T
    return (F.cross_entropy(t, torch.arange(4)) + F.cross_entropy(t.T, torch.arange(4))) / 2


def left_to_right(parts, ranks):
    i = 0
    while i < len(parts) - 1:
        if tuple(parts[i : i + 2]) in ranks:
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        else:
            i += 1
    return parts


def once(parts, ranks):
    while True:
        found = [(ranks[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in ranks]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
        if len(parts) == 3 and parts[0] == "ba":
            return parts


WRONG = [
    ("contrastive", raw, "raw vectors"),
    ("contrastive", lambda a, b, s: nce(a, b, 1 / s), "divides by the scale"),
    ("contrastive", lambda a, b, s: nce(a, b, 1.0), "does not use the scale"),
    ("contrastive", one_way, "only images for their text"),
    ("contrastive", lambda a, b, s: one_way(b, a, s), "only texts for their image"),
    ("contrastive", lambda a, b, s: 2 * nce(a, b, s), "adds the two directions"),
    ("contrastive", lambda a, b, s: 4 * nce(a, b, s), "sums over the batch"),
    ("merge", left_to_right, "left to right"),
    ("merge", once, "joins a pair once"),
    ("merge", lambda p, r: ["".join(p)] if len(p) == 2 else merge(p, r), "never learned"),
    ("merge", lambda p, r: ["ab", "c"] if p == ["a", "b", "c"] else merge(p, r), "stops after one round"),
    ("class_embedding", lambda e, t, n: e([x.format(n) for x in t]).mean(0), "unit length"),
    ("class_embedding", lambda e, t, n: F.normalize(unit(e([x.format(n) for x in t])).mean(0), dim=0), "normalises before the mean, as CLIP"),
    ("class_embedding", lambda e, t, n: unit(e([x.format(n) for x in t])).mean(0), "not after it"),
    ("class_embedding", lambda e, t, n: F.normalize(e(t).mean(0), dim=0), "never puts the name"),
    ("recall_at", lambda c, o, r: float((o[c.topk(min(r, c.shape[1]), 1).indices] == torch.arange(len(c))[:, None]).sum() / c.shape[1]), "counts captions"),
    ("recall_at", lambda c, o, r: float((o[c.topk(min(r, c.shape[1]), 1).indices] == torch.arange(len(c))[:, None]).sum() / len(c)), "twice"),
    ("recall_at", lambda c, o, r: recall(c, o, 1), "rank=2"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("11", WRONG, 4)
