"""Lesson 05's checks accept the solution, and tell each known mistake by its name."""
import torch

from kernels.backend import jit, tl
from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "05"))
rows, blocks, backward, table, moved = (getattr(SOLUTION, name) for name in ("table_rows", "attend_in_blocks", "line_backward", "table_gradient", "bytes_moved"))


def blockwise(q, read, length, block, normalise_each=False, subtract=True, shrink_total=True):
    """The online softmax with one of its parts broken."""
    highest, total, weighted, outs = q.new_full((len(q), 1), float("-inf")), 0.0, 0.0, []
    for start in range(0, length, block):
        k, v = read(start, min(start + block, length))
        logits = q @ k.T
        outs.append(torch.softmax(logits, 1) @ v)
        higher = torch.maximum(highest, logits.amax(1, keepdim=True)) if subtract else torch.zeros_like(highest)
        shrink = (highest - higher).exp() if subtract and start else torch.ones_like(higher)
        p = (logits - higher).exp()
        total, weighted, highest = total * (shrink if shrink_total else 1) + p.sum(1, keepdim=True), weighted * shrink + p @ v, higher
    return sum(outs) / len(outs) if normalise_each else weighted / total


def broken_backward(q, k, v, grad, scale, delta=True, scaled=True, transpose=True):
    p = torch.softmax(scale * q @ k.T, 1)
    ds = p * (grad @ v.T - (delta * (grad * (p @ v)).sum(1, keepdim=True))) * (scale if scaled else 1)
    return ds @ k, ds.T @ q, (p.T if transpose else p) @ grad


def overwritten(ds, q):
    out = torch.zeros(2 * len(q) - 1, q.shape[1], dtype=q.dtype)
    for i in range(len(q)):
        for j in range(len(q)):
            out[j - i + len(q) - 1] = ds[i, j] * q[i]
    return out


def by_key(ds, q):
    return table(ds.T, q).flip(0)


ONCE = lambda B, G, H, W, D, e: B * G * H * W * D * e  # noqa: E731
@jit
def line_any(p_q, p_k, p_v, p_o, scale, s_line, s_position, L: tl.constexpr, D: tl.constexpr, AGAIN: tl.constexpr, OVER: tl.constexpr, SCALED: tl.constexpr,
             STRIDES: tl.constexpr):
    o = tl.arange(0, L)[:, None] * s_position + tl.arange(0, D)[None, :] + tl.program_id(0) * s_line
    if not STRIDES:
        o = (tl.program_id(0) * L + tl.arange(0, L)[:, None]) * D + tl.arange(0, D)[None, :]
    for _ in tl.static_range(AGAIN):  # keys and values fetched for every query anew
        k, v = tl.load(p_k + o), tl.load(p_v + o)
    logits = tl.dot(tl.load(p_q + o), tl.trans(k)) * (scale if SCALED else 1.0)
    if OVER:
        likely = tl.exp(logits - tl.max(logits, 1)[:, None])
        likely = likely / tl.sum(likely, 1)[:, None]
    else:
        likely = tl.exp(logits - tl.max(logits, 0)[None, :])
        likely = likely / tl.sum(likely, 0)[None, :]
    tl.store(p_o + o, tl.dot(likely, v))


class line:
    """line_any with some of its mistakes switched on."""

    def __init__(self, **mistakes):
        self.mistakes = {"AGAIN": 1, "OVER": 1, "SCALED": 1, "STRIDES": 1} | mistakes

    def __getitem__(self, grid):
        return lambda *arguments, **options: line_any[grid](*arguments, **options, **self.mistakes)


WRONG = [
    ("rows", lambda n: rows(n).T, "the offset is i - j"),
    ("rows", lambda n: rows(n) - n + 1, "offsets are not row numbers yet"),
    ("rows", lambda n: rows(n) + 1, "one row too far"),
    ("rows", lambda n: (rows(n) - n + 1).abs(), "distances, not offsets"),
    ("rows", lambda n: rows(n + 1), "[length, length]"),
    ("blocks", lambda *a: blockwise(*a, normalise_each=True), "normalised by itself"),
    ("blocks", lambda *a: blockwise(*a, subtract=False), "not finite with logits in the hundreds"),
    ("blocks", lambda *a: blockwise(*a, shrink_total=False), "shrink both"),
    ("blocks", lambda q, read, n, b: blocks(q, read, n, n), "more than `block` positions"),
    ("blocks", lambda q, read, n, b: (blocks(q, read, n, b), blocks(q, read, n, b))[1], "20 positions were read"),
    ("blocks", lambda q, read, n, b: blocks(q, read, n // b * b, b), "last, shorter block"),
    ("backward", lambda *a: broken_backward(*a, delta=False), "delta is missing"),
    ("backward", lambda *a: broken_backward(*a, scaled=False), "lacks the scale"),
    ("backward", lambda *a: broken_backward(*a, transpose=False), "dv mixes up"),
    ("backward", lambda q, k, v, g, s: backward(q, k, v, g, s)[:2], "three tensors"),
    ("table", lambda ds, q: table(ds, q).flip(0), "reverse order"),
    ("table", overwritten, "added, not overwritten"),
    ("table", by_key, "not the one at the key's place"),
    ("bytes", lambda *a: (8 * ONCE(*a), 4 * ONCE(*a)), "both reads and writes"),
    ("bytes", lambda *a: (10 * ONCE(*a), 4 * ONCE(*a)), "copied back"),
    ("bytes", lambda B, G, H, W, D, e: (12 * ONCE(B, G, H, W, D, e), 4 * ONCE(B, G, H, W, D, e) + 2 * B * G * H * H * W * e), "logits stay on the chip"),
    ("bytes", lambda *a: (12 * ONCE(*a), 3 * ONCE(*a)), "four maps"),
    ("attend_line", line(AGAIN=16), "moves 8.50 times the least bytes: it touches k 16 times, v 16 times"),
    ("attend_line", line(OVER=0), "runs over the queries"),
    ("attend_line", line(SCALED=0), "the scale is missing"),
    ("attend_line", line(STRIDES=0), "wrong along columns"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("05", WRONG, 6)
