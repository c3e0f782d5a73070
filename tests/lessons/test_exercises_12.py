"""Lesson 12's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "12"))
cells, hide, matching, scores, background = SOLUTION.cells, SOLUTION.hide, SOLUTION.matching, SOLUTION.scores, SOLUTION.with_background
unit = lambda x: F.normalize(x, dim=-1)
distance = lambda g, v: torch.cdist(unit(g), unit(v[:, 1:]), p=1.0)


def soft(t, c, s, kept=None):
    logits = s * t @ c.T
    if kept is not None:
        logits = logits.masked_fill(torch.ones(logits.shape, dtype=torch.bool).scatter(1, kept.expand(len(t), -1), False), -torch.inf)
    return logits.softmax(-1)


image_top = lambda p, c, k: (c @ p).topk(k).indices[None]

WRONG = [
    ("cells", lambda g, s: cells(g, s)[1:], "1 + 9 = 10"),
    ("cells", lambda g, s: [(s * c / n, s * r / n, s * (c + 1) / n, s * (r + 1) / n) for n in g for c in range(n) for r in range(n)], "down the columns"),
    ("cells", lambda g, s: [tuple(float(round(v)) for v in b) for b in cells(g, s)], "rounds to whole pixels"),
    ("cells", lambda g, s: [(b[1], b[0], b[3], b[2]) for b in cells(g, s)], "top, left"),
    ("cells", lambda g, s: [(b[0], b[1], b[2] - b[0], b[3] - b[1]) for b in cells(g, s)], "widths and heights"),
    ("hide", lambda n, r: hide(-n, r), "highest noise"),
    ("hide", lambda n, r: hide(n[:1].expand_as(n), r), "same places"),
    ("hide", lambda n, r: hide(n, 0.4), "keeps 3 of 5"),
    ("hide", lambda n, r: (hide(n, r)[0], 1 - hide(n, r)[1]), "marks visible"),
    ("matching", lambda g, v: torch.cdist(unit(g), unit(v), p=1.0).amin(2).mean(), "whole image take part"),
    ("matching", lambda g, v: torch.cdist(g, v[:, 1:], p=1.0).amin(2).mean(), "raw vectors"),
    ("matching", lambda g, v: torch.cdist(unit(g), unit(v[:, 1:])).amin(2).mean(), "measures L2"),
    ("matching", lambda g, v: matching(g, v) / 4, "averages over the coordinates"),
    ("matching", lambda g, v: distance(g, v).amin(2).sum(1).mean(), "sums over segments where"),
    ("matching", lambda g, v: distance(g, v).amax(2).mean(), "farthest"),
    ("matching", lambda g, v: distance(g, v).mean(), "that is distillation"),
    ("scores", lambda t, p, c, s, k: soft(t, c, s), "leaves out the image's filter"),
    ("scores", lambda t, p, c, s, k: soft(t, c, s, image_top(p, c, k)), "too sure"),
    ("scores", lambda t, p, c, s, k: soft(t, c, s) * torch.cat([soft(t[i : i + 1], c, s, image_top(t[i], c, k)) for i in range(len(t))]), "its own top"),
    ("scores", lambda t, p, c, s, k: scores(t, p, c, 1.0, k), "does not use the scale"),
    ("with_background", lambda s, th: torch.where(s.amax(1) < th, 0, s.argmax(1) + 1), "everything background"),
    ("with_background", lambda s, th: torch.where(s.amax(1) < min(th, float(s.max())), 0, s.argmax(1)), "from 0"),
    ("with_background", lambda s, th: s.argmax(1) + 1, "gave [2, 1, 1]"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("12", WRONG, 5)
