"""Lesson 03's checks accept the solution, and tell each known mistake by its name."""
import torch
import torch.nn.functional as F

from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "03"))


def field(layers, use_stride=True, use_rate=True, first=1, stride_first=False):
    seen, apart = first, 1
    for kernel, stride, rate in layers:
        apart *= stride if stride_first else 1
        seen += (kernel - 1) * (rate if use_rate else 1) * (apart if use_stride else 1)
        apart *= 1 if stride_first else stride
    return seen, apart


def plan(strides, wanted, own=False, multiply=True, rates=True):
    out, reached, rate = [], 1, 1
    for stride in strides:
        keep = reached * stride <= wanted
        grown = rate if keep or not rates else rate * stride if multiply else max(rate, stride)
        out.append((stride if keep else 1, grown if own else rate))
        reached, rate = reached * stride if keep else reached, grown
    return out


def lines(scores, stride, backwards=False):
    full = F.pad(scores, (0, 1))
    at = torch.arange((len(scores) - 1) * stride + 1)
    share = (at % stride) / stride
    y = full[at // stride] * (1 - share) + full[at // stride + 1] * share
    return y.flip(0) if backwards else y


WRONG = [
    ("field_of_view", lambda layers: None, "returned None"),
    ("field_of_view", lambda layers: 7, "must return a pair"),
    ("field_of_view", lambda layers: field(layers)[::-1], "product of the strides"),
    ("field_of_view", lambda layers: field(layers, use_stride=False), "several pixels of the image"),
    ("field_of_view", lambda layers: field(layers, use_rate=False), "`rate` apart"),
    ("field_of_view", lambda layers: field(layers, first=0), "one pixel more than steps"),
    ("field_of_view", lambda layers: field(layers, stride_first=True), "own stride does not widen"),
    ("field_of_view", lambda layers: layers[9], "stopped with IndexError"),
    ("without_strides", lambda s, w: None, "returned None"),
    ("without_strides", lambda s, w: 5, "list of pairs"),
    ("without_strides", lambda s, w: [(k, 1) for k in s], "kept from the front"),
    ("without_strides", lambda s, w: plan(s, w, own=True), "still touches neighbours"),
    ("without_strides", lambda s, w: plan(s, w, multiply=False), "rates multiply"),
    ("without_strides", lambda s, w: plan(s, w, rates=False), "half as far"),
    ("enlarge", lambda s, n: None, "returned None"),
    ("enlarge", lambda s, n: s.repeat_interleave(n), "h - 1 gaps"),
    ("enlarge", lambda s, n: s[torch.arange((len(s) - 1) * n + 1) // n], "straight line"),
    ("enlarge", lambda s, n: F.interpolate(s[None, None], (len(s) - 1) * n + 1, mode="linear", align_corners=True)[0, 0], "calls F.interpolate"),
    ("enlarge", lambda s, n: lines(s, n, backwards=True), "runs backwards"),
    ("enlarge", lambda s, n: lines(s, n) + 1, "differs"),
    ("enlarge", lambda s, n: s[torch.arange((len(s) - 1) * n + 1) // n + 1], "stopped with IndexError"),
    ("learning_rate", lambda *a: None, "returned None"),
    ("learning_rate", lambda t, n, b, new, bias: b * (1 - t / n), "not 1"),
    ("learning_rate", lambda t, n, b, new, bias: b * (t / n) ** 0.9, "not the other way round"),
    ("learning_rate", lambda t, n, b, new, bias: b * (1 - (t / n) ** 0.9), "as a whole"),
    ("learning_rate", lambda t, n, b, new, bias: b * (1 - t / n) ** 0.9 * (2 if bias else 1), "ten times as fast"),
    ("learning_rate", lambda t, n, b, new, bias: b * (1 - t / n) ** 0.9 * (10 if new else 1), "twice as fast"),
    ("learning_rate", lambda t, n, b, new, bias: b * (1 - t / n) ** 0.9 * (12 if new and bias else 10 if new else 2 if bias else 1), "factors multiply"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("03", WRONG, 4)
