"""What can go wrong in the exercises of lesson 02, by name. Expected values are worked out here by loops over integers."""
import torch
import torch.nn.functional as F

from lessons import traffic
from lessons.check import attempt


def _whole(*shape, seed=0):
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).double()


def _same(a, b) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and torch.equal(a.double(), b.double())


def check_polyphase(function) -> list[str]:
    for rate, height, width in ((2, 6, 8), (3, 7, 10), (4, 3, 9)):
        x, weight = _whole(2, 3, height, width), _whole(4, 3, 3, 3, seed=1)
        calls, plain = [], F.conv2d

        def watched(*arguments, **options):
            calls.append(options.get("dilation", arguments[5] if len(arguments) > 5 else 1))
            return plain(*arguments, **options)

        F.conv2d = watched
        try:
            answer, problem = attempt(function, x.clone(), weight, rate)
        finally:
            F.conv2d = plain
        if problem:
            return [problem + (f" (on a {height} x {width} map at rate {rate})" if "stopped" in problem else "")]
        if any(c not in (1, (1, 1), [1, 1]) for c in calls):
            return ["polyphase uses dilation: the point is to do without it, by sub-sampling the map"]
        expected = plain(x, weight, padding=rate, dilation=rate)
        if _same(answer, expected):
            continue
        if not isinstance(answer, torch.Tensor) or answer.shape != expected.shape:
            return [f"polyphase gave shape {list(getattr(answer, 'shape', []))} at rate {rate}; it must be {list(expected.shape)}"]
        if _same(answer, plain(x, weight, padding=1)):
            return ["polyphase is the ordinary convolution at rate 1: filter each sub-sampled map x[:, :, f::rate, g::rate] on its own"]
        touched = torch.zeros_like(expected)
        touched[:, :, ::rate, ::rate] = expected[:, :, ::rate, ::rate]
        if _same(answer, touched):
            return ["polyphase filters only the first phase: there are rate * rate of them"]
        swapped = torch.zeros_like(expected)
        for f in range(rate):
            for g in range(rate):
                part = plain(x[:, :, f::rate, g::rate], weight, padding=1)
                place = swapped[:, :, g::rate, f::rate]
                h, w = min(part.shape[2], place.shape[2]), min(part.shape[3], place.shape[3])
                place[:, :, :h, :w] = part[:, :, :h, :w]
        if _same(answer, swapped):
            return ["polyphase puts row phase f into column phase f: the interleaving is transposed"]
        if _same(answer[:, :, rate:-rate, rate:-rate], expected[:, :, rate:-rate, rate:-rate]):
            return ["polyphase is right inside and wrong at the border: each sub-sampled map needs padding 1"]
        return [f"polyphase differs from the atrous convolution at rate {rate} on a {height} x {width} map"]
    return []


def check_live_taps(function) -> list[str]:
    cases = [(low, low + length, step, size, count) for low in range(-14, 15, 3) for length in (0, 2, 9) for step in (1, 2, 5, 12)
             for size in (1, 7, 10) for count in (1, 3, 4)]
    alive = {c: [j for j in range(c[4]) if c[1] + j * c[2] >= 0 and c[0] + j * c[2] < c[3]] for c in cases}
    for case in sorted(cases, key=lambda c: not alive[c]):  # the usual cases first: their mistakes say more
        low, high, step, size, count = case
        live = alive[case]
        answer, problem = attempt(function, *case)
        if problem:
            return [problem]
        where = f"live_taps(low={low}, high={high}, step={step}, size={size}, count={count})"
        if not isinstance(answer, tuple) or len(answer) != 2:
            return [f"{where} is {answer!r}; it must be a pair (first, how many)"]
        if answer == (live[0] if live else answer[0], len(live)):
            continue
        if answer[1] < 0:
            return [f"{where} counts {answer[1]} taps: when none is live the number is 0, not negative"]
        if answer[0] < 0:
            return [f"{where} starts at tap {answer[0]}: clip at 0, taps before the first do not exist"]
        if answer[0] + answer[1] > count:
            return [f"{where} reaches tap {answer[0] + answer[1] - 1}, but there are only {count}"]
        if live and answer[0] == live[0] - 1:
            return [f"{where} starts at {answer[0]}, one too early: round up, a tap at a fraction does not exist"]
        if live and (answer[0] > live[0] or answer[1] < len(live)):
            return [f"{where} is {answer}, but taps {live} are live: it is enough that one row of the tile is inside"]
        return [f"{where} is {answer}, but the live taps are {live}"]
    return []


def check_readers(function) -> list[str]:
    for kernel, stride, padding, rate in ((3, 1, 2, 2), (3, 2, 1, 1), (4, 3, 5, 2), (2, 4, 0, 6)):
        size, outputs = 13, (13 + 2 * padding - rate * (kernel - 1) - 1) // stride + 1
        for q in range(size):
            expected = [(u, i) for u in range(kernel) for i in range(outputs) if i * stride - padding + u * rate == q]
            answer, problem = attempt(function, q, kernel, stride, padding, rate, outputs)
            if problem:
                return [problem]
            answer = [tuple(pair) for pair in answer]
            if answer == expected:
                continue
            where = f"readers(q={q}, kernel={kernel}, stride={stride}, padding={padding}, rate={rate}, outputs={outputs})"
            solved = [(u, (q + padding - u * rate) / stride) for u in range(kernel)]
            if sorted(answer) == expected:
                return [f"{where} has the right pairs in another order: tap u must grow"]
            if answer == [(u, int(i // 1)) for u, i in solved if 0 <= i // 1 < outputs]:
                return [f"{where} keeps outputs that are not whole: (q + padding - u*rate) must be divisible by the stride"]
            if answer == [(u, int(i)) for u, i in solved if i == int(i)]:
                return [f"{where} is {answer}: outputs below 0 or from {outputs} on do not exist"]
            flipped = [(u, (q - padding + u * rate) // stride) for u in range(kernel) if (q - padding + u * rate) % stride == 0]
            if answer == [(u, i) for u, i in flipped if 0 <= i < outputs]:
                return [f"{where} reads forward: solve q = i*stride - padding + u*rate for i, which turns both signs around"]
            return [f"{where} is {answer}, expected {expected}"]
    return []


def check_shift_add(function) -> list[str]:
    rates, height, width = (1, 3, 8), 6, 9
    z = _whole(2, 3, 3, 3, 4, height, width, seed=2)

    def total(sign=1, wrap=False, centre=True):
        y = torch.zeros(2, 4, height, width, dtype=z.dtype)
        for n, rate in enumerate(rates):
            for u in range(3):
                for v in range(3):
                    d, e = sign * (u - 1) * rate, sign * (v - 1) * rate
                    if not centre and u == v == 1 and n:
                        continue
                    for i in range(height):
                        for j in range(width):
                            if wrap or (0 <= i + d < height and 0 <= j + e < width):
                                y[:, :, i, j] += z[:, n, u, v, :, (i + d) % height, (j + e) % width]
        return y

    answer, problem = attempt(function, z.clone(), rates)
    if problem:
        return [problem]
    if _same(answer, total()):
        return []
    if _same(answer, total(-1)):
        return ["shift_add shifts the wrong way: pixel q adds what stands at q + shift, so the map moves by minus the shift"]
    if _same(answer, total(wrap=True)) or _same(answer, total(-1, wrap=True)):
        return ["shift_add wraps around the border (torch.roll): what lies outside the map is 0"]
    if _same(answer, total(centre=False)):
        return ["shift_add counts the centre taps once: every branch has its own"]
    return [f"shift_add gave shape {list(getattr(answer, 'shape', []))} with wrong values; expected {list(total().shape)}"]


def check_traffic(function) -> list[str]:
    pixels, channels, outputs, branches, size = 1000, 2048, 21, 4, 2
    x, y = pixels * channels * size, pixels * outputs * size
    answer, problem = attempt(function, pixels, channels, outputs, branches, size)
    if problem:
        return [problem]
    if not isinstance(answer, dict) or set(answer) != {"separate", "fused", "shift_add"}:
        return ['traffic must return a dict with the keys "separate", "fused" and "shift_add"']
    expected = {"separate": 4 * x + 4 * y + 9 * y, "fused": x + y, "shift_add": x + 72 * y + y}
    mistakes = {
        ("separate", 4 * x + 4 * y): "forgets the additions: 3 of them, each reads two maps and writes one",
        ("separate", x + 4 * y + 9 * y): "reads x once: four separate convolutions read it four times",
        ("separate", 4 * x + 4 * y + 3 * y): "counts one map per addition: it reads two and writes one",
        ("shift_add", x + 36 * y + y): "counts z once: it is written and read",
        ("shift_add", x + 8 * y + y): "gives z one map per branch: it has nine, one for each tap",
    }
    for key in expected:
        if answer[key] != expected[key]:
            if all(answer[k] * size == expected[k] for k in expected):
                return ["traffic counts elements, not bytes"]
            return [f"traffic[{key!r}] " + mistakes.get((key, answer[key]), f"is {answer[key]}, expected {expected[key]}")]
    return []


def _aspp_row(kernel):
    """(traffic, the least bytes, problems)."""
    n, near, far, block = 75, 2, 9, 32
    x, w, y = _whole(n, seed=3).float(), _whole(2, 3, seed=4).float(), torch.full((n,), float("nan"))
    found, problem = traffic.run(kernel, "aspp_row", (3,), {"x": x, "w": w, "y": y}, n, NEAR=near, FAR=far, BLOCK=block)
    if problem:
        return None, None, [problem]

    def row(wrap=False, sign=1, rates=(near, far)):
        total = torch.zeros(n)
        for b, rate in enumerate(rates):
            for u in range(3):
                for i in range(n):
                    j = i + sign * (u - 1) * rate
                    total[i] += w[b, u] * x[j % n] if wrap or 0 <= j < n else 0.0
        return total

    least = {"x": 4 * sum(n - shift for shift in (0, near, near, far, far)), "w": 3 * 6 * 4, "y": 4 * n}
    if torch.equal(y, row()):
        return found, least, traffic.verdict("aspp_row", found, least)
    missing = int(y.isnan().sum())
    if missing and y[n - missing:].isnan().all():
        return None, None, ["aspp_row leaves the end of the row unwritten: the last program has fewer outputs than BLOCK"]
    if missing:
        return None, None, ["aspp_row gives NaN: a masked load without other= holds anything at all; say other=0.0"]
    if torch.equal(y, row(sign=-1)):
        return None, None, ["aspp_row reads backwards: tap u reads i + (u - 1) * rate"]
    if torch.equal(y, row(rates=(far, near))):
        return None, None, ["aspp_row gives NEAR's weights to FAR: w[0] belongs to NEAR"]
    return None, None, [f"aspp_row has wrong values: y[0] is {float(y[0]):g}, expected {float(row()[0]):g}"]


def check_aspp_row(kernel) -> list[str]:
    return _aspp_row(kernel)[2]


def scores(module) -> list[str]:
    """What to say of a right answer."""
    found, least, _ = _aspp_row(module.aspp_row)
    return [f"aspp_row moves {traffic.ratio(found, least):.2f} times the least bytes"] if found else []


def check(module) -> list[str]:
    parts = (("polyphase", check_polyphase), ("live_taps", check_live_taps), ("readers", check_readers), ("shift_add", check_shift_add),
             ("traffic", check_traffic), ("aspp_row", check_aspp_row))
    return [problem for name, function in parts for problem in function(getattr(module, name))]
