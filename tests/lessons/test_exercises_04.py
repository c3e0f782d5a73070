"""Lesson 04's checks accept the solution, and tell each known mistake by its name."""
import torch
import torch.nn.functional as F

from kernels.backend import jit, tl
from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "04"))


def attend(f, q, bias=None, **options):
    return F.scaled_dot_product_attention(f[None], f[None], q[None], attn_mask=None if bias is None else bias.expand(1, len(f), -1), **options)[0]


def half_square(f):
    return f.square().sum(1) / 2


def kernel(f):
    return torch.exp(-0.5 * torch.cdist(f, f).square())


@jit
def potts_any(p_unary, p_a, p_b, p_q, w_a, w_b, K, BLOCK: tl.constexpr, SIGN: tl.constexpr, PAD: tl.constexpr, PEAK: tl.constexpr, SUM: tl.constexpr,
              PASSES: tl.constexpr):
    label = tl.arange(0, BLOCK)
    o, real = tl.program_id(0) * K + label, label < K
    for _ in tl.static_range(PASSES):  # once for the maximum, once for the sum, once for the result
        energy = tl.load(p_unary + o, mask=real, other=PAD)
        score = SIGN * (w_a * tl.load(p_a + o, mask=real, other=0.0) + w_b * tl.load(p_b + o, mask=real, other=0.0)) - energy
    likely = tl.exp(score - tl.max(score, 0)) if PEAK else tl.exp(score)
    tl.store(p_q + o, likely / tl.sum(likely, 0) if SUM else likely, mask=real)


class potts:
    """potts_any with some of its mistakes switched on."""

    def __init__(self, **mistakes):
        self.mistakes = {"SIGN": 1, "PAD": float("inf"), "PEAK": 1, "SUM": 1, "PASSES": 1} | mistakes

    def __getitem__(self, grid):
        return lambda *arguments, **options: potts_any[grid](*arguments, **options, **self.mistakes)


@jit
def potts_without_other(p_unary, p_a, p_b, p_q, w_a, w_b, K, BLOCK: tl.constexpr):
    label = tl.arange(0, BLOCK)
    o, real = tl.program_id(0) * K + label, label < K
    score = w_a * tl.load(p_a + o, mask=real) + w_b * tl.load(p_b + o, mask=real) - tl.load(p_unary + o, mask=real)
    likely = tl.exp(score - tl.max(score, 0))
    tl.store(p_q + o, likely / tl.sum(likely, 0), mask=real)


WRONG = [
    ("message_as_attention", lambda f, q: None, "returned None"),
    ("message_as_attention", lambda f, q: attend(f, q, scale=1.0), "term -|f_j|^2 / 2 is missing"),
    ("message_as_attention", lambda f, q: attend(f, q, -half_square(f)), "scale=1"),
    ("message_as_attention", lambda f, q: attend(f, q), "both missing"),
    ("message_as_attention", lambda f, q: attend(f, q, -2 * half_square(f), scale=1.0), "with the half"),
    ("message_as_attention", lambda f, q: attend(f, q, half_square(f), scale=1.0), "wrong sign"),
    ("message_as_attention", lambda f, q: kernel(f) @ q, "raw sums"),
    ("message_as_attention", lambda f, q: q * 0, "wrong values"),
    ("potts_update", lambda u, m, w: torch.softmax(-u - sum(a * b for a, b in zip(w, m)), 1), "messages repel"),
    ("potts_update", lambda u, m, w: torch.softmax(u + sum(a * b for a, b in zip(w, m)), 1), "enters with a minus"),
    ("potts_update", lambda u, m, w: torch.softmax(-u + sum(a * b for a, b in zip(w, m)), 0), "runs over pixels"),
    ("potts_update", lambda u, m, w: torch.softmax(sum(a * b for a, b in zip(w, m)), 1), "unary is missing"),
    ("potts_update", lambda u, m, w: torch.softmax(-u + sum(m), 1), "weights are missing"),
    ("potts_update", lambda u, m, w: torch.softmax(u.neg_() + sum(a * b for a, b in zip(w, m)), 1), "changed the unary"),
    ("message_gradient", lambda f, g: kernel(f) @ g / kernel(f).sum(1, keepdim=True), "forward operator again"),
    ("message_gradient", lambda f, g: kernel(f) @ g, "normalisation is missing"),
    ("message_gradient", lambda f, g: kernel(f) @ (g / kernel(f).sum(1, keepdim=True)) / kernel(f).sum(1, keepdim=True), "normalised twice"),
    ("message_gradient", lambda f, g: g, "wrong values"),
    ("message_gradient", lambda f, g: g.t(), "must return shape"),
    ("box_distance", lambda la, ha, lb, hb: torch.maximum(la[:, None] - hb, lb - ha[:, None]).square().sum(-1), "clamp them at 0"),
    ("box_distance", lambda la, ha, lb, hb: SOLUTION.box_distance(la, ha, lb, hb).sqrt(), "needs its square"),
    ("box_distance", lambda la, ha, lb, hb: (((la + ha)[:, None] - (lb + hb)) / 2).square().sum(-1), "distance of the centres"),
    ("box_distance", lambda la, ha, lb, hb: (la[:, None] - hb).clamp_min(0).square().sum(-1), "b may lie above a"),
    ("box_distance", lambda la, ha, lb, hb: SOLUTION.box_distance(la, ha, lb, hb).t(), "must return shape"),
    ("box_distance", lambda la, ha, lb, hb: 1 / 0, "stopped with ZeroDivisionError"),
    ("potts_kernel", potts(PASSES=3), "moves 2.50 times the least bytes"),
    ("potts_kernel", potts(PAD=0.0), "count as labels"),
    ("potts_kernel", potts(SIGN=-1), "messages repel"),
    ("potts_kernel", potts(PEAK=0), "subtract the row's maximum"),
    ("potts_kernel", potts(SUM=0), "does not sum to 1"),
    ("potts_kernel", potts_without_other, "give every masked load an other="),
    ("potts_kernel", potts(SIGN=0), "wrong values"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("04", WRONG, 5)
