"""Lesson 02's checks accept the solution, and tell each known mistake by its name."""
import torch
import torch.nn.functional as F

from kernels.backend import jit, tl
from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "02"))


def phases(x, w, rate, padding=1, swap=False, first_only=False):
    y = x.new_zeros(x.shape[0], w.shape[0], *x.shape[2:])
    for f in range(1 if first_only else min(rate, x.shape[2])):
        for g in range(1 if first_only else min(rate, x.shape[3])):
            part = F.conv2d(x[:, :, f::rate, g::rate], w, padding=1)
            if not padding:
                part[:, :, (0, -1)] = 0
                part[:, :, :, (0, -1)] = 0
            place = y[:, :, g::rate, f::rate] if swap else y[:, :, f::rate, g::rate]
            h, v = min(part.shape[2], place.shape[2]), min(part.shape[3], place.shape[3])
            place[:, :, :h, :v] = part[:, :, :h, :v]
    return y


def run(low, high, step, size, count, up=True, clip_first=True, clip_end=True, clip_zero=True, all_rows=False):
    if all_rows:
        low, high = high, low
    first = (-high + (step - 1 if up else 0)) // step
    end = (size - low + step - 1) // step
    if clip_first:
        first, end = max(first, 0), max(end, 0)
    if clip_end:
        end = min(end, count)
    return first, max(end - first, 0) if clip_zero else end - first


def pairs(q, kernel, stride, padding, rate, outputs, whole=True, inside=True, forward=False, sign=1):
    found = []
    for u in range(kernel):
        reached = q - padding + u * rate if forward else q + sign * padding - u * rate
        i, rest = divmod(reached, stride)
        if (rest == 0 or not whole) and (0 <= i < outputs or not inside):
            found.append((u, i))
    return found


def shifted(z, rates, sign=1, wrap=False, centre=True, skip=False):
    y = z.new_zeros(z.shape[0], z.shape[4], *z.shape[5:])
    for n, rate in enumerate(rates):
        for u in range(3):
            for v in range(3):
                if (u == v == 1 and n and not centre) or skip:
                    continue
                d, e = sign * (u - 1) * rate, sign * (v - 1) * rate
                if wrap:
                    y += torch.roll(z[:, n, u, v], (-d, -e), (2, 3))
                else:
                    y += F.pad(z[:, n, u, v], (rate,) * 4)[:, :, rate + d:rate + d + y.shape[2], rate + e:rate + e + y.shape[3]]
    return y


def bill(p, c, o, r, size=2, **changes):
    x, y = p * c * size, p * o * size
    right = {"separate": r * (x + y) + (r - 1) * 3 * y, "fused": x + y, "shift_add": x + 18 * r * y + y}
    return {k: changes[k](x, y, r) if k in changes else v for k, v in right.items()}


@jit
def aspp_twice(p_x, p_w, p_y, n, NEAR: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr):
    """Right values; each branch loads its own centre, adds to y in memory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for b in tl.static_range(2):
        total = tl.zeros([BLOCK], tl.float32)
        for u in tl.static_range(3):
            j = i + (u - 1) * (FAR if b else NEAR)
            total += tl.load(p_w + 3 * b + u) * tl.load(p_x + j, mask=(i < n) & (j >= 0) & (j < n), other=0.0)
        if b:
            total += tl.load(p_y + i, mask=i < n, other=0.0)
        tl.store(p_y + i, total, mask=i < n)


@jit
def aspp_any(p_x, p_w, p_y, n, NEAR: tl.constexpr, FAR: tl.constexpr, BLOCK: tl.constexpr, SIGN: tl.constexpr, A: tl.constexpr, OTHER: tl.constexpr,
             STORE: tl.constexpr, GUARD: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for b in tl.static_range(2):
        for u in tl.static_range(3):
            j = i + SIGN * (u - 1) * (FAR if b else NEAR)
            real = (i < n) & (j >= 0) & (j < n)
            if GUARD:
                x = tl.load(p_x + j, mask=real, other=0.0) if OTHER else tl.load(p_x + j, mask=real)
            else:
                x = tl.load(p_x + j)
            total += tl.load(p_w + 3 * (b ^ A) + u) * x
    tl.store(p_y + i, total, mask=i < n - STORE)


class aspp:
    """aspp_any with some of its mistakes switched on."""

    def __init__(self, **mistakes):
        self.mistakes = {"SIGN": 1, "A": 0, "OTHER": 1, "STORE": 0, "GUARD": 1} | mistakes

    def __getitem__(self, grid):
        return lambda *arguments, **options: aspp_any[grid](*arguments, **options, **self.mistakes)


WRONG = [
    ("polyphase", lambda x, w, r: None, "returned None"),
    ("polyphase", lambda x, w, r: F.conv2d(x, w, padding=r, dilation=r), "uses dilation"),
    ("polyphase", lambda x, w, r: F.conv2d(x, w, None, 1, r, r), "uses dilation"),
    ("polyphase", lambda x, w, r: F.conv2d(x, w, padding=1), "at rate 1"),
    ("polyphase", lambda x, w, r: F.conv2d(x[:, :, ::r, ::r], w, padding=1), "gave shape"),
    ("polyphase", lambda x, w, r: phases(x, w, r, first_only=True), "first phase"),
    ("polyphase", lambda x, w, r: phases(x, w, r, swap=True), "transposed"),
    ("polyphase", lambda x, w, r: phases(x, w, r, padding=0), "padding 1"),
    ("polyphase", lambda x, w, r: phases(x, w, r) + 1, "differs"),
    ("polyphase", lambda x, w, r: x[:, 7], "stopped with IndexError"),
    ("live_taps", lambda *a: None, "returned None"),
    ("live_taps", lambda *a: run(*a)[0], "must be a pair"),
    ("live_taps", lambda *a: run(*a, up=False), "round up"),
    ("live_taps", lambda *a: run(*a, clip_first=False, clip_zero=False), ": clip at 0"),
    ("live_taps", lambda *a: run(*a, clip_end=False), "there are only"),
    ("live_taps", lambda *a: run(*a, clip_zero=False), "not negative"),
    ("live_taps", lambda *a: run(*a, all_rows=True), "one row of the tile"),
    ("readers", lambda *a: None, "returned None"),
    ("readers", lambda *a: pairs(*a)[::-1], "another order"),
    ("readers", lambda *a: pairs(*a, whole=False), "divisible"),
    ("readers", lambda *a: pairs(*a, inside=False), "do not exist"),
    ("readers", lambda *a: pairs(*a, forward=True), "turns both signs around"),
    ("readers", lambda *a: pairs(*a, sign=-1), "expected"),
    ("shift_add", lambda z, r: None, "returned None"),
    ("shift_add", lambda z, r: shifted(z, r, sign=-1), "wrong way"),
    ("shift_add", lambda z, r: shifted(z, r, wrap=True), "wraps around"),
    ("shift_add", lambda z, r: shifted(z, r, centre=False), "every branch has its own"),
    ("shift_add", lambda z, r: shifted(z, r, skip=True), "wrong values"),
    ("traffic", lambda *a: None, "returned None"),
    ("traffic", lambda *a: 5, "must return a dict"),
    ("traffic", lambda p, c, o, r, size: bill(p, c, o, r, 1), "elements, not bytes"),
    ("traffic", lambda *a: bill(*a, separate=lambda x, y, r: r * (x + y)), "forgets the additions"),
    ("traffic", lambda *a: bill(*a, separate=lambda x, y, r: x + r * y + 9 * y), "read it four times"),
    ("traffic", lambda *a: bill(*a, separate=lambda x, y, r: r * (x + y) + 3 * y), "one map per addition"),
    ("traffic", lambda *a: bill(*a, shift_add=lambda x, y, r: x + 36 * y + y), "counts z once"),
    ("traffic", lambda *a: bill(*a, shift_add=lambda x, y, r: x + 8 * y + y), "one for each tap"),
    ("traffic", lambda *a: bill(*a, fused=lambda x, y, r: x), "expected"),
    ("aspp_row", aspp_twice, "y 3 times, x 1.2 times"),
    ("aspp_row", aspp(), "moves 1.17 times the least bytes"),
    ("aspp_row", aspp(SIGN=-1), "reads backwards"),
    ("aspp_row", aspp(A=1), "gives NEAR's weights to FAR"),
    ("aspp_row", aspp(OTHER=0), "without other="),
    ("aspp_row", aspp(STORE=11), "end of the row unwritten"),
    ("aspp_row", aspp(GUARD=0), "lie in none of its tensors"),
    ("aspp_row", aspp(SIGN=0), "wrong values"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("02", WRONG, 6)
