"""Lesson 09's checks accept the solution, and tell each known mistake by its name."""
import copy

import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "09"))
ratio, background, many_classes, box = SOLUTION.ratio, SOLUTION.background, SOLUTION.many_classes, SOLUTION.box
pick = lambda evidence, label: evidence.mean((2, 3)).gather(1, label[:, None])[:, 0]


def stretched(heat):
    return (heat - heat.min()) / (heat.max() - heat.min())


def tight(mask):
    ys, xs = mask.nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(ys) else [0, 0, mask.shape[1], mask.shape[0]]


def no_diagonals(heat, threshold):
    """4-connected flood fill."""
    left = (stretched(heat) > threshold).tolist()
    best = []
    for y in range(heat.shape[0]):
        for x in range(heat.shape[1]):
            stack, seen = [(y, x)], []
            while stack:
                a, b = stack.pop()
                if 0 <= a < heat.shape[0] and 0 <= b < heat.shape[1] and left[a][b]:
                    left[a][b] = False
                    seen.append((a, b))
                    stack += [(a + 1, b), (a - 1, b), (a, b + 1), (a, b - 1)]
            best = max(best, seen, key=len)
    mask = torch.zeros_like(heat, dtype=torch.bool)
    for a, b in best:
        mask[a, b] = True
    return tight(mask)


def closed(heat, threshold):
    left, top, right, bottom = box(heat, threshold)
    return [left, top, right - 1, bottom - 1]


WRONG = [
    ("ratio", lambda r, w: r / (w.detach() + 1e-8), "exceeds 1"),
    ("ratio", lambda r, w: r / w.detach(), "zero by zero"),
    ("ratio", lambda r, w: torch.where(r > w, 0.0, r / (w.detach() + 1e-8)), "conference"),
    ("ratio", lambda r, w: torch.where(r > w, 1.0, r / (w + 1e-8)), "inflating"),
    ("ratio", lambda r, w: torch.where(r > w, 1.0 + r - r.detach(), r / (w.detach() + 1e-8)), "where S_b > S"),
    ("ratio", lambda r, w: ratio(r, w).mean(), "one value per image"),
    ("ratio", lambda r, w: ratio(r, w).detach(), "no gradient at all"),
    ("background", lambda f, x, m, y: pick(f(x.detach() * (1 - m)), y).relu(), "running statistics"),
    ("background", lambda f, x, m, y: pick(copy.deepcopy(f)(x.detach() * m), y).relu(), "looked at the foreground"),
    ("background", lambda f, x, m, y: pick(copy.deepcopy(f)(x * (1 - m)), y).relu(), "into the features"),
    ("background", lambda f, x, m, y: pick(copy.deepcopy(f)(x.detach() * (1 - m)), y), "forgot the ReLU"),
    ("background", lambda f, x, m, y: pick(copy.deepcopy(f)(x.detach() * (1 - m)).relu(), y), "before pooling"),
    ("background", lambda f, x, m, y: background(f, x, m, y).detach(), "no gradient"),
    ("background", lambda f, x, m, y: pick(torch.func.functional_call(f, {k: v.clone() for k, v in f.named_buffers()}, (x.detach() * (1 - m),)), y).relu(),
     "trains f2"),
    ("many_classes", lambda z, t: -(z.log_softmax(1) * t).sum() / len(z), "compete with one another"),
    ("many_classes", lambda z, t: many_classes(z, t) * len(z), "sums over images"),
    ("many_classes", lambda z, t: sum(many_classes(z[i : i + 1], t[i : i + 1]) / t[i].sum() for i in range(len(z))) / len(z), "Eq. (9) sums"),
    ("many_classes", F.binary_cross_entropy_with_logits, "no sigmoid"),
    ("many_classes", lambda z, t: -((z.exp() / (z.exp() + ((1 - t) * z.exp()).sum(1, keepdim=True))).log() * t).sum() / len(z), "overflows"),
    ("box", lambda h, t: tight(h > t), "normalise"),
    ("box", no_diagonals, "diagonal neighbours"),
    ("box", closed, "half open"),
    ("box", lambda h, t: tight(stretched(h) > t), "most cells"),
    ("box", lambda h, t: box(h, min(t, 0.99)), "nothing exceeds"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("09", WRONG, 4)
