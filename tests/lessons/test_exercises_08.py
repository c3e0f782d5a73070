"""Lesson 08's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn import functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "08"))
threshold, targets, weighted, border, remember = (getattr(SOLUTION, name) for name in ("threshold", "targets", "weighted_loss", "border", "remember"))


def zero_padded(labels):
    """The published code's frame: indicators of every class, zeros outside."""
    hot = F.pad(F.one_hot(labels).movedim(-1, 0), (1, 1, 1, 1))
    moved = [hot[:, 1 + y:hot.shape[1] - 1 + y, 1 + x:hot.shape[2] - 1 + x] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return torch.stack([(m != hot[:, 1:-1, 1:-1]).any(0) for m in moved]).any(0)


def one_side(labels):
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge


def sideways(labels):
    edge, change = torch.zeros_like(labels, dtype=torch.bool), labels[:, 1:] != labels[:, :-1]
    edge[:, 1:] |= change
    edge[:, :-1] |= change
    return edge


def changed_in_place(v, p, T, a, g):
    visits, weight = remember(v, p, T, a, g)
    v.copy_(visits)
    return v, weight


WRONG = [
    ("threshold", lambda m, t, b, lo, hi: threshold(m, t, -b, lo, hi), "rises with the mean"),
    ("threshold", lambda m, t, b, lo, hi: threshold(m + 0.5, t, b, lo, hi), "left the 1/2 out"),
    ("threshold", lambda m, t, b, lo, hi: threshold(m, t, b, 0, 1), "not clamped"),
    ("threshold", lambda m, t, b, lo, hi: threshold(m, 1.0, b, lo, hi), "is T0 a factor"),
    ("targets", lambda p, l, T: l * (p > T), "made class 0"),
    ("targets", lambda p, l, T: l.masked_fill(p < T, 255), "strict"),
    ("targets", lambda p, l, T: l.masked_fill(p >= T, 255), "kept the doubtful"),
    ("weighted", lambda ce, p, t, g: weighted(ce, p, t, g) * (t != 255).sum() / (p.detach() ** g * (t != 255)).sum(), "sum of weights"),
    ("weighted", lambda ce, p, t, g: (p.detach() ** g * ce * (t != 255)).mean(), "over all pixels"),
    ("weighted", lambda ce, p, t, g: weighted(ce, p, t, 1.0), "forgot gamma"),
    ("weighted", lambda ce, p, t, g: (p.detach() ** g * ce).mean(), "whose target is 255"),
    ("weighted", lambda ce, p, t, g: (p ** g * ce * (t != 255)).sum() / (t != 255).sum(), "gradient into p"),
    ("weighted", lambda ce, p, t, g: (p.detach() ** g * ce)[t != 255].mean(), "everything was filtered"),
    ("border", zero_padded, "the frame of the image"),
    ("border", one_side, "one side"),
    ("border", sideways, "in one direction"),
    ("border", lambda labels: border(labels)[1:-1, 1:-1], "one answer per pixel"),
    ("remember", changed_in_place, "changed its input"),
    ("remember", lambda v, p, T, a, g: remember(torch.where(p > T, v - 1, v), p, 2.0, a, g), "starts over"),
    ("remember", lambda v, p, T, a, g: remember(v, p + 1e-6, T, a, g), "exactly at T"),
    ("remember", lambda v, p, T, a, g: remember(v, -p, -T, a, g), "counts the visits above"),
    ("remember", lambda v, p, T, a, g: (remember(v, p, T, a, g)[0], (a ** v.float() * p) ** g), "this visit counts already"),
    ("remember", lambda v, p, T, a, g: (remember(v, p, T, a, g)[0], (torch.where(p > T, 1.0, a) * p) ** g), "alpha to the k"),
    ("remember", lambda v, p, T, a, g: (remember(v, p, T, a, g)[0], a ** remember(v, p, T, a, g)[0].float() * p ** g), "under the power too"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("08", WRONG, 5)
