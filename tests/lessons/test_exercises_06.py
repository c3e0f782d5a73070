"""Lesson 06's checks accept the solution, and tell each known mistake by its name."""
import torch

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "06"))


def cost(heads=True, products=48, axial=None, squeeze=None, factor=1):
    def answer(kind, h, w, g=8, d=16, e=32):
        pairs = {"full": (h * w) ** 2, "axial": h * w * (h + w), "squeeze": h * h + w * w}[kind]
        pairs = axial(h, w) if axial and kind == "axial" else squeeze(h, w) if squeeze and kind == "squeeze" else pairs
        return factor * (g if heads else 1) * products * pairs
    return answer


def rows(axis=3, scale=True, dim=-1, total=False, flip=False, swap=False):
    def answer(q, k, v):
        q, k, v = (t.sum(axis) if total else t.mean(axis) for t in (q, k, v))
        share = torch.softmax(q.mT @ k / (q.shape[1] ** 0.5 if scale else 1), dim)
        out = v @ (share if flip else share.mT)
        return out.mT if swap else out
    return answer


def folded(factor=lambda g, v, e: g / (v + e).sqrt(), bias=lambda b, m, f: b - m * f):
    def answer(w, gamma, beta, mean, var, eps):
        f = factor(gamma, var, eps)
        return w * f[:, None, None, None], bias(beta, mean, f)
    return answer


WRONG = [
    ("attention_cost", lambda *a: None, "returned None"),
    ("attention_cost", lambda kind, h, w: 0, "TypeError"),
    ("attention_cost", cost(heads=False), "each of the 8 heads"),
    ("attention_cost", cost(products=16), "the values counts too"),
    ("attention_cost", cost(products=32), "queries and keys counts too"),
    ("attention_cost", cost(factor=2), "a multiply and its add"),
    ("attention_cost", cost(axial=lambda h, w: (h * w) ** 2), "h + w others"),
    ("attention_cost", cost(axial=lambda h, w: h * h + w * w), "that is squeeze"),
    ("attention_cost", cost(squeeze=lambda h, w: (h + w) ** 2), "do not attend to columns"),
    ("attention_cost", cost(squeeze=lambda h, w: h + w), "a square"),
    ("row_answer", lambda q, k, v: None, "returned None"),
    ("row_answer", rows(axis=2), "one answer per column"),
    ("row_answer", rows(swap=True), "transpose it"),
    ("row_answer", rows(scale=False), "sqrt(D)"),
    ("row_answer", rows(dim=-2), "over queries"),
    ("row_answer", rows(total=True), "not averaged"),
    ("row_answer", rows(flip=True), "transposed"),
    ("row_answer", lambda q, k, v: v, "must be [2, 3, 5]"),
    ("row_answer", lambda q, k, v: v.mean(3), "differs from softmax"),
    ("row_answer", lambda q, k, v: q @ v, "stopped with RuntimeError"),
    ("live_taps", lambda w: None, "returned None"),
    ("live_taps", lambda w: w, "it must be [4, 3, 1, 1]"),
    ("live_taps", lambda w: w.sum((2, 3), keepdim=True), "adds all taps"),
    ("live_taps", lambda w: w.mean((2, 3), keepdim=True), "averages the taps"),
    ("live_taps", lambda w: w[:, :, :1, :1], "takes a corner"),
    ("live_taps", lambda w: w[:, :, 1:2, :1], "differs from the"),
    ("live_taps", lambda w: w[:, :, 1:2, 1:2], "differs from the 7x7"),
    ("fold", lambda *a: None, "returned None"),
    ("fold", lambda w, *a: w, "a pair"),
    ("fold", lambda w, *a: (w, w), "gave shapes"),
    ("fold", folded(factor=lambda g, v, e: g / v.sqrt()), "eps is left out"),
    ("fold", folded(factor=lambda g, v, e: g / (v + e)), "square root"),
    ("fold", folded(factor=lambda g, v, e: g / (v.sqrt() + e)), "under the root"),
    ("fold", folded(factor=lambda g, v, e: 1 / (v + e).sqrt()), "gamma is left out"),
    ("fold", folded(bias=lambda b, m, f: b), "not moved into the bias"),
    ("fold", folded(bias=lambda b, m, f: b - m), "must be scaled"),
    ("fold", folded(bias=lambda b, m, f: b + m * f), "not added"),
    ("fold", folded(bias=lambda b, m, f: 2 * b), "the bias is not"),
    ("fold", lambda w, g, b, m, v, e: (w * 2, b), "OUTPUT channel"),
    ("hard_pixels", lambda *a: None, "returned None"),
    ("hard_pixels", lambda p, t, n: p, "bool tensor"),
    ("hard_pixels", lambda p, t, n: p <= t, "least likely must be kept"),
    ("hard_pixels", lambda p, t, n: p <= p.kthvalue(n).values, "beyond `keep`"),
    ("hard_pixels", lambda p, t, n: p > t, "keeps the easy ones"),
    ("hard_pixels", lambda p, t, n: p <= max(t, float(p.kthvalue(n).values)), "stopped with"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("06", WRONG, 5)
