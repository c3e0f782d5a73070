"""What can go wrong in the exercises of lesson 16, by name."""
import math
import statistics

from lessons.check import attempt


def _same(a, b) -> bool:
    try:
        return math.isclose(float(a), float(b), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False


# In rounds 3 to 5 the machine runs at half speed; round 5 has one hiccup on our side, round 7 one on the peer's.
ROUNDS = [(2.0, 3.0), (1.5, 2.4), (4.0, 6.0), (4.2, 6.2), (40.0, 6.0), (1.9, 2.2), (2.1, 90.0)]


def check_times_as_fast(function) -> list[str]:
    answer, problem = attempt(function, ROUNDS)
    if problem:
        return [problem]
    ratios = [peer / ours for ours, peer in ROUNDS]
    ours, peers = zip(*ROUNDS)
    if _same(answer, statistics.median(ratios)):
        return []
    if _same(answer, statistics.median(ours) / statistics.median(peers)) or _same(answer, statistics.median(1 / r for r in ratios)):
        return ["times_as_fast is upside down: twice as fast means the peer takes twice our time, 2.0"]
    if _same(answer, sum(peers) / sum(ours)):
        return ["times_as_fast divides the sums: two hiccups decide the result; take the ratio inside each round first"]
    if _same(answer, statistics.fmean(ratios)):
        return ["times_as_fast averages the ratios: one hiccup of 90 ms moves the mean by several; the median does not notice it"]
    if _same(answer, statistics.median(peers) / statistics.median(ours)):
        return ["times_as_fast compares medians over the whole run: our median and the peer's may come from the fast and the slow half of it"]
    if _same(answer, min(peers) / min(ours)):
        return ["times_as_fast compares the best rounds: they may be minutes apart, on a machine of another speed"]
    return [f"times_as_fast gave {answer}, expected {statistics.median(ratios):.3f}, the median of the ratios within the rounds"]


def check_floor_ms(function) -> list[str]:
    roof = {"bytes_per_s": 2e10, "flops_per_s": 1e11, "exps_per_s": 1e9}
    cases = [(4e9, 1e10, 1e7, 200.0), (1e9, 9e10, 1e7, 900.0), (1e9, 1e10, 5e8, 500.0)]
    for moved, flops, exps, expected in cases:
        answer, problem = attempt(function, moved, flops, exps, roof)
        if problem:
            return [problem]
        if _same(answer, expected):
            continue
        times = [1e3 * moved / roof["bytes_per_s"], 1e3 * flops / roof["flops_per_s"], 1e3 * exps / roof["exps_per_s"]]
        if _same(answer, sum(times)):
            return ["floor_ms adds the three times: they overlap, so the slowest of them is the floor"]
        if _same(answer, min(times)):
            return ["floor_ms takes the fastest of the three: nothing can end before the slowest has"]
        if _same(answer, expected / 1e3):
            return ["floor_ms is in seconds; milliseconds were asked for"]
        if _same(answer, max(times[:2])):
            return ["floor_ms forgot the exponentials: in attention and CRF they often decide"]
        return [f"floor_ms gave {answer} for {moved:g} bytes, {flops:g} flops, {exps:g} exponentials; expected {expected}"]
    return []


def check_paired(function) -> list[str]:
    baseline, method = [0.60, 0.70, 0.65, 0.55], [0.63, 0.74, 0.66, 0.60]
    answer, problem = attempt(function, baseline, method)
    if problem:
        return [problem]
    try:
        mean, spread = (float(v) for v in answer)
    except (TypeError, ValueError):
        return [f"paired gave {answer!r}; two numbers were asked for: mean and standard deviation"]
    gains = [m - b for b, m in zip(baseline, method)]
    if _same(mean, -statistics.fmean(gains)):
        return ["paired has the wrong sign: a gain is the method minus the baseline"]
    if not _same(mean, statistics.fmean(gains)):
        return [f"paired: the mean gain is {mean}, expected {statistics.fmean(gains):.4f}"]
    if _same(spread, statistics.stdev(gains)):
        return []
    if _same(spread, statistics.pstdev(gains)):
        return ["paired divides by n: four seeds are a sample, so the standard deviation divides by n - 1"]
    if _same(spread, math.hypot(statistics.stdev(baseline), statistics.stdev(method))):
        return ["paired treats the two as independent: a hard seed is hard for both; take the differences first, then their spread"]
    if _same(spread, statistics.stdev(gains) / math.sqrt(len(gains))):
        return ["paired gave the standard error of the mean; the spread over seeds was asked for"]
    return [f"paired: the spread is {spread}, expected {statistics.stdev(gains):.4f}"]


def check_row_attention_bytes(function) -> list[str]:
    shape = (2, 4, 16, 24, 32)
    tensor = 4 * math.prod(shape)
    for copies, expected in ((False, 4 * tensor), (True, 12 * tensor)):
        answer, problem = attempt(function, *shape, copies)
        if problem:
            return [problem]
        if _same(answer, expected):
            continue
        name = f"row_attention_bytes with copies={copies}"
        if _same(answer, expected / 4):
            return [f"{name} counts numbers; a float32 has four bytes"]
        if _same(answer, 3 * tensor):
            return [f"{name} forgot that the result must be written"]
        if _same(answer, 8 * tensor):
            return [f"{name} counts each permutation once: it reads its input and writes its output"]
        if _same(answer, 10 * tensor):
            return [f"{name} forgot the permutation back: the result returns to the layout of the input"]
        if answer > expected and _same(answer - expected, 2 * tensor * shape[3] / shape[4]):
            return [f"{name} counts the scores: they never leave the chip in a flash-style kernel"]
        return [f"{name} gave {answer}, expected {expected}, which is {expected // tensor} times one tensor"]
    return []


def check(module) -> list[str]:
    parts = (check_times_as_fast, check_floor_ms, check_paired, check_row_attention_bytes)
    return [problem for part in parts for problem in part(getattr(module, part.__name__.removeprefix("check_")))]
