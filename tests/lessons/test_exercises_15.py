"""Lesson 15's checks accept the solution, and tell each known mistake by its name."""
import torch
from torch.nn.functional import softplus

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "15"))
labels, aggregate, pseudo, adaptation = SOLUTION.labels_of_step, SOLUTION.aggregate, SOLUTION.pseudo_labels, SOLUTION.adaptation


def with_background(change):
    """The right class channels under another background, background(base, corrections, training)."""
    return lambda z, training: torch.cat([change(z[0][:, :1], [h[:, :1] for h in z[1:]], training), *(h[:, 1:] for h in z)], 1)


def up_to(groups, t):
    return [c for g in groups[: t + 1] for c in g]


def numbered(mask, channel_of):
    out = torch.where(mask == 255, 255, 0)
    for c, channel in channel_of.items():
        out[mask == c] = channel
    return out


def parts(positive=None, negative=None):
    """adaptation with one of its two terms replaced: f(r, new, zero)."""
    def wrong(r, target):
        masks = (target > 0) & (target != 255), target == 0
        right = adaptation(r, target)
        return (positive(r, *masks) if positive else right[0], negative(r, *masks) if negative else right[1])
    return wrong


WRONG = [
    ("labels", lambda m, g, t: numbered(m, {c: c for c in g[t]}), "data set's ids"),
    ("labels", lambda m, g, t: numbered(m, {c: i for i, c in enumerate(g[t], 1)}), "starts at channel 1"),
    ("labels", lambda m, g, t: numbered(m, {c: i for i, c in enumerate(up_to(g, t), 1)}), "earlier steps"),
    ("labels", lambda m, g, t: numbered(m, {c: i for i, c in enumerate(up_to(g, 9), 1)}), "later steps"),
    ("labels", lambda m, g, t: labels(m, g, t).masked_fill(m == 255, 0), "lost 255"),
    ("aggregate", with_background(lambda b, r, tr: b + sum(r)), "does not cut"),
    ("aggregate", with_background(lambda b, r, tr: b.clamp(max=0) + sum(x.clamp(max=0) for x in r)), "cut the base"),
    ("aggregate", with_background(lambda b, r, tr: b + sum(x.clamp(min=0) for x in r)), "wrong side"),
    ("aggregate", lambda z, tr: aggregate(z, False), "cut the current correction in training"),
    ("aggregate", lambda z, tr: aggregate(z, True), "uncut at test time"),
    ("aggregate", with_background(lambda b, r, tr: b + r[0].clamp(max=0) + (r[1] if tr else r[1].clamp(max=0))), "old background logit"),
    ("aggregate", with_background(lambda b, r, tr: b.detach() + r[0].clamp(max=0) + (r[1] if tr else r[1].clamp(max=0))), "earlier correction"),
    ("aggregate", lambda z, tr: aggregate([h.detach() for h in z], tr), "stopped every gradient"),
    ("aggregate", lambda z, tr: aggregate(z, tr)[:, [0, 2, 1, *range(3, 7)]], "reordered"),
    ("aggregate", lambda z, tr: torch.cat(z, 1), "one background"),
    ("pseudo_labels", lambda y, z, tau: torch.where(z.argmax(1) > 0, z.argmax(1), y), "ground truth always wins"),
    ("pseudo_labels", lambda y, z, tau: torch.where((y == 0) | (y == 255), pseudo(torch.zeros_like(y), z, tau), y), "ignored pixel"),
    ("pseudo_labels", lambda y, z, tau: torch.where((y == 0) & (z[:, 1:].sigmoid().amax(1) >= tau), 1 + z[:, 1:].argmax(1), y), "out of the vote"),
    ("pseudo_labels", lambda y, z, tau: pseudo(y, z, 0.5), "unsure vote"),
    ("pseudo_labels", lambda y, z, tau: torch.where((y == 0) & (z.sigmoid().amax(1) < tau), 255, pseudo(y, z, tau)), "PLOP's rule"),
    ("adaptation", lambda r, y: (softplus(r)[y > 0].mean(), adaptation(r, y)[1]), "counts ignored"),
    ("adaptation", parts(positive=lambda r, P, N: softplus(-r)[P].mean()), "pulls the correction up"),
    ("adaptation", parts(positive=lambda r, P, N: (softplus(r) * P).mean()), "divide BgA"),
    ("adaptation", parts(negative=lambda r, P, N: (1 - r.sigmoid())[N].mean()), "never rests"),
    ("adaptation", parts(negative=lambda r, P, N: (1 - 2 * r.sigmoid())[N].mean()), "forgot the max"),
    ("adaptation", parts(negative=lambda r, P, N: (1 - 2 * r.sigmoid()).clamp(min=0)[N].mean()), "without any label-0"),
    ("adaptation", parts(positive=lambda r, P, N: softplus(r)[P].mean()), "without any new-class"),
    ("adaptation", lambda r, y: torch.stack(adaptation(r, y)), "expected two tensors"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("15", WRONG, 4)
