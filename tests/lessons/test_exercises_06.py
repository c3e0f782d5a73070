"""Lesson 06's checks accept the solution, and tell each known mistake by its name."""
import pytest
import torch

from lessons.check import find, load, main

CHECK = load(find("checks", "06"))
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


WRONG = {
    "attention_cost": [
        (lambda *a: None, "returned None"),
        (lambda kind, h, w: 0, "TypeError"),
        (cost(heads=False), "each of the 8 heads"),
        (cost(products=16), "the values counts too"),
        (cost(products=32), "queries and keys counts too"),
        (cost(factor=2), "a multiply and its add"),
        (cost(axial=lambda h, w: (h * w) ** 2), "h + w others"),
        (cost(axial=lambda h, w: h * h + w * w), "that is squeeze"),
        (cost(squeeze=lambda h, w: (h + w) ** 2), "do not attend to columns"),
        (cost(squeeze=lambda h, w: h + w), "a square"),
    ],
    "row_answer": [
        (lambda q, k, v: None, "returned None"),
        (rows(axis=2), "one answer per column"),
        (rows(swap=True), "transpose it"),
        (rows(scale=False), "sqrt(D)"),
        (rows(dim=-2), "over queries"),
        (rows(total=True), "not averaged"),
        (rows(flip=True), "transposed"),
        (lambda q, k, v: v, "must be [2, 3, 5]"),
        (lambda q, k, v: v.mean(3), "differs from softmax"),
        (lambda q, k, v: q @ v, "stopped with RuntimeError"),
    ],
    "live_taps": [
        (lambda w: None, "returned None"),
        (lambda w: w, "it must be [4, 3, 1, 1]"),
        (lambda w: w.sum((2, 3), keepdim=True), "adds all taps"),
        (lambda w: w.mean((2, 3), keepdim=True), "averages the taps"),
        (lambda w: w[:, :, :1, :1], "takes a corner"),
        (lambda w: w[:, :, 1:2, :1], "differs from the"),
        (lambda w: w[:, :, 1:2, 1:2], "differs from the 7x7"),
    ],
    "fold": [
        (lambda *a: None, "returned None"),
        (lambda w, *a: w, "a pair"),
        (lambda w, *a: (w, w), "gave shapes"),
        (folded(factor=lambda g, v, e: g / v.sqrt()), "eps is left out"),
        (folded(factor=lambda g, v, e: g / (v + e)), "square root"),
        (folded(factor=lambda g, v, e: g / (v.sqrt() + e)), "under the root"),
        (folded(factor=lambda g, v, e: 1 / (v + e).sqrt()), "gamma is left out"),
        (folded(bias=lambda b, m, f: b), "not moved into the bias"),
        (folded(bias=lambda b, m, f: b - m), "must be scaled"),
        (folded(bias=lambda b, m, f: b + m * f), "not added"),
        (folded(bias=lambda b, m, f: 2 * b), "the bias is not"),
        (lambda w, g, b, m, v, e: (w * 2, b), "OUTPUT channel"),
    ],
    "hard_pixels": [
        (lambda *a: None, "returned None"),
        (lambda p, t, n: p, "bool tensor"),
        (lambda p, t, n: p <= t, "least likely must be kept"),
        (lambda p, t, n: p <= p.kthvalue(n).values, "beyond `keep`"),
        (lambda p, t, n: p > t, "keeps the easy ones"),
        (lambda p, t, n: p <= max(t, float(p.kthvalue(n).values)), "stopped with"),
    ],
}


def test_the_solution_passes():
    assert CHECK.check(SOLUTION) == []


def test_the_stubs_ask_for_all_five():
    problems = CHECK.check(load(find(".", "06")))
    assert len(problems) == 5 and all("nothing written yet" in p for p in problems)


@pytest.mark.parametrize("name,i", [(name, i) for name, answers in WRONG.items() for i in range(len(answers))])
def test_a_wrong_answer_is_named(name, i):
    answer, words = WRONG[name][i]
    problems = getattr(CHECK, f"check_{name}")(answer)
    assert len(problems) == 1 and words in problems[0], problems


def test_command_line(capsys):
    assert main(["06", "solutions"]) == 0 and "all right" in capsys.readouterr().out
    assert main(["06"]) == 1 and "5 still to do" in capsys.readouterr().out
