"""Lesson 16's checks accept the solution, and tell each known mistake by its name."""
import math
import statistics


from lessons.check import find, load
from tests.lessons.exercise import proofs

SOLUTION = load(find("solutions", "16"))


def tensor_bytes(b, g, h, w, d):
    return 4 * b * g * h * w * d


WRONG = [
    ("times_as_fast", lambda rounds: statistics.median(a / b for a, b in rounds), "upside down"),
    ("times_as_fast", lambda rounds: sum(b for _, b in rounds) / sum(a for a, _ in rounds), "divides the sums"),
    ("times_as_fast", lambda rounds: statistics.fmean(b / a for a, b in rounds), "averages the ratios"),
    ("times_as_fast", lambda rounds: statistics.median(b for _, b in rounds) / statistics.median(a for a, _ in rounds), "over the whole run"),
    ("times_as_fast", lambda rounds: min(b for _, b in rounds) / min(a for a, _ in rounds), "best rounds"),
    ("times_as_fast", lambda rounds: 1.0, "expected 1.5"),
    ("floor_ms", lambda m, f, e, roof: 1e3 * (m / roof["bytes_per_s"] + f / roof["flops_per_s"] + e / roof["exps_per_s"]), "adds the three"),
    ("floor_ms", lambda m, f, e, roof: 1e3 * min(m / roof["bytes_per_s"], f / roof["flops_per_s"], e / roof["exps_per_s"]), "fastest of the three"),
    ("floor_ms", lambda m, f, e, roof: SOLUTION.floor_ms(m, f, e, roof) / 1e3, "in seconds"),
    ("floor_ms", lambda m, f, e, roof: 1e3 * max(m / roof["bytes_per_s"], f / roof["flops_per_s"]), "forgot the exponentials"),
    ("floor_ms", lambda m, f, e, roof: 1e3 * m / roof["bytes_per_s"], "expected 900"),
    ("paired", lambda b, m: SOLUTION.paired(m, b), "wrong sign"),
    ("paired", lambda b, m: (SOLUTION.paired(b, m)[0], statistics.pstdev(y - x for x, y in zip(b, m))), "divides by n"),
    ("paired", lambda b, m: (SOLUTION.paired(b, m)[0], math.hypot(statistics.stdev(b), statistics.stdev(m))), "independent"),
    ("paired", lambda b, m: (SOLUTION.paired(b, m)[0], SOLUTION.paired(b, m)[1] / math.sqrt(len(b))), "standard error"),
    ("paired", lambda b, m: SOLUTION.paired(b, m)[0], "two numbers"),
    ("row_attention_bytes", lambda b, g, h, w, d, c: SOLUTION.row_attention_bytes(b, g, h, w, d, c) // 4, "four bytes"),
    ("row_attention_bytes", lambda b, g, h, w, d, c: tensor_bytes(b, g, h, w, d) * (12 if c else 3), "must be written"),
    ("row_attention_bytes", lambda b, g, h, w, d, c: tensor_bytes(b, g, h, w, d) * (8 if c else 4), "permutation once"),
    ("row_attention_bytes", lambda b, g, h, w, d, c: tensor_bytes(b, g, h, w, d) * (10 if c else 4), "permutation back"),
    ("row_attention_bytes", lambda b, g, h, w, d, c: SOLUTION.row_attention_bytes(b, g, h, w, d, c) + 8 * b * g * h * w * w, "counts the scores"),
]

test_the_solution_passes, test_the_stubs_are_named, test_known_mistakes_are_named = proofs("16", WRONG, 4)
