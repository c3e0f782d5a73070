"""Lesson 04's checks accept the solution, and tell each known mistake by its name."""
import types

import pytest
import torch
import torch.nn.functional as F

from lessons.check import find, load, main

CHECK = load(find("checks", "04"))
SOLUTION = load(find("solutions", "04"))
NAMES = ("message_as_attention", "potts_update", "message_gradient", "box_distance")


def attend(f, q, bias=None, **options):
    return F.scaled_dot_product_attention(f[None], f[None], q[None], attn_mask=None if bias is None else bias.expand(1, len(f), -1), **options)[0]


def half_square(f):
    return f.square().sum(1) / 2


def kernel(f):
    return torch.exp(-0.5 * torch.cdist(f, f).square())


WRONG = {
    "message_as_attention": [
        (lambda f, q: None, "returned None"),
        (lambda f, q: attend(f, q, scale=1.0), "term -|f_j|^2 / 2 is missing"),
        (lambda f, q: attend(f, q, -half_square(f)), "scale=1"),
        (lambda f, q: attend(f, q), "both missing"),
        (lambda f, q: attend(f, q, -2 * half_square(f), scale=1.0), "with the half"),
        (lambda f, q: attend(f, q, half_square(f), scale=1.0), "wrong sign"),
        (lambda f, q: kernel(f) @ q, "raw sums"),
        (lambda f, q: q * 0, "wrong values"),
    ],
    "potts_update": [
        (lambda u, m, w: torch.softmax(-u - sum(a * b for a, b in zip(w, m)), 1), "messages repel"),
        (lambda u, m, w: torch.softmax(u + sum(a * b for a, b in zip(w, m)), 1), "enters with a minus"),
        (lambda u, m, w: torch.softmax(-u + sum(a * b for a, b in zip(w, m)), 0), "runs over pixels"),
        (lambda u, m, w: torch.softmax(sum(a * b for a, b in zip(w, m)), 1), "unary is missing"),
        (lambda u, m, w: torch.softmax(-u + sum(m), 1), "weights are missing"),
        (lambda u, m, w: torch.softmax(u.neg_() + sum(a * b for a, b in zip(w, m)), 1), "changed the unary"),
    ],
    "message_gradient": [
        (lambda f, g: kernel(f) @ g / kernel(f).sum(1, keepdim=True), "forward operator again"),
        (lambda f, g: kernel(f) @ g, "normalisation is missing"),
        (lambda f, g: kernel(f) @ (g / kernel(f).sum(1, keepdim=True)) / kernel(f).sum(1, keepdim=True), "normalised twice"),
        (lambda f, g: g, "wrong values"),
        (lambda f, g: g.t(), "must return shape"),
    ],
    "box_distance": [
        (lambda la, ha, lb, hb: torch.maximum(la[:, None] - hb, lb - ha[:, None]).square().sum(-1), "clamp them at 0"),
        (lambda la, ha, lb, hb: SOLUTION.box_distance(la, ha, lb, hb).sqrt(), "needs its square"),
        (lambda la, ha, lb, hb: (((la + ha)[:, None] - (lb + hb)) / 2).square().sum(-1), "distance of the centres"),
        (lambda la, ha, lb, hb: (la[:, None] - hb).clamp_min(0).square().sum(-1), "b may lie above a"),
        (lambda la, ha, lb, hb: SOLUTION.box_distance(la, ha, lb, hb).t(), "must return shape"),
        (lambda la, ha, lb, hb: 1 / 0, "raised ZeroDivisionError"),
    ],
}


def answers(**changed):
    return types.SimpleNamespace(**{**{name: getattr(SOLUTION, name) for name in NAMES}, **changed})


def test_solutions_pass():
    assert CHECK.check(SOLUTION) == []
    assert main(["04", "solutions"]) == 0


def test_stubs_name_every_exercise():
    problems = CHECK.check(load(find(".", "04")))
    assert len(problems) == 4 and all(name in problem for name, problem in zip(NAMES, problems))


@pytest.mark.parametrize("name, index", [(name, i) for name in NAMES for i in range(len(WRONG[name]))], ids=lambda v: str(v))
def test_wrong_answers_are_named(name, index):
    function, words = WRONG[name][index]
    function.__name__ = name
    problems = CHECK.check(answers(**{name: function}))
    assert len(problems) == 1 and name in problems[0] and words in problems[0], problems
